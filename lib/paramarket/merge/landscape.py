"""Where to look at the loss between models: lines, planes, and the barrier on a line. `merge` passes these names on."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack import Params, Stack, flat, join, mix, take
from paramarket.train import Score, evaluate


def path(a: Params, b: Params, points: int) -> Stack:
    """The straight line from a to b at equal steps, (1 - t) a + t b; its ends are a and b themselves, bit for bit."""
    if points < 2:
        raise ParameterError(f"points = {points}, expected two or more: both ends belong to a path.")
    t, ends = torch.linspace(0, 1, points), join([a, b])
    line = mix(torch.stack([1 - t, t], dim=1), ends)
    for name, tensor in line.items():
        tensor[0], tensor[-1] = a[name], b[name]
    return line


def blend(a: Stack, b: Stack, shares: Sequence[float]) -> Stack:
    """Every model of a with its partner in b: [couples, shares] in a stack, (1 - share) a + share b."""
    couples = {name: torch.stack([tensor, b[name]], dim=1) for name, tensor in a.items()}
    weights = torch.tensor([[1 - share, share] for share in shares])
    return mix(weights.expand(len(next(iter(a.values()))), -1, -1), couples)


def halfway(a: Stack, b: Stack) -> Stack:
    """The average of every model of a with its partner in b."""
    return take(blend(a, b, [0.5]), (slice(None), 0))


def best_blend(net: nn.Module, a: Stack, b: Stack, shares: Sequence[float], split: Split) -> Stack:
    """For every couple of a and b the blend with the lowest loss on the split."""
    tried = blend(a, b, shares)
    chosen = evaluate(net, flat(tried), split).loss.view(-1, len(shares)).argmin(dim=1)
    return take(tried, (torch.arange(len(chosen)), chosen))


def beneath(
    curve: tuple[Float[Tensor, "pairs points"], Float[Tensor, "pairs points"]],
    found: tuple[Float[Tensor, "settings pairs"], Float[Tensor, "settings pairs"]],
) -> Float[Tensor, "settings pairs"]:
    """How far each setting (x, y) lies under the pair's own curve (x, y) at the same x; above it the sign is minus.

    A curve is joined by straight lines between its points, and level beyond its ends; its x may run either way.
    """
    height = torch.empty_like(found[0])
    for pair, (x, y) in enumerate(zip(*curve, strict=True)):
        order = x.argsort()
        height[:, pair] = torch.from_numpy(np.interp(found[0][:, pair].numpy(), x[order].numpy(), y[order].numpy()))
    return height - found[1]


def layer_path(a: Params, b: Params, names: Sequence[str], points: int) -> Stack:
    """From a towards b in the named parameters alone, all others staying a's (Adilova et al. 2024)."""
    for name in names:
        if name not in a:
            raise ShapeError(unknown("parameter", name, a))
    return path(a, {name: b[name] if name in names else a[name] for name in a}, points)


def walk(net: nn.Module, lines: Iterable[Stack], split: Split) -> Score:
    """The score of every stop on every line: loss and accuracy [lines, points], on the CPU."""
    scores = [evaluate(net, line, split) for line in lines]
    return Score(*(torch.stack(parts).cpu() for parts in zip(*scores, strict=True)))


def layer_rise(net: nn.Module, pairs: Iterable[tuple[Params, Params]], split: Split) -> Float[Tensor, "pairs layers"]:
    """How much the loss of a rises (nats) when one layer alone goes half-way to b's, for each pair (a, b)."""
    rises = []
    for a, b in pairs:
        owner = {name: name.rpartition(".")[0] for name in a}
        halves = [layer_path(a, b, [n for n in a if owner[n] == layer], 3) for layer in dict.fromkeys(owner.values())]
        losses = evaluate(net, join([a, *(take(half, 1) for half in halves)]), split).loss.cpu()
        rises.append(losses[1:] - losses[0])
    return torch.stack(rises)


def barrier(losses: Float[Tensor, "*batch points"], reference: str = "chord") -> Float[Tensor, "*batch"]:
    """How far the loss rises on a path sampled at equal steps, in the units of `losses`.

    reference: "chord" is max_t [L(t) - (1 - t) L(0) - t L(1)] (Entezari et al. 2022; unequal ends make no barrier);
    "ends" is max_t L(t) - [L(0) + L(1)] / 2 (Git Re-Basin). For a barrier of accuracy give 1 - accuracy.
    """
    if reference not in ("chord", "ends"):
        raise ParameterError(unknown("reference", reference, ["chord", "ends"]))
    first, last, t = losses[..., :1], losses[..., -1:], torch.linspace(0, 1, losses.shape[-1]).to(losses)
    chord = (1 - t) * first + t * last if reference == "chord" else (first + last) / 2
    return (losses - chord).amax(dim=-1)


class Plane(NamedTuple):
    """Models on a grid in the plane through three models, in the units of distance between weights.

    models: [rows * columns] in a stack, row by row · x [columns], y [rows] · corners [3, 2]: where the three models lie
    """

    models: Stack
    x: Float[Tensor, " columns"]
    y: Float[Tensor, " rows"]
    corners: Float[Tensor, "3 2"]


def plane(a: Params, b: Params, c: Params, steps: int, margin: float = 0.35) -> Plane:
    """The plane through a, b and c: a at the origin, b on the first axis, c above it (Garipov et al. 2018, section 3).

    steps: grid points per axis; the grid reaches `margin` of its width beyond the three models on every side.
    """
    three = join([a, b, c])
    flat = torch.cat([tensor.flatten(1).double().cpu() for tensor in three.values()], dim=1)
    to_b, to_c = flat[1] - flat[0], flat[2] - flat[0]
    along = torch.dot(to_c, to_b) / torch.dot(to_b, to_b)  # how far along a -> b the foot of c lies
    width, height = to_b.norm(), (to_c - along * to_b).norm()
    if not height > 1e-6 * (width + to_c.norm()):  # less is rounding
        raise ShapeError("three models on one line span no plane: give three that differ.")
    corners = torch.tensor([[0, 0], [width, 0], [along * width, height]])
    low, high = corners.amin(dim=0), corners.amax(dim=0)
    reach = margin * (high - low)
    x, y = (torch.linspace(*ends, steps) for ends in zip((low - reach).tolist(), (high + reach).tolist(), strict=True))
    rows, columns = torch.meshgrid(y.double() / height, x.double() / width, indexing="ij")
    share_c, share_b = rows.flatten(), (columns - along * rows).flatten()
    weights = torch.stack([1 - share_b - share_c, share_b, share_c], dim=1)
    return Plane(mix(weights.float(), three), x, y, corners)
