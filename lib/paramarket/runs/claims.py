"""Claims: what a notebook says, the number that decides it, the verdict, and what chance alone would grant."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from paramarket.base import Interval
from paramarket.errors import ParameterError, unknown
from paramarket.runs.formats import finite, format_interval, format_number

HOW_JUDGED = (
    "A claim **holds** if the whole 95 % interval lies on its side of the bar, **fails** if the whole interval lies on"
    " the other side, and is **undecided** if the interval straddles the bar. Two things are the **same within d** if"
    " the whole interval of their difference lies between −d and d."
)
_WORDS = {  # the first word of a verdict: how one such claim is counted, and how several are
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    "undecided": ("undecided", "undecided"),
    "same": ("same within its margin", "same within their margins"),
}


def claim(
    text: str,
    figure: str,
    key: str,
    results: Mapping[str, Any],
    *,
    above: float | None = None,
    below: float | None = None,
    within: float | None = None,
    unit: str = "",
) -> dict[str, str]:
    """A claim and what the data say of it, by the whole interval `results[key]` and one bar.

    above, below: it "holds" if the interval lies on that side of the bar, "fails" if it lies on the other side.
    within: "same within d" if the interval lies between -d and d; "fails" if it lies wholly beyond either.
    An interval that straddles a bar leaves the claim "undecided".
    figure: the section that shows it, with a word for the picture.
    unit: what a reader sees behind the number, as "nats" or "euros a day". Two units begin with a % sign and say that
    the record holds shares, which a reader sees in hundredths: a share of .594 in "%" is 59.4 %, a difference between
    two shares of .023 in "% points" is 2.3 points. What is recorded in hundredths already has the unit "points".
    Raises ParameterError unless there is one bar, and `results[key]` is an Interval of finite numbers.

    >>> results = {"barrier": Interval(0.30, 0.25, 0.35), "change": Interval(0.001, -0.009, 0.011)}
    >>> claim("A mountain of .2 nats", "2 mountain", "barrier", results, above=0.2, unit="nats")["verdict"]
    'holds'
    >>> claim("It stays under .3 nats", "2 mountain", "barrier", results, below=0.3, unit="nats")["verdict"]
    'undecided'
    >>> claim("Accuracy stays as it was", "3 bars", "change", results, within=0.02, unit="% points")["verdict"]
    'same within 2 points'
    """
    given = [bar is not None for bar in (above, below, within)]
    if sum(given) != 1:
        raise ParameterError(
            f"claim {text!r}: above = {above}, below = {below}, within = {within}; expected one of the three."
        )
    if key not in results:
        raise ParameterError(f"claim {text!r}: {unknown('result', key, results)}")
    if not isinstance(results[key], Interval):
        kind = type(results[key]).__name__
        raise ParameterError(f"claim {text!r}: {key} is of type {kind}, expected an Interval, as base.interval gives.")
    low = finite(f"{key}_low", results[key].low)
    high = finite(f"{key}_high", results[key].high)
    if above is not None:
        verdict = _beyond(low, high, finite("above", above))
    elif below is not None:
        verdict = _beyond(-high, -low, -finite("below", below))
    else:
        verdict = _same(low, high, within, unit)
    return {"claim": text, "figure": figure, "result": key, "unit": unit, "verdict": verdict}


def _beyond(low: float, high: float, bar: float) -> str:
    """The verdict on a claim that a value lies above a bar."""
    if low > bar:
        return "holds"
    return "fails" if high < bar else "undecided"


def _same(low: float, high: float, within: float, unit: str) -> str:
    """The verdict on a claim that a difference is none worth speaking of."""
    margin = finite("within", within)
    if margin <= 0:
        raise ParameterError(f"within is {margin}, expected a number above 0: how large a difference may still be.")
    if -margin < low and high < margin:
        return f"same within {format_number(margin, unit)}"
    return "fails" if low > margin or high < -margin else "undecided"


def shown_number(each: Mapping[str, str], results: Mapping[str, Any]) -> str:
    """The number of a claim with its interval and unit, from a record's flat results."""
    key = each["result"]
    interval = Interval(results[key], results[f"{key}_low"], results[f"{key}_high"])
    return format_interval(interval, each["unit"])


def count_verdicts(claims: Sequence[Mapping[str, str]]) -> str:
    """How many claims have which verdict; nothing where there is no claim.

    >>> count_verdicts([{"verdict": "holds"}, {"verdict": "same within 0.02 nats"}, {"verdict": "holds"}])
    '2 hold · 1 same within its margin'
    """
    counts = Counter(each["verdict"].split()[0] for each in claims)
    parts = []
    for first_word, (one, several) in _WORDS.items():
        count = counts[first_word]
        if count:
            parts.append(f"{count} {one if count == 1 else several}")
    return " · ".join(parts)


def granted_by_chance(count: int) -> str:
    """How many of so many claims chance alone would grant, in one sentence.

    A 95 % interval misses the true value on either side with probability 2.5 %. So it grants one in forty of the claims
    whose true value lies exactly on the bar, and fewer where it lies on the wrong side. The expected number adds up
    even where claims share their runs.

    >>> "chance alone would grant about 2.0 of them" in granted_by_chance(80)
    True
    """
    return (
        f"If the true value of each of these {count} claims lay exactly on its bar, chance alone would grant about"
        f" {0.025 * count:.1f} of them, for a whole 95 % interval lies beyond such a bar with probability 2.5 %."
    )
