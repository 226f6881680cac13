"""Executed notebooks as a readable site that needs no network: pages, an index and results.md, open from file://."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from paramarket.base import atomic
from paramarket.errors import DataError
from paramarket.runs.records import read, show
from paramarket.runs.sweep import Outcome, failed_path

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


def build(outcomes: Sequence[Outcome], folder: Path | str) -> Path:
    """Write a page for each outcome, `index.html` and `results.md` into `folder`; give back the index's path."""
    folder = Path(folder)
    entries = [_entry(outcome, folder) for outcome in sorted(outcomes, key=lambda outcome: str(outcome.point.notebook))]
    _write(folder / "results.md", _results(entries))
    _write(folder / "index.html", _document("paramarket: results", _index(entries)))
    return folder / "index.html"


def _entry(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """All the index says of one notebook."""
    name, output = Path(outcome.point.notebook).stem, Path(outcome.point.output)
    executed = failed_path(output) if outcome.error and failed_path(output).is_file() else output
    source = executed if executed.is_file() else Path(outcome.point.notebook)
    notebook = nbformat.read(source, as_version=4)
    question = _question(notebook) or name
    _write(folder / f"{name}.html", page(notebook, question))
    try:
        results = read(source)["results"]
    except DataError:
        results = {}
    seconds = outcome.seconds
    return {
        "name": name,
        "question": question,
        "results": results,
        "seconds": seconds,
        "error": outcome.error,
        "figure": _figure(notebook),
    }


def page(notebook: NotebookNode, title: str) -> str:
    """One notebook as a page of its own: formulas as MathML, no progress bars, no widgets, no address to load from."""
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _MATH.sub(_mathml, cell.source)
        else:
            cell.outputs = [output for output in cell.outputs if not _is_live(output)]
    body, _ = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    ).from_notebook_node(notebook)
    body = body.replace('alt="No description has been provided for this image"', 'alt="figure: see the text around it"')
    return _document(title, f'<nav><a href="index.html">All notebooks</a></nav>{body}')


def _is_live(output: NotebookNode) -> bool:
    return output.get("name") == "stderr" or _WIDGET in output.get("data", {})


def _mathml(match: re.Match) -> str:
    if match["code"]:
        return match["code"]
    try:
        return convert(match["block"] or match["line"], display="block" if match["block"] else "inline")
    except Exception:  # latex2mathml has one for each slip; a page is worth more than a formula
        return f"<code>{html.escape(match[0])}</code>"


def _question(notebook: NotebookNode) -> str:
    """The title's text, without its number: `# 01 · Two networks …` asks `Two networks …`."""
    title = next((cell.source.splitlines()[0] for cell in notebook.cells if cell.source.startswith("# ")), "")
    return re.sub(r"^# (\d+ · )?", "", title)


def _figure(notebook: NotebookNode) -> str:
    """The picture of the cell tagged `headline`, or else the last one; base64, or nothing."""
    pictures = [
        ("headline" in cell.metadata.get("tags", []), output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    chosen = [picture for headline, picture in pictures if headline] or [picture for _, picture in pictures][-1:]
    return chosen[0].strip() if chosen else ""


def with_intervals(results: dict[str, Any]) -> dict[str, str]:
    """Results as a reader wants them: `x`, `x_low`, `x_high` on one line as `x [low, high]`."""
    single = {name: value for name, value in results.items() if not name.endswith(("_low", "_high"))}
    ends = {name: [results.get(name + end) for end in ("_low", "_high")] for name in single}
    return {
        name: show(value) + (f" [{', '.join(map(show, ends[name]))}]" if None not in ends[name] else "")
        for name, value in single.items()
    }


def _index(entries: list[dict[str, Any]]) -> str:
    intro = "<h1>paramarket: results</h1><p>Means, with 95 % intervals in brackets.</p>"
    return intro + "".join(map(_card, entries))


def _card(entry: dict[str, Any]) -> str:
    """One notebook on the index: question, minutes, what failed, one figure, headline results."""
    link = f'<a href="{entry["name"]}.html">'
    failed = f'<p class="error">Failed: {html.escape(entry["error"])}</p>' if entry["error"] else ""
    source = f"data:image/png;base64,{entry['figure']}"
    figure = f'{link}<img alt="headline figure" src="{source}"></a>' if entry["figure"] else ""
    results = list(with_intervals(entry["results"]).items())[:8]
    rows = "".join(f"<tr><td>{name}</td><td>{html.escape(text)}</td></tr>" for name, text in results)
    return (
        f'<div class="entry"><h2>{link}{html.escape(entry["question"])}</a></h2>'
        f"<p>{entry['name']} · {entry['seconds'] / 60:.1f} minutes</p>{failed}{figure}<table>{rows}</table></div>"
    )


def _results(entries: list[dict[str, Any]]) -> str:
    lines = [
        "# Results",
        "",
        "Means with 95 % intervals in brackets.",
        "",
        "| notebook | result | value |",
        "|---|---|---|",
    ]
    for entry in entries:
        if entry["error"]:
            lines.append(f"| {entry['name']} | **failed** | {entry['error'].splitlines()[0].replace('|', '/')} |")
        lines += [f"| {entry['name']} | `{name}` | {text} |" for name, text in with_intervals(entry["results"]).items()]
    return "\n".join(lines) + "\n"


def claims(notebooks: Sequence[Path | str]) -> str:
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
        "| claim | notebook | figure (section) | number | verdict |",
        "|---|---|---|---|---|",
    ]
    for name, found in records.items():
        numbers = with_intervals(found["results"])
        for each in found["claims"]:
            value = f"`{each['result']}` {numbers[each['result']]}"
            lines.append(f"| {each['claim']} | {name} | {each['figure']} | {value} | {each['verdict']} |")
    places = {", ".join(f"{key} {value}" for key, value in found["environment"].items()) for found in records.values()}
    return "\n".join([*lines, "", f"Measured with: {'; '.join(sorted(places))}."]) + "\n"


def _document(title: str, body: str) -> str:
    style = _STYLE + HtmlFormatter(style="friendly").get_style_defs(".highlight")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f'<!DOCTYPE html><html lang="en"><head>{head}<style>{style}</style></head><body>{body}</body></html>\n'


def _write(path: Path, text: str) -> None:
    with atomic(path) as beside:
        beside.write_text(text, encoding="utf-8")
