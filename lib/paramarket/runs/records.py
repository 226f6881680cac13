"""What a run found: recorded in the executed notebook itself, with its claims, and read back from there."""

import html
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lap
import numpy as np
import torch
from torch import Tensor

from paramarket.base import Interval
from paramarket.errors import DataError, ParameterError, unknown

MIME = "application/vnd.paramarket.record+json"


def claim(
    text: str,
    figure: str,
    key: str,
    results: Mapping[str, Any],
    *,
    above: float | None = None,
    below: float | None = None,
) -> dict[str, str]:
    """A claim and what the data say: it holds if the whole interval `results[key]` lies above (below) the bar.

    It fails if the whole interval lies on the other side, and holds "partly" if the interval straddles the bar.
    figure: the section that shows it, with a word for the picture. Raises ParameterError unless there is one bar, and
    `results[key]` is an Interval of finite numbers.

    >>> results = {"barrier": Interval(0.30, 0.25, 0.35)}
    >>> claim("A mountain of .2 nats", "2 mountain", "barrier", results, above=0.2)["verdict"]
    'holds'
    >>> claim("It stays under .3 nats", "2 mountain", "barrier", results, below=0.3)["verdict"]
    'partly'
    """
    if (above is None) == (below is None):
        raise ParameterError(f"claim {text!r}: above = {above}, below = {below}; expected one of the two.")
    if key not in results:
        raise ParameterError(f"claim {text!r}: {unknown('result', key, results)}")
    if not isinstance(results[key], Interval):
        kind = type(results[key]).__name__
        raise ParameterError(f"claim {text!r}: {key} is of type {kind}, expected an Interval, as base.interval gives.")
    low = _finite(f"{key}_low", results[key].low)
    high = _finite(f"{key}_high", results[key].high)
    if below is None:
        bar = _finite("above", above)
        holds, fails = low > bar, high < bar
    else:
        bar = _finite("below", below)
        holds, fails = high < bar, low > bar
    verdict = "holds" if holds else "fails" if fails else "partly"
    return {"claim": text, "figure": figure, "result": key, "verdict": verdict}


def record(
    parameters: Mapping[str, Any],
    claims: Sequence[Mapping[str, str]] = (),
    **results: float | np.generic | np.ndarray | Tensor | str | Interval,
) -> None:
    """Put claims and results into the executed notebook itself, as a JSON output that `read` gets back.

    results: finite numbers (Python's, or single ones of numpy and torch), texts and Intervals; an Interval `x` becomes
    the three results `x`, `x_low`, `x_high`. Anything else is a ParameterError.
    The same parameters give the same record, bit for bit, in the same `environment`; so no duration belongs in here.
    """
    if not isinstance(parameters, Mapping):
        raise ParameterError(f"parameters = {parameters!r}: expected the dict that check_parameters gives.")
    flat = _flatten(results)
    for each in claims:
        if not isinstance(each, Mapping) or "result" not in each:
            raise ParameterError(f"claims: {each!r} is no claim, expected a list of what `claim` gives.")
        if each["result"] not in flat:
            raise ParameterError(f"claim {each['claim']!r}: {unknown('result', each['result'], flat)}")
    content = {"parameters": dict(parameters), "claims": list(claims), "results": flat, "order": list(flat)}
    shown = {name: format_number(value) for name, value in flat.items()}
    rows = [*shown.items(), *((each["claim"], each["verdict"]) for each in claims)]
    cells = [f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows]
    from IPython.display import display  # not above: only a notebook records, and it has IPython

    display(
        {
            MIME: content | {"environment": environment()},
            "text/html": f"<table class='record'>{''.join(cells)}</table>",
            "text/plain": "\n".join(f"{name} = {value}" for name, value in shown.items()),
        },
        raw=True,
    )


def _flatten(results: Mapping[str, Any]) -> dict[str, float | str]:
    """Every result as JSON holds it, an Interval as three; refuses two results of one name."""
    flat = {}
    for name, value in results.items():
        if isinstance(value, Interval):
            mean, low, high = value
            parts = {name: _finite(name, mean)}
            parts[f"{name}_low"] = _finite(f"{name}_low", low)
            parts[f"{name}_high"] = _finite(f"{name}_high", high)
        elif isinstance(value, str):
            parts = {name: str(value)}
        else:
            parts = {name: _finite(name, value)}
        for part in parts:
            if part in flat:
                raise ParameterError(f"two results are called {part}: one is an end of an Interval. Rename the other.")
        flat.update(parts)
    return flat


def _finite(name: str, value: Any) -> float:
    """One finite number, as Python has it: numpy's and torch's single numbers are taken out of their boxes."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (int, float)):
        raise ParameterError(f"{name} is of type {type(value).__name__}, expected one number, a text or an Interval.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"{name} is {value}: a record holds finite numbers only.")
    return value


def format_number(value: Any) -> str:
    """A number as a reader wants it, with four digits or to the unit; whole numbers and texts stay what they are.

    >>> [format_number(value) for value in (0.123456, 12345.6, 7, "digits")]
    ['0.1235', '12,346', '7', 'digits']
    """
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def environment() -> dict[str, str | int]:
    """What may change the last bit of a number: it stands beside every record and in every cache key."""
    return {
        "torch": torch.__version__,
        "lapx": lap.__version__,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def read(path: Path | str) -> dict[str, Any]:
    """The record of an executed notebook: parameters, results, environment. Raises DataError if it holds none."""
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no readable notebook ({error}).") from error
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    records = [output[MIME] for output in outputs if MIME in output]
    if not records:
        raise DataError(f"{path} holds no record: was it executed to its end?")
    last = records[-1]
    in_order = {name: last["results"][name] for name in last["order"]}  # JSON in notebooks is sorted by name
    return last | {"results": in_order}
