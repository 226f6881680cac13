"""The parameters of a notebook: read off its own cells, and checked before any work starts."""

import ast
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from paramarket.errors import ParameterError, unknown

_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str}
_CHECKS = {"int": "(lowest, highest)", "float": "(lowest, highest)", "bool": "bool", "str": "str or a list of texts"}


class Rule(NamedTuple):
    """One thing that a word like `ascending` asks of a value, beyond its type and range."""

    expected: str
    holds: Callable[[Any, Any], bool]  # of the value, and of the value of `other`
    other: str = ""  # the parameter to compare with, if any


class Check(NamedTuple):
    """What the words below give: a range or a choice, and rules beyond it."""

    each: Any  # what each item may be: (low, high), a collection of names, `str` or `bool`
    rules: Sequence[Rule] = ()  # of the whole value
    annotations: Collection[str] = ()  # of the parameters that it is for; none: for any


Allowed = tuple[float, float] | Collection[str] | type[str] | type[bool] | Check


def check_parameters(namespace: Mapping[str, Any], **allowed: Allowed) -> dict[str, Any]:
    """Check the notebook's parameters before any work starts, and give them back as a dict.

    namespace: the notebook's `globals()`. The parameters cell is the last one that annotates one of `allowed`; the
    cell that papermill injects behind it may only set names from it.
    allowed, for each parameter: (low, high) for numbers and lists of numbers, a collection of names for texts, `str` or
    `bool` for any; or what `number`, `odd`, `ascending`, `file`, `folder` give. Raises ParameterError that lists all
    that is wrong. In a notebook, one line a parameter, in the order of the parameters cell:

        parameters = runs.check_parameters(
            globals(),
            dataset=data.NAMES,
            width=(2, 4096),
            widths=runs.ascending(2, 4096, least=2),
            seed=(0, 2**31),
        )
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
    wrong += _complaints(declared, values, allowed)
    if wrong:
        raise ParameterError(" ".join(wrong))
    return values


def number(low: float, high: float, *, up_to: str = "", among: str = "") -> Check:
    """A number from low to high that also goes with another parameter.

    up_to: the parameter, a number, that it may not exceed. among: the parameter, a list, that must hold it.
    """
    rules = []
    if up_to:
        rules.append(Rule("at most", lambda value, last: value <= last, up_to))
    if among:
        rules.append(Rule("one of", lambda value, known: value in known, among))
    return Check((low, high), rules, ("int", "float"))


def odd(low: int, high: int) -> Check:
    """An odd number from low to high."""
    rule = Rule("an odd number", lambda value, _: value % 2 == 1)
    return Check((low, high), [rule], ("int",))


def ascending(
    low: float,
    high: float,
    *,
    least: int = 1,
    first: float | None = None,
    above: str = "",
    among: str = "",
    without: str = "",
) -> Check:
    """A list of numbers from low to high, each larger than the one before.

    least: how many there must be. first: the number that must come first. above: the parameter, a number, that all
    must exceed. among: the parameter, a list, that must hold them all. without: the parameter, a number, that may not
    be one of them.
    """
    rules = [Rule("ascending numbers", lambda values, _: values == sorted(set(values)))]
    if least > 1:
        rules.append(Rule(f"{least} or more numbers", lambda values, _: len(values) >= least))
    if first is not None:
        rules.append(Rule(f"{first} first", lambda values, _: values[0] == first))
    if above:
        rules.append(Rule("all above", lambda values, bar: min(values) > bar, above))
    if among:
        rules.append(Rule("all among", lambda values, known: set(values) <= set(known), among))
    if without:
        rules.append(Rule("none equal to", lambda values, taken: taken not in values, without))
    return Check((low, high), rules, ("list[int]", "list[float]"))


def file(*, beside: str) -> Check:
    """The path of a file, where the parameter `beside` names another; or "" for both."""
    there = Rule('a file, or ""', lambda path, _: not path or Path(path).is_file())
    paired = Rule("both files or none, here with", lambda path, partner: bool(path) == bool(partner), beside)
    return Check(str, [there, paired], ("str",))


def folder() -> Check:
    """The path of a folder; or "" for none."""
    rule = Rule('a folder, or ""', lambda path, _: not path or Path(path).is_dir())
    return Check(str, [rule], ("str",))


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


def _complaints(declared: Mapping[str, str], values: Mapping[str, Any], allowed: Mapping[str, Any]) -> list[str]:
    """What is wrong with the parameters {name: annotation}, or with their checks."""
    checks = {}
    wrong_types = {}
    for name, annotation in declared.items():
        if name in allowed:
            checks[name] = allowed[name] if isinstance(allowed[name], Check) else Check(allowed[name])
            complaint = _wrong_check(name, declared, checks[name]) or wrong_type(name, annotation, values[name])
            if complaint:
                wrong_types[name] = complaint

    # what is of the wrong type cannot be compared, nor can others be compared with it
    comparable = {name: values[name] for name in checks if name not in wrong_types}
    complaints = []
    for name, check in checks.items():
        if name in wrong_types:
            complaints.append(wrong_types[name])
        else:
            complaints.append(_wrong_item(name, values[name], check.each))
            complaints.append(_broken_rules(name, values[name], check.rules, comparable))
    return [complaint for complaint in complaints if complaint]


def _kind(annotation: str) -> str:
    """The type of one item: "int" of "int" and of "list[int]"."""
    return annotation.removeprefix("list[").removesuffix("]")


def _wrong_check(name: str, declared: Mapping[str, str], check: Check) -> str:
    """What is wrong with the check of one parameter; empty if nothing is."""
    annotation = declared[name]
    kind = _kind(annotation)
    if kind not in _TYPES:
        return f"{name}: {unknown('type of parameter', kind, _TYPES)}"
    if check.annotations and annotation not in check.annotations:
        return f"{name} is of type {annotation}, its check is for {' or '.join(check.annotations)}."
    if not _can_check(kind, check.each):
        return f"{name} is checked by {check.each!r}, expected {_CHECKS[kind]}."
    for rule in check.rules:
        if rule.other and rule.other not in declared:
            return f"{name} is checked against an {unknown('parameter', rule.other, declared)}"
    return ""


def _can_check(kind: str, each: Any) -> bool:
    """Whether this says what a parameter of this kind may be: a list of two numbers, say, is no range."""
    if kind == "bool":
        return each is bool
    if kind == "str":
        # a text is a collection of texts, too: "digits" would allow "dig"
        is_list = isinstance(each, Collection) and not isinstance(each, str)
        return each is str or (is_list and all(isinstance(text, str) for text in each))
    is_pair = isinstance(each, tuple) and len(each) == 2 and all(isinstance(end, Real) for end in each)
    return is_pair and each[0] <= each[1]


def wrong_type(name: str, annotation: str, value: Any) -> str:
    """What is wrong with the type of one value; empty if nothing is, or if it is a type that we know nothing of."""
    kind = _kind(annotation)
    if kind not in _TYPES:
        return ""
    items = [value]
    if annotation.startswith("list["):
        if not isinstance(value, list) or not value:
            return f"{name} = {value!r}, expected a list with one or more of {kind}."
        items = value
    for item in items:
        if not isinstance(item, _TYPES[kind]) or (isinstance(item, bool) and kind != "bool"):
            return f"{name} = {item!r} is of type {type(item).__name__}, expected {kind}."
    return ""


def _wrong_item(name: str, value: Any, each: Any) -> str:
    """The first item of a value that is out of range or no choice, with what is expected; empty if there is none."""
    if isinstance(each, type):  # `str` or `bool`: any will do
        return ""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            if item not in each:
                return f"{name}: {unknown('choice', item, each)}"
        elif not each[0] <= item <= each[1]:
            return f"{name} = {item!r} is out of range, expected {each[0]} … {each[1]}."
    return ""


def _broken_rules(name: str, value: Any, rules: Sequence[Rule], comparable: Mapping[str, Any]) -> str:
    """The rules that a value breaks; empty if it breaks none. A rule about a value not in `comparable` is left out."""
    expected = []
    for rule in rules:
        if not rule.other:
            if not rule.holds(value, None):
                expected.append(rule.expected)
        elif rule.other in comparable and not rule.holds(value, comparable[rule.other]):
            expected.append(f"{rule.expected} {rule.other} = {comparable[rule.other]!r}")
    return f"{name} = {value!r}, expected {', '.join(expected)}." if expected else ""
