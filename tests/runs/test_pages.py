import html
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from paramarket.__main__ import HOME
from paramarket.runs.pages import _WIDGET as WIDGET
from paramarket.runs.pages import figure_words, headline_figure, page, title_of

NOTEBOOKS = sorted((HOME / "notebooks").glob("[0-9]*.ipynb"))
SOLUTION = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"
CELLS = [
    new_markdown_cell("# 07 · Does <it> work?\n\nPrice $p_i < 2$ and `$HOME` cost $$\\frac{a}{b}$$ or \\$5 and \\$6."),
    new_markdown_cell(
        "A slip: $x^$. The $k$th, and a broken $a\n+ b$ line. Unknown: $\\big\\langle x$. A lonely $\n\nand another$."
    ),
    new_code_cell("z", outputs=[new_output("stream", name="stderr", text="training: 10%")]),
    new_code_cell("y", outputs=[new_output("stream", text="plain")]),
    new_code_cell("w", outputs=[new_output("display_data", data={WIDGET: {}, "text/plain": "IntSlider()"})]),
    new_code_cell(SOLUTION),
    new_code_cell("teach.check_f(f)", outputs=[new_output("stream", text="f holds")]),
]


class Words(HTMLParser):
    """What a reader sees of a page: all text, the text in formulas and code apart, and what stands in fold-outs."""

    def __init__(self, text):
        super().__init__()
        self.open, self.prose, self.slips, self.folded = [], "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br", "hr", "input"):
            self.open.append(tag)
        if tag == "details":
            assert not dict(attributes).get("open")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "details" in self.open:
            self.folded += data
        if "code" in self.open and data.startswith("$"):
            self.slips += data
        if not {"pre", "code", "math", "style"} & set(self.open):
            self.prose += data


@pytest.fixture(scope="module")
def text():
    return page(new_notebook(cells=CELLS), "Does <it> work?")


def test_a_line_that_the_kernel_sent_in_pieces_is_whole():
    pieces = [
        new_output("stream", text="a line in"),
        new_output("stream", name="stderr", text="10%"),
        new_output("stream", text=" two pieces\n"),
        new_output("display_data", data={"text/plain": "a table"}),
        new_output("stream", text="below it"),
    ]
    text = page(new_notebook(cells=[new_code_cell("x", outputs=pieces)]), "x")
    assert "a line in two pieces" in text
    assert text.index("two pieces") < text.index("a table") < text.index("below it")


def test_a_page_loads_nothing_from_the_network(text):
    assert set(re.findall(r"https?://[^\"'<>\s)]+", text)) <= {"http://www.w3.org/1998/Math/MathML"}
    assert "<script" not in text


def test_formulas_become_mathml_and_code_and_money_stay(text):
    assert text.count("<math") == 4
    assert "A lonely $</p>" in text
    assert "<li>" not in text  # the second line of a formula begins with a plus sign: no item of a list
    assert "<code>$x^$</code>" in text
    assert "<mfrac>" in text
    assert 'display="block"' in text
    assert "$HOME" in text
    assert "$5 and $6" in text.replace("\\", "")
    assert Words(text).slips == "$HOME$x^$$\\big\\langle x$"


def test_pages_show_no_progress_bar_and_no_dead_widget(text):
    assert "training: 10%" not in text
    assert "IntSlider" not in text
    assert "plain" in text


def test_solutions_are_folded_and_their_checks_are_not(text):
    assert text.count('<details class="solution"><summary>Solution</summary>') == 1
    folded = Words(text).folded
    assert "BEGIN SOLUTION" in folded
    assert "END SOLUTION" in folded
    assert "check_f" not in folded
    assert "f holds" not in folded


def test_the_headline_figure_is_the_tagged_one_or_else_the_last():
    def cell(picture, tags=()):
        outputs = [new_output("display_data", data={"image/png": picture})]
        return new_code_cell("x", metadata={"tags": list(tags)}, outputs=outputs)

    assert headline_figure(new_notebook(cells=[cell("a"), cell("b\n")])).png == "b"
    assert headline_figure(new_notebook(cells=[cell("a", ["headline"]), cell("b")])).png == "a"
    assert headline_figure(new_notebook(cells=CELLS)) == ("", "")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('axes.set(xlabel="loss in nats", title="The loss falls")', "The loss falls"),
        ('title = f"Half-way the loss is {x:.2f} nats"\naxes.set(title=title)', "Half-way the loss is … nats"),
        ('plot.headline(grid.figure, "All of them gain")', "All of them gain"),
        ('plot.image_row(x, names, "The ten " "kinds")', "The ten kinds"),
        ('a.set_title("On A\'s parts")\nb.set_title("On B\'s parts")', "On A's parts. On B's parts"),
        ('plot.percent(axis, "x")\nprint("no title here")', ""),
        ('grid.set_titles("{col_name} points")\naxes.set(title="Two\\nlines")', "Two lines"),
        ("%matplotlib inline", ""),
        ("", ""),
    ],
)
def test_a_figure_is_told_in_the_words_of_its_title(source, words):
    assert figure_words(source) == words


def test_every_figure_of_a_page_has_words_its_title_or_its_section():
    picture = new_output("display_data", data={"image/png": "YQ==", "text/plain": "<Figure>"})
    cells = [
        new_markdown_cell("# Why?"),
        new_code_cell("draw()", outputs=[picture]),
        new_markdown_cell('## 1 · "Far" & near\n```\n# code\n```'),
        new_code_cell("draw()", outputs=[picture]),
        new_code_cell("axes.set(title='A < B by far')", outputs=[picture]),
    ]
    texts = re.findall(r"""alt=("[^"]*"|'[^']*')""", page(new_notebook(cells=cells), "Why?"))
    assert [html.unescape(text[1:-1]) for text in texts] == ["Figure: Why?", 'Figure: 1 · "Far" & near', "A < B by far"]


def test_a_title_is_the_first_one():
    assert title_of(new_notebook(cells=CELLS)) == "07 · Does <it> work?"
    assert title_of(new_notebook(cells=CELLS[2:])) == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pages_of_our_notebooks_have_whole_formulas_and_no_open_solution(path):
    notebook = nbformat.read(path, as_version=4)
    words = Words(page(notebook, title_of(notebook)))
    assert "$" not in words.prose
    assert not words.slips
    solutions = "".join(cell.source for cell in notebook.cells).count("### BEGIN SOLUTION")
    assert words.folded.count("### BEGIN SOLUTION") == solutions
