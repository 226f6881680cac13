"""One page that two firms can sign, and the same as data: every number with its interval, its unit and its source."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from paramarket.base import Interval, atomic
from paramarket.errors import ParameterError

HERE = Path(__file__).parent
SCHEMA = HERE / "sheet.schema.json"
NOTE = "Not legal advice."


class Term(NamedTuple):
    """One line of a term sheet.

    group: the heading it stands under · value: a number, a text, or an Interval · unit: "" for none · source: where the
    number was measured, or who gave it
    """

    group: str
    name: str
    value: float | str | Interval
    unit: str
    source: str


class Party(NamedTuple):
    """Who signs: a name, the file of its network, and the SHA-256 of what is in it (`stack.content_hash`)."""

    name: str
    file: str
    sha256: str


def term_sheet(
    title: str,
    recommendation: str,
    reason: str,
    *,
    buyer: Party,
    seller: Party,
    terms: Sequence[Term],
    clauses: Mapping[str, str],
    waterfall: pd.DataFrame,
) -> dict[str, Any]:
    """A term sheet as plain data, as `sheet.schema.json` describes it.

    clauses: {heading: text} · waterfall: the items of a `Roi`, or a table without rows
    Raises ParameterError for what the schema does not allow; numbers that are not finite stand there as words.
    """
    sheet = {
        "version": 1,
        "title": title,
        "recommendation": recommendation,
        "reason": reason,
        "buyer": buyer._asdict(),
        "seller": seller._asdict(),
        "terms": [_term(each) for each in terms],
        "clauses": [{"name": name, "text": text} for name, text in clauses.items()],
        "waterfall": waterfall.to_dict("records"),
        "note": NOTE,
    }
    _check(sheet)
    return sheet


def term_sheet_page(sheet: Mapping[str, Any]) -> str:
    """The sheet as a page that loads nothing and prints on one sheet of A4."""
    from jinja2 import Environment  # not above: a tenth of a second that only pages need

    environment = Environment(autoescape=True)
    environment.filters["told"] = _told
    template = environment.from_string((HERE / "sheet.html").read_text(encoding="utf-8"))
    groups = [(name, list(terms)) for name, terms in groupby(sheet["terms"], key=lambda term: term["group"])]
    return template.render(sheet=sheet, groups=groups, bars=_bars(sheet["waterfall"]))


def write_term_sheet(folder: Path | str, sheet: Mapping[str, Any]) -> list[Path]:
    """Write term_sheet.json and term_sheet.html into a folder, each whole or not at all; their paths."""
    _check(sheet)
    pages = {
        "term_sheet.json": json.dumps(sheet, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "term_sheet.html": term_sheet_page(sheet),
    }
    paths = []
    for name, text in pages.items():
        with atomic(Path(folder) / name) as beside:
            beside.write_text(text, encoding="utf-8")
        paths.append(Path(folder) / name)
    return paths


def _check(sheet: Mapping[str, Any]) -> None:
    import jsonschema  # not above: it is slow to import; nbformat brings it along

    try:
        jsonschema.validate(dict(sheet), json.loads(SCHEMA.read_text(encoding="utf-8")))
    except jsonschema.ValidationError as error:
        raise ParameterError(f"no term sheet: {error.json_path} {error.message}.") from error


def _term(term: Term) -> dict[str, Any]:
    value = term.value.mean if isinstance(term.value, Interval) else term.value
    found = {"group": term.group, "name": term.name, "value": _plain(value), "unit": term.unit, "source": term.source}
    if isinstance(term.value, Interval):
        found |= {"low": float(term.value.low), "high": float(term.value.high)}
    return found


def _plain(value: float | str) -> float | str:
    if isinstance(value, str):
        return value
    return float(value) if math.isfinite(value) else "never"


def _told(term: Mapping[str, Any]) -> str:
    """A value in words, to three digits, with its interval."""
    if isinstance(term["value"], str):
        return f"{term['value']} {term['unit']}".strip()
    numbers = [term[key] for key in ("value", "low", "high") if key in term]
    largest = max(map(abs, numbers))
    whole = all(number == int(number) for number in numbers)
    digits = 0 if whole or largest >= 100 else 1 if largest >= 10 else 2
    shown = [f"{number:,.{digits}f}" for number in numbers]
    interval = f" [{shown[1]}, {shown[2]}]" if len(shown) == 3 else ""
    return f"{shown[0]}{interval} {term['unit']}".strip()


def _bars(waterfall: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where each bar begins and how long it is, in percent of the way from the lowest to the highest level."""
    steps = []
    level = 0.0
    for step in waterfall:
        steps.append({"item": step["item"], "kind": step["kind"], "from": level, "amount": step["amount"]})
        level += step["amount"]
    steps.append({"item": "left", "kind": "net", "from": 0.0, "amount": level})
    ends = [0.0, *(step["from"] + step["amount"] for step in steps)]
    low, size = min(ends), (max(ends) - min(ends)) or 1.0
    for step in steps:
        start = min(step["from"], step["from"] + step["amount"])
        step["left"] = round(100 * (start - low) / size, 2)
        step["width"] = round(100 * abs(step["amount"]) / size, 2)
        step["told"] = f"{step['amount']:+,.0f}"
    return steps
