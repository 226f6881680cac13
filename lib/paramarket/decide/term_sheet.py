"""One page for two firms: what is proposed, what it is worth, how it is undone, and where every number comes from.

A term sheet is a plain dictionary that keeps `term_sheet.schema.json`. It is written as that, and as a page.
"""

import json
import math
from collections.abc import Mapping
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from paramarket.base import atomic
from paramarket.errors import ParameterError, unknown

SCHEMA = Path(__file__).with_name("term_sheet.schema.json")
PAGE = Path(__file__).with_name("term_sheet.html")
NOTICE = "Not legal advice."
# Every term, in the order of the page: what it is called there, and how its number is written.
TERMS = {
    "way": ("Way to use the network", ""),
    "leaks": ("What leaves the seller", ""),
    "gain_points": ("Gain in accuracy", "+.2f"),
    "gain_nats": ("Gain in calibrated loss", "+.3f"),
    "gain_money": ("Gain in money", ",.0f"),
    "own_class_change": ("Change on the buyer's own classes", "+.2f"),
    "price": ("Price, and the band that suits both", ",.2f"),
    "payer": ("Who pays", ""),
    "payment": ("Payment", ",.2f"),
    "contract": ("Contract of prediction sharing", ""),
    "contract_stability": ("Same contract in resamples", ".0%"),
    "net": ("Net return", ",.0f"),
    "payback_months": ("Paid back after", ".1f"),
    "break_even_points": ("Breaks even at a gain of", ".2f"),
    "flip": ("What would turn the answer", ""),
    "pilot_examples": ("Pilot: labelled examples", ",.0f"),
    "go_points": ("Pilot: go if the gain is surely above", ".2f"),
    "no_go_points": ("Pilot: stop if it is surely below", ".2f"),
    "warranty_points": ("Warranty: refund if gain is below", ".2f"),
    "warranty_examples": ("Warranty: checked on fresh data", ",.0f"),
    "false_refund_rate": ("Warranty: refunds of honest sales", ".1%"),
    "rollback_error_rate": ("Rollback: if errors drift above", ".1%"),
    "false_alarm_rate": ("Rollback: chance of a false alarm", ".1%"),
}
WIDTH, LEFT, RIGHT, ROW = 180, 52, 24, 4  # of the picture, mm: all of it, its labels, its numbers, one bar


class Party(NamedTuple):
    """One side: its name, the file of its network, and that file's content hash."""

    name: str
    file: str
    hash: str


class Term(NamedTuple):
    """A number, or words, with the ends of its interval or band, its unit, and where it comes from.

    source: the record's key, the file's hash or the split; the page shows some 40 characters of it, the data all
    A number that is not finite, or None, means: there is none.
    """

    value: float | str | None
    unit: str
    source: str
    low: float | None = None
    high: float | None = None


def term_sheet(
    buyer: Party,
    seller: Party,
    *,
    recommendation: str,
    verdict: str,
    terms: Mapping[str, Term],
    returns: pd.DataFrame,
    currency: str,
) -> dict[str, Any]:
    """The term sheet as plain values: it keeps `term_sheet.schema.json`.

    recommendation: what to do, in a few words · verdict: in one sentence, with the reason · terms: one for each key of
    `TERMS` · returns: as `Roi.table` gives it; it sums to the net return
    Where the price is none, nothing is sold, and the clauses say so.
    Raises ParameterError for a term that is missing or unknown, and for what the schema refuses.
    """
    for name in terms:
        if name not in TERMS:
            raise ParameterError(unknown("term", name, TERMS))
    missing = [name for name in TERMS if name not in terms]
    if missing:
        raise ParameterError(f"terms are missing: {', '.join(missing)}.")
    plain = {name: _plain_term(terms[name]) for name in TERMS}
    sheet = {
        "title": f"Term sheet: should {buyer.name} take {seller.name}'s network?",
        "notice": NOTICE,
        "recommendation": recommendation,
        "verdict": verdict,
        "currency": currency,
        "parties": {"buyer": buyer._asdict(), "seller": seller._asdict()},
        "terms": plain,
        "returns": returns[["item", "kind", "amount"]].to_dict("records"),
        "clauses": _clauses(buyer.name, seller.name, plain),
    }
    _validate(sheet)
    return sheet


def write_term_sheet(folder: Path | str, sheet: Mapping[str, Any]) -> Path:
    """Write `term_sheet.json` and `term_sheet.html` into a folder, and give the path of the page.

    The page is one file that loads nothing, and prints on one side of A4.
    Raises ParameterError for a sheet that does not keep the schema; then nothing is written.
    """
    _validate(sheet)
    folder = Path(folder)
    texts = {
        "term_sheet.json": json.dumps(sheet, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "term_sheet.html": _page(sheet),
    }
    for name, text in texts.items():
        with atomic(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")
    return folder / "term_sheet.html"


def _plain_term(term: Term) -> dict[str, Any]:
    plain = term._asdict()
    numbers = {name: _plain_number(plain[name]) for name in ("value", "low", "high")}
    return {**numbers, "unit": term.unit, "source": term.source}


def _plain_number(number: float | str | None) -> float | str | None:
    """What JSON can hold: it knows no NaN and no infinity."""
    if number is None or isinstance(number, str):
        return number
    return float(number) if math.isfinite(number) else None


@cache
def _validator() -> Any:
    import fastjsonschema  # comes with nbformat, and takes a seventieth of the time that jsonschema takes to import

    return fastjsonschema.compile(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _validate(sheet: Mapping[str, Any]) -> None:
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator()(sheet)
    except JsonSchemaValueException as error:
        raise ParameterError(f"this is no term sheet: {error.message}.") from error


def _clauses(buyer: str, seller: str, terms: Mapping[str, Any]) -> list[dict[str, str]]:
    """Ownership, warranty, rollback and liability, with the numbers filled in."""
    if terms["price"]["value"] is None:
        return [{"name": "No sale", "text": "Nothing is sold: nobody pays, and nobody owes a warranty."}]
    said = {name: _written(name, terms[name]) for name in TERMS}
    texts = {
        "Ownership": f"{seller} keeps its network and all rights to it. {buyer} may use what it makes of it in its own "
        f"business ({said['way']}), and passes on neither the network nor copies of its answers. What leaves "
        f"{seller}: {said['leaks']}. No training data change hands.",
        "Warranty": f"{seller} warrants a gain of {said['warranty_points']}, measured once on "
        f"{said['warranty_examples']} fresh labelled examples. Below it {seller} refunds the price of {said['price']}, "
        f"and {buyer} goes back to its old network. By chance alone that befalls an honest sale in "
        f"{said['false_refund_rate']} of cases.",
        "Rollback": f"{buyer} keeps its old network, bit for bit, and watches its errors. Once the drift monitor "
        f"says that they are above {said['rollback_error_rate']}, {buyer} goes back to it. A false alarm has a chance "
        f"of at most {said['false_alarm_rate']}, however long one watches.",
        "Liability": f"{seller} is liable up to the price of {said['price']}, and for no lost profit. {buyer} answers "
        "for what its network decides.",
    }
    return [{"name": name, "text": text} for name, text in texts.items()]


def _written(name: str, term: Mapping[str, Any]) -> str:
    """A value with its unit, as the page says it; a share is a percentage, and that is its unit."""
    value = term["value"]
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    unit = "" if TERMS[name][1].endswith("%") else term["unit"]
    return f"{_number(name, value)} {unit}".strip()


def _number(name: str, value: float | None) -> str:
    return "–" if value is None else format(value, TERMS[name][1]).replace("-", "−")


def _ends(name: str, term: Mapping[str, Any]) -> str:
    """The ends of an interval or a band; nothing, where there are none."""
    low, high = term["low"], term["high"]
    return "" if low is None and high is None else f"{_number(name, low)} to {_number(name, high)}"


def _page(sheet: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    rows = []
    for name, (label, _) in TERMS.items():
        term = sheet["terms"][name]
        row = {"label": label, "value": _written(name, term), "ends": _ends(name, term), "source": term["source"]}
        rows.append(row)
    bars = _bars(sheet["returns"])
    picture = {"width": WIDTH, "row": ROW, "height": ROW * len(bars)}
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(sheet=sheet, rows=rows, bars=bars, picture=picture)


def _bars(returns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where each bar of the waterfall begins and how long it is, mm; what is 0 has none, and the net return is last."""
    shown = [each for each in returns if each["amount"] != 0]
    stops = list(accumulate((each["amount"] for each in shown), initial=0.0))
    net = {"item": "net return", "amount": stops[-1]}
    scale = (WIDTH - LEFT - RIGHT) / max(max(stops) - min(stops), 0.01)
    bars = []
    for each, (start, end) in zip([*shown, net], [*pairwise(stops), (0.0, stops[-1])], strict=True):
        bars.append(
            {
                "item": each["item"],
                "kind": "up" if each["amount"] > 0 else "down",
                "left": LEFT + (min(start, end) - min(stops)) * scale,
                "width": max(abs(end - start) * scale, 0.2),  # what is there is seen
                "amount": f"{each['amount']:+,.0f}".replace("-", "−"),
            }
        )
    bars[-1]["kind"] = "net"
    return bars
