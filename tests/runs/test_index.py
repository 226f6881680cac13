import html
import os
import re
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from paramarket import errors, runs

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
RECORD = {
    "parameters": {},
    "answer": "It gains 50 [40, 60] points, & more.",
    "claims": [
        {"claim": "It <gains>", "figure": "2", "result": "net_gain", "unit": "% points", "verdict": "holds"},
        {"claim": "It stays", "figure": "3", "result": "net_gain", "unit": "", "verdict": "same within 0.7"},
    ],
    "results": {"net_gain": 0.5, "net_gain_low": 0.4, "net_gain_high": 0.6, "n": 3},
    "environment": {},
    "order": ["net_gain", "net_gain_low", "net_gain_high", "n"],
}


def outcome(folder, name, error="", seconds=90.0, picture=PIXEL):
    cells = [
        new_markdown_cell("# 07 · Does <it> work?"),
        new_code_cell(
            "y", metadata={"tags": ["headline"]}, outputs=[new_output("display_data", data={"image/png": picture})]
        ),
        new_code_cell("x = 1", outputs=[new_output("display_data", data={"image/png": PIXEL})]),
    ]
    if not error:
        cells.append(
            new_code_cell("r", outputs=[new_output("display_data", data={runs.MIME: RECORD, "text/plain": "gain"})])
        )
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells), runs.failed_path(path) if error else path)
    return runs.RunOutcome(runs.Point(path, path), seconds, error)


@pytest.fixture
def site(tmp_path):
    outcomes = [outcome(tmp_path, "b_two", "cell [3] raised ValueError: <no>"), outcome(tmp_path, "a_one")]
    runs.build_pages([*outcomes, outcome(tmp_path, "c_three")], tmp_path)
    return {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix != ".ipynb"}


def test_every_notebook_has_a_page_and_its_place_in_index_and_results(site):
    assert sorted(site) == ["a_one.html", "b_two.html", "c_three.html", "index.html", "results.md"]
    index = site["index.html"]
    assert index.index("a_one.html") < index.index("b_two.html") < index.index("c_three.html")
    assert "07 · Does &lt;it&gt; work?" in index
    assert "1.5 minutes" in index
    assert "Failed: cell [3] raised ValueError: &lt;no&gt;" in index
    assert "| a_one | `net_gain` | 0.50 [0.40, 0.60] |" in site["results.md"]
    assert "| b_two | **failed** | cell [3]" in site["results.md"]


def test_the_index_answers_and_folds_each_claim_with_its_number_and_verdict(site):
    index = site["index.html"]
    assert index.count("It gains 50 [40, 60] points, &amp; more.") == 2
    assert index.count("<details><summary>1 holds · 1 same within its margin</summary>") == 2
    assert "<td>It &lt;gains&gt;</td><td>50 [40, 60] points</td><td>holds</td>" in index
    assert "<td>It stays</td><td>0.50 [0.40, 0.60]</td><td>same within 0.7</td>" in index


def test_the_index_counts_all_claims_and_says_what_chance_would_grant(site):
    assert "4 claims in all: 2 hold · 2 same within their margins." in site["index.html"]
    assert "each of these 4 claims lay exactly on its bar, chance alone would grant about 0.1" in site["index.html"]


def test_the_index_shows_no_name_of_a_variable(site):
    seen = re.sub(r"<style>.*?</style>|<[^>]+>", "", site["index.html"], flags=re.S)
    assert re.findall(r"\w+_\w+", html.unescape(seen)) == []


def test_whatever_a_name_holds_is_escaped(tmp_path):
    runs.build_pages([outcome(tmp_path, "a&<b>", "a | b")], tmp_path)
    index = (tmp_path / "index.html").read_text()
    assert "<b>" not in index
    assert 'href="a&amp;&lt;b&gt;.html"' in index
    assert "| a&<b> | **failed** | a / b |" in (tmp_path / "results.md").read_text()


def test_the_index_shows_the_headline_figure(tmp_path):
    runs.build_pages([outcome(tmp_path, "a", picture=PIXEL + "A")], tmp_path)
    assert (tmp_path / "index.html").read_text().count(PIXEL + "A") == 1
    assert (tmp_path / "index.html").read_text().count(PIXEL) == 1


def test_a_site_loads_nothing_from_the_network(site):
    for name, text in site.items():
        assert not re.findall(r"https?://[^\"'<>\s)]+", text), name
        assert "<script" not in text


def test_a_notebook_that_never_started_still_has_its_place(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 01 · Why?")]), tmp_path / "source.ipynb")
    point = runs.Point(tmp_path / "source.ipynb", tmp_path / "out/source.ipynb")
    runs.build_pages([runs.RunOutcome(point, 600.0, "ran past its limit of 600 s")], tmp_path / "out")
    index = (tmp_path / "out/index.html").read_text()
    assert "Failed: ran past its limit of 600 s" in index
    assert "claims in all" not in index


def links(index):
    """Where a browser would go, for each link of a page."""
    found = re.findall(r'href="([^"]*)"', index)
    return [unquote(urlsplit(html.unescape(link)).path, errors="surrogateescape") for link in found]


NAMES = [
    "run #1",
    "50%3f",
    "a&b",
    "why?",
    "mailto:x",
    "a b",
    "é ü",
    "日本",
    "100%",
    "a.b",
    "index",
    "INDEX",
    "%23",
    "a;b=c",
]
NAMES += ["'quoted'", 'say "hi"', "<b>", "back\\slash", "~x", "-n", "{{ 7 }}", "x" * 240]


def test_any_name_gives_a_link_to_its_own_page(tmp_path):
    outcomes = []
    for name in NAMES:
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=[new_markdown_cell(f"# The page of `{name}`")]), path)
        outcomes.append(runs.RunOutcome(runs.Point(path, path), 1.0, ""))
    index = runs.build_pages(outcomes, tmp_path / "site")
    found = set(links(index.read_text()))
    assert len(found) == len(NAMES)
    pages = [(tmp_path / "site" / link).read_text() for link in found]
    for name in NAMES:
        assert (
            sum(
                f"<title>The page of `{html.escape(name)}`".replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
                in page
                for page in pages
            )
            == 1
        )
    assert "paramarket: results" in index.read_text()


def test_notebooks_of_one_name_in_two_folders_have_a_page_each(tmp_path):
    outcomes = []
    for folder in ("one", "two"):
        path = tmp_path / folder / "a.ipynb"
        path.parent.mkdir()
        nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {folder}")]), path)
        outcomes.append(runs.RunOutcome(runs.Point(path, path), 1.0, "" if folder == "one" else "cell [1] failed"))
    index = runs.build_pages(outcomes, tmp_path / "site")
    assert links(index.read_text()) == ["a.html", "a.html", "a-2.html", "a-2.html"]
    assert "<title>two</title>" in (tmp_path / "site/a-2.html").read_text()
    assert "| a-2 | **failed** |" in (tmp_path / "site/results.md").read_text()


def test_a_name_that_is_no_text_has_a_page_too(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.ipynb")
    nbformat.write(new_notebook(cells=[]), path)
    index = runs.build_pages([runs.RunOutcome(runs.Point(path, path), 1.0, "")], tmp_path / "site")
    assert (tmp_path / "site" / links(index.read_text())[0]).is_file()


@pytest.mark.parametrize("content", [b"", b"{", b'{"cells": 1}', b"\xff", b"[]"])
def test_a_notebook_that_was_cut_off_costs_no_other_its_page(tmp_path, content):
    good = outcome(tmp_path, "a_good")
    nbformat.write(new_notebook(cells=[new_markdown_cell("# As it was")]), tmp_path / "source.ipynb")
    broken = tmp_path / "b_cut.ipynb"
    runs.failed_path(broken).write_bytes(content)
    cut = runs.RunOutcome(runs.Point(tmp_path / "source.ipynb", broken), 9.0, "the process ended with code -9")
    index = runs.build_pages([good, cut], tmp_path / "site").read_text()
    assert "Failed: the process ended with code -9" in index
    assert "As it was" in index
    assert "It gains 50" in index
    (tmp_path / "source.ipynb").write_bytes(content)
    index = runs.build_pages([good, cut], tmp_path / "again").read_text()
    assert "Failed: the process ended with code -9" in index


@pytest.mark.parametrize(
    "harm", [{"order": ["gone"]}, {"order": 3}, {"claims": [{}]}, {"results": None}, {"claims": 1}]
)
def test_a_damaged_record_is_refused_by_its_notebook_and_has_a_page(tmp_path, harm):
    record = {**RECORD, **harm}
    cells = [new_code_cell("r", outputs=[new_output("display_data", data={runs.MIME: record, "text/plain": "gain"})])]
    path = tmp_path / "a.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    with pytest.raises(errors.DataError, match=r"a\.ipynb holds a damaged record"):
        runs.read(path)
    assert runs.build_pages([runs.RunOutcome(runs.Point(path, path), 1.0, "")], tmp_path / "site").is_file()
