"""What holds of the project's files: one list of pins on every road, a README that lists what exists."""

import re
import tomllib
from importlib.metadata import version

import yaml

from paramarket.__main__ import HOME

PINS = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (HOME / "requirements.txt").read_text(), re.M))
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
NAMED = {"jupyterlab", "torch", "torchvision", "numpy", "scipy", "seaborn", "papermill"}


def name(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


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
    assert script.index("make test") < script.index("make notebooks")
    workflow = yaml.safe_load((HOME / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["all"]["steps"]
    assert any(step.get("run") == ".ci/run" for step in steps)
    assert any(step.get("with", {}).get("path") == "runs/latest" for step in steps)


def test_the_readme_lists_the_notebooks_that_exist():
    readme = (HOME / "README.md").read_text()
    listed = re.findall(r"notebooks/([\w]+\.ipynb)\)", readme)
    assert sorted(set(listed)) == sorted(path.name for path in (HOME / "notebooks").glob("[0-9]*.ipynb"))
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (HOME / target).exists(), target
