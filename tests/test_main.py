import os
import re
import subprocess
import sys

import nbformat
import notebooks
import pytest
from click.testing import CliRunner

from paramarket import runs
from paramarket.__main__ import HOME, _bring_up_to_date, _read_list, _read_parameters, cli

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
NOTEBOOK = HOME / "notebooks/01_train_two_mlps.ipynb"


def command(*words):
    """The command line without a process: exit code, what was printed, what was said of errors."""
    done = CliRunner().invoke(cli, [str(word) for word in words], prog_name="python -m paramarket")
    return done.exit_code, done.stdout, done.stderr


def process(*words):
    """The command line as a person uses it."""
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)


def test_help_names_every_command_and_imports_nothing_heavy():
    done = process("-X", "importtime", "-m", "paramarket", "--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in cli.commands)
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.M))
    assert {"click", "yaml"} <= imported
    assert {name for name in imported if name.startswith("paramarket")} == {"paramarket", "paramarket.errors"}
    assert not imported & {"torch", "numpy", "pandas", "IPython", "papermill", "nbformat", "nbconvert"}


# What takes long to import, and no room needs before one of its functions is called.
HEAVY = {"matplotlib", "seaborn", "scipy", "IPython", "ipywidgets", "torchvision", "PIL", "papermill", "nbformat"}
HEAVY |= {"nbconvert", "jinja2", "latex2mathml", "jsonschema"}


def test_all_rooms_open_without_what_only_some_of_their_functions_need():
    """They cost little more than torch: a notebook waits for what it uses."""
    rooms = [path.stem for path in (HOME / "lib/paramarket").iterdir() if not path.stem.startswith("_")]
    done = process("-c", f"from paramarket import {', '.join(rooms)}; import sys; print(*sys.modules)")
    assert not done.stderr
    loaded = set(done.stdout.split())
    assert {f"paramarket.{room}" for room in rooms} | {"torch"} <= loaded
    assert not {name.split(".")[0] for name in loaded} & HEAVY
    assert "torch._dynamo" not in loaded


def test_errors_are_one_line_and_an_exit_code(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = process("-m", "paramarket", "notebooks", "--out", tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: --out .* holds something else than results; .*\n", done.stderr)
    assert not done.stdout


def test_what_a_console_cannot_write_stops_no_command(tmp_path):
    """As on Windows, where a pipe has 256 letters: no ✓ and no 九."""
    (tmp_path / "p.yaml").write_text("九: {width: 3}\n", encoding="utf-8")
    call = [sys.executable, "-m", "paramarket", "notebooks", "--parameters", tmp_path / "p.yaml"]
    done = subprocess.run(call, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 1
    assert b"unknown notebook '?'" in done.stderr


def test_a_failing_notebook_is_named_with_its_cell_and_stops_no_other(tmp_path):
    notebooks.write(tmp_path / "01_good.ipynb")
    notebooks.write(tmp_path / "02_bad.ipynb")
    (tmp_path / "p.yaml").write_text("01_good: {value: 9}\n02_bad: {value: 10}\n")
    code, out, err = command(
        "notebooks", *tmp_path.glob("*.ipynb"), "--parameters", tmp_path / "p.yaml", "--out", tmp_path / "out"
    )
    assert code == 1
    assert "1 of 2 notebooks ran" in out
    assert "FAILED 02_bad.ipynb: cell [4] raised ValueError: 10 is too much\n" in err
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("01_train_two_mlps: 3", r"01_train_two_mlps is 3, expected `01_train_two_mlps: \{parameter: value\}`"),
        ("01_train_two_mlps: [width, 3]", r"01_train_two_mlps is \['width', 3\], expected"),
        ("01_train_two_mlps: 0", r"01_train_two_mlps is 0, expected"),
        ("42", r"holds 42, expected `notebook name"),
        ("0", r"holds 0, expected `notebook name"),
        ("false", r"holds False, expected"),
        ("1: {width: 3}", r"unknown notebook 1\."),
        ("01_train_two_mlps: {width: 3, width: 4}", r"p\.yaml is no readable YAML file \(line 1: 'width' stands there"),
        ("a: &a [1]\nb: *a", r"p\.yaml is no readable YAML file \(line 2: \*a, write out what it stands for"),
        ("01_train_two_mlps: {width: 2020-13-45}", r"p\.yaml is no readable YAML file \(month must be in 1"),
        ("01_train_two_mlps: {width: !!int x}", r"p\.yaml is no readable YAML file"),
        ("01_train_two_mlps: {width: !!python/name:os.system }", r"p\.yaml is no readable YAML file"),
        ("01_train_two_mlps: {[1]: 3}", r"p\.yaml is no readable YAML file"),
        ("[" * 5000, r"p\.yaml is no readable YAML file"),
        ("a: b: c", r"p\.yaml is no readable YAML file"),
        ("a: 1\n--- \nb: 2", r"p\.yaml is no readable YAML file"),
        ("01_train_two_mlps: {width: 2020-12-24}", r"width = datetime\.date\(2020, 12, 24\): give numbers"),
        ("01_train_two_mlps: {width: !!set {a}}", r"width = \{'a'\}: give numbers"),
        ("01_train_two_mlps: {1: 3}", r"01_train_two_mlps has a parameter called 1, expected a name"),
        ("- 01_train_two_mlps", r"holds \['01_train_two_mlps'\], expected `notebook name: \{parameter: value\}`"),
        ("01_train_two_mlps: {width: 3", r"p\.yaml is no readable YAML file"),
    ],
)
def test_a_parameters_file_of_the_wrong_form_is_named(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    code, _, err = command("notebooks", "--parameters", tmp_path / "p.yaml", "--out", tmp_path / "out")
    assert code == 1
    assert re.match(r"Error: .*" + message, err)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["", "\n", "# all of it commented out\n", "~", "{}", "01_one:\n  # value: 5\n", "01_one: {}"]
)
def test_nothing_means_no_parameters(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    found = _read_parameters(tmp_path / "p.yaml", ["01_one"])
    assert found == ({"01_one": {}} if "01_one" in text else {})


@pytest.mark.parametrize("text", ["", "01_one:\n  # value: 5\n"])
def test_a_notebook_runs_without_parameters(tmp_path, text):
    notebooks.write(tmp_path / "01_one.ipynb")
    (tmp_path / "p.yaml").write_text(text)
    words = ("--parameters", tmp_path / "p.yaml", "--out", tmp_path / "out")
    code, out, _ = command("notebooks", tmp_path / "01_one.ipynb", *words)
    assert code == 0
    assert "1 of 1 notebooks ran" in out


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \x00", b"a: '\x07'"])
def test_a_parameters_file_that_is_no_text_is_named(tmp_path, content):
    (tmp_path / "p.yaml").write_bytes(content)
    code, _, err = command("notebooks", "--parameters", tmp_path / "p.yaml", "--out", tmp_path / "out")
    assert code == 1
    assert re.match(r"Error: .*p\.yaml is no readable YAML file", err)
    assert err.count("\n") == 1


def test_without_a_browser_nothing_is_checked_and_it_is_said(monkeypatch):
    monkeypatch.delenv("BROWSER_PROGRAM", raising=False)
    monkeypatch.setenv("PATH", "")
    code, out, _ = command("browser")
    assert code == 0
    assert re.fullmatch(r"Nothing was checked in a browser: no (browser|Playwright) here, .*\.\n", out)


def test_the_tests_follow_lint_and_in_full_only_the_rare_are_left_out(monkeypatch):
    calls, codes = [], iter([0, 0, 0, 0, 0, 0, 1])
    monkeypatch.setattr(
        "paramarket.__main__.subprocess.run",
        lambda call, **_: calls.append(call[2:]) or subprocess.CompletedProcess(call, next(codes)),
    )
    assert command("test", "-k", "stack")[0] == 0
    assert command("test", "--full")[0] == 0
    assert command("test")[0] == 1  # lint found something: that is all
    lint = [["ruff", "check", "."], ["ruff", "format", "--check", "."]]
    assert calls == [*lint, ["pytest", "-k", "stack"], *lint, ["pytest", "-m", "not rare"], lint[0]]


@pytest.fixture
def full_run(tmp_path, monkeypatch):
    """A home with two notebooks and what a full run of them leaves."""
    home = tmp_path / "home"
    latest = home / "runs/latest"
    for folder in (home / "notebooks", home / "docs", latest):
        folder.mkdir(parents=True)
    monkeypatch.setattr("paramarket.__main__.HOME", home)
    monkeypatch.setattr("paramarket.__main__.LATEST", latest)
    monkeypatch.setattr("paramarket.__main__.SHOWN", ["02_second"])
    picture = nbformat.v4.new_output("display_data", data={"image/png": PIXEL})
    points = []
    for name in ("01_first.ipynb", "02_second.ipynb"):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[picture])])
        nbformat.write(notebook, home / "notebooks" / name)
        nbformat.write(notebook, latest / name)
        points.append(runs.Point(home / "notebooks" / name, latest / name))
    runs.build_pages([runs.RunOutcome(point, 1.0, "") for point in points], latest)
    return home


def test_a_site_is_the_index_and_the_pages_and_nothing_else(full_run, tmp_path):
    code, out, _ = command("site", "--out", tmp_path / "site")
    assert code == 0
    assert "Open " in out
    pages = {path.name: path.read_text() for path in (tmp_path / "site").iterdir()}
    assert sorted(pages) == ["01_first.html", "02_second.html", "index.html"]
    assert all(text == (full_run / "runs/latest" / name).read_text() for name, text in pages.items())
    (tmp_path / "site/03_old.html").write_text(pages["index.html"])
    assert command("site", "--out", tmp_path / "site")[0] == 0  # an older site is replaced
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == sorted(pages)


@pytest.mark.parametrize("name", ["thesis.tex", "index.html"])
def test_a_site_never_replaces_something_else(full_run, tmp_path, name):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("years of work")
    code, _, err = command("site", "--out", tmp_path / "site")
    assert code == 1
    assert "holds something else than our pages" in err
    assert (tmp_path / "site" / name).read_text() == "years of work"


def test_figures_are_small_pictures_of_the_acts(full_run, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no browser
    code, _, err = command("figures")
    assert code == 0
    assert err == "docs/term_sheet.png stays as it is: no Chromium here.\n"
    (picture,) = (full_run / "docs").iterdir()
    assert picture.name == "02_second.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["site", "figures", "results"])
def test_what_is_made_of_a_full_run_needs_one(full_run, name):
    (full_run / "runs/latest/02_second.ipynb").rename(full_run / "runs/latest/02_second.failed.ipynb")
    code, _, err = command(name)
    assert code == 1
    assert err == "Error: runs/latest does not hold a full run: run `python -m paramarket notebooks` first.\n"
    assert not list((full_run / "docs").iterdir())
    assert not (full_run / "RESULTS.md").exists()


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


@pytest.mark.full
def test_lab_works_on_copies_and_keeps_what_is_there(tmp_path):
    """JupyterLab itself is started, to tell its version; tests/browser opens it in a browser."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / NOTEBOOK.name).write_text("{ half a notebook")
    (mine / "thesis.txt").write_text("years of work")
    tracked = NOTEBOOK.read_bytes()
    done = process("-m", "paramarket", "lab", "--folder", mine, "--version")
    assert done.returncode == 0, done.stderr
    copied = {path.name for path in (HOME / "notebooks").glob("[0-9]*.ipynb")}
    assert {path.name for path in mine.iterdir()} == copied | {"thesis.txt"}
    assert (mine / NOTEBOOK.name).read_text() == "{ half a notebook"
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert f"{mine / NOTEBOOK.name} is no readable notebook. Move it away" in done.stdout
    assert f"Your work is kept in {mine.resolve()};" in done.stdout
    assert NOTEBOOK.read_bytes() == tracked


def test_lab_says_in_a_line_what_became_of_an_old_copy(full_run, tmp_path, capsys):
    mine = tmp_path / "mine"
    first, second = sorted((full_run / "notebooks").iterdir())
    _bring_up_to_date(mine)
    assert capsys.readouterr().out == ""
    (mine / first.name).write_text((mine / first.name).read_text().replace('"x"', '"my_own"'))
    for path in (first, second):
        path.write_text(path.read_text().replace('"x"', '"newer"'))
    _bring_up_to_date(mine)
    edited, renewed = capsys.readouterr().out.splitlines()
    assert edited.startswith(f"{mine / first.name}: ")
    assert edited.endswith("Rename yours and start again to get the new one.")
    assert renewed.startswith(f"{mine / second.name}: ")
    assert renewed.endswith("this is the new one.")
    assert '"my_own"' in (mine / first.name).read_text()
    _bring_up_to_date(mine)
    assert capsys.readouterr().out.splitlines() == [edited]


def test_a_folder_that_lab_cannot_write_is_named(tmp_path):
    (tmp_path / "mine").write_text("no folder")
    code, _, err = command("lab", "--folder", tmp_path / "mine")
    assert code == 1
    assert re.fullmatch(r"Error: .*mine.* cannot be written \(.*\): name another folder, --folder\.\n", err)


def test_the_class_game_is_played_told_and_only_kept_when_asked(tmp_path, monkeypatch):
    kept = tmp_path / "class_game.csv"
    monkeypatch.setattr("paramarket.market.class_game.CLASS_GAME", kept)
    code, told, _ = command("classes", "--classes", 2, "--seed", 3)
    assert code == 0
    lines = re.findall(r"The honest wins .* euros \(.* to .*\) more than '([\w, ]+)', the others '(\w+)", told)
    assert lines[:2] == [("noise", "honest"), ("sandbag", "honest")]
    assert lines[-1] == ("half training", "two")
    assert len(lines) == 8 + 3
    assert not kept.exists()
    assert command("classes", "--classes", 2, "--seed", 3, "--keep")[:2] == (code, told)
    rows = kept.read_text().splitlines()
    assert len(rows) == 1 + 2 * (9 + 4)
    assert all(row.endswith(",3") for row in rows[1:])


def sweep(notebook, folder, *words):
    return command("sweep", notebook, "--out", folder, "--workers", 2, *words)


@pytest.mark.full
def test_a_sweep_is_one_line_and_says_how_to_draw_what_it_found(tmp_path, monkeypatch):
    notebook = notebooks.write(tmp_path / "square.ipynb", [*notebooks.CODE, notebooks.RECORD])
    code, out, err = sweep(notebook, tmp_path / "out", "--grid", "value=1:3,99", "--set", "nap=1e-3")
    assert code == 1
    assert f"Points that ran: 2 · that were there: 0 · that failed: 1 · in {tmp_path / 'out'}\n" in out
    assert "table.parquet and table.csv: 3\n" in out
    assert "FAILED value=99: cell [4] raised ValueError: 99 is too much\n" in err
    figure = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    assert len(figure) == 2
    monkeypatch.setenv("MPLBACKEND", "Agg")
    done = process("-c", "\n".join(["import pandas as pd, seaborn as sns", *figure, "print(len(table))"]))
    assert done.stdout == "3\n", done.stderr

    code, out, err = sweep(notebook, tmp_path / "out", "--grid", "value=2,99", "--set", "nap=0.001", "--part", "2/2")
    assert code == 1
    assert "Points that ran: 0 · that were there: 0 · that failed: 1" in out
    assert "--retry runs them again" in err
    assert "table.csv" not in out  # one of several jobs: `gather` writes the table when all have ended
    assert "table.csv: 3\n" in command("gather", tmp_path / "out")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "value=1,2", "--set", "value=3"], "value is in the grid and among the fixed parameters"),
        (["--grid", "valu=1,2"], r"square.ipynb: unknown parameter 'valu'. Did you mean 'value'\?"),
        (["--grid", "value=a,2"], "square.ipynb: value = 'a' is of type str, expected int"),
        (["--grid", "value=1:30:2"], "square.ipynb: value = '1:30:2' is of type str, expected int"),
        (["--grid", "value=5:5"], "value=5:5: 5:5 is no range: the second number must be the larger one"),
        (["--grid", "value"], "--grid value: expected NAME=VALUE, width=64 say"),
        (["--grid", "value=1", "--grid", "value=2"], "--grid value=2: value stands there twice"),
        (["--set", "nap=[1"], r"nap=\[1 cannot be read as YAML"),
        (["--part", "3/2"], "--part 3/2: expected K/N, K from 1 to N: 3/50 say"),
        (["--part", "0/2"], "--part 0/2: expected K/N"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--workers is for this machine, --scheduler for another"),
    ],
)
def test_a_sweep_refuses_before_anything_runs(tmp_path, words, message):
    notebook = notebooks.write(tmp_path / "square.ipynb")
    code, _, err = sweep(notebook, tmp_path / "out", *words)
    assert code == 1
    assert re.match(rf"Error: {message}", err)
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("64,128,256", [64, 128, 256]),
        ("0:5", [0, 1, 2, 3, 4]),
        ("-2:1,7", [-2, -1, 0, 7]),
        ("[64,128],[256]", [[64, 128], [256]]),
        ("[64, 128]", [[64, 128]]),
        ("1e-3,2,.5,-1E+2,1_000", [0.001, 2, 0.5, -100.0, 1000]),
        ("mnist-5k,digits", ["mnist-5k", "digits"]),
        ("true,False", [True, False]),
        ("'1:3',007", [1, 2, "007"]),
        ("", []),
    ],
)
def test_values_of_a_grid_are_yaml_and_ranges(text, values):
    assert _read_list("name", text) == values
    assert [type(value) for value in _read_list("name", text)] == [type(value) for value in values]


def test_a_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch):
    notebook = notebooks.write(tmp_path / "square.ipynb")
    words = ["sweep", notebook, "--out", tmp_path / "out", "--scheduler"]
    code, _, err = command(*words, "nowhere")
    assert code == 1
    assert err.startswith("Error: --scheduler nowhere: no dask scheduler answers there (")
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, _, err = command(*words, "tcp://127.0.0.1:1")
    assert code == 1
    assert err == "Error: --scheduler needs dask.distributed: pip install 'paramarket[cluster]'.\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_no_sweep_has_made_has_no_table(tmp_path):
    code, _, err = command("gather", tmp_path)
    assert code == 1
    assert err.startswith(f"Error: {tmp_path} is no folder of a sweep")
