"""The term sheet: it keeps its schema, loads nothing, escapes what it is told, and is written whole or not at all."""

import copy
import json
import math
import re
from html.parser import HTMLParser

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramarket import decide
from paramarket.base import Interval
from paramarket.decide import Business, Party, Term
from paramarket.decide.term_sheet import SCHEMA, TERMS
from paramarket.errors import ParameterError

RULES = json.loads(SCHEMA.read_text(encoding="utf-8"))
WORDS = ("way", "leaks", "payer", "contract", "flip")
BUYER = Party("Plant A", "plant_a.safetensors", "9f86d081884c7d65")
SELLER = Party("Plant B", "plant_b.safetensors", "2c26b46b68ffc68f")
RETURN = decide.roi(Interval(3.0, 2.0, 4.0), Business(), price=20_000.0, labels=1_000)


def terms(**changes):
    """Every term with a number of its own, so that each can be found on the page."""
    plain = {}
    for k, name in enumerate(TERMS):
        value = f"said of {name}" if name in WORDS else (k + 1) / 100
        plain[name] = Term(value, "" if name in WORDS else "units", f"record: {name}")
    return {**plain, **changes}


def make_sheet(buyer=BUYER, seller=SELLER, verdict="It pays.", returns=RETURN, **changes):
    return decide.term_sheet(
        buyer,
        seller,
        recommendation="Trade",
        verdict=verdict,
        terms=terms(**changes),
        returns=returns.table(),
        currency="€",
    )


def written(folder, sheet):
    page = decide.write_term_sheet(folder, sheet)
    return page.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag of a page, its attributes, and what is written between."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self.attributes = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_the_schema_is_one_and_names_every_term():
    jsonschema.Draft7Validator.check_schema(RULES)
    named = RULES["properties"]["terms"]
    assert list(named["properties"]) == named["required"] == list(TERMS)


def test_a_sheet_keeps_the_schema_and_survives_the_file(tmp_path):
    sheet = make_sheet()
    page = decide.write_term_sheet(tmp_path / "new" / "folder", sheet)
    assert sorted(path.name for path in page.parent.iterdir()) == ["term_sheet.html", "term_sheet.json"]
    read = json.loads((page.parent / "term_sheet.json").read_text(encoding="utf-8"))
    assert read == sheet
    jsonschema.validate(read, RULES)


def drop(path):
    def change(sheet):
        *way, last = path
        for step in way:
            sheet = sheet[step]
        del sheet[last]

    return change


def put(path, value):
    def change(sheet):
        *way, last = path
        for step in way:
            sheet = sheet[step]
        sheet[last] = value

    return change


SPOILED = {
    "no notice": drop(["notice"]),
    "another notice": put(["notice"], "Binding."),
    "no source": drop(["terms", "net", "source"]),
    "an empty source": put(["terms", "net", "source"], ""),
    "a number in words": put(["terms", "net", "value"], "much"),
    "words in numbers": put(["terms", "way", "value"], 3.0),
    "a share above 1": put(["terms", "false_refund_rate", "value"], 2.5),
    "a term too many": put(["terms", "bonus"], {}),
    "a term too few": drop(["terms", "price"]),
    "no seller": drop(["parties", "seller"]),
    "another kind": put(["returns", 0, "kind"], "luck"),
    "no clauses": put(["clauses"], []),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_does_not_keep_the_schema_is_refused_and_nothing_is_written(how, tmp_path):
    sheet = copy.deepcopy(make_sheet())
    SPOILED[how](sheet)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(sheet, RULES)
    with pytest.raises(ParameterError, match="no term sheet"):
        decide.write_term_sheet(tmp_path, sheet)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_sheet_as_it_was(tmp_path):
    before = written(tmp_path, make_sheet())
    broken = make_sheet()
    broken["returns"][0]["amount"] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        decide.write_term_sheet(tmp_path, broken)
    assert (tmp_path / "term_sheet.html").read_text(encoding="utf-8") == before
    assert len(list(tmp_path.iterdir())) == 2


def test_missing_and_unknown_terms_are_named():
    with pytest.raises(ParameterError, match=r"unknown term 'prize'.*'price'"):
        make_sheet(prize=Term(1.0, "€", "record"))
    some = terms()
    del some["net"], some["flip"]
    with pytest.raises(ParameterError, match="missing: net, flip"):
        decide.term_sheet(
            BUYER, SELLER, recommendation="Trade", verdict="…", terms=some, returns=RETURN.table(), currency="€"
        )


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, None])
def test_a_number_that_is_none_is_none(number, tmp_path):
    sheet = make_sheet(payback_months=Term(number, "months", "record", low=1.0, high=number))
    assert sheet["terms"]["payback_months"]["value"] is None
    page = written(tmp_path, sheet)
    assert re.search(r"Paid back after</td>\s*<td class=\"value\">–</td><td>1.0 to –</td>", page)


def test_every_term_is_on_the_page_with_its_interval_and_source(tmp_path):
    price = Term(1_234.5, "€", "record: price", low=100.0, high=-7.0)
    page = Tags(written(tmp_path, make_sheet(price=price, false_refund_rate=Term(0.025, "share", "audit"))))
    said = " ".join(page.text)
    for name, (label, _) in TERMS.items():
        assert label in said
        assert name == "false_refund_rate" or f"record: {name}" in said
    assert "1,234.50 €" in said
    assert "100.00 to −7.00" in said
    assert "2.5%" in said
    for part in (*BUYER, *SELLER, "Not legal advice.", "It pays."):
        assert part in said


def test_the_clauses_hold_the_numbers():
    sheet = make_sheet(
        price=Term(1_234.5, "€", "record"),
        warranty_points=Term(2.2, "points", "audit"),
        warranty_examples=Term(500, "", "audit"),
        false_refund_rate=Term(0.025, "share", "audit"),
        rollback_error_rate=Term(0.123, "share", "audit"),
        false_alarm_rate=Term(0.05, "share", "parameter"),
    )
    clauses = {clause["name"]: clause["text"] for clause in sheet["clauses"]}
    assert list(clauses) == ["Ownership", "Warranty", "Rollback", "Liability"]
    for number in ("2.20 points", "500 fresh", "1,234.50 €", "2.5%"):
        assert number in clauses["Warranty"]
    assert "12.3%" in clauses["Rollback"]
    assert "5.0%" in clauses["Rollback"]
    assert "1,234.50 €" in clauses["Liability"]
    assert "said of way" in clauses["Ownership"]


def test_where_nothing_is_sold_no_clause_speaks_of_a_price():
    sheet = make_sheet(price=Term(math.nan, "€", "record"))
    assert [clause["name"] for clause in sheet["clauses"]] == ["No sale"]


def test_the_style_of_a_sheet_is_its_own_and_changes_no_page_around_it():
    """A notebook shows the sheet within itself, and so does its page: a rule for `body` or `table` would be theirs."""
    template = next(SCHEMA.parent.glob("*.html")).read_text()
    style = template[template.index("<style>") : template.index("</style>")].removeprefix("<style>")
    rules = [
        line.removeprefix("@media screen { ") for line in style.strip().splitlines() if not line.startswith("@page")
    ]
    selectors = [each for rule in rules for part in re.findall(r"([^{}]+)\{", rule) for each in part.split(",")]
    assert len(selectors) > 15
    assert selectors[0].strip() == "body:has(> .sheet)"  # a page that is a sheet and nothing else
    assert all(each.strip().startswith(".sheet") for each in selectors[1:]), selectors


ATTACK = "<script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;</style>"


def test_the_page_escapes_all_that_it_is_told(tmp_path):
    evil = Party(ATTACK, ATTACK, ATTACK)
    of_terms = {name: Term(ATTACK, ATTACK, ATTACK) for name in WORDS}
    of_terms["net"] = Term(1.0, ATTACK, ATTACK)
    attacked = Tags(written(tmp_path, make_sheet(evil, evil, verdict=ATTACK, **of_terms)))
    honest = Tags(written(tmp_path, make_sheet()))
    assert attacked.found == honest.found
    assert "script" not in attacked.found
    assert ATTACK in " ".join(attacked.text)


def test_the_page_is_one_file_that_loads_nothing(tmp_path):
    text = written(tmp_path, make_sheet())
    page = Tags(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.found)
    assert not {"src", "href", "srcset", "data"} & {name for name, _ in page.attributes}
    assert not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'" in text
    assert "size: A4" in text


@given(st.floats(-5, 10), st.floats(0, 1e6), st.integers(0, 10_000))
def test_the_picture_ends_at_the_net_return_and_stays_on_the_paper(tmp_path_factory, points, price, labels):
    found = decide.roi(Interval(points, points, points), Business(), price=price, labels=labels)
    text = written(tmp_path_factory.mktemp("sheet"), make_sheet(returns=found))
    bars = re.findall(r'<rect class="(\w+)" x="([\d.e-]+)"[^>]*?width="([\d.e-]+)"', text)
    amounts = re.findall(r'text-anchor="end">([^<]*)<', text)
    shown = [amount for amount in found.items.values() if amount != 0]
    assert len(bars) == len(amounts) == len(shown) + 1
    assert [kind for kind, _, _ in bars] == ["up" if amount > 0 else "down" for amount in shown] + ["net"]
    assert amounts[-1].replace("−", "-") == f"{found.net.mean:+,.0f}"
    for _, left, width in bars:
        assert float(left) >= 52 - 1e-6
        assert float(left) + float(width) <= 180 - 24 + 0.21
