"""Sweeps on dask, as on a cluster: a real scheduler and real worker processes, some of which are killed."""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import notebooks
import pytest

from paramarket import runs

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one thread, each a process that is started again when it dies."""
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    with distributed.LocalCluster(**settings, local_directory=str(tmp_path_factory.mktemp("dask"))) as cluster:
        yield cluster


@pytest.fixture
def executor(cluster):
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
        yield client.get_executor(pure=False, retries=3)


def worker_of(value, folder):
    """The process of the worker that runs a point: the parent of its child."""
    for process in notebooks.running(f"{folder}/sweep"):
        call = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
        given = [json.loads(word) for word in call if word.startswith("{")]
        if given and given[0]["parameters"]["value"] == value:
            return given[0]["parent"]
    raise AssertionError(f"no process runs the point {value}")


def test_twelve_points_on_two_workers_are_twelve_results_and_the_same_table_as_here(executor, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    notebook = notebooks.write_logged(tmp_path / "logged.ipynb", tmp_path / "log")
    grid = {"value": list(range(-3, 9))}
    outcomes = list(runs.execute(runs.points(notebook, grid, tmp_path / "dask"), executor))
    assert [outcome.error for outcome in outcomes] == [""] * 12
    assert notebooks.logged(tmp_path / "log", "ended") == list(range(-3, 9))
    with ThreadPoolExecutor(2) as threads:
        list(runs.execute(runs.points(notebook, grid, tmp_path / "here"), threads))
    tables = [runs.gather(tmp_path / name).drop(columns="seconds") for name in ("dask", "here")]
    assert tables[0].to_csv() == tables[1].to_csv()
    assert tables[0].dtypes.equals(tables[1].dtypes)


def test_a_killed_worker_costs_another_try_and_no_result(executor, tmp_path):
    notebook = notebooks.write_logged(tmp_path / "logged.ipynb", tmp_path / "log")
    points = runs.points(notebook, {"value": list(range(-3, 9)), "nap": [2.0]}, tmp_path / "sweep")
    outcomes, lost = [], []
    for outcome in runs.execute(points, executor):
        outcomes.append(outcome)
        if len(outcomes) == 2:
            # Kill when a nap has just begun: a point that has ended but has no name yet would rightly run again.
            until = time.monotonic() + 60
            began = already = set(notebooks.logged(tmp_path / "log", "began"))
            while began == already and time.monotonic() < until:
                began = set(notebooks.logged(tmp_path / "log", "began"))
            lost = notebooks.running(f"{tmp_path}/sweep")
            os.kill(worker_of(max(began - already), tmp_path), signal.SIGKILL)
    assert [outcome.error for outcome in outcomes] == [""] * 12
    assert sorted(outcome.point.hash for outcome in outcomes) == sorted(point.hash for point in points)
    assert notebooks.logged(tmp_path / "log", "ended") == list(range(-3, 9))
    assert 12 < len(notebooks.logged(tmp_path / "log", "began")) <= 14
    assert lost
    until = time.monotonic() + 30
    while notebooks.running(f"{tmp_path}/sweep") and time.monotonic() < until:
        time.sleep(0.1)
    assert notebooks.running(f"{tmp_path}/sweep") == []
    assert len(runs.gather(tmp_path / "sweep")) == 12


def test_what_raises_what_hangs_and_what_cannot_be_renamed_are_named_and_the_rest_is_unharmed(executor, tmp_path):
    notebook = notebooks.write_logged(tmp_path / "logged.ipynb", tmp_path / "log")
    folder = tmp_path / "sweep"
    good = runs.points(notebook, {"value": [1, 2, 3, 4]}, folder, timeout=60)
    raises = runs.points(notebook, {"value": [99]}, folder, timeout=60)
    hangs = runs.points(notebook, {"nap": [3600.0]}, folder, timeout=8)
    stuck = runs.points(notebook, {"value": [5]}, folder, timeout=60)
    stuck[0].output.mkdir(parents=True)
    outcomes = list(runs.execute([*raises, *hangs, *stuck, *good], executor))
    errors = {outcome.point.hash: outcome.error for outcome in outcomes}
    assert [errors[point.hash] for point in good] == [""] * 4
    assert errors[raises[0].hash] == "cell [5] raised ValueError: 99 is too much"
    assert errors[hangs[0].hash].endswith("ran past its limit of 8 s")
    assert errors[stuck[0].hash].startswith("its files could not be written")
    table = runs.gather(folder).set_index("hash").error
    assert table.to_dict() == errors
    assert all(runs.failed_path(point.output).is_file() for point in (*raises, *hangs, *stuck))


def test_a_cluster_that_is_gone_fails_no_point(tmp_path):
    notebook = notebooks.write_logged(tmp_path / "logged.ipynb", tmp_path / "log")
    points = runs.points(notebook, {"value": [1, 2, 3], "nap": [1.0]}, tmp_path / "sweep")
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    cluster = distributed.LocalCluster(**settings, local_directory=str(tmp_path / "dask"))
    with distributed.Client(cluster, set_as_default=False) as client:
        outcomes = []
        for outcome in runs.execute(points, client.get_executor(pure=False, retries=3)):
            if not outcomes:
                cluster.close()
            outcomes.append(outcome)
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, True]
    assert not list((tmp_path / "sweep").glob("*.failed.json"))
