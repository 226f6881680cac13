import json
import subprocess
import sys

import notebooks
import pytest

from paramarket import runs
from paramarket.runs.sweep import CHILD


def test_the_child_imports_papermill_and_nothing_of_ours():
    """Each point pays for what it imports; and no file beside child.py may hide another package's module."""
    names = {"papermill", "paramarket", "torch", "numpy", "pandas", "lark"} | {
        path.stem for path in CHILD.parent.glob("*.py")
    }
    code = f"import runpy, sys; runpy.run_path({str(CHILD)!r}); print(*sorted({names} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["papermill"]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_whose_parent_is_gone_starts_nothing(tmp_path):
    call = {"notebook": "none.ipynb", "output": str(tmp_path / "out.ipynb"), "parameters": {}, "row": None, "parent": 1}
    done = subprocess.run([sys.executable, "-P", CHILD, json.dumps(call)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "the worker that started this is gone\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_kernel_is_told_to_end_and_not_interrupted(tmp_path):
    """It might be tidying up still, and would print an error on the user's terminal."""
    cell = f"""import pathlib
def interrupted(*_):
    pathlib.Path({str(tmp_path)!r}, "interrupted").touch()
get_ipython().kernel.saved_sigint_handler = interrupted  # the one that is put back after this cell"""
    notebook = notebooks.write(tmp_path / "a.ipynb", [*notebooks.CODE[:2], cell])
    outcome = runs.run_point(runs.Point(notebook, tmp_path / "out.ipynb", {}, timeout=60))
    assert not outcome.error
    assert not (tmp_path / "interrupted").exists()
