"""One executed notebook as a page that needs no network: it opens from file://."""

import ast
import html
import re
from typing import Any, NamedTuple

# nbformat, nbconvert and what else makes pages is imported in the functions that need it: every notebook imports
# `runs`, too, and should not wait for what it never uses

_WIDGET = "application/vnd.jupyter.widget-view+json"
_PNG = "image/png"
_MATH = re.compile(  # as JupyterLab reads it: a formula in a line of text may go on in the next line
    r"""(?P<code> ```.*?``` | `[^`\n]*` )
    | \$\$ (?P<block> .+? ) \$\$
    | (?<![\\\w]) \$ (?P<line> [^\s$] (?: (?: [^$\n] | \n(?!\s*\n) )* [^\s$] )? ) \$ (?!\d)""",
    re.S | re.X,
)
GENERATOR = '<meta name="generator" content="paramarket">'
# Wide enough for a figure at its natural size in a window of 1,280 pixels; text keeps to lines one can read.
_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2430; max-width: 77rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.8rem; line-height: 1.2 } h2 { margin-top: 2.5rem } a { color: #0b5cad }
p, ul, ol, blockquote, pre, .highlight { max-width: 60rem }
img { max-width: 100%; height: auto } details { margin: .6rem 0 } nav { font-size: .9rem }
summary { cursor: pointer; color: #0b5cad }
pre { background: #f5f6f8; padding: .7rem .9rem; overflow-x: auto; border-radius: 4px; font-size: .84rem }
blockquote { border-left: 3px solid #c9d3df; margin: 1rem 0; padding-left: 1rem }
.output_area, .text_cell_render { overflow-x: auto }
table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0 }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #dfe4ea; text-align: left }
.dataframe td { text-align: right }
.prompt, .anchor-link { display: none } .jp-RenderedText pre, .output_area pre { background: none }
.output_area pre { white-space: pre-wrap }
.error { color: #a4161a; font-weight: 600 } .entry { border-top: 1px solid #dfe4ea; padding: 1rem 0 }
.answer { font-size: 1.1rem } .entry h2 { margin-top: .5rem }
"""
_DOCUMENT = """\
<!DOCTYPE html><html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">{{ generator | safe }}
<title>{{ title }}</title><style>{{ style | safe }}</style></head>
<body>{{ body | safe }}</body></html>
"""
_FOLD_SOLUTIONS = """\
{%- extends 'basic/index.html.j2' -%}
{%- block codecell -%}
{%- if 'BEGIN SOLUTION' in cell.source -%}
<details class="solution"><summary>Solution</summary>{{ super() }}</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock codecell -%}
"""


def page(notebook: dict[str, Any], title: str) -> str:
    """One notebook as a page of its own: formulas as MathML, solutions folded, no progress bars, no dead widgets."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook = nbformat.from_dict(notebook)
    section = title
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = _last_heading(cell.source) or section
            cell.source = _MATH.sub(_mathml, cell.source)
        else:
            cell.outputs = [output for output in cell.outputs if not _is_live(output)]
            for output in cell.outputs:
                if _PNG in output.get("data", {}):
                    output.setdefault("metadata", {})[_PNG] = {"alt": figure_words(cell.source) or f"Figure: {section}"}
    exporter = HTMLExporter(
        raw_template=_FOLD_SOLUTIONS,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        preprocessors=[CoalesceStreamsPreprocessor],  # a kernel sends what is printed in pieces that may cut a line
    )
    body, _ = exporter.from_notebook_node(notebook)
    return document(title, f'<nav><a href="index.html">All notebooks</a></nav>{body}')


def _is_live(output: dict[str, Any]) -> bool:
    """Whether an output means nothing on a page: a progress bar, a widget."""
    return output.get("name") == "stderr" or _WIDGET in output.get("data", {})


def _last_heading(text: str) -> str:
    """The last title of a cell of text, or nothing: what stands behind a # in a line of code is none."""
    return (re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M) or [""])[-1]


def figure_words(source: str) -> str:
    """What a figure says in words, for those who cannot see it: the title that its cell gives it, or nothing.

    Our titles state the point. A title is what is handed on as `title=`, put into a variable of that name, or the last
    text of a call of `plot`; a number that only the run knows is left out: "Half-way the loss is … nats".
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # of IPython's own: %matplotlib
        return ""
    titles = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "title":
            titles.append(node.value)
        elif isinstance(node, ast.Call):
            titles += [keyword.value for keyword in node.keywords if keyword.arg == "title"]
            if re.match(r"plot\.|draw_|.*(set_|sup|plt\.)title$", ast.unparse(node.func)):
                titles += node.args[-1:]
    found = [" ".join(_words(title).split()) for title in titles]
    found = [words for words in found if " " in words]
    return ". ".join(dict.fromkeys(found))


def _words(node: ast.expr) -> str:
    """The text that an expression of Python is, as far as it can be read there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_words(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def _mathml(match: re.Match) -> str:
    from latex2mathml.converter import convert

    if match["code"]:
        return match["code"]
    try:
        formula = convert(match["block"] or match["line"], display="block" if match["block"] else "inline")
    except Exception:  # latex2mathml has one for each slip; a page is worth more than a formula
        formula = "\\"
    if "\\" in formula:  # a command that it does not know is left as it is
        return f"<code>{html.escape(match[0])}</code>"
    return formula


def title_of(notebook: Any) -> str:
    """What stands behind `# ` in its first title, or nothing: `01 · Two networks … ?`."""
    for cell in notebook.cells:
        if cell.source.startswith("# "):
            return cell.source.splitlines()[0].removeprefix("# ")
    return ""


class Picture(NamedTuple):
    """A figure: the bytes of a PNG file as base64, and what it says in words; both empty if there is none."""

    png: str
    words: str


def headline_figure(notebook: Any) -> Picture:
    """The picture of the cell tagged `headline`, or else the last one."""
    last = Picture("", "")
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if _PNG in output.get("data", {}):
                last = Picture(output["data"][_PNG].strip(), figure_words(cell.source))
                if "headline" in cell.metadata.get("tags", []):
                    return last
    return last


def document(title: str, body: str) -> str:
    """A whole HTML document around a body, with our style."""
    from pygments.formatters import HtmlFormatter

    style = _STYLE + HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return fill(_DOCUMENT, title=title, style=style, body=body, generator=GENERATOR)


def fill(template: str, **values: Any) -> str:
    """Fill a jinja template; whatever is not marked safe is escaped."""
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined).from_string(template).render(values)
