"""Executed notebooks as a readable site that needs no network: pages, an index and results.md, open from file://."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paramarket.base import atomic
from paramarket.errors import DataError
from paramarket.runs.records import format_number, read
from paramarket.runs.sweep import RunOutcome, failed_path

# nbformat, nbconvert and what else makes pages is imported in the functions that need it: every notebook imports
# `runs`, too, and should not wait for what it never uses

_WIDGET = "application/vnd.jupyter.widget-view+json"
_MATH = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|(?<![\\\w])\$(?P<line>[^\s$](?:[^$\n]*[^\s$])?)\$(?!\d)",
    re.S,
)
_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2430; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.8rem; line-height: 1.2 } h2 { margin-top: 2.5rem } a { color: #0b5cad }
img { max-width: 100%; height: auto } details { margin: .6rem 0 } nav { font-size: .9rem }
pre { background: #f5f6f8; padding: .7rem .9rem; overflow-x: auto; border-radius: 4px; font-size: .84rem }
blockquote { border-left: 3px solid #c9d3df; margin: 1rem 0; padding-left: 1rem }
table { border-collapse: collapse; font-size: .92rem }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #dfe4ea; text-align: left }
.prompt, .anchor-link { display: none } .jp-RenderedText pre, .output_area pre { background: none }
.error { color: #a4161a; font-weight: 600 } .entry { border-top: 1px solid #dfe4ea; padding: 1rem 0 }
.entry img { max-height: 22rem }
"""
_DOCUMENT = """\
<!DOCTYPE html><html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>{{ style | safe }}</style></head>
<body>{{ body | safe }}</body></html>
"""
_INDEX = """\
<h1>paramarket: results</h1><p>Means, with 95 % intervals in brackets.</p>
{% for entry in entries %}
<div class="entry"><h2><a href="{{ entry.name }}.html">{{ entry.question }}</a></h2>
<p>{{ entry.name }} · {{ "%.1f" | format(entry.seconds / 60) }} minutes</p>
{% if entry.error %}<p class="error">Failed: {{ entry.error }}</p>{% endif %}
{% if entry.figure %}
<a href="{{ entry.name }}.html"><img alt="headline figure" src="data:image/png;base64,{{ entry.figure }}"></a>
{% endif %}
<table>
{% for name, text in entry.headlines %}<tr><td>{{ name }}</td><td>{{ text }}</td></tr>{% endfor %}
</table></div>
{% endfor %}
"""


def build_pages(outcomes: Sequence[RunOutcome], folder: Path | str) -> Path:
    """Write a page for each outcome, `index.html` and `results.md` into `folder`; give back the index's path."""
    folder = Path(folder)
    in_order = sorted(outcomes, key=lambda outcome: str(outcome.point.notebook))
    entries = [_entry(outcome, folder) for outcome in in_order]
    _write(folder / "results.md", _results(entries))
    _write(folder / "index.html", _document("paramarket: results", _fill(_INDEX, entries=entries)))
    return folder / "index.html"


def _entry(outcome: RunOutcome, folder: Path) -> dict[str, Any]:
    """All the index says of one notebook; its own page is written on the way."""
    import nbformat

    name, output = Path(outcome.point.notebook).stem, Path(outcome.point.output)
    executed = failed_path(output) if outcome.error and failed_path(output).is_file() else output
    source = executed if executed.is_file() else Path(outcome.point.notebook)
    notebook = nbformat.read(source, as_version=4)
    question = _question(notebook) or name
    _write(folder / f"{name}.html", _page(notebook, question))
    try:
        results = _with_intervals(read(source)["results"])
    except DataError:
        results = {}
    return {
        "name": name,
        "question": question,
        "results": results,
        "headlines": list(results.items())[:8],
        "seconds": outcome.seconds,
        "error": outcome.error,
        "figure": _figure(notebook),
    }


def _page(notebook: dict[str, Any], title: str) -> str:
    """One notebook as a page of its own: formulas as MathML, no progress bars, no widgets, no address to load from."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _MATH.sub(_mathml, cell.source)
        else:
            cell.outputs = [output for output in cell.outputs if not _is_live(output)]
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(notebook)
    body = body.replace('alt="No description has been provided for this image"', 'alt="figure: see the text around it"')
    return _document(title, f'<nav><a href="index.html">All notebooks</a></nav>{body}')


def _is_live(output: dict[str, Any]) -> bool:
    """Whether an output means nothing on a page: a progress bar, a widget."""
    return output.get("name") == "stderr" or _WIDGET in output.get("data", {})


def _mathml(match: re.Match) -> str:
    from latex2mathml.converter import convert

    if match["code"]:
        return match["code"]
    try:
        return convert(match["block"] or match["line"], display="block" if match["block"] else "inline")
    except Exception:  # latex2mathml has one for each slip; a page is worth more than a formula
        return f"<code>{html.escape(match[0])}</code>"


def _question(notebook: Any) -> str:
    """The title's text, without its number: `# 01 · Two networks …` asks `Two networks …`."""
    title = next((cell.source.splitlines()[0] for cell in notebook.cells if cell.source.startswith("# ")), "")
    return re.sub(r"^# (\d+ · )?", "", title)


def _figure(notebook: Any) -> str:
    """The picture of the cell tagged `headline`, or else the last one; base64, or nothing."""
    headline, last = "", ""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            last = output.get("data", {}).get("image/png", last)
            if "headline" in cell.metadata.get("tags", []):
                headline = headline or output.get("data", {}).get("image/png", "")
    return (headline or last).strip()


def _with_intervals(results: dict[str, Any]) -> dict[str, str]:
    """Results as a reader wants them: `x`, `x_low`, `x_high` on one line as `x [low, high]`."""
    lines, ends = {}, set()
    for name, value in results.items():
        lines[name] = format_number(value)
        low, high = f"{name}_low", f"{name}_high"
        if low in results and high in results:
            lines[name] += f" [{format_number(results[low])}, {format_number(results[high])}]"
            ends.update((low, high))
    return {name: text for name, text in lines.items() if name not in ends}


def _results(entries: Sequence[dict[str, Any]]) -> str:
    """results.md: every result of every notebook, or why there is none."""
    lines = ["# Results", "", "Means with 95 % intervals in brackets.", "", *_table_head("notebook", "result", "value")]
    for entry in entries:
        if entry["error"]:
            lines.append(_table_row(entry["name"], "**failed**", entry["error"].splitlines()[0]))
        for name, text in entry["results"].items():
            lines.append(_table_row(entry["name"], f"`{name}`", text))
    return "\n".join(lines) + "\n"


def results_table(notebooks: Sequence[Path | str]) -> str:
    """RESULTS.md: each recorded claim with its notebook, figure, number, interval and verdict."""
    records = {Path(path).stem: read(path) for path in sorted(notebooks)}
    lines = [
        "# Results",
        "",
        "What the notebooks claim and what the data say, on default parameters: means with 95 % intervals.",
        "A claim **holds** if the whole interval lies on its side of the bar, **fails** if it lies on the other,",
        "and holds **partly** if it straddles it. All numbers are this project's own, on small networks and small",
        "images; none is a paper's. `make results` writes this file from a full run.",
        "",
        *_table_head("claim", "notebook", "figure (section)", "number", "verdict"),
    ]
    places = set()
    for name, found in records.items():
        numbers = _with_intervals(found["results"])
        for each in found["claims"]:
            number = f"`{each['result']}` {numbers[each['result']]}"
            lines.append(_table_row(each["claim"], name, each["figure"], number, each["verdict"]))
        places.add(", ".join(f"{key} {value}" for key, value in found["environment"].items()))
    return "\n".join([*lines, "", f"Measured with: {'; '.join(sorted(places))}."]) + "\n"


def _table_head(*names: str) -> list[str]:
    return [_table_row(*names), "|" + "---|" * len(names)]


def _table_row(*cells: str) -> str:
    """A row of a Markdown table; a bar within a cell would end it."""
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _document(title: str, body: str) -> str:
    from pygments.formatters import HtmlFormatter

    style = _STYLE + HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return _fill(_DOCUMENT, title=title, style=style, body=body)


def _fill(template: str, **values: Any) -> str:
    """Fill a jinja template; whatever is not marked safe is escaped."""
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined).from_string(template).render(values)


def _write(path: Path, text: str) -> None:
    with atomic(path) as beside:
        beside.write_text(text, encoding="utf-8")
