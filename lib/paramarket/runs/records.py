"""What a run found: recorded in the executed notebook, with its answer and its claims, and read back from there."""

import html
import json
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
from paramarket.runs.claims import shown_number
from paramarket.runs.formats import finite, format_number, format_results

MIME = "application/vnd.paramarket.record+json"


def record(
    parameters: Mapping[str, Any],
    claims: Sequence[Mapping[str, str]] = (),
    *,
    answer: str = "",
    **results: float | np.generic | np.ndarray | Tensor | str | Interval,
) -> None:
    """Put answer, claims and results into the executed notebook, as a JSON output that `read` gets back.

    answer: one sentence to the question of the notebook's title, with its numbers and intervals. It is made from the
    results by an f-string, so that it stays true at other parameters. Whoever claims something owes one.
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
    if not isinstance(answer, str) or "\n" in answer:
        raise ParameterError(f"answer = {answer!r}: expected one line of text.")
    if claims and not answer.strip():
        raise ParameterError("a record with claims needs an answer: one sentence to the question of the title.")
    content = {
        "parameters": dict(parameters),
        "answer": answer,
        "claims": list(claims),
        "results": flat,
        "order": list(flat),
        "environment": environment(),
    }
    from IPython.display import display  # not above: only a notebook records, and it has IPython

    display({MIME: content, "text/html": _as_html(content), "text/plain": _as_text(content)}, raw=True)


def _as_html(content: Mapping[str, Any]) -> str:
    """What a notebook shows of its record: the answer, each claim with its number and verdict, every result."""
    claims = [(each["claim"], shown_number(each, content["results"]), each["verdict"]) for each in content["claims"]]
    results = list(format_results(content["results"]).items())
    parts = []
    if content["answer"]:
        parts.append(f"<p><strong>{html.escape(content['answer'])}</strong></p>")
    if claims:
        parts.append(_html_table(("claim", "number", "verdict"), claims))
    parts.append(_html_table(("result", "value"), results))
    return "".join(parts)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_html_row("th", head)]
    for row in rows:
        lines.append(_html_row("td", row))
    return f"<table class='record'>{''.join(lines)}</table>"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _as_text(content: Mapping[str, Any]) -> str:
    lines = [f"{name} = {format_number(value)}" for name, value in content["results"].items()]
    if content["answer"]:
        lines.insert(0, content["answer"])
    return "\n".join(lines)


def _flatten(results: Mapping[str, Any]) -> dict[str, float | str]:
    """Every result as JSON holds it, an Interval as three; refuses two results of one name."""
    flat = {}
    for name, value in results.items():
        if isinstance(value, Interval):
            mean, low, high = value
            parts = {name: finite(name, mean)}
            parts[f"{name}_low"] = finite(f"{name}_low", low)
            parts[f"{name}_high"] = finite(f"{name}_high", high)
        elif isinstance(value, str):
            parts = {name: str(value)}
        else:
            parts = {name: finite(name, value)}
        for part in parts:
            if part in flat:
                raise ParameterError(f"two results are called {part}: one is an end of an Interval. Rename the other.")
        flat.update(parts)
    return flat


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
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def read(path: Path | str) -> dict[str, Any]:
    """The record of an executed notebook: parameters, answer, claims, results, environment.

    Raises DataError if the notebook holds none, or a damaged one.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no readable notebook ({error}).") from error
    return record_of(notebook, path)


def record_of(notebook: Any, path: Path | str) -> dict[str, Any]:
    """The record within what an executed notebook's file holds; `path` is for errors only."""
    try:
        outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
        records = [output[MIME] for output in outputs if MIME in output]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no readable notebook ({error}).") from error
    if not records:
        raise DataError(f"{path} holds no record: was it executed to its end?")
    last = records[-1]
    try:
        in_order = {name: last["results"][name] for name in last["order"]}  # JSON in notebooks is sorted by name
        for each in last["claims"]:
            shown_number(each, in_order)
        return {"answer": "", **last, "results": in_order}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} holds a damaged record ({error!r}): run the notebook again.") from error
