"""Where to look at the loss between models: lines, planes, and the barrier on a line.

Many pairs at once are two stacks, a and b: the k-th model of one has the k-th of the other as its partner.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from paramarket import stack
from paramarket.base import check_list, whole_number
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack import Params, Stack
from paramarket.train import Score, evaluate


def path(a: Params, b: Params, points: int) -> Stack:
    """The straight line from a to b at equal steps, (1 - t) a + t b; its ends are a and b themselves, bit for bit.

    >>> import torch
    >>> from paramarket import merge
    >>> merge.path({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([4.0, 3.0])}, points=3)
    {'w': tensor([[0., 1.],
            [2., 2.],
            [4., 3.]])}
    """
    points = whole_number("points", points)
    if points < 2:
        raise ParameterError(f"points = {points}, expected two or more: both ends belong to a path.")
    t = torch.linspace(0, 1, points)
    line = stack.mix(torch.stack([1 - t, t], dim=1), stack.join([a, b]))
    for name, tensor in line.items():
        tensor[0], tensor[-1] = a[name], b[name]
    return line


def layer_path(a: Params, b: Params, names: Sequence[str], points: int) -> Stack:
    """From a towards b in the named parameters alone, all others staying a's (Adilova et al. 2024)."""
    check_list("names", names)
    for name in names:
        if name not in a:
            raise ShapeError(unknown("parameter", name, a))
    return path(a, a | {name: b[name] for name in names}, points)


def blend_pairs(a: Stack, b: Stack, shares: Sequence[float]) -> Stack:
    """Every model of a with its partner in b, (1 - share) a + share b: [pairs, shares] in a stack."""
    check_list("shares", shares)
    if len(shares) == 0:
        raise ParameterError("shares = [], expected one or more.")
    stack.compare(b, a, "the two stacks of partners")
    partners = stack.map(lambda *two: torch.stack(two, dim=1), a, b)
    weights = torch.tensor([[1 - share, share] for share in shares])
    return stack.mix(weights.expand(stack.count(a), -1, -1), partners)


def average_pairs(a: Stack, b: Stack) -> Stack:
    """The average of every model of a with its partner in b."""
    return stack.take(blend_pairs(a, b, [0.5]), (slice(None), 0))


def best_blend(net: nn.Module, a: Stack, b: Stack, split: Split, *, shares: Sequence[float]) -> Stack:
    """For every pair of a and b the blend with the lowest loss on the split; of equal ones the first."""
    blends = blend_pairs(a, b, shares)
    losses = evaluate(net, stack.flat(blends), split).loss.view(-1, len(shares))
    best = losses.argmin(dim=1)
    return stack.take(blends, (torch.arange(len(best)), best))


def walk(net: nn.Module, lines: Iterable[Stack], split: Split) -> Score:
    """The score of every stop on every line: loss and accuracy [lines, points], on the CPU.

    As a table, one row a line and stop: `walk(…).table(lines, {"t": torch.linspace(0, 1, points)})`.
    """
    scores = [evaluate(net, line, split) for line in lines]
    points = {len(score.loss) for score in scores}
    if len(points) != 1:
        raise ShapeError(f"lines of {sorted(points)} points: expected one line or more, with the same number on each.")
    return Score(
        loss=torch.stack([score.loss for score in scores]),
        accuracy=torch.stack([score.accuracy for score in scores]),
        class_accuracy=torch.stack([score.class_accuracy for score in scores]),
    )


def layer_rise(net: nn.Module, pairs: Iterable[tuple[Params, Params]], split: Split) -> Float[Tensor, "pairs layers"]:
    """How much the loss of a rises (nats) when one layer alone goes half-way to b's, for each pair (a, b).

    On the CPU.
    """
    rises = []
    for a, b in pairs:
        models = [a]
        for layer in stack.layers(a):
            names = [name for name in a if stack.layer_of(name) == layer]
            models.append(stack.take(layer_path(a, b, names, points=3), 1))
        losses = evaluate(net, stack.join(models), split).loss
        rises.append(losses[1:] - losses[0])
    return torch.stack(rises)


def barrier(
    losses: Float[Tensor, "*batch points"],
    reference: str = "chord",
    *,
    stops_by: Float[Tensor, "*same stops"] | None = None,
) -> Float[Tensor, "*batch"]:
    """How far the loss rises on a path sampled at equal steps, in the units of `losses`; on the CPU.

    reference: "chord" is max_t [L(t) - (1 - t) L(0) - t L(1)] (Entezari et al. 2022; unequal ends make no barrier);
    "ends" is max_t L(t) - [L(0) + L(1)] / 2 (Git Re-Basin). For a barrier of accuracy give 1 - accuracy.
    stops_by: losses of the same paths on other examples. A maximum over stops is too high on average, for it picks the
    stop that had bad luck. If other examples choose the stop, the height measured there is right on average, and it
    may well be negative.

    >>> import torch
    >>> from paramarket import merge
    >>> merge.barrier(torch.tensor([[1.0, 4.0, 3.0], [1.0, 1.5, 3.0]]))
    tensor([2., 0.])
    """
    heights = _heights(losses, reference)
    if stops_by is None:
        return heights.amax(dim=-1).cpu()
    if stops_by.shape != losses.shape:
        raise ShapeError(f"losses {tuple(losses.shape)}, stops_by {tuple(stops_by.shape)}: expected the same paths.")
    stops = _heights(stops_by, reference).argmax(dim=-1, keepdim=True)
    return heights.gather(-1, stops.to(heights.device)).squeeze(-1).cpu()


def _heights(losses: Float[Tensor, "*batch points"], reference: str) -> Float[Tensor, "*batch points"]:
    """How far every stop lies above the reference."""
    if reference not in ("chord", "ends"):
        raise ParameterError(unknown("reference", reference, ["chord", "ends"]))
    first, last = losses[..., :1], losses[..., -1:]
    t = torch.linspace(0, 1, losses.shape[-1]).to(losses)
    level = (1 - t) * first + t * last if reference == "chord" else (first + last) / 2
    return losses - level


def distance_below(
    x: Float[Tensor, "settings pairs"],
    y: Float[Tensor, "settings pairs"],
    *,
    curve_x: Float[Tensor, "pairs points"],
    curve_y: Float[Tensor, "pairs points"],
) -> Float[Tensor, "settings pairs"]:
    """How far each setting (x, y) of a pair lies below the pair's own curve at the same x; above it the sign is minus.

    A curve is joined by straight lines between its points, and level beyond its ends; its x may run either way. The
    unit is that of y. All on the CPU.
    """
    if x.shape != y.shape or curve_x.shape != curve_y.shape or x.shape[1] != len(curve_x):
        points, curves = (f"{tuple(one.shape)} and {tuple(two.shape)}" for one, two in ((x, y), (curve_x, curve_y)))
        raise ShapeError(f"x and y {points}, curves {curves}: expected [settings, pairs] and [pairs, points] twice.")
    height = torch.empty_like(x)
    for pair in range(len(curve_x)):
        order = curve_x[pair].argsort(stable=True)  # of equal x the order given
        known_x, known_y = curve_x[pair][order].numpy(), curve_y[pair][order].numpy()
        height[:, pair] = torch.from_numpy(np.interp(x[:, pair].numpy(), known_x, known_y))
    return height - y


class Plane(NamedTuple):
    """Models on a grid in the plane through three models, in the units of distance between weights.

    models: [rows * columns] in a stack, row by row · x [columns], y [rows] · corners [3, 2]: where the three models lie
    """

    models: Stack
    x: Float[Tensor, " columns"]
    y: Float[Tensor, " rows"]
    corners: Float[Tensor, "3 2"]


def plane(a: Params, b: Params, c: Params, points: int, *, margin: float = 0.35) -> Plane:
    """The plane through a, b and c: a at the origin, b on the first axis, c above it (Garipov et al. 2018, section 3).

    points: stops on each axis of the grid, which reaches `margin` of its width beyond the three models on every side.
    The models stay on their device; x, y and corners are on the CPU.
    """
    points = whole_number("points", points)
    if points < 2:
        raise ParameterError(f"points = {points}, expected two or more on each axis of a plane.")
    three = stack.join([a, b, c])
    weights = stack.vectors(three).double().cpu()
    to_b, to_c = weights[1] - weights[0], weights[2] - weights[0]
    along = torch.dot(to_c, to_b) / torch.dot(to_b, to_b)  # how far along a -> b the foot of c lies
    width, height = to_b.norm(), (to_c - along * to_b).norm()
    if not height > 1e-6 * (width + to_c.norm()):  # less is rounding
        raise ShapeError("three models on one line span no plane: give three that differ.")
    corners = torch.tensor([[0, 0], [width, 0], [along * width, height]])
    low, high = corners.amin(dim=0), corners.amax(dim=0)
    reach = margin * (high - low)
    starts, ends = (low - reach).tolist(), (high + reach).tolist()
    x = torch.linspace(starts[0], ends[0], points)
    y = torch.linspace(starts[1], ends[1], points)
    rows, columns = torch.meshgrid(y.double() / height, x.double() / width, indexing="ij")
    share_b, share_c = (columns - along * rows).flatten(), rows.flatten()
    shares = torch.stack([1 - share_b - share_c, share_b, share_c], dim=1)
    return Plane(stack.mix(shares.float(), three), x, y, corners)
