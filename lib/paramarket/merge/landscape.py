"""Where to look at the loss between models: lines, planes, and the barrier on a line.

Many pairs at once are two stacks, a and b: the k-th model of one has the k-th of the other as its partner.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paramarket import stack
from paramarket.base import check_list, whole_number
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack import Params, Stack
from paramarket.train import Score, evaluate, score_logits


def path(a: Params, b: Params, points: int) -> Stack:
    """The straight line from a to b at equal steps, (1 - t) a + t b; its ends are a and b themselves, bit for bit.

    >>> import torch
    >>> from paramarket import merge
    >>> merge.path({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([4.0, 3.0])}, points=3)
    {'w': tensor([[0., 1.],
            [2., 2.],
            [4., 3.]])}
    """
    line = stack.mix(_shares(points), stack.join([a, b]))
    for name, tensor in line.items():
        tensor[0], tensor[-1] = a[name], b[name]
    return line


def _shares(points: object) -> Float[Tensor, "points 2"]:
    """(1 - t, t) at equal steps from 0 to 1."""
    points = whole_number("points", points)
    if points < 2:
        raise ParameterError(f"points = {points}, expected two or more: both ends belong to a path.")
    t = torch.linspace(0, 1, points)
    return torch.stack([1 - t, t], dim=1)


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
    if not all(math.isfinite(share) for share in shares):
        raise ParameterError(f"shares = {list(shares)}, expected finite numbers.")
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
    return _side_by_side(scores)


def walk_pairs(net: nn.Module, a: Stack, b: Stack, split: Split, *, points: int) -> Score:
    """The score of every stop on the straight line of every pair: loss and accuracy [pairs, points], on the CPU.

    What `walk` says of their paths, up to rounding, at less work: what a linear first layer says is linear in its
    weights, so its products at both ends serve all stops between.

    >>> import torch
    >>> from paramarket import data, merge, stack
    >>> net, split = stack.mlp(4, [3], 2), data.Split(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> a, b = stack.init(net, copies=2, seed=0), stack.init(net, copies=2, seed=1)
    >>> lines = [merge.path(stack.take(a, k), stack.take(b, k), points=5) for k in range(2)]
    >>> stops = merge.walk_pairs(net, a, b, split, points=5).loss
    >>> torch.allclose(stops, merge.walk(net, lines, split).loss)
    True
    """
    stack.compare(b, a, "the two stacks of partners")
    pairs = [(stack.take(a, k), stack.take(b, k)) for k in range(stack.count(a))]
    if stack.split_first(net) is None:
        return walk(net, [path(one, other, points) for one, other in pairs], split)
    return _side_by_side([_score_line(net, one, other, split, points) for one, other in pairs])


@torch.no_grad()
def _score_line(net: nn.Module, a: Params, b: Params, split: Split, points: int) -> Score:
    """The score of every stop from a to b, of a net that begins with a linear layer."""
    first, rest = stack.split_first(net)
    shares, ends = _shares(points), stack.join([a, b])
    line = stack.mix(shares, {name: ends[name] for name, _ in rest.named_parameters()})
    logits = []
    for x in split.x.split(250):
        said = stack.linear(net, ends, first, stack.place(x.flatten(1), ends))
        at_stops = torch.tensordot(shares.to(said), said, dims=1)  # [points, n, units]
        logits.append(stack.apply(rest, line, at_stops, shared=False, training=False))
    return score_logits(torch.cat(logits, dim=1), split.y)


def _side_by_side(scores: Sequence[Score]) -> Score:
    """The scores of lines with the same number of points as one, [lines, points]."""
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
    losses = losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses
    first, last = losses[..., :1], losses[..., -1:]
    t = torch.linspace(0, 1, losses.shape[-1]).to(losses)
    level = (1 - t) * first + t * last if reference == "chord" else (first + last) / 2
    return losses - level


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
