import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from paramarket import errors, runs

CLAIMS = [
    {"claim": "It gains | or so", "figure": "2 bars", "result": "net_gain", "unit": "% points", "verdict": "holds"},
    {"claim": "It is quick", "figure": "3 bars", "result": "net_gain", "unit": "nats", "verdict": "undecided"},
]


def write(folder, name, answer):
    results = {"net_gain": 0.5, "net_gain_low": 0.4, "net_gain_high": 0.6}
    record = {"parameters": {}, "answer": answer, "claims": CLAIMS, "results": results, "order": list(results)}
    record["environment"] = {"torch": "2", "threads": 1}
    cells = [
        new_markdown_cell("# 01 · Does it work?\n\nText."),
        new_code_cell("r", outputs=[new_output("display_data", data={runs.MIME: record})]),
    ]
    nbformat.write(new_notebook(cells=cells), folder / name)
    return folder / name


@pytest.fixture
def text(tmp_path):
    return runs.results_table([write(tmp_path, "b.ipynb", "It does."), write(tmp_path, "a.ipynb", "By 50 points.")])


def test_every_claim_has_its_row_with_number_unit_and_verdict(text):
    assert "| It gains / or so | a | 2 bars | 50 [40, 60] points | holds |" in text
    assert "| It is quick | b | 3 bars | 0.50 [0.40, 0.60] nats | undecided |" in text
    assert "net_gain" not in text


def test_the_answers_stand_above_the_claims_in_the_order_of_the_notebooks(text):
    first = text.index("- **01 · Does it work?** By 50 points.")
    assert first < text.index("- **01 · Does it work?** It does.") < text.index("| It gains")


def test_claims_are_counted_and_so_is_what_chance_would_grant(text):
    assert "4 claims: 2 hold · 2 undecided. " in text
    assert "each of these 4 claims lay exactly on its bar, chance alone would grant about 0.1" in text
    assert text.endswith("Measured with: threads 1, torch 2.\n")


def test_a_notebook_that_was_not_executed_is_named(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 01 · Why?")]), tmp_path / "a.ipynb")
    with pytest.raises(errors.DataError, match=r"a\.ipynb holds no record"):
        runs.results_table([tmp_path / "a.ipynb"])
