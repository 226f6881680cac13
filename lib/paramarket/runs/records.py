"""One run of a notebook: its parameters checked, its results recorded in the file itself, its artefacts cached."""

import ast
import hashlib
import html
import inspect
import json
import math
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from IPython.display import display
from torch import Tensor, nn

from paramarket import base, data, errors, stack

MIME = "application/vnd.paramarket.record+json"
CACHE = Path(__file__).parents[3] / "runs" / "cache"

_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str}

Allowed = tuple[float, float] | Collection[str] | type[str] | type[bool]


def check_parameters(namespace: Mapping[str, Any], **allowed: Allowed) -> dict[str, Any]:
    """Check the notebook's parameters before any work starts, and give them back as a dict.

    namespace: the notebook's `globals()`. The parameters cell is the last one that annotates one of `allowed`; the
    cell that papermill injects behind it may only set names from it.
    allowed, for each parameter: (low, high) for numbers and lists of numbers, a collection of names for texts, `str` or
    `bool` for any. Raises ParameterError that lists all that is wrong.
    """
    cells = [_parsed(source) for source in namespace["In"]]
    at = max((k for k, cell in enumerate(cells) if _annotated(cell).keys() & allowed.keys()), default=0)
    declared = _annotated(cells[at])
    later = [cell for cell, text in zip(cells, namespace["In"], strict=True) if text.startswith("# Parameters\n")]
    injected = later[-1] if later and cells.index(later[-1]) > at else ast.Module([], [])
    wrong = [errors.unknown("parameter", name, declared) for name in _assigned(injected) if name not in declared]
    wrong += [f"write `{name}: type = …  # what it is`." for name in _assigned(cells[at])]
    wrong += [f"parameter {name!r} has no check." for name in declared if name not in allowed]
    wrong += [f"{name!r} is checked but is no parameter." for name in allowed if name not in declared]
    values = {name: namespace.get(name) for name in declared}
    wrong += [_wrong(name, declared[name], values[name], allowed[name]) for name in declared if name in allowed]
    if any(wrong):
        raise errors.ParameterError(" ".join(filter(None, wrong)))
    return values


def refuse(wrong: Sequence[str]) -> None:
    """Raise ParameterError with all that is wrong, if anything is: for what `check_parameters` cannot see."""
    if wrong:
        raise errors.ParameterError(" ".join(wrong))


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse("\n".join(line for line in source.splitlines() if not line.startswith(("%", "!"))))
    except SyntaxError:
        return ast.Module([], [])


def _annotated(cell: ast.Module) -> dict[str, str]:
    """{name: annotation} of the statements `name: type = value`."""
    found = [node for node in cell.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: ast.unparse(node.annotation) for node in found}


def _assigned(cell: ast.Module) -> list[str]:
    """The names of the statements `name = value`."""
    targets = [node.targets[0] for node in cell.body if isinstance(node, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _wrong(name: str, annotation: str, value: Any, allowed: Allowed) -> str:
    """What is wrong with one parameter, or nothing."""
    each = annotation.removeprefix("list[").removesuffix("]")
    if each not in _TYPES:
        return f"{name}: {errors.unknown('type of parameter', each, _TYPES)}"
    if annotation.startswith("list[") and (not isinstance(value, list) or not value):
        return f"{name} = {value!r}, expected a list with one or more of {each}."
    for item in value if annotation.startswith("list[") else [value]:
        if not isinstance(item, _TYPES[each]) or (isinstance(item, bool) and each != "bool"):
            return f"{name} = {item!r} is of type {type(item).__name__}, expected {each}."
        if each in ("int", "float") and not allowed[0] <= item <= allowed[1]:
            return f"{name} = {item!r} is out of range, expected {allowed[0]} … {allowed[1]}."
        if each == "str" and allowed is not str and item not in allowed:
            return f"{name}: " + errors.unknown("choice", item, allowed)
    return ""


def environment() -> dict[str, str | int]:
    """What may change the last bit of a number: it stands beside every record and in every cache key."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": _cpu(), "device": _gpu()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def claim(
    text: str,
    figure: str,
    key: str,
    results: Mapping[str, Any],
    *,
    above: float | None = None,
    below: float | None = None,
) -> dict[str, str]:
    """A claim and what the data say: it holds if the whole interval `results[key]` lies above (below) the bar.

    It fails if the whole interval lies on the other side, and holds "partly" if the interval straddles the bar.
    figure: the section that shows it, with a word for the picture.
    """
    _, low, high = results[key]
    bar, (low, high) = (above, (low, high)) if below is None else (-below, (-high, -low))
    verdict = "holds" if low > bar else "fails" if high < bar else "partly"
    return {"claim": text, "figure": figure, "result": key, "verdict": verdict}


def record(parameters: Mapping[str, Any], claims: Sequence[dict] = (), **results: float | str | base.Interval) -> None:
    """Put claims and results into the executed notebook itself, as a JSON output that `read` gets back.

    An Interval `x` becomes the three results `x`, `x_low`, `x_high`. The same parameters give the same record, bit
    for bit, in the same `environment`; so no duration belongs in here.
    """
    flat = {}
    for name, value in results.items():
        parts = zip(("", "_low", "_high"), value, strict=True) if isinstance(value, base.Interval) else [("", value)]
        flat |= {name + end: part for end, part in parts}
    content = {"parameters": dict(parameters), "claims": list(claims), "results": flat, "order": list(flat)}
    for name, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise errors.ParameterError(f"{name} is {value}: a record holds finite numbers only.")
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(show(v))}</td></tr>" for k, v in flat.items())
    rows += "".join(f"<tr><td>{html.escape(each['claim'])}</td><td>{each['verdict']}</td></tr>" for each in claims)
    text = "\n".join(f"{name} = {show(value)}" for name, value in flat.items())
    display(
        {
            MIME: content | {"environment": environment()},
            "text/html": f"<table class='record'>{rows}</table>",
            "text/plain": text,
        },
        raw=True,
    )


def show(value: Any) -> str:
    """A number as a reader wants it: three or four digits."""
    return (
        f"{value:,.0f}"
        if isinstance(value, float) and abs(value) >= 1000
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


def read(path: Path | str) -> dict[str, Any]:
    """The record of an executed notebook: parameters, results, environment. Raises DataError if it holds none."""
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.DataError(f"{path} is no readable notebook ({error}).") from error
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    records = [data[MIME] for data in outputs if MIME in data]
    if not records:
        raise errors.DataError(f"{path} holds no record: was it executed to its end?")
    found = records[-1]
    return found | {"results": {name: found["results"][name] for name in found["order"]}}


def cached(build: Callable[..., dict[str, Tensor]], *, folder: Path | str = CACHE, **inputs: Any) -> dict[str, Tensor]:
    """`build(**inputs)`, or what an earlier call with equal inputs left in `folder`: a stack or any dict of tensors.

    The key is a hash of the content of what it was made from: the inputs, the source of `build` itself, this library,
    the environment. Written beside and renamed: two runs at once do not collide, a damaged file is built again.
    """
    library = "".join(path.read_text() for path in sorted(Path(__file__).parents[1].rglob("*.py")))
    parts = [
        inspect.getsource(build),
        library,
        environment(),
        {name: _content(value) for name, value in inputs.items()},
    ]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    path = Path(folder) / f"{build.__name__}-{key}.safetensors"
    try:
        return stack.load(path)
    except errors.WeightsError:
        stack.save(path, build(**inputs), {})
    return stack.load(path)


def _content(value: Any) -> Any:
    """JSON that is equal for equal content."""
    if isinstance(value, Tensor):
        return stack.content_hash({"": value})
    if isinstance(value, nn.Module):
        return str(value)
    if isinstance(value, (data.Dataset, data.Split)):
        return {name: _content(part) for name, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(name): _content(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_content(part) for part in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    raise errors.ParameterError(
        f"cached cannot tell the content of a {type(value).__name__}: give numbers, texts, tensors or data."
    )
