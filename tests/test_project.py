"""What holds of the project's files: one list of pins on every road, a README that lists what exists."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version

import notebooks
import pytest
import yaml

from paramarket import runs
from paramarket.__main__ import HOME, SHOWN

PINS = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (HOME / "requirements.txt").read_text(), re.M))
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
NAMED = {"jupyterlab", "torch", "torchvision", "numpy", "scipy", "seaborn", "papermill"}


def name(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def is_ours(path):
    """In the repository's own folders: no environment, no results."""
    inside = path.relative_to(HOME).parts[:-1]
    return not inside or inside[0] in ("docs", "data", "notebooks", "lib", "tests")


def test_requirements_are_exact_and_cover_the_project():
    lines = [line for line in (HOME / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS)
    wanted = {name(each) for each in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]}
    assert wanted <= {pin.lower() for pin in PINS}
    assert wanted >= NAMED
    assert (PINS["torch"], PINS["torchvision"]) == ("2.13.0", "0.28.0")


def test_this_environment_is_the_pinned_one():
    assert {pin: version(pin).split("+")[0] for pin in PINS} == PINS


def test_the_conda_road_installs_the_same_list():
    environment = yaml.safe_load((HOME / "environment.yml").read_text())
    assert environment["name"] == "paramarket"
    assert "nodefaults" in environment["channels"]
    (pip,) = [each["pip"] for each in environment["dependencies"] if isinstance(each, dict)]
    assert pip == ["-r requirements.txt", "--editable ."]


def test_ci_runs_what_a_person_runs():
    script = (HOME / ".ci/run").read_text()
    assert script.index("make test FULL=1") < script.index("make browser") < script.index("make notebooks")
    assert "-m paramarket browser" in (HOME / "Makefile").read_text()
    assert "-m paramarket test $(if $(FULL),--full)" in (HOME / "Makefile").read_text()
    workflow = yaml.safe_load((HOME / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["all"]["steps"]
    matrix = workflow["jobs"]["platforms"]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"][0] == PROJECT["requires-python"].removeprefix(">=")
    assert any(step.get("run") == ".ci/run" for step in steps)
    assert {"runs/latest", "runs/browser"} <= {step.get("with", {}).get("path") for step in steps}


def test_what_ci_has_run_is_published_from_the_main_branch_only():
    workflow = yaml.safe_load((HOME / ".github/workflows/ci.yml").read_text())
    publish = workflow["jobs"]["publish"]
    assert workflow["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    assert publish["needs"] == "all"
    assert publish["if"] == "github.event_name == 'push' && github.ref == 'refs/heads/main'"
    done = [step.get("run") or step["uses"].split("@")[0] for step in publish["steps"]]
    last = ["actions/download-artifact", "make site", "actions/upload-pages-artifact", "actions/deploy-pages"]
    assert done[-4:] == last
    assert publish["steps"][-2]["with"]["path"] == "runs/site"


def test_the_readme_shows_the_term_sheet_and_one_small_figure_an_act():
    shown = re.findall(r"!\[[^\]]{60,}\]\(docs/(\w+)\.png\)", (HOME / "README.md").read_text())
    assert shown == ["term_sheet", *SHOWN]
    for name in shown:
        assert (HOME / f"docs/{name}.png").stat().st_size < 60_000


def test_the_readme_lists_the_notebooks_that_exist():
    readme = (HOME / "README.md").read_text()
    listed = re.findall(r"notebooks/([\w]+\.ipynb)\)", readme)
    assert sorted(set(listed)) == sorted(path.name for path in (HOME / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize(
    "page", [path.relative_to(HOME) for path in sorted(HOME.glob("**/*.md")) if is_ours(path)], ids=str
)
def test_what_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (HOME / page).read_text(encoding="utf-8")):
        assert (HOME / page.parent / target).exists(), target


def test_the_library_page_lists_every_room():
    listed = re.findall(r"^\| `(\w+)` \|", (HOME / "docs/library.md").read_text(encoding="utf-8"), re.M)
    rooms = [path.stem for path in (HOME / "lib/paramarket").iterdir() if not path.stem.startswith("_")]
    assert sorted(listed) == sorted(rooms)


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHOW = f"import os; print(*[os.environ.get(name, '-') for name in {WAITING}])"


def run_python(*words, **variables):
    """A fresh Python of this environment, told nothing of how threads wait but by `variables`: what it wrote."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | variables
    call = [sys.executable, *map(str, words)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has another OpenMP")
def test_threads_spin_for_a_moment_only_wherever_torch_is_loaded_first():
    shown = run_python("-c", "import torch", OMP_DISPLAY_ENV="VERBOSE")  # OpenMP says at its start what it has read
    assert re.search(r"GOMP_SPINCOUNT *= *'3000'", shown)


def test_a_users_own_way_to_wait_stands():
    assert run_python("-c", SHOW) == "- 3000\n"
    assert run_python("-c", SHOW, OMP_WAIT_POLICY="active") == "active -\n"
    assert run_python("-c", SHOW, GOMP_SPINCOUNT="7") == "- 7\n"


def test_every_kernel_waits_in_the_same_way(tmp_path, monkeypatch):
    """However it was started: here by plain papermill, and as a point of a sweep."""
    notebook = notebooks.write(tmp_path / "policy.ipynb", ["import os", "value: int = 1", SHOW])
    run_python("-m", "papermill", notebook, tmp_path / "papermill.ipynb")
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    assert not runs.run_point(runs.Point(notebook, tmp_path / "sweep.ipynb")).error
    for output in ("papermill.ipynb", "sweep.ipynb"):
        assert notebooks.printed(tmp_path / output) == "- 3000\n"
