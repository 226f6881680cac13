"""How threads wait for each other, beside one other busy process per core and on a quiet machine.

How OpenMP's threads wait is read when torch is loaded, so every run is a fresh process: the README's example, which
times itself from its first line after the imports, and notebook 01 by plain papermill, from its start to its end.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

from paramarket.__main__ import HOME

OURS = {}  # this environment as it is: threads spin for a moment
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own default
PASSIVE = {"OMP_WAIT_POLICY": "passive"}  # they never spin
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
THREADS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
EXAMPLE = re.search(r"```python\n(.*?)```", (HOME / "README.md").read_text(), re.S)[1]
IMPORTS, REST = EXAMPLE.split("\n\n", 1)
TIMED = f"{IMPORTS}\nimport time\nstart = time.perf_counter()\n{REST}\nprint(time.perf_counter() - start)"
SMALL = ["-p", "width", "512", "-p", "pairs", "2", "-p", "epochs", "2"]  # README's width, fewer and shorter trainings


@contextmanager
def busy_machine():
    """One other process per core that does nothing but use it."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def python(way, *words):
    environment = {name: value for name, value in os.environ.items() if name not in THREADS} | way
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=True).stdout


def example(way):
    """Seconds of the README's example."""
    return float(python(way, "-c", TIMED).split()[-1])


def notebook(way):
    """Seconds of notebook 01 by plain papermill."""
    start = time.perf_counter()
    python(way, "-m", "papermill", str(HOME / "notebooks/01_train_two_mlps.ipynb"), os.devnull, *SMALL)
    return time.perf_counter() - start


def in_turn(call, ways, rounds):
    """The median of each way's seconds, one way after the other in every round."""
    times = [[call(way) for way in ways] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def bench_busy(row):
    with busy_machine():
        ours, passive, alone = in_turn(example, [OURS, PASSIVE, ONE_THREAD], rounds=5)
        spinning = example(SPINNING)
        row("README's example beside a busy process per core: over one thread's time", "≤ 1.50", ours / alone)
        row("README's example there, threads that never spin: over one thread's time", "", passive / alone)
        row("README's example there, threads that spin: over one thread's time", "", spinning / alone)
        ours, alone = in_turn(notebook, [OURS, ONE_THREAD], rounds=3)
        row("notebook 01 by papermill there: over one thread's time", "≤ 1.50", ours / alone)


def bench_quiet(row):
    ours, passive, spinning = in_turn(example, [OURS, PASSIVE, SPINNING], rounds=9)
    row("README's example on a quiet machine: over threads that spin", "≤ 1.05", ours / spinning)
    row("README's example there, threads that never spin: over threads that spin", "", passive / spinning)
