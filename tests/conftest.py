"""What every test shares: one thread each, no window, and two small models' worth of data."""

import hashlib
import json
import os
import sys

os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg", "TQDM_DISABLE": "1"})

import filelock
import hypothesis
import pytest
import torch

sys.modules["rfc3987_syntax"] = None  # nbformat waits seconds for its grammar: see paramarket/runs/child.py
torch.set_num_threads(1)
hypothesis.settings.register_profile("house", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items):
    """Whole notebooks first: nobody ends alone with a long one."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def digits():
    from paramarket import data

    return data.load("digits")


@pytest.fixture(scope="session")
def run_once(tmp_path_factory, worker_id):
    """Runs a notebook with these parameters, once for all tests of all processes: the path of what papermill left."""
    from paramarket import runs

    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "notebooks"
    folder.mkdir(exist_ok=True)

    def run(path, parameters):
        key = hashlib.sha256(json.dumps([str(path), parameters], sort_keys=True).encode()).hexdigest()[:12]
        output = folder / f"{path.stem}-{key}.ipynb"
        with filelock.FileLock(f"{output}.lock"):
            if not output.exists():
                outcome = runs.run_point(runs.Point(path, output, parameters, timeout=300))
                assert not outcome.error, outcome.error
        return output

    return run


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def drawn(monkeypatch):
    """Draws the current figure in full and gives its axes: a broken label or tick would raise."""
    import matplotlib.pyplot as plt

    from paramarket import plot

    def axes():
        figure = plt.gcf()
        figure.canvas.draw()
        return figure.axes

    monkeypatch.setattr(plt, "show", lambda: None)
    plot.style()
    yield axes
    plt.close("all")
