"""LoRA adapters as files, in the layout that PEFT writes: what was learnt, as a delta of low rank on a base.

W = W_0 + s B A, with A [r, in], B [out, r] (Hu et al. 2022, equation 3); s = alpha / r, or alpha / sqrt(r) where the
config says so (rsLoRA, Kalajdzievski 2023). `stack` passes these names on: write `stack.load_lora`.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from paramarket.base import atomic, whole_number
from paramarket.errors import ParameterError, ShapeError, WeightsError, unknown
from paramarket.stack.files import Params, load

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.(weight|bias))?$")
_DEFAULTS = {"r": None, "lora_alpha": None, "use_rslora": False, "fan_in_fan_out": False, "alpha_pattern": {}}


def load_lora(path: Path | str, base: Params) -> Params:
    """Read an adapter as a delta on a base: {parameter: what to add to it}, of the parameters that it touches.

    path: the folder that PEFT's `save_pretrained` wrote, or the safetensors file in it, its config beside it
    Linear layers (stored either way round), convolutions, embeddings, and what an adapter stores whole (biases, modules
    to save), of which the base is subtracted. Each layer may have a rank and an alpha of its own. `add(base, delta)` is
    the model; models of several adapters of one base, whatever their ranks, make a stack.
    Raises WeightsError for a pickle, a file that is missing or damaged, values that are not finite, and what is no
    plain LoRA (DoRA); ShapeError naming a parameter that the base does not have, or has in another shape.
    """
    file, config = _read_config(Path(path))
    factors: dict[str, dict[str, Tensor]] = {}
    whole: Params = {}
    for key, tensor in load(file).items():
        name = key.removeprefix("base_model.model.")
        found = _FACTOR.fullmatch(name)
        if found:
            layer, embedding, factor, part = found.groups()
            kind = f"{embedding or ''}{factor}" if part != "bias" else "bias"
            factors.setdefault(layer, {})[kind] = tensor
        elif "lora_" in name:
            raise WeightsError(
                f"{file}: {key!r} belongs to no plain LoRA (DoRA, perhaps): merge it into its base first."
            )
        else:
            whole[name.replace(".modules_to_save", "").replace(".base_layer", "")] = tensor
    delta: Params = {}
    for layer, of_layer in factors.items():
        delta |= _layer_delta(file, layer, of_layer, base, config)
    for name, tensor in whole.items():
        like = _of_base(file, name, base)
        if tensor.shape != like.shape:
            raise ShapeError(f"{file}: {name!r} has shape {tuple(tensor.shape)}, the base's has {tuple(like.shape)}.")
        delta[name] = tensor.to(like) - like
    if not delta:
        raise WeightsError(f"{file} holds no adapter: no tensor in it is named lora_A or lora_B.")
    return delta


def add(base: Params, delta: Params) -> Params:
    """The base with a delta added; parameters that the delta does not touch are the base's own.

    Raises ShapeError naming a parameter of the delta that the base does not have, or has in another shape.
    """
    for name, change in delta.items():
        if name not in base:
            raise ShapeError(unknown("parameter of the base", name, base))
        if change.shape != base[name].shape:
            given, expected = tuple(change.shape), tuple(base[name].shape)
            raise ShapeError(f"the delta of {name!r} has shape {given}, the base's has {expected}.")
    return {name: tensor + delta[name].to(tensor) if name in delta else tensor for name, tensor in base.items()}


class LoraError(NamedTuple):
    """What an adapter of limited rank has lost of a delta.

    share: the length of what was lost, as a share of the delta's own, both Euclidean over all parameters
    left_out: parameters that no product of two matrices can be (biases, norms): they count as lost
    """

    share: float
    left_out: list[str]


def save_lora(path: Path | str, net: nn.Module, delta: Params, rank: int) -> LoraError:
    """Write a delta as an adapter that PEFT reads, into the folder `path`: of each matrix the best one of that rank.

    The best is the truncated singular value decomposition (Eckart and Young 1936); alpha is the rank, so that s = 1.
    net: says which parameter is a linear layer's, a convolution's, an embedding's. Says what was lost.
    Raises ParameterError for a rank below 1, WeightsError for a delta with nothing that an adapter can hold.
    """
    rank = whole_number("rank", rank, least=1)
    tensors: Params = {}
    layers, left_out = [], []
    lost = total = 0.0
    for name, change in delta.items():
        if not change.isfinite().all():
            raise WeightsError(f"the delta of {name!r} holds values that are NaN or infinite.")
        layer, _, part = name.rpartition(".")
        total += change.double().square().sum().item()
        if part != "weight" or change.ndim < 2 or getattr(net.get_submodule(layer), "groups", 1) > 1:
            left_out.append(name)
            lost += change.double().square().sum().item()
            continue
        layers.append(layer)
        is_embedding = isinstance(net.get_submodule(layer), nn.Embedding)
        matrix = change.double().mT if is_embedding else change.double().flatten(1)
        u, s, vh = torch.linalg.svd(matrix.cpu(), full_matrices=False)
        lost += s[rank:].square().sum().item()
        kept = min(rank, len(s))
        left = torch.zeros(len(u), rank, dtype=torch.float64)
        right = torch.zeros(rank, vh.shape[1], dtype=torch.float64)
        left[:, :kept] = u[:, :kept] * s[:kept].sqrt()
        right[:kept] = s[:kept].sqrt().unsqueeze(-1) * vh[:kept]
        tensors |= _factors(layer, left.float(), right.float(), change, is_embedding)
    if not tensors:
        raise WeightsError(f"the delta has no matrix, only {sorted(delta)}: an adapter cannot hold it.")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": layers, "bias": "none"}
    config |= {"use_rslora": False, "fan_in_fan_out": False, "base_model_name_or_path": None, "task_type": None}
    folder = Path(path)
    with atomic(folder / _CONFIG) as beside:
        beside.write_text(json.dumps(config, indent=2), encoding="utf-8")
    with atomic(folder / _WEIGHTS) as beside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
    return LoraError(math.sqrt(lost / total) if total else 0.0, left_out)


def _factors(layer: str, left: Tensor, right: Tensor, like: Tensor, is_embedding: bool) -> Params:
    """A and B of one layer under PEFT's names, and in its shapes."""
    prefix = f"base_model.model.{layer}.lora_"
    if is_embedding:
        return {f"{prefix}embedding_A": right, f"{prefix}embedding_B": left}
    if like.ndim > 2:  # a convolution: A has its kernel, B is one by one
        right = right.unflatten(1, tuple(like.shape[1:]))
        left = left.view(*left.shape, *[1] * (like.ndim - 2))
    return {f"{prefix}A.weight": right, f"{prefix}B.weight": left}


def _read_config(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of weights, and what the config beside it says."""
    file = path / _WEIGHTS if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (path / "adapter_model.bin").is_file():
        file = path / "adapter_model.bin"  # a pickle: `load` refuses it, and says how to convert it
    config = file.parent / _CONFIG
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{config}, which says how an adapter is scaled, cannot be read ({error}).") from error
    if not isinstance(found, dict) or found.get("peft_type", "LORA") != "LORA":
        raise WeightsError(f"{config} describes no LoRA adapter.")
    if found.get("use_dora"):
        raise WeightsError(f"{config}: a DoRA adapter is no delta of low rank: merge it into its base first.")
    return file, {name: found.get(name) or default for name, default in _DEFAULTS.items()}


def _layer_delta(
    file: Path, layer: str, factors: Mapping[str, Tensor], base: Params, config: Mapping[str, Any]
) -> Params:
    """What to add to a layer's weight, and to its bias where an adapter changes that."""
    embedding = "embedding_" if "embedding_A" in factors or "embedding_B" in factors else ""
    for factor in "AB":
        if embedding + factor not in factors:
            raise WeightsError(f"{file}: {layer!r} has no lora_{embedding}{factor}.")
    left, right = factors[f"{embedding}B"].float(), factors[f"{embedding}A"].float()
    name = f"{layer}.weight"
    like = _of_base(file, name, base)
    if left.ndim < 2 or right.ndim < 2 or left.shape[1] != len(right):
        raise ShapeError(f"{file}: in {layer!r} A {tuple(right.shape)} and B {tuple(left.shape)} share no rank.")
    scale = _scale(file, layer, len(right), config)
    product = scale * (left.flatten(1) @ right.flatten(1))
    turned = embedding or (config["fan_in_fan_out"] and like.ndim == 2)
    if turned:
        product = product.mT
    if product.numel() != like.numel() or len(product) != len(like):
        given = f"B {tuple(left.shape)} times A {tuple(right.shape)}"
        raise ShapeError(f"{file}: {given} in {layer!r} is no {tuple(like.shape)}, which the base has there.")
    delta = {name: product.reshape(like.shape).to(like)}
    if "bias" in factors:
        bias = _of_base(file, f"{layer}.bias", base)
        delta[f"{layer}.bias"] = (scale * factors["bias"].float()).to(bias)
    return delta


def _scale(file: Path, layer: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / r of a layer; patterns are regular expressions for the end of its name, as PEFT reads them."""
    alpha = config["lora_alpha"]
    for pattern, own in config["alpha_pattern"].items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = own
            break
    if not isinstance(alpha, (int, float)):
        raise ParameterError(f"{file.parent / _CONFIG}: lora_alpha = {alpha!r}, expected a number.")
    return alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank


def _of_base(file: Path, name: str, base: Params) -> Tensor:
    if name not in base:
        raise ShapeError(f"{file}: {unknown('parameter of the base', name, base)}")
    return base[name]
