"""Whether a laptop is ready for class: one line a step, and what to do where something is missing.

`python -m paramarket check` runs this file by its path. It imports nothing but Python's own modules, and what may be
missing or broken is tried in a process of its own: so it ends with an answer on every machine.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).resolve().parents[3]
DISK, MEMORY = 2.0, 2.0  # gigabytes that have to be free: downloads and results; a notebook in a browser
LIMIT = 120  # seconds for one step: a slow disk may take one of them for the first import of torch
INSTALL = "Install what requirements.txt lists: `make setup`, or `python -m pip install -r requirements.txt`."
OURSELVES = "Then install the library: `python -m pip install --no-deps --editable .` in the project's folder."

TRAINING = """
import torch
from paramarket import data, stack, train
images = data.load("digits")
net = stack.mlp(64, [32], 10)
models = train.fit(net, stack.init(net, 4, seed=0), images.train, epochs=15, batch=64, lr=1e-2, seed=0).stack
print(f"{train.evaluate(net, models, images.test).accuracy.min():.3f}")
"""
FIGURE = """
import sys
import matplotlib
matplotlib.use("Agg")
import seaborn as sns
sns.lineplot(x=[0, 1, 2], y=[0, 1, 4]).figure.savefig(sys.argv[1])
print(open(sys.argv[1], "rb").read(4)[1:].decode())
"""
KERNEL = """
import sys
import nbformat
from pathlib import Path
from paramarket import runs
tiny = Path(sys.argv[1]) / "tiny.ipynb"
python = {"name": "python3", "display_name": "Python 3", "language": "python"}
cells = [nbformat.v4.new_code_cell("import paramarket; print(6 * 7)")]
nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": python}), tiny)
outcome = runs.run_point(runs.Point(tiny, tiny.with_name("done.ipynb"), {}, 100))
print(outcome.error or nbformat.read(tiny.with_name("done.ipynb"), 4).cells[0].outputs[0].text.strip())
"""


class Finding(NamedTuple):
    """What a step found, and what to do; nothing to do: all is well."""

    found: str
    remedy: str = ""


def check_laptop(home: Path = HOME) -> bool:
    """Go through all steps and print a line for each; whether everything is there. About 20 s.

    home: the project's folder, with requirements.txt and data/
    """
    steps: dict[str, Callable[[], Finding]] = {
        "Python": _python,
        "packages": lambda: _packages(home / "requirements.txt"),
        "disk": lambda: _disk(home),
        "memory": _memory,
        "data": lambda: _data(home / "data"),
        "training": _training,
        "figure": _figure,
        "kernel": _kernel,
        "JupyterLab": _lab,
        "browser": _browser,
    }
    missing = 0
    for number, (name, step) in enumerate(steps.items(), start=1):
        print(f"{number:2} of {len(steps)} · {name} … ", end="", flush=True)
        try:
            finding = step()
        except Exception as error:  # whatever is wrong with this laptop, the other steps still tell
            finding = Finding(f"{type(error).__name__}: {error}", "Show this line to your teacher.")
        print(f"✗ {finding.found}\n           {finding.remedy}" if finding.remedy else f"✓ {finding.found}", flush=True)
        missing += bool(finding.remedy)
    print(f"{missing} of {len(steps)} steps need a hand, see ✗." if missing else "All is ready.")
    return not missing


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036, for an older Python may start this file
        return Finding(f"{version} is too old", "Install Python 3.11 or newer and set up the environment with it.")
    return Finding(f"{version}, {sys.executable}")


def _packages(requirements: Path) -> Finding:
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)", requirements.read_text(encoding="utf-8"), re.M)
    wrong = []
    for name, wanted in pinned:
        try:
            found = metadata.version(name).split("+")[0]  # torch's says behind a + what it was built for
        except metadata.PackageNotFoundError:
            found = "missing"
        if found != wanted.split("+")[0]:
            wrong.append(f"{name} {found}, expected {wanted}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return Finding(f"{'; '.join(wrong[:5])}{more}", INSTALL)
    return Finding(f"{len(pinned)}, as requirements.txt lists them")


def _disk(home: Path) -> Finding:
    free = shutil.disk_usage(home).free / 1e9
    remedy = f"Make room: {DISK:g} GB have to be free." if free < DISK else ""
    return Finding(f"{free:.1f} GB free", remedy)


def _memory() -> Finding:
    try:
        import psutil
    except ImportError:
        return Finding("cannot be read without psutil", INSTALL)
    free = psutil.virtual_memory().available / 1e9
    remedy = f"Close other programs: {MEMORY:g} GB have to be free." if free < MEMORY else ""
    return Finding(f"{free:.1f} GB free", remedy)


def _data(folder: Path) -> Finding:
    """The bundled sets against the sums that data/README.md records."""
    recorded = {}
    for line in (folder / "README.md").read_text(encoding="utf-8").splitlines():
        name, digest = re.search(r"\b([\w-]+\.npz)\b", line), re.search(r"\b[0-9a-f]{64}\b", line)
        if name and digest:
            recorded[name[1]] = digest[0]
    for name, digest in recorded.items():
        path = folder / name
        remedy = f"Restore it: `git checkout -- data/{name}`, or download the project again."
        if not path.is_file():
            return Finding(f"{path} is missing", remedy)
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return Finding(f"{path} is damaged: another SHA-256 than data/README.md records", remedy)
    return Finding(f"{', '.join(recorded)}, whole")


def _run(code: str, *words: str) -> tuple[str, str]:
    """The last line that a process of its own prints, and the last line of its error, or nothing."""
    call = [sys.executable, "-c", code, *words]
    try:
        done = subprocess.run(call, capture_output=True, encoding="utf-8", errors="replace", timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return "", f"not done after {LIMIT} s"
    last = [line for line in done.stderr.splitlines() if line.strip()]
    error = (last[-1] if last else f"the process ended with code {done.returncode}") if done.returncode else ""
    printed = done.stdout.split()
    return printed[-1] if printed else "", error


def _training() -> Finding:
    accuracy, error = _run(TRAINING)
    if error:
        return Finding(error, f"{INSTALL} {OURSELVES}")
    if float(accuracy) < 0.85:
        return Finding(f"four networks are right on {accuracy} of the digits, expected .85", "Show it to your teacher.")
    return Finding(f"four networks are right on {accuracy} of the digits or more")


def _figure() -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        kind, error = _run(FIGURE, str(Path(folder) / "figure.png"))
    if error or kind != "PNG":
        return Finding(error or "no picture was written", INSTALL)
    return Finding("a picture was written")


def _kernel() -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        answer, error = _run(KERNEL, folder)
    if error or answer != "42":
        return Finding(error or f"a small notebook failed: {answer}", f"{INSTALL} {OURSELVES}")
    return Finding("a small notebook ran")


def _lab() -> Finding:
    version, error = _run("import jupyterlab; print(jupyterlab.__version__)")
    return Finding(error, INSTALL) if error else Finding(version)


def _browser() -> Finding:
    try:
        webbrowser.get()
    except webbrowser.Error:  # on Linux without a screen it looks for none of these
        if any(map(shutil.which, ("chromium", "google-chrome", "firefox"))):
            return Finding("one was found, and no screen")
        return Finding("none was found", "Install Firefox, Chrome or Edge, or name yours in the variable BROWSER.")
    return Finding("one was found")


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # Windows' consoles begin with fewer letters
    sys.exit(not check_laptop(Path(sys.argv[1]) if sys.argv[1:] else HOME))
