"""A long sweep in bad weather: `python tests/storm.py --points 1000`. Most of an hour, so no part of `make test`.

Two dask workers on this machine run the points, and every 30 seconds one of the two is killed. It ends with 0 if every
point has a result and none was made twice, and prints what that cost. With --real the points are notebook 01 on quick
parameters, else a notebook that takes no time of its own, so that what is left is the sweep's.
"""

import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import click
import distributed
import notebooks
import yaml

from paramarket import runs
from paramarket.__main__ import HOME

QUICK = yaml.safe_load((HOME / "tests/quick.yaml").read_text())
CLUSTER = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}


def kill_workers(client, every, over, killed):
    """Kill one worker every so many seconds, until it is over."""
    draw = random.Random(0)
    while not over.wait(every):
        workers = sorted(client.run(os.getpid, on_error="return").values(), key=str)
        alive = [process for process in workers if isinstance(process, int)]
        if alive:
            os.kill(draw.choice(alive), signal.SIGKILL)
            killed.append(time.monotonic())


def cell_seconds(path):
    """What the cells of an executed notebook took, without the kernel's start."""
    cells = json.loads(path.read_text())["cells"]
    return sum(cell["metadata"].get("papermill", {}).get("duration") or 0 for cell in cells)


@click.command()
@click.option("--points", "count", default=1000, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--every", default=30.0, show_default=True, help="Seconds between two kills; 0: nothing is killed.")
@click.option("--real", is_flag=True, help="Notebook 01 on quick parameters.")
def storm(count, workers, every, real):
    with tempfile.TemporaryDirectory(prefix="storm") as name:
        folder = Path(name)
        if real:
            notebook = HOME / "notebooks/01_train_two_mlps.ipynb"
            grid, parameters = {"seed": range(count)}, QUICK["01_train_two_mlps"]
        else:
            notebook = notebooks.write_logged(folder / "light.ipynb", folder / "log")
            grid, parameters = {"value": range(-count, 0)}, {}
        points = runs.points(notebook, grid, folder / "sweep", parameters=parameters)
        outcomes, stamps, killed, over = [], {}, [], threading.Event()
        start = time.monotonic()
        with (
            distributed.LocalCluster(n_workers=workers, local_directory=str(folder / "dask"), **CLUSTER) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            client.wait_for_workers(workers)
            killer = threading.Thread(target=kill_workers, args=(client, every, over, killed))
            if every:
                killer.start()
            begun = time.monotonic()
            for outcome in runs.execute(points, client.get_executor(pure=False, retries=3)):
                outcomes.append(outcome)
                if not outcome.error:
                    stamps[outcome.point.output] = outcome.point.output.stat().st_mtime_ns
            wall = time.monotonic() - begun
            over.set()
            if every:
                killer.join()
        while notebooks.running(f"{folder}/sweep") and time.monotonic() - start < wall + 60:
            time.sleep(0.1)
        left = notebooks.running(f"{folder}/sweep")
        table = runs.write_table(folder / "sweep")
        twice = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
        told = Counter(outcome.point.hash for outcome in outcomes)
        cells = [cell_seconds(path) for path in stamps]
        seconds = [outcome.seconds for outcome in outcomes if outcome.ran and not outcome.error]
        began, ended = (notebooks.logged(folder / "log", what) for what in ("began", "ended"))
        print(f"{count} points on {workers} workers in {wall:.0f} s, {len(killed)} workers killed")
        print(f"{len(stamps)} results, {len(twice)} written twice, {sum(n > 1 for n in told.values())} told twice")
        print(f"{len(table)} rows, {int((table.error != '').sum())} with an error; {len(left)} processes left")
        if not real:
            again = sum(n > 1 for n in Counter(ended).values())
            print(f"{len(began)} began, {len(ended)} ended; killed between their last cell and their name: {again}")
        mean, own = sum(seconds) / len(seconds), sum(cells) / len(cells)
        print(f"a point: {mean:.2f} s, of which its cells {own:.2f} s; the rest {mean - own:.2f} s")
        print(f"load of this machine, over 1, 5 and 15 minutes: {os.getloadavg()}")
        for error, number in Counter(outcome.error for outcome in outcomes if outcome.error).most_common(5):
            print(f"  {number} × {error}")
        wrong = len(stamps) != count or twice or left or len(table) != count or set(told.values()) != {1}
        sys.exit(bool(wrong))


if __name__ == "__main__":
    storm()
