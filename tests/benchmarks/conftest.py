"""What every benchmark shares: a quiet machine, all cores, the machine's own limit beside each number, one table."""

import os
import platform
import statistics
import time

import psutil
import pytest
import torch

torch.set_num_threads(os.cpu_count())  # tests/conftest.py asks for one thread; here the whole machine is measured
ROWS = []


def pytest_sessionstart(session):
    busy = psutil.cpu_percent(interval=2)
    if busy > 10:
        pytest.exit(
            f"the machine is busy ({busy:.0f} % of its processors): a benchmark now would mislead.", returncode=3
        )


def peak(size=2048, runs=7):
    """The machine's own limit for float32 products, GFLOP/s: median of square products with the output in place."""
    a, out, times = torch.randn(size, size), torch.empty(size, size), []
    torch.mm(a, a, out=out)
    for _ in range(runs):
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times) / 1e9


def seconds(call, rounds=5):
    """The median of some rounds, after one to warm up."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def interleaved(calls, rounds=9):
    """Seconds of every call in every round, after one to warm up; in turn, so that ratios within a round are fair."""
    took = {kind: [] for kind in calls}
    for _ in range(1 + rounds):
        for kind, call in calls.items():
            start = time.perf_counter()
            call()
            took[kind].append(time.perf_counter() - start)
    return {kind: seconds[1:] for kind, seconds in took.items()}


@pytest.fixture
def row():
    """Add a line to the table: what, the bar it was asked to reach, what was measured."""
    return lambda what, bar, found: ROWS.append((what, bar, found))


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    write = terminalreporter.write_line
    machine = platform.processor() or platform.machine()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    write(f"\n{machine}, {torch.get_num_threads()} threads, {versions}; medians of several runs")
    for what, bar, found in ROWS:
        write(f"{what:66} asked {bar:>7}   measured {found:.2f}")
