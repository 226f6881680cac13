"""The parameters of a notebook: read off its own cells, and checked before any work starts."""

import ast
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

from paramarket.errors import ParameterError, unknown

_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str}
_CHECKS = {"int": "(lowest, highest)", "float": "(lowest, highest)", "bool": "bool", "str": "str or a list of texts"}

Allowed = tuple[float, float] | Collection[str] | type[str] | type[bool]


def check_parameters(namespace: Mapping[str, Any], **allowed: Allowed) -> dict[str, Any]:
    """Check the notebook's parameters before any work starts, and give them back as a dict.

    namespace: the notebook's `globals()`. The parameters cell is the last one that annotates one of `allowed`; the
    cell that papermill injects behind it may only set names from it.
    allowed, for each parameter: (low, high) for numbers and lists of numbers, a collection of names for texts, `str` or
    `bool` for any. Raises ParameterError that lists all that is wrong.
    """
    if "In" not in namespace:
        raise ParameterError("check_parameters reads a notebook's cells: call it in a notebook, with globals().")
    sources = namespace["In"]
    cells = [_parse(source) for source in sources]
    place = _parameters_cell(cells, allowed)
    declared = _annotated(cells[place])
    values = {name: namespace.get(name) for name in declared}

    wrong = []
    for name in _injected(sources[place + 1 :], cells[place + 1 :]):
        if name not in declared:
            wrong.append(unknown("parameter", name, declared))
    for name in _assigned(cells[place]):
        wrong.append(f"write `{name}: type = …  # what it is`.")
    for name in declared:
        if name not in allowed:
            wrong.append(f"parameter {name!r} has no check.")
    for name in allowed:
        if name not in declared:
            wrong.append(f"{name!r} is checked but is no parameter.")
    for name, annotation in declared.items():
        complaint = _complaint(name, annotation, values[name], allowed[name]) if name in allowed else ""
        if complaint:
            wrong.append(complaint)
    refuse_if(wrong)
    return values


def refuse_if(wrong: Sequence[str]) -> None:
    """Raise ParameterError with all that is wrong, if anything is: for what `check_parameters` cannot see.

    >>> refuse_if([])
    >>> refuse_if(["points = 4: expected an odd number."])
    Traceback (most recent call last):
    paramarket.errors.ParameterError: points = 4: expected an odd number.
    """
    if wrong:
        raise ParameterError(" ".join(wrong))


def _parse(source: str) -> ast.Module:
    """A cell as a syntax tree, without its magics; empty if it is no Python."""
    lines = [line for line in source.splitlines() if not line.startswith(("%", "!"))]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.Module([], [])


def _parameters_cell(cells: Sequence[ast.Module], allowed: Mapping[str, Any]) -> int:
    """Which cell is the parameters cell: the last that annotates one of `allowed`; else the first, which is empty."""
    found = 0
    for place, cell in enumerate(cells):
        if _annotated(cell).keys() & allowed.keys():
            found = place
    return found


def _injected(sources: Sequence[str], cells: Sequence[ast.Module]) -> list[str]:
    """The names that papermill's cell sets, the last one of `cells` if there are several."""
    names = []
    for source, cell in zip(sources, cells, strict=True):
        if source.startswith("# Parameters\n"):  # papermill's own first line
            names = _assigned(cell)
    return names


def _annotated(cell: ast.Module) -> dict[str, str]:
    """{name: annotation} of the statements `name: type = value`."""
    found = [node for node in cell.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: ast.unparse(node.annotation) for node in found}


def _assigned(cell: ast.Module) -> list[str]:
    """The names of the statements `name = value`."""
    targets = [node.targets[0] for node in cell.body if isinstance(node, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _complaint(name: str, annotation: str, value: Any, allowed: Any) -> str:
    """What is wrong with one parameter or with its check; empty if nothing is."""
    kind = annotation.removeprefix("list[").removesuffix("]")
    if kind not in _TYPES:
        return f"{name}: {unknown('type of parameter', kind, _TYPES)}"
    if not _can_check(kind, allowed):
        return f"{name} is checked by {allowed!r}, expected {_CHECKS[kind]}."
    items = [value]
    if annotation.startswith("list["):
        if not isinstance(value, list) or not value:
            return f"{name} = {value!r}, expected a list with one or more of {kind}."
        items = value
    for item in items:
        if not isinstance(item, _TYPES[kind]) or (isinstance(item, bool) and kind != "bool"):
            return f"{name} = {item!r} is of type {type(item).__name__}, expected {kind}."
        if kind in ("int", "float") and not allowed[0] <= item <= allowed[1]:
            return f"{name} = {item!r} is out of range, expected {allowed[0]} … {allowed[1]}."
        if kind == "str" and allowed is not str and item not in allowed:
            return f"{name}: " + unknown("choice", item, allowed)
    return ""


def _can_check(kind: str, allowed: Any) -> bool:
    """Whether `allowed` says what a parameter of this kind may be: a list of two numbers, say, is no range."""
    if kind == "bool":
        return allowed is bool
    if kind == "str":
        # a text is a collection of texts, too: "digits" would allow "dig"
        is_list = isinstance(allowed, Collection) and not isinstance(allowed, str)
        return allowed is str or (is_list and all(isinstance(text, str) for text in allowed))
    is_pair = isinstance(allowed, tuple) and len(allowed) == 2 and all(isinstance(end, Real) for end in allowed)
    return is_pair and allowed[0] <= allowed[1]
