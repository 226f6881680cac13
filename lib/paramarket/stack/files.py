"""Models as files: safetensors only, never a pickle, each with a card that says what it may be combined with.

`stack` passes these names on: write `stack.save`, `stack.load`.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paramarket.base import atomic
from paramarket.data import Dataset
from paramarket.errors import WeightsError

CLOSE = 1e-5  # numbers on a card, relative to their size, or to the standard deviation
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Params = dict[str, Tensor]  # one model: parameters and floating buffers under PyTorch's state-dict names


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: equal for equal models, whatever file or device they sit in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def card(net: nn.Module, dataset: Dataset) -> dict[str, str]:
    """The interface card of a model: what must agree before its weights may be combined with another's."""
    return {
        "architecture": " ".join(str(net).split()),
        "input_shape": json.dumps(list(dataset.train.x.shape[1:])),
        "mean": json.dumps(dataset.mean.tolist()),
        "std": json.dumps(dataset.std.tolist()),
        "classes": json.dumps(dataset.classes),
    }


def save(path: Path | str, params: Params, card: Mapping[str, str]) -> None:
    """Write one model as safetensors with its interface card and content hash, atomically. Refuses NaN and infinity."""
    _check_numbers(params, str(path))
    save_all(path, params, card)


def save_all(path: Path | str, tensors: Mapping[str, Tensor], card: Mapping[str, str] | None = None) -> None:
    """Write any tensors, whole numbers, masks and NaN included, in their order, as `save` does; `load_all` reads them.

    Raises WeightsError for what is no tensor, and for types that safetensors has no word for.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise WeightsError(f"{path}: {name!r} is a {type(tensor).__name__}, expected dense tensors by name.")
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = {**(card or {}), "content_hash": content_hash(stored), "order": json.dumps(list(stored))}
    with atomic(path) as beside:
        try:
            save_file(stored, beside, metadata=told)
        except KeyError as error:
            raise WeightsError(f"{path}: safetensors cannot store {error}.") from error


def load(path: Path | str, card: Mapping[str, str] | None = None) -> Params:
    """Read one model; with the `card` you expect, the file's own is compared first and the first difference named.

    Numbers on a card are compared within a tolerance: means of the same images differ in their last digits from one
    machine to the next. Integer buffers are left out: `net.load_state_dict(params, strict=False)` keeps the net's own.
    Raises WeightsError for a pickle, a damaged file, values that are not finite, or another interface.
    """
    tensors, found = _read(Path(path))
    for field, expected in (card or {}).items():
        if field not in found or not _agrees(field, found[field], card):
            given = found.get(field, "no such entry (was it written by stack.save?)")
            raise WeightsError(f"{path} has another interface: {field} is {given}, expected {expected}.")
    _check_numbers(tensors, str(path))
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def load_all(path: Path | str) -> dict[str, Tensor]:
    """Whatever tensors a file holds, in the order in which they were saved. Raises WeightsError as `load` does."""
    tensors, _ = _read(Path(path))
    return tensors


def card_of(path: Path | str) -> dict[str, str]:
    """What stands on a file's card. Raises WeightsError as `load` does, without a look at the tensors."""
    with _opened(Path(path)) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file for a look inside; whatever goes wrong there is a WeightsError that says what it is instead."""
    if not path.is_file():
        raise WeightsError(f"{path} is {'no file' if path.exists() else 'missing'}.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except WeightsError:
        raise
    except Exception as error:  # safetensors has one of its own; torch has others for types that it cannot hold
        raise WeightsError(_unreadable(path, error)) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in the order in which they were saved, and the card; the content hash, if there is one, is right."""
    with _opened(path) as file:
        found = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in _in_order(file.keys(), found.get("order", ""))}
        if found.get("content_hash", content_hash(tensors)) != content_hash(tensors):
            raise WeightsError(f"{path} is damaged: its tensors do not have the content hash on its card.")
    return tensors, found


def _in_order(names: Iterable[str], order: str) -> list[str]:
    """The names as a file says they stood; if it does not, as PyTorch numbers its layers, weights first.

    safetensors sorts them by their letters, and layer 11 would come before layer 3.
    """
    names = list(names)
    stood = _parsed(order)
    if isinstance(stood, list) and all(isinstance(name, str) for name in stood) and sorted(stood) == sorted(names):
        return stood
    return sorted(names, key=_place)


def _place(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.replace("weight", "\0"))
    return [(0, int(part), "") if part.isdecimal() and len(part) < 19 else (1, 0, part) for part in parts]


def _parsed(text: str) -> Any:
    """What a text says as JSON, or else the text itself: anything may stand on a stranger's card."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _agrees(field: str, found: str, card: Mapping[str, str]) -> bool:
    """Whether an entry says what the card does: texts and whole numbers exactly, other numbers up to rounding."""
    one, other = _parsed(found), _parsed(card[field])
    sizes = _parsed(card.get("std", "")) if field == "mean" else None  # a mean may be 0, and rounded to beside it
    if not isinstance(one, list) or not isinstance(other, list):
        return found == card[field] or _alike(one, other)
    if not isinstance(sizes, list) or len(sizes) != len(other):
        sizes = [0] * len(other)
    return len(one) == len(other) and all(_alike(*each) for each in zip(one, other, sizes, strict=True))


def _alike(one: Any, other: Any, size: Any = 0) -> bool:
    numbers = [each for each in (one, other) if isinstance(each, (int, float)) and not isinstance(each, bool)]
    if len(numbers) < 2 or not any(isinstance(each, float) for each in numbers):
        return type(one) is type(other) and one == other
    margin = CLOSE * size if isinstance(size, float) and size > 0 else 0.0
    try:
        return math.isclose(one, other, rel_tol=CLOSE, abs_tol=margin)
    except OverflowError:  # a whole number of 400 digits
        return False


def _unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as refused:
        return f"{path} cannot be read ({refused})."
    if start.startswith((b"PK\x03\x04", b"\x80")):
        safe = str(path.with_suffix(".safetensors"))
        convert = f"safetensors.torch.save_file(torch.load({str(path)!r}, weights_only=True), {safe!r})"
        return f"{path} is a pickle, and reading one can run code: refused. If you trust it, convert it once: {convert}"
    return f"{path} is no readable safetensors file ({error})."


def _check_numbers(params: Mapping[str, Tensor], where: str) -> None:
    """WeightsError, naming the parameter, for numbers that PyTorch does not compute with, or that are not finite."""
    for name, tensor in params.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in _FLOATING):
            raise WeightsError(
                f"{where}: {name!r} holds {tensor.dtype}, expected float16, bfloat16, float32 or float64."
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"{where}: {name!r} holds values that are NaN or infinite.")
