"""What a sweep found, as one table."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from paramarket.base import atomic
from paramarket.errors import DataError
from paramarket.runs.folders import is_whole, read_description, read_failure
from paramarket.runs.records import record_of


def gather(folder: Path | str) -> pd.DataFrame:
    """One row for every point of a sweep's folder that has finished or failed, in the order of its parameters.

    Columns: `hash`; every parameter, defaults too, lists as JSON texts; every result, an interval `x` as `x`, `x_low`
    and `x_high`; `error`, empty unless the point failed, when its results are missing; `env_torch`, `env_cpu`, …, what
    may change a number's last bit; `seconds` that the notebook ran. A name that is taken gets an underscore.
    But for `seconds` the table is the same, bit for bit, however the points were run.
    Raises DataError for a folder that no sweep has made.
    """
    folder = Path(folder)
    names = read_description(folder)["parameters"]
    outputs = [path for path in folder.glob("*.ipynb") if _is_hash(path.stem) and is_whole(path)]
    rows = [_finished(path, names) for path in outputs]
    finished = {path.stem for path in outputs}
    for path in folder.glob("*.failed.json"):
        failure = read_failure(path)
        if failure and failure["hash"] not in finished:
            rows.append(_row(failure["hash"], _in_order(failure["parameters"], names), error=failure["error"]))
    rows.sort(key=lambda row: [_sort_key(row[name]) for name in names if name in row])
    return pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in _columns(rows, names)})


def write_table(folder: Path | str) -> pd.DataFrame:
    """`gather`, kept in the folder as table.csv and table.parquet; the latter keeps every type."""
    table = gather(folder)
    with atomic(Path(folder) / "table.csv") as beside:
        table.to_csv(beside, index=False, lineterminator="\n")
    with atomic(Path(folder) / "table.parquet") as beside:
        table.to_parquet(beside, index=False)
    return table


def _is_hash(name: str) -> bool:
    return len(name) == 16 and set(name) <= set("0123456789abcdef")


def _finished(path: Path, names: list[str]) -> dict[str, Any]:
    """The row of a notebook that ran to its end; one that recorded nothing says so where errors stand."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        about = notebook["metadata"]["papermill"]
        parameters = _in_order(about["parameters"], names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _row(path.stem, {}, error=f"{path} is no readable notebook ({error!r}): delete it and run it again.")
    try:
        found = record_of(notebook, path)
    except DataError as error:
        return _row(path.stem, parameters, error=str(error), seconds=about.get("duration"))
    environment = {f"env_{name}": value for name, value in found["environment"].items()}
    return _row(path.stem, parameters, found["results"], "", environment, about.get("duration"))


def _in_order(parameters: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The parameters in the notebook's order; a list, which no table can group by, as a text."""
    return {name: _as_cell(parameters[name]) for name in names if name in parameters}


def _as_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _row(
    key: str,
    parameters: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
    error: str = "",
    environment: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    row = dict(parameters)
    more = {"hash": key, **(results or {}), "error": error, **(environment or {}), "seconds": seconds}
    for name, value in more.items():
        while name in row:
            name += "_"
        row[name] = value
    return row


def _columns(rows: Iterable[Mapping[str, Any]], names: list[str]) -> list[str]:
    """Hash, parameters, results in the order of a record, error, environment, seconds."""
    found = dict.fromkeys(name for row in rows for name in row)
    last = [name for name in found if name.startswith("env_")]
    results = [name for name in found if name not in {"hash", *names, "error", *last, "seconds"}]
    return [name for name in ("hash", *names, *results, "error", *last, "seconds") if name in found]


def _column(values: list[Any]) -> list[Any]:
    """The values of one column; texts and numbers in one, which Parquet cannot hold, are all texts."""
    some = [isinstance(value, str) for value in values if value is not None]
    if any(some) and not all(some):
        return [None if value is None else str(value) for value in values]
    return values


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then texts."""
    is_number = isinstance(value, (int, float))
    return (not is_number, value if is_number else 0, "" if is_number else str(value))
