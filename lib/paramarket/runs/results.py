"""What all notebooks found, as Markdown: RESULTS.md, and the plain list of every recorded number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paramarket.runs.claims import HOW_JUDGED, count_verdicts, granted_by_chance, shown_number
from paramarket.runs.formats import format_results
from paramarket.runs.pages import title_of
from paramarket.runs.records import read


def results_table(notebooks: Sequence[Path | str]) -> str:
    """RESULTS.md: the answer of each executed notebook, then each claim with its number, interval and verdict."""
    import nbformat

    answers, rows, claims, places = [], [], [], set()
    for path in sorted(notebooks):
        found = read(path)
        name = Path(path).stem
        answers.append(f"- **{title_of(nbformat.read(path, as_version=4)) or name}** {found['answer']}")
        for each in found["claims"]:
            number = shown_number(each, found["results"])
            rows.append(_table_row(each["claim"], name, each["figure"], number, each["verdict"]))
        claims.extend(found["claims"])
        places.add(", ".join(f"{key} {value}" for key, value in found["environment"].items()))
    lines = [
        "# Results",
        "",
        "What the notebooks found, on default parameters: means with 95 % intervals. All numbers are this project's",
        "own, on small networks and small images; none is a paper's. `make results` writes this file from a full run.",
        "",
        "## The answers",
        "",
        *answers,
        "",
        "## The claims",
        "",
        HOW_JUDGED,
        "",
        f"{len(claims)} claims: {count_verdicts(claims)}. {granted_by_chance(len(claims))}",
        "",
        *_table_head("claim", "notebook", "figure (section)", "number", "verdict"),
        *rows,
        "",
        f"Measured with: {'; '.join(sorted(places))}.",
    ]
    return "\n".join(lines) + "\n"


def results_list(records: Mapping[str, Mapping[str, Any] | str]) -> str:
    """results.md, {notebook name: its flat results, or its error}: every number, or why there is none."""
    lines = ["# Results", "", "Means with 95 % intervals in brackets.", "", *_table_head("notebook", "result", "value")]
    for name, found in records.items():
        if isinstance(found, str):
            lines.append(_table_row(name, "**failed**", found.splitlines()[0]))
            continue
        for result, text in format_results(found).items():
            lines.append(_table_row(name, f"`{result}`", text))
    return "\n".join(lines) + "\n"


def _table_head(*names: str) -> list[str]:
    return [_table_row(*names), "|" + "---|" * len(names)]


def _table_row(*cells: str) -> str:
    """A row of a Markdown table; a bar within a cell would end it."""
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
