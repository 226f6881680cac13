"""A notebook seen from outside, before it runs: what its parameters are, whether it takes some, what its code is."""

import ast
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from paramarket.errors import ParameterError, unknown
from paramarket.runs.parameters import wrong_type

# papermill and nbformat are imported in the functions that need them: a notebook imports `runs`, too, and needs neither


class Declared(NamedTuple):
    """A parameter as its notebook declares it: the type's name, "" if there is none; the default as it is written."""

    annotation: str
    default: str


def declared_parameters(notebook: Path | str) -> dict[str, Declared]:
    """The parameters that a notebook knows, in its order. Reading them takes a while: once a notebook, not a point."""
    import papermill

    if not Path(notebook).is_file():
        raise ParameterError(f"{notebook} is missing.")
    found = {}
    for name, about in papermill.inspect_notebook(str(notebook)).items():
        annotation = about["inferred_type_name"]
        found[name] = Declared("" if annotation == "None" else annotation, about["default"])
    return found


def default_values(declared: Mapping[str, Declared]) -> dict[str, Any]:
    """{name: its default}, of those parameters whose default is a literal: others are known in the kernel only."""
    values = {}
    for name, (annotation, default) in declared.items():
        try:
            values[name] = _canonical(annotation, plain(ast.literal_eval(default)))
        except (ValueError, SyntaxError, TypeError, AttributeError):
            continue
    return values


def taken(notebook: Path | str, name: object, value: Any, declared: Mapping[str, Declared]) -> Any:
    """The value as Python's own numbers, texts and lists, if the notebook takes it: of a known name, of its type.

    A whole number for a float is that float. Raises ParameterError.
    """
    if name not in declared:
        raise ParameterError(f"{Path(notebook).name}: {unknown('parameter', name, declared)}")
    try:
        value = plain(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise ParameterError(f"{name} = {value!r}: give numbers, texts or lists ({error}).") from error
    complaint = wrong_type(name, declared[name].annotation, value)
    if complaint:
        raise ParameterError(f"{Path(notebook).name}: {complaint}")
    return _canonical(declared[name].annotation, value)


def plain(value: Any) -> Any:
    """A value as it comes out of JSON: numpy's and torch's numbers are Python's, a sweep over np.arange say."""
    return json.loads(json.dumps(value, default=lambda array: array.tolist()))


def _canonical(annotation: str, value: Any) -> Any:
    """1 and 1.0 are one value of a float: what is written of it must not depend on how it was given."""
    if annotation == "float" and isinstance(value, int):
        return float(value)
    if annotation == "list[float]" and isinstance(value, list):
        return [float(item) for item in value]
    return value


def source_hash(notebook: Path | str) -> str:
    """A hash of a notebook's code cells and their tags. Prose, outputs and execution counts change no result."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    code = [[cell.source, cell.metadata.get("tags", [])] for cell in cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]
