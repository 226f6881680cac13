"""One run of a notebook: its parameters checked, its results recorded in the file itself, its artefacts cached."""

import ast
import hashlib
import html
import inspect
import json
import math
import platform
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from IPython.display import display
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paramarket import base, data, stack

MIME = "application/vnd.paramarket.record+json"
CACHE = Path(__file__).parents[2] / "runs" / "cache"

_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str}

Allowed = tuple[int | float, int | float] | Collection[str] | type[str] | type[bool]


def check_parameters(namespace: Mapping[str, Any], **allowed: Allowed) -> dict[str, Any]:
    """Check the notebook's parameters before any work starts, and give them back as a dict.

    namespace: the notebook's `globals()`. The parameters cell is the last one that holds nothing but annotated
    literals; the cell that papermill injects behind it may only set names from it. allowed, for each parameter:
    (low, high) for numbers and lists of numbers, a collection of names for texts, `str` or `bool` for any.
    Raises ParameterError that lists all that is wrong.
    """
    cells = [ast.parse(source) for source in namespace["In"] if _is_python(source)]
    declared = next((_declared(cell) for cell in reversed(cells) if _declared(cell)), {})
    injected = next((source for source in reversed(namespace["In"]) if source.startswith("# Parameters\n")), "")
    given = [node.targets[0].id for node in ast.parse(injected).body if isinstance(node, ast.Assign)]
    wrong = [base.unknown("parameter", name, declared) for name in given if name not in declared]
    wrong += [f"parameter {name!r} has no check." for name in declared if name not in allowed]
    wrong += [f"{name!r} is checked but is no parameter." for name in allowed if name not in declared]
    values = {name: namespace.get(name) for name in declared}
    wrong += [_wrong(name, declared[name], values[name], allowed[name]) for name in declared if name in allowed]
    if any(wrong):
        raise base.ParameterError(" ".join(filter(None, wrong)))
    return values


def _is_python(source: str) -> bool:
    try:
        return bool(ast.parse(source).body)
    except SyntaxError:  # a cell with a magic in it
        return False


def _declared(cell: ast.Module) -> dict[str, str]:
    """{name: annotation} if every statement is `name: type = literal`, otherwise nothing."""
    if not all(isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) for node in cell.body):
        return {}
    return {node.target.id: ast.unparse(node.annotation) for node in cell.body}


def _wrong(name: str, annotation: str, value: Any, allowed: Allowed) -> str:
    """What is wrong with one parameter, or nothing."""
    each = annotation.removeprefix("list[").removesuffix("]")
    if annotation.startswith("list[") and (not isinstance(value, list) or not value):
        return f"{name} = {value!r}, expected a list with one or more of {each}."
    for item in value if annotation.startswith("list[") else [value]:
        if not isinstance(item, _TYPES[each]) or (isinstance(item, bool) and each != "bool"):
            return f"{name} = {item!r} is of type {type(item).__name__}, expected {each}."
        if each in ("int", "float") and not allowed[0] <= item <= allowed[1]:
            return f"{name} = {item!r} is out of range, expected {allowed[0]} … {allowed[1]}."
        if each == "str" and allowed is not str and item not in allowed:
            return f"{name}: " + base.unknown("choice", item, allowed)
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


def record(parameters: Mapping[str, Any], **results: float | int | str | base.Interval) -> None:
    """Put the results into the executed notebook itself, as a JSON output that `read` gets back.

    An Interval `x` becomes the three results `x`, `x_low`, `x_high`. The same parameters give the same record, bit
    for bit, in the same `environment`; so no duration belongs in here.
    """
    flat = {}
    for name, value in results.items():
        parts = zip(("", "_low", "_high"), value, strict=True) if isinstance(value, base.Interval) else [("", value)]
        flat |= {name + end: part for end, part in parts}
    content = {"parameters": dict(parameters), "results": flat, "order": list(flat), "environment": environment()}
    for name, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise base.ParameterError(f"{name} is {value}: a record holds finite numbers only.")
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(show(v))}</td></tr>" for k, v in flat.items())
    text = "\n".join(f"{name} = {show(value)}" for name, value in flat.items())
    display({MIME: content, "text/html": f"<table class='record'>{rows}</table>", "text/plain": text}, raw=True)


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
        raise base.DataError(f"{path} is no readable notebook ({error}).") from error
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    records = [data[MIME] for data in outputs if MIME in data]
    if not records:
        raise base.DataError(f"{path} holds no record: was it executed to its end?")
    found = records[-1]
    return found | {"results": {name: found["results"][name] for name in found["order"]}}


def cached(build: Callable[..., dict[str, Tensor]], *, folder: Path | str = CACHE, **inputs: Any) -> dict[str, Tensor]:
    """`build(**inputs)`, or what an earlier call with equal inputs left in `folder`: a stack or any dict of tensors.

    The key is a hash of the content of all it was made from: the inputs, the source of `build`, this library, the
    environment. Written beside and renamed: two runs at once do not collide, a damaged file is built again.
    """
    library = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
    parts = [
        inspect.getsource(build),
        library,
        environment(),
        {name: _content(value) for name, value in inputs.items()},
    ]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    path = Path(folder) / f"{build.__name__}-{key}.safetensors"
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError):
        tensors = build(**inputs)
    with base.atomic(path) as beside:
        save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, beside)
    return load_file(path)


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
    raise base.ParameterError(
        f"cached cannot tell the content of a {type(value).__name__}: give numbers, texts, tensors or data."
    )
