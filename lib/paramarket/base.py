"""The ground that every other room stands on: named random streams, device, intervals, atomic writes."""

import functools
import hashlib
import operator
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
import pandas as pd
import torch

from paramarket.errors import ParameterError, unknown

Z = 1.959964  # standard errors to either side: 95 % of a normal distribution


def stream(seed: SupportsIndex, *purpose: str | SupportsIndex) -> torch.Generator:
    """A random generator for one purpose: the same names give the same numbers, other names independent ones.

    seed: a whole number ≥ 0, numpy's too · purpose: texts and whole numbers that say what is drawn, and for whom
    Names are hashed with SHA-256 into the entropy of numpy's SeedSequence. Nothing touches torch's global generator.
    Raises ParameterError for what is no whole number.

    >>> from paramarket import base
    >>> first, second = base.stream(0, "order", 1), base.stream(0, "order", 2)
    >>> first.initial_seed() == base.stream(0, "order", 1).initial_seed()
    True
    >>> first.initial_seed() == second.initial_seed()
    False
    """
    seed = whole_number("seed", seed, least=0)
    names = [name if isinstance(name, str) else whole_number("purpose", name) for name in purpose]
    words = [int.from_bytes(hashlib.sha256(repr(name).encode()).digest()) for name in names]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def whole_number(name: str, value: object, least: int | None = None) -> int:
    """A whole number of any make (Python's, numpy's, a tensor's) as Python's, `least` or more.

    Raises ParameterError that calls it by its `name`; truth values are no numbers.
    """
    asked = "a whole number" if least is None else f"a whole number ≥ {least}"
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        raise ParameterError(f"{name} = {value!r}, expected {asked}.")
    return number


def check_list(name: str, value: object) -> None:
    """ParameterError, calling it by its `name`, unless the value is a list, or another sequence; a text is none."""
    if isinstance(value, (str, bytes)) or not (isinstance(value, Sequence) or np.ndim(value) == 1):
        raise ParameterError(f"{name} = {value!r}, expected a list.")


@contextmanager
def lend_generator(generator: torch.Generator) -> Iterator[None]:
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


def is_watched() -> bool:
    """Whether somebody can see things move: a terminal, or a notebook in a live front end.

    papermill and nbconvert offer no keyboard (allow_stdin is off); what they store of a moving picture is its middle.
    """
    from IPython import get_ipython  # not above: a notebook has it, everybody else would wait for it

    kernel = getattr(get_ipython(), "kernel", None)
    return sys.stderr.isatty() if kernel is None else getattr(kernel, "_allow_stdin", False)


class Interval(NamedTuple):
    """A mean with the ends of its 95 % confidence interval; floats, or arrays of one shape."""

    mean: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray

    def columns(self, name: str) -> dict[str, float | np.ndarray]:
        """The three as columns of a table: the mean as `name`, the ends as `name_low` and `name_high`."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def interval(values: torch.Tensor | np.ndarray | pd.Series | list, kind: str = "seeds") -> Interval:
    """Mean and 95 % confidence interval along the first axis of `values` [n, ...].

    kind: "seeds" for a handful of independent runs (Student's t with n - 1 degrees of freedom),
          "examples" for many independent examples (percentile bootstrap, 2,000 resamples, seeded),
          "correlations" for a handful of them: as seeds, on Fisher's scale, so that no end lies beyond ±1,
          "differences" for many examples that two models answered, 1 where only the first is right, -1 where only the
          second is, else 0: the score interval (Tango 1998). Where they seldom differ, the bootstrap is too narrow,
          and of no width where it saw no difference,
          "shares" for many values of 0 and 1: the score interval (Wilson 1927).
    Raises ParameterError for fewer than two values, for what is not finite, and for other values than a kind takes.

    >>> from paramarket import base
    >>> mean, low, high = base.interval([1.0, 2.0, 3.0])
    >>> print(f"{mean:.1f} [{low:.2f}, {high:.2f}]")
    2.0 [-0.48, 4.48]
    """
    if isinstance(values, pd.Series):
        values = values.to_numpy(copy=True)
    array = torch.as_tensor(values, dtype=torch.float64).detach().cpu().numpy()
    if array.ndim == 0 or len(array) < 2 or not np.isfinite(array).all():
        raise ParameterError(
            f"an interval needs two or more finite values along the first axis, got shape {array.shape}."
        )
    if kind not in (*_ENDS, "correlations"):
        raise ParameterError(unknown("kind of interval", kind, [*_ENDS, "correlations"]))
    if kind == "correlations":
        fisher = interval(np.arctanh(array.clip(-0.999, 0.999)))  # ±1 would be infinite there
        mean, low, high = np.tanh(fisher)
        return Interval(_plain(mean), _plain(low), _plain(high))
    mean = array.mean(axis=0)
    low, high = _ENDS[kind](array)
    return Interval(_plain(mean), _plain(low), _plain(high))


def difference(first: Interval, second: Interval) -> Interval:
    """The first mean less the second, of two independent estimates, with its 95 % interval from their two intervals.

    MOVER, the method of variance estimates recovery (Zou and Donner 2008, "Construction of confidence intervals about
    effect measures", equation 3): each end is as far off as the two ends that could bring it about, by Pythagoras.

    >>> from paramarket import base
    >>> base.difference(base.Interval(5.0, 2.0, 8.0), base.Interval(1.0, -3.0, 5.0))
    Interval(mean=4.0, low=-1.0, high=9.0)
    """
    mean = np.subtract(first.mean, second.mean)
    below = np.hypot(np.subtract(first.mean, first.low), np.subtract(second.high, second.mean))
    above = np.hypot(np.subtract(first.high, first.mean), np.subtract(second.mean, second.low))
    return Interval(_plain(mean), _plain(mean - below), _plain(mean + above))


def _plain(number: np.ndarray | np.generic) -> float | np.ndarray:
    return float(number) if np.ndim(number) == 0 else number


def _student(array: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    from scipy.special import stdtrit  # the t distribution's quantile, without the weight of scipy.stats

    error = array.std(axis=0, ddof=1) / len(array) ** 0.5
    half = stdtrit(len(array) - 1, 0.975) * error
    return array.mean(axis=0) - half, array.mean(axis=0) + half


def _bootstrap(array: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    means = np.tensordot(_resamples(len(array)), array, axes=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def _resamples(n: int) -> np.ndarray:
    """[2000, n]: the weight of every example in every resample, kept where that takes little memory (16 MB)."""
    return _kept_resamples(n) if n <= 1000 else _drawn_resamples(n)


def _drawn_resamples(n: int) -> np.ndarray:
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=2000) / n


_kept_resamples = functools.lru_cache(maxsize=4)(_drawn_resamples)  # drawing them costs more than all that follows


def _wilson(array: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    """The shares that the values do not refute: those that lie within Z of their own standard errors."""
    _check_values(array, {0, 1}, "shares")
    n = len(array)
    share = array.mean(axis=0)
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)  # rounding must not leave the shares


def _tango(array: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    """The mean differences that the values do not refute: those with a score within ±Z, found by halving."""
    _check_values(array, {-1, 0, 1}, "differences")
    n = len(array)
    columns = array.reshape(n, -1)
    better = (columns > 0).sum(axis=0)
    worse = (columns < 0).sum(axis=0)
    mean = (better - worse) / n
    low = _crossing(better, worse, n, Z, np.full_like(mean, -1.0), mean)
    high = _crossing(better, worse, n, -Z, mean, np.ones_like(mean))
    return low.reshape(array.shape[1:]), high.reshape(array.shape[1:])


def _crossing(
    better: np.ndarray, worse: np.ndarray, n: int, score: float, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Where between low and high the score, which falls, is that one."""
    for _ in range(40):
        middle = (low + high) / 2
        above = _score(better, worse, n, middle) > score
        low = np.where(above, middle, low)
        high = np.where(above, high, middle)
    return (low + high) / 2


def _score(better: np.ndarray, worse: np.ndarray, n: int, difference: np.ndarray) -> np.ndarray:
    """How many standard errors the mean lies above a true difference (Tango 1998, Statistics in Medicine 17).

    The standard error is the likeliest one with that difference: `rare` is then the share of examples that only the
    second model gets right.
    """
    linear = (2 * n - better + worse) * difference - better - worse
    constant = -worse * difference * (1 - difference)
    rare = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * (2 * rare + difference * (1 - difference))
    return (better - worse - n * difference) / np.sqrt(np.maximum(variance, 1e-12))


def _check_values(array: np.ndarray, allowed: set[int], kind: str) -> None:
    found = set(np.unique(array).tolist())
    if not found <= allowed:
        raise ParameterError(f"an interval of {kind} takes values of {sorted(allowed)}, got {min(found - allowed):g}.")


_ENDS = {
    "seeds": _student,
    "examples": _bootstrap,
    "differences": _tango,
    "shares": _wilson,
}  # what gives the ends of every kind of interval of a mean


def paired(table: pd.DataFrame, value: str, *, by: str | list[str], of: object, minus: object) -> pd.Series:
    """What one setting has more of than another, pair by pair: differences, one for each value of `by`.

    of, minus: two entries of one column, which is found by them · by: what makes a pair, the seed say
    A pair shares its luck (its start, its data), and the difference is free of it: its interval is the one to judge by.
    Raises ParameterError unless the two differ, each pair is there, and each has exactly one row a setting.

    >>> import pandas as pd
    >>> from paramarket import base
    >>> scores = {"market": ["alone", "alone", "open", "open"], "seed": [0, 1, 0, 1], "accuracy": [80, 90, 83, 94]}
    >>> base.paired(pd.DataFrame(scores), "accuracy", by="seed", of="open", minus="alone").tolist()
    [3, 4]
    """
    keys = [by] if isinstance(by, str) else list(by)
    if not keys:
        raise ParameterError("by is empty: name one or more columns that make a pair.")
    for name in (*keys, value):
        if name not in table:
            raise ParameterError(unknown("column", name, map(str, table)))
    if of == minus:
        raise ParameterError(f"of and minus are both {of!r}: expected two settings.")
    others = table.columns.difference([*keys, value], sort=False)  # within a pair a key does not differ
    holders = [name for name in others if table[name].isin([of]).any() and table[name].isin([minus]).any()]
    if len(holders) != 1:
        found = ", ".join(map(str, holders)) or "none"
        raise ParameterError(f"{of!r} and {minus!r} must stand in exactly one column of the table; found: {found}.")
    one, other = (_setting(table, holders[0], entry, keys, value) for entry in (of, minus))
    lonely = one.index.symmetric_difference(other.index)
    if len(lonely):
        raise ParameterError(f"no pair for {', '.join(keys)} = {lonely[0]}: only one of {of!r} and {minus!r} has it.")
    return (one - other.reindex(one.index)).rename(value)


def _setting(table: pd.DataFrame, column: str, entry: object, keys: list[str], value: str) -> pd.Series:
    """The values of one setting, by what makes a pair."""
    rows = table[table[column] == entry].set_index(keys)[value]
    twice = rows.index[rows.index.duplicated()]
    if len(twice):
        raise ParameterError(
            f"{entry!r} has several rows for {', '.join(keys)} = {twice[0]}: query the table, or pair by more columns."
        )
    return rows


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A path to write to, beside `path`; it takes the name `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix[:16]}")  # a name may be as long as names can be
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
