"""The ground that every other room stands on: named random streams, device, intervals, atomic writes."""

import functools
import hashlib
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from IPython import get_ipython
from jaxtyping import Float
from scipy.special import stdtrit

from paramarket.errors import ParameterError, unknown


def stream(seed: int, *purpose: str | int) -> torch.Generator:
    """A random generator for one purpose: the same names give the same numbers, other names independent ones.

    Names are hashed with SHA-256 into the entropy of numpy's SeedSequence. Nothing touches torch's global generator.
    """
    if seed < 0:
        raise ParameterError(f"seed = {seed}, expected a whole number ≥ 0.")
    words = [int.from_bytes(hashlib.sha256(repr(name).encode()).digest()) for name in purpose]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@contextmanager
def lent(generator: torch.Generator) -> Iterator[None]:
    """PyTorch draws initial weights and dropout from its global CPU generator alone: lend it the state of `generator`.

    When the block ends, the global generator is as it was before.
    """
    before = torch.default_generator.get_state()
    try:
        torch.default_generator.set_state(generator.get_state())
        yield
    finally:
        torch.default_generator.set_state(before)


def device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the CUDA GPU if there is one, otherwise the CPU.

    Apple's "mps" is used only when asked for: its sums differ from the CPU's, and so would every published number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ParameterError(f'device = {name!r} cannot be used here ({error}). Try "auto" or "cpu".') from error


def watched() -> bool:
    """Whether somebody can see things move: a terminal, or a notebook in a live front end.

    papermill and nbconvert offer no keyboard (allow_stdin is off); what they store of a moving picture is its middle.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return sys.stderr.isatty() if kernel is None else getattr(kernel, "_allow_stdin", False)


class Interval(NamedTuple):
    """A mean with the ends of its 95 % confidence interval; floats, or arrays of one shape."""

    mean: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def interval(values: torch.Tensor | np.ndarray | list, kind: str = "seeds") -> Interval:
    """Mean and 95 % confidence interval along the first axis of `values` [n, ...].

    kind: "seeds" for a handful of independent runs (Student's t with n - 1 degrees of freedom),
          "examples" for many independent examples (percentile bootstrap, 2,000 resamples, seeded),
          "correlations" for a handful of them: as seeds, on Fisher's scale, so that no end lies beyond ±1.
    """
    array = np.asarray(torch.as_tensor(values).detach().cpu(), dtype=np.float64)
    if array.ndim == 0 or len(array) < 2 or not np.isfinite(array).all():
        raise ParameterError(
            f"an interval needs two or more finite values along the first axis, got shape {array.shape}."
        )
    if kind not in ("seeds", "examples", "correlations"):
        raise ParameterError(unknown("kind of interval", kind, ["seeds", "examples", "correlations"]))
    if kind == "correlations":
        fisher = interval(np.arctanh(array.clip(-0.999, 0.999)))  # ±1 would be infinite there
        return Interval(*(float(part) if np.ndim(part) == 0 else part for part in map(np.tanh, fisher)))
    mean, (low, high) = array.mean(axis=0), (_student if kind == "seeds" else _bootstrap)(array)
    return Interval(*(float(part) if np.ndim(part) == 0 else part for part in (mean, low, high)))


def _student(array: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    error = array.std(axis=0, ddof=1) / len(array) ** 0.5
    half = stdtrit(len(array) - 1, 0.975) * error  # the t distribution's quantile, without the weight of scipy.stats
    return array.mean(axis=0) - half, array.mean(axis=0) + half


def _bootstrap(array: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    means = np.tensordot(_resamples(len(array)), array, axes=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


@functools.lru_cache(maxsize=4)
def _resamples(n: int) -> np.ndarray:
    """[2000, n]: the weight of every example in every resample; drawing them costs more than all that follows."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=2000) / n


def rank_correlation(x: Float[torch.Tensor, "seeds n"], y: Float[torch.Tensor, "seeds n"]) -> torch.Tensor:
    """Spearman's rank correlation of x and y, one for each seed: [seeds], float64. Ties share their mean rank."""
    from scipy.stats import spearmanr  # not above: scipy.stats takes longer to import than all the rest

    return torch.tensor([spearmanr(*both).statistic for both in zip(x, y, strict=True)], dtype=torch.float64)


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A path to write to, beside `path`; it takes the name `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
