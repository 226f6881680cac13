"""One run of a notebook in a process of its own: `sweep` runs this file by its path.

It imports papermill and nothing of paramarket, so no torch: only the notebook's kernel has to wait for that.

On its way papermill imports jsonschema, which builds the grammar of international addresses (RFC 3987) if it finds the
package for it: more than a second, four times the rest, in every run of a sweep. No notebook holds such an address.
And it imports pyarrow, and so numpy, in case a notebook lies in a Hadoop file system.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

sys.modules["rfc3987_syntax"] = None  # as if it were not installed
sys.modules["pyarrow"] = None

import papermill  # noqa: E402
from jupyter_client import AsyncKernelManager  # noqa: E402
from nbclient.exceptions import DeadKernelError  # noqa: E402
from traitlets.config import Config  # noqa: E402

PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
KERNEL_DIED = 75  # the exit code that says so: a run worth another try


class PatientManager(AsyncKernelManager):
    """Tells a kernel to end without interrupting it first.

    All its cells have run by then, or one has failed, so there is nothing to interrupt. One kernel in fifteen still
    tidies up after its last cell: it would tell the user of an ERROR, that it caught a KeyboardInterrupt.
    """

    async def _async_interrupt_kernel(self) -> None:  # what `shutdown_kernel` calls first, in jupyter_client 8
        pass


def run_notebook(notebook: str, output: str, parameters: dict, row: int | None, sockets: str) -> None:
    """Execute with papermill into `output`.

    row: the terminal line of the progress bar, None for silence
    sockets: an empty folder for this run's kernel
    """
    progress = False
    if row is not None:
        progress = {"desc": Path(notebook).stem, "position": row, "leave": True, "unit": "cell"}
    try:
        papermill.execute_notebook(notebook, output, parameters, progress_bar=progress, config=kernel_settings(sockets))
    except Exception as error:  # whatever stopped it, dead kernels too: one line here, the parent names the cell
        print(f"{notebook}: {(str(error).strip() or repr(error)).splitlines()[-1]}", file=sys.stderr)
        sys.exit(KERNEL_DIED if isinstance(error, DeadKernelError) else 1)


def kernel_settings(sockets: str) -> Config:
    """Kernels talk through files of a fresh folder, not TCP ports, which kernels that start together fight over.

    One in ten does not end when it is asked to. By then all it printed has arrived: half a second is enough to wait.
    """
    patience = {"shutdown_wait_time": 1.0}  # seconds; after half of it the kernel is told to end, at its end killed
    files = {} if sys.platform == "win32" else {"transport": "ipc", "connection_file": f"{sockets}/k.json"}
    return Config({"NotebookClient": {"kernel_manager_class": PatientManager}, "KernelManager": patience | files})


def end_with_parent(parent: int) -> None:
    """Do not outlive a killed worker: Linux ends this process when its parent dies.

    More exactly, when the thread that started it ends: that thread waits for it, so it cannot end before.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            sys.exit("the worker that started this is gone")


if __name__ == "__main__":
    call = json.loads(sys.argv[1])
    end_with_parent(call.pop("parent"))
    run_notebook(**call)
