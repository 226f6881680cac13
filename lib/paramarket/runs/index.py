"""The results of many notebooks as a site: an index that answers, a page each, results.md."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from paramarket.base import atomic
from paramarket.errors import DataError
from paramarket.runs.claims import count_verdicts, granted_by_chance, shown_number
from paramarket.runs.folders import failed_path
from paramarket.runs.pages import document, fill, headline_figure, page, title_of
from paramarket.runs.records import read
from paramarket.runs.results import results_list
from paramarket.runs.sweep import RunOutcome

_PLAIN = " !$&'()*+,;=<>@[]^`{|}~"  # in a link these stand for themselves; a #, ?, % or : would not
_INDEX = """\
<h1>paramarket: results</h1>
<p>Numbers are means, with 95 % intervals in brackets.
{% if total %}{{ count }} claims in all: {{ total }}. {{ chance }}{% endif %}</p>
{% for entry in entries %}
<div class="entry"><h2><a href="{{ entry.link }}">{{ entry.title }}</a></h2>
{% if entry.error %}<p class="error">Failed: {{ entry.error }}</p>{% endif %}
{% if entry.answer %}<p class="answer">{{ entry.answer }}</p>{% endif %}
{% if entry.claims %}
<details><summary>{{ entry.verdicts }}</summary><table>
<tr><th>claim</th><th>number</th><th>verdict</th></tr>
{% for text, number, verdict in entry.claims %}
<tr><td>{{ text }}</td><td>{{ number }}</td><td>{{ verdict }}</td></tr>
{% endfor %}
</table></details>
{% endif %}
{% if entry.figure.png %}
<a href="{{ entry.link }}"><img alt="{{ entry.figure.words or 'Figure: ' ~ entry.title }}"
src="data:image/png;base64,{{ entry.figure.png }}"></a>
{% endif %}
<p><a href="{{ entry.link }}">Read the notebook</a>.
It ran for {{ "%.1f" | format(entry.seconds / 60) }} minutes.</p>
</div>
{% endfor %}
"""


def build_pages(outcomes: Sequence[RunOutcome], folder: Path | str) -> Path:
    """Write a page for each outcome, `index.html` and `results.md` into `folder`; give back the index's path."""
    folder = Path(folder)
    in_order = sorted(outcomes, key=lambda outcome: str(outcome.point.notebook))
    entries, records, claims = [], {}, []
    for outcome in in_order:
        name = _free_name(Path(outcome.point.notebook).stem, {"index", *records})
        entry, found = _entry(outcome, folder, name)
        entries.append(entry)
        records[name] = outcome.error or found["results"]
        claims.extend(found["claims"])
    count = len(claims)
    index = fill(_INDEX, entries=entries, count=count, total=count_verdicts(claims), chance=granted_by_chance(count))
    _write(folder / "results.md", results_list(records))
    _write(folder / "index.html", document("paramarket: results", index))
    return folder / "index.html"


def _free_name(name: str, taken: Collection[str]) -> str:
    """The name for a page: a notebook may be called index, or like one in another folder."""
    free, number = name, 1
    while free.lower() in {each.lower() for each in taken}:
        number += 1
        free = f"{name}-{number}"
    return free


def _entry(outcome: RunOutcome, folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """All the index says of one notebook, and its record; its own page is written on the way."""
    source, notebook = _executed(outcome)
    title = title_of(notebook) or name
    _write(folder / f"{name}.html", page(notebook, title))
    try:
        found = read(source)
    except DataError:
        found = {"answer": "", "claims": [], "results": {}}
    entry = {
        "link": quote(f"{name}.html", safe=_PLAIN, errors="surrogateescape"),
        "title": title,
        "answer": found["answer"],
        "verdicts": count_verdicts(found["claims"]),
        "claims": [(each["claim"], shown_number(each, found["results"]), each["verdict"]) for each in found["claims"]],
        "seconds": outcome.seconds,
        "error": outcome.error,
        "figure": headline_figure(notebook),
    }
    return entry, found


def _executed(outcome: RunOutcome) -> tuple[Path, Any]:
    """The notebook as it ran, or as far as it got; if nothing of that can be read, as it was, or an empty one."""
    import nbformat

    output = Path(outcome.point.output)
    for path in (failed_path(output), output) if outcome.error else (output,):
        if path.is_file():
            try:
                return path, nbformat.read(path, as_version=4)
            except Exception:  # one that was cut off as it was written must not cost the pages of all others
                continue
    path = Path(outcome.point.notebook)
    try:
        return path, nbformat.read(path, as_version=4)
    except Exception:
        return path, nbformat.v4.new_notebook()


def _write(path: Path, text: str) -> None:
    with atomic(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="replace")  # of a file whose name is no text
