"""The check of a laptop, in environments that are really broken; each as a process, by the file's path."""

import os
import shutil
import subprocess
import sys

import pytest

from paramarket.__main__ import HOME
from paramarket.teach import laptop

SCRIPT = HOME / "lib/paramarket/teach/laptop.py"


def project(folder):
    """What of the project the check looks at, to be damaged."""
    shutil.copytree(HOME / "data", folder / "data", ignore=shutil.ignore_patterns("mnist", "*.py"))
    shutil.copyfile(HOME / "requirements.txt", folder / "requirements.txt")
    return folder


@pytest.mark.full
@pytest.mark.parametrize("broken", [False, True])
def test_a_laptop_is_judged_step_by_step(tmp_path, broken):
    """Once as it is, with a browser by name; once with a wrong version, a torch that cannot be imported, no data."""
    home = project(tmp_path / "home")
    hidden = tmp_path / "hidden"
    environment = {**os.environ, "BROWSER": sys.executable}
    if broken:
        (hidden / "torch").mkdir(parents=True)
        (hidden / "torch/__init__.py").write_text("raise ImportError('DLL load failed')")
        (hidden / "numpy-1.0.0.dist-info").mkdir()
        (hidden / "numpy-1.0.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0.0\n")
        (home / "data/digits.npz").write_bytes(b"damaged")
        environment["PYTHONPATH"] = os.pathsep.join([str(hidden), environment.get("PYTHONPATH", "")])
    call = [sys.executable, SCRIPT, home]
    done = subprocess.run(call, env=environment, capture_output=True, encoding="utf-8", check=False)
    lines = [line for line in done.stdout.splitlines() if " of 10 · " in line]
    wrong = [line.split(" · ")[1].split(" … ")[0] for line in lines if "✗" in line]
    assert len(lines) == 10
    assert not done.stderr
    if not broken:
        assert (done.returncode, wrong) == (0, [])
        return
    assert (done.returncode, wrong) == (1, ["packages", "data", "training", "kernel"])
    assert "numpy 1.0.0, expected " in lines[1]
    assert "digits.npz is damaged" in lines[4]
    assert "DLL load failed" in lines[5]
    assert "pip install -r requirements.txt" in done.stdout


def test_packages_are_held_against_the_list(tmp_path):
    listed = tmp_path / "requirements.txt"
    listed.write_text("# a list\nno-such-package==1.0\nclick==0.1\n")
    found, remedy = laptop._packages(listed)
    assert "no-such-package missing, expected 1.0; click " in found
    assert "pip install" in remedy
    assert not laptop._packages(HOME / "requirements.txt").remedy


def test_data_are_held_against_their_sums(tmp_path):
    home = project(tmp_path / "home")
    assert laptop._data(home / "data") == ("mnist-5k.npz, digits.npz, whole", "")
    (home / "data/digits.npz").unlink()
    assert "digits.npz is missing" in laptop._data(home / "data").found


def test_a_step_that_breaks_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    """A folder without anything: two steps cannot even begin. (Those that take seconds run above.)"""
    for name in ("_training", "_figure", "_kernel", "_lab", "_browser"):
        monkeypatch.setattr(laptop, name, lambda: laptop.Finding("fine"))
    assert not laptop.check_laptop(tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("✗ FileNotFoundError") == 2
    assert "2 of 10 steps need a hand" in printed


def test_it_needs_nothing_but_python_to_begin():
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "paramarket", "click", "psutil"} & set(done.stdout.split())
