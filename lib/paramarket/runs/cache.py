"""What takes long to make, kept: made once for the same inputs, code and machine, and read from a file after that."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from paramarket import data, stack
from paramarket.errors import ParameterError, WeightsError
from paramarket.runs.records import environment

CACHE = Path(__file__).parents[3] / "runs" / "cache"
LIBRARY = Path(__file__).parents[1]


def cached(build: Callable[..., dict[str, Tensor]], *, folder: Path | str = CACHE, **inputs: Any) -> dict[str, Tensor]:
    """`build(**inputs)`, or what an earlier call with equal inputs left in `folder`: a stack or any dict of tensors.

    Whole numbers, masks and NaN come out as they went in; `build` reads nothing but its inputs and this library.
    The key is a hash of the content of what it was made from: the inputs, the source of `build` itself, this library,
    the environment. Written beside and renamed: two runs at once do not collide, a damaged file is built again.
    """
    path = Path(folder) / f"{build.__name__}-{_key(build, inputs)}.safetensors"
    try:
        return stack.load_all(path)
    except WeightsError:  # there is none yet, or it is damaged
        pass
    made = build(**inputs)
    if not isinstance(made, Mapping):
        raise ParameterError(f"cached: {build.__name__} gave a {type(made).__name__}, expected a dict of tensors.")
    stack.save_all(path, made)
    return stack.load_all(path)


def _key(build: Callable, inputs: Mapping[str, Any]) -> str:
    try:
        source = inspect.getsource(build)
    except (OSError, TypeError) as error:
        raise ParameterError(
            f"cached cannot read the source of {build!r}: give a function from a cell or file."
        ) from error
    content = {name: _content(value) for name, value in inputs.items()}
    made_from = json.dumps([source, library_hash(), environment(), content], sort_keys=True)
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


def library_hash() -> str:
    """A hash of this library's source: between two releases, the version alone does not say which code ran."""
    source = {path.relative_to(LIBRARY).as_posix(): path.read_text(encoding="utf-8") for path in LIBRARY.rglob("*.py")}
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]


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
    raise ParameterError(
        f"cached cannot tell the content of a {type(value).__name__}: give numbers, texts, tensors or data."
    )
