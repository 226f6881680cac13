import shutil
import subprocess
import sys

import pytest

from paramarket.__main__ import HOME

NOTEBOOK = HOME / "notebooks/01_train_two_mlps.ipynb"


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "paramarket", *map(str, words)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_command():
    code, out, _ = command("--help")
    assert code == 0
    assert all(name in out for name in ("notebooks", "test", "lab", "student"))


def test_a_failing_notebook_is_named_with_its_cell_and_stops_no_other(tmp_path):
    shutil.copy(NOTEBOOK, tmp_path / "01_good.ipynb")
    shutil.copy(NOTEBOOK, tmp_path / "02_bad.ipynb")
    (tmp_path / "p.yaml").write_text(
        "01_good: {dataset: digits, width: 8, depth: 1, pairs: 2, epochs: 1}\n02_bad: {width: -1}\n"
    )
    code, out, err = command(
        "notebooks", *tmp_path.glob("*.ipynb"), "--parameters", tmp_path / "p.yaml", "--out", tmp_path / "out"
    )
    assert code == 1
    assert "1 of 2 notebooks ran" in out
    assert "FAILED 02_bad.ipynb: cell [4] raised ParameterError: width = -1 is out of range, expected 2 … 4096." in err
    assert "Traceback" not in err.split("FAILED")[1]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        ".paramarket",
        "01_good.html",
        "01_good.ipynb",
        "02_bad.failed.ipynb",
        "02_bad.html",
        "index.html",
        "results.md",
    ]


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "p.yaml").write_text("01_train_two_mlps: {widht: 3}\n")
    code, _, err = command("notebooks", "--parameters", tmp_path / "p.yaml", "--out", tmp_path / "out")
    assert code == 1
    assert err.startswith(
        "Error: 01_train_two_mlps.ipynb: unknown parameter 'widht'. Did you mean 'width'? Known: batch,"
    )
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ours", [[], ["results.md"]])
def test_results_never_replace_something_else(tmp_path, ours):
    for name in ["thesis.tex", *ours]:
        (tmp_path / name).write_text("years of work")
    (tmp_path / ".paramarket").write_text("\n".join(ours))
    code, _, err = command("notebooks", "--out", tmp_path)
    assert code == 1
    assert "holds something else than results" in err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_parameters_for_an_unknown_notebook_are_refused(tmp_path):
    (tmp_path / "p.yaml").write_text("01_train_two_mlp: {width: 3}\n")
    code, _, err = command("notebooks", "--parameters", tmp_path / "p.yaml", "--out", tmp_path / "out")
    assert code == 1
    assert "unknown notebook '01_train_two_mlp'. Did you mean '01_train_two_mlps'?" in err


@pytest.mark.parametrize("missing", ["notebooks", "student"])
def test_a_notebook_that_does_not_exist_is_named(missing):
    code, _, err = command(missing, "nowhere.ipynb")
    assert code == 2
    assert "'nowhere.ipynb' does not exist" in err


def test_student_copies_are_written(tmp_path):
    code, _, _ = command("student", NOTEBOOK, "--out", tmp_path)
    assert code == 0
    text = (tmp_path / NOTEBOOK.name).read_text()
    assert "BEGIN SOLUTION" not in text
    assert text.count("raise NotImplementedError") == 3
    (tmp_path / NOTEBOOK.name).write_text("a learner's work")
    code, _, err = command("student", NOTEBOOK, "--out", tmp_path)
    assert code == 1
    assert "exists already" in err
    assert (tmp_path / NOTEBOOK.name).read_text() == "a learner's work"
