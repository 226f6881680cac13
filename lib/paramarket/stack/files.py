"""Models as files: safetensors only, never a pickle, each with a card that says what it may be combined with.

`stack` passes these names on: write `stack.save`, `stack.load`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paramarket.base import atomic
from paramarket.data import Dataset
from paramarket.errors import WeightsError

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
    _finite(params, str(path))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in params.items()}
    with atomic(path) as beside:
        save_file(tensors, beside, metadata={**card, "content_hash": content_hash(tensors)})


def load(path: Path | str, card: Mapping[str, str] | None = None) -> Params:
    """Read one model; with the `card` you expect, the file's own is compared first and the first difference named.

    Integer buffers are left out: `net.load_state_dict(params, strict=False)` keeps the net's own. Raises WeightsError
    for a pickle, a damaged file, values that are not finite, or another interface.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(_unreadable(path, error)) from error
    if found.get("content_hash", content_hash(tensors)) != content_hash(tensors):
        raise WeightsError(f"{path} is damaged: its tensors do not have the content hash on its card.")
    for field, expected in (card or {}).items():
        if found.get(field) != expected:
            given = found.get(field, "no such entry (was it written by stack.save?)")
            raise WeightsError(f"{path} has another interface: {field} is {given}, expected {expected}.")
    _finite(tensors, str(path))
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def card_of(path: Path | str) -> dict[str, str]:
    """What stands on a file's card. Raises WeightsError as `load` does, without a look at the tensors."""
    try:
        with safe_open(Path(path), framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(_unreadable(Path(path), error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    if not path.is_file():
        return f"{path} is missing."
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        safe = str(path.with_suffix(".safetensors"))
        convert = f"safetensors.torch.save_file(torch.load({str(path)!r}, weights_only=True), {safe!r})"
        return f"{path} is a pickle, and reading one can run code: refused. If you trust it, convert it once: {convert}"
    return f"{path} is no readable safetensors file ({error})."


def _finite(params: Params, where: str) -> None:
    for name, tensor in params.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"{where}: {name!r} holds values that are NaN or infinite.")
