import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from paramarket import runs
from paramarket.runs.pages import _WIDGET as WIDGET

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def outcome(folder, name, error="", seconds=90.0):
    results = {"gain": 0.5, "gain_low": 0.4, "gain_high": 0.6, "n": 3, "n_low": 2}
    record = {"parameters": {}, "results": results, "environment": {}}
    record["claims"] = [{"claim": "It gains", "figure": "2", "result": "gain", "verdict": "holds"}]
    record["order"] = list(results)
    cells = [
        new_markdown_cell(
            "# 07 · Does <it> work?\n\nPrice $p_i < 2$ and `$HOME` cost $$\\frac{a}{b}$$ or \\$5 and \\$6."
        ),
        new_markdown_cell("A slip: $x^$. The $k$th."),
        new_code_cell("x = 1", outputs=[new_output("display_data", data={"image/png": PIXEL})]),
        new_code_cell(
            "y", metadata={"tags": ["headline"]}, outputs=[new_output("display_data", data={"image/png": PIXEL + "A"})]
        ),
        new_code_cell(
            "z", outputs=[new_output("stream", name="stderr", text="training: 10%"), new_output("stream", text="plain")]
        ),
        new_code_cell("w", outputs=[new_output("display_data", data={WIDGET: {}, "text/plain": "IntSlider()"})]),
        new_code_cell("r", outputs=[new_output("display_data", data={runs.MIME: record, "text/plain": "gain"})]),
    ]
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells), runs.failed_path(path) if error else path)
    return runs.RunOutcome(runs.Point(folder / f"{name}.ipynb", path), seconds, error)


@pytest.fixture
def site(tmp_path):
    runs.build_pages([outcome(tmp_path, "b", "cell [3] raised ValueError: <no>"), outcome(tmp_path, "a")], tmp_path)
    return {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix != ".ipynb"}


def test_every_notebook_has_a_page_and_its_place_in_index_and_results(site):
    assert sorted(site) == ["a.html", "b.html", "index.html", "results.md"]
    index = site["index.html"]
    assert index.index("a.html") < index.index("b.html")
    assert "Does &lt;it&gt; work?" in index
    assert "1.5 minutes" in index
    assert "<td>gain</td><td>0.5 [0.4, 0.6]</td>" in index
    assert index.count("gain_low") == 0
    assert "<td>n_low</td><td>2</td>" in index  # no end of an interval: there is no n_high
    assert "Failed: cell [3] raised ValueError: &lt;no&gt;" in index
    assert "| a | `gain` | 0.5 [0.4, 0.6] |" in site["results.md"]
    assert "| b | **failed** | cell [3]" in site["results.md"]


def test_whatever_a_name_holds_is_escaped(tmp_path):
    runs.build_pages([outcome(tmp_path, "a&<b>", "a | b")], tmp_path)
    index = (tmp_path / "index.html").read_text()
    assert "<b>" not in index
    assert 'href="a&amp;&lt;b&gt;.html"' in index
    assert "| a&<b> | **failed** | a / b |" in (tmp_path / "results.md").read_text()


def test_the_index_shows_the_headline_figure(site):
    assert site["index.html"].count(PIXEL + "A") == 2
    assert site["a.html"].count(PIXEL) == 2


def test_pages_load_nothing_from_the_network(site):
    for name, text in site.items():
        addresses = set(re.findall(r"https?://[^\"'<>\s)]+", text)) - {"http://www.w3.org/1998/Math/MathML"}
        assert not addresses, (name, addresses)
        assert "<script" not in text


def test_formulas_become_mathml_and_code_and_money_stay(site):
    page = site["a.html"]
    assert page.count("<math") == 3
    assert "<code>$x^$</code>" in page
    assert "<mfrac>" in page
    assert 'display="block"' in page
    assert "$HOME" in page
    assert "$5 and $6" in page.replace("\\", "")


def test_pages_show_no_progress_bar_and_no_dead_widget(site):
    assert "training: 10%" not in site["a.html"]
    assert "IntSlider" not in site["a.html"]
    assert "plain" in site["a.html"]


def test_results_have_their_row_for_each_claim_with_number_and_verdict(tmp_path):
    outcome(tmp_path, "a")
    text = runs.results_table([tmp_path / "a.ipynb"])
    assert "| It gains | a | 2 | `gain` 0.5 [0.4, 0.6] | holds |" in text


def test_a_notebook_that_never_started_still_has_its_place(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 01 · Why?")]), tmp_path / "source.ipynb")
    point = runs.Point(tmp_path / "source.ipynb", tmp_path / "out/source.ipynb")
    runs.build_pages([runs.RunOutcome(point, 600.0, "ran past its limit of 600 s")], tmp_path / "out")
    assert "Failed: ran past its limit of 600 s" in (tmp_path / "out/index.html").read_text()
