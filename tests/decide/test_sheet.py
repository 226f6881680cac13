import json
import math
import re

import jsonschema
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramarket import decide
from paramarket.base import Interval
from paramarket.decide import sheet as paper
from paramarket.errors import ParameterError

A = decide.Party("Plant A", "a.safetensors", "a" * 64)
B = decide.Party("Plant B <script>alert(1)</script>", "b.safetensors", "b" * 64)
GAIN = decide.Term("The gain", "accuracy", Interval(3.8, 2.0, 5.6), "points", "audit, 500 examples")
CLAUSES = {"Ownership": "Stays with the seller.", "Warranty": "2 points.", "Liability": "Up to the price."}
ITEMS = pd.DataFrame(
    {"item": ["saved", "gained", "price"], "kind": ["benefit", "benefit", "cost"], "amount": [50.0, 100.0, -30.0]}
)


def sheet(**changes):
    given = {"buyer": A, "seller": B, "terms": [GAIN], "clauses": CLAUSES, "waterfall": ITEMS} | changes
    return decide.term_sheet("Should A buy?", "Yes", "It pays.", **given)


def test_a_sheet_is_what_its_schema_says_and_its_page_loads_nothing(tmp_path):
    paths = decide.write_term_sheet(tmp_path / "new", sheet())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["term_sheet.html", "term_sheet.json"]
    read = json.loads(paths[0].read_text())
    assert read == sheet()
    schema = json.loads(paper.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read, schema)
    page = paths[1].read_text()
    assert not re.search(r"https?://|src=|href=|@import|<script", page)
    assert "&lt;script&gt;" in page
    assert "3.80 [2.00, 5.60] points" in page
    assert "Not legal advice." in page
    assert all(text in page for text in CLAUSES.values())


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_bars_lie_within_the_page_and_the_last_is_what_is_left(amounts):
    items = pd.DataFrame({"item": "x", "kind": "cost", "amount": amounts})
    bars = paper._bars(sheet(waterfall=items)["waterfall"])
    assert len(bars) == len(amounts) + 1
    assert all(bar["left"] >= -0.01 and bar["left"] + bar["width"] <= 100.02 for bar in bars)
    assert bars[-1]["told"] == f"{sum(amounts):+,.0f}" or abs(sum(amounts)) < 1


def test_what_is_not_finite_is_a_word_and_what_has_no_source_is_refused(tmp_path):
    never = decide.Term("Money", "payback", math.inf, "months", "computed")
    assert sheet(terms=[never])["terms"][0]["value"] == "never"
    with pytest.raises(ParameterError, match=r"no term sheet: \$\.terms\[0\]\.source"):
        sheet(terms=[GAIN._replace(source="")])
    with pytest.raises(ParameterError, match="sha256"):
        sheet(buyer=A._replace(sha256="?"))
    with pytest.raises(ParameterError, match="no term sheet"):
        decide.write_term_sheet(tmp_path / "none", {"title": "?"})
    assert not (tmp_path / "none").exists()
