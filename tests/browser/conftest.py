"""A real browser on a real JupyterLab: `python -m paramarket browser` runs these, `python -m paramarket test` does not.

Pictures of what was seen lie in runs/browser, for a person to look at.
"""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
import yaml
from laptop import PATIENCE, WINDOW, a_persons

from paramarket import runs, teach
from paramarket.__main__ import HOME, missing_for_browser

QUICK = yaml.safe_load((HOME / "tests/quick.yaml").read_text())


def until(condition, what, seconds=120):
    """Wait until a condition gives something, and give it back."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"after {seconds} s still no {what}")


@pytest.fixture(scope="session")
def browser():
    missing = missing_for_browser()
    if missing:
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    is_root = getattr(os, "geteuid", lambda: 1)() == 0  # root has no sandbox
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=runs.find_browser(), args=["--no-sandbox"] if is_root else []
        )
        yield opened
        opened.close()


@pytest.fixture
def tab(browser):
    """A fresh browser of a laptop's size, which knows no token."""
    context = browser.new_context(viewport=WINDOW)
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab as `make lab` starts it, on copies with quick parameters: its address, token and folder.

    It is ended as a person ends it, and must leave no process behind.
    """
    folder = tmp_path_factory.mktemp("lab")
    mine, runtime = folder / "mine", folder / "runtime"
    mine.mkdir()
    for path in (HOME / "notebooks").glob("[0-9]*.ipynb"):
        with_quick_parameters(path, mine / path.name)
    solved = mine / "01_train_two_mlps.ipynb"
    teach.student_copy(solved, mine / "student.ipynb")
    environment = a_persons(JUPYTER_CONFIG_DIR=str(folder / "config"), JUPYTER_RUNTIME_DIR=str(runtime))
    root = ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    settings = ["--no-browser", "--LabApp.expose_app_in_browser=True", "--port=0", *root]
    call = [sys.executable, "-m", "paramarket", "lab", "--folder", str(mine), *settings]
    log = folder / "log.txt"
    keyboard, terminal = os.openpty()  # only at a terminal does Jupyter ask before it ends
    with log.open("w") as written:
        server = subprocess.Popen(
            call, env=environment, stdin=terminal, stdout=written, stderr=written, start_new_session=True
        )
    try:
        token = r"http://127\.0\.0\.1:\d+/lab\?token=\w+"
        link = until(lambda: re.search(token, log.read_text()) or server.poll(), "address of JupyterLab")
        assert isinstance(link, re.Match), log.read_text()
        address = urlsplit(link[0])
        yield f"http://{address.netloc}", address.query.removeprefix("token="), mine
        os.killpg(server.pid, signal.SIGINT)  # Ctrl-C
        until(lambda: "Shut down this Jupyter server" in log.read_text(), "question whether to end")
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait(60) == 0, log.read_text()
        until(lambda: not processes_about(runtime), "end of all kernels", 20)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)
        os.close(keyboard)
        os.close(terminal)


def processes_about(folder):
    """The command lines of processes that name a folder; nothing where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text()
        except OSError:  # it has just ended
            continue
        if str(folder) in line:
            found.append(line)
    return found


def with_quick_parameters(path, copy):
    """A copy of a notebook with its quick parameters written into the parameters cell, as a person would."""
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    lines = cell.source.splitlines()
    for node in ast.parse(cell.source).body:
        name = node.target.id
        if name in QUICK[path.stem]:
            at = node.lineno - 1
            lines[at] = f"{name}: {ast.unparse(node.annotation)} = {QUICK[path.stem][name]!r}"
    cell.source = "\n".join(lines)
    nbformat.write(notebook, copy)
