"""Sparse interpolated experts: one shared change of a pretrained net, a mask of gates an expert, a router's keys.

theta_i = theta_pre + sum_m alpha_im (z_m * theta_delta) (SMAT, Chen et al. 2024): the model of task i is the pretrained
one plus a change, of which every expert m lets some weights through, mixed by the router's alpha.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from paramarket import stack
from paramarket.base import check_list, stream, whole_number
from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.smat.gates import HardConcrete
from paramarket.stack import Stack

LAW = HardConcrete()
OPEN, CLOSED = 9.0, -9.0  # log alpha of a gate set by hand, where its median is exactly 1 or 0
MASKS = ("learnt", "open", "random", "last layer")  # see `fixed_masks`


class SparseExperts(NamedTuple):
    """K runs of M experts each.

    delta: theta_delta, the shared change, a stack [K] · gates: log alpha of z_m, one gate a weight and expert, a stack
    [K, M] · keys [K, M, features]: the router's, one an expert
    """

    delta: Stack
    gates: Stack
    keys: Float[Tensor, "K M features"]

    def take(self, index: Any) -> "SparseExperts":
        """The experts of some of the runs, like `stack.take`: a slice, list or mask keeps the axis."""
        return SparseExperts(stack.take(self.delta, index), stack.take(self.gates, index), self.keys[index])

    def only(self, expert: int) -> "SparseExperts":
        """One of the experts, without the others: the router has no choice."""
        one = slice(expert, expert + 1)
        return SparseExperts(self.delta, stack.take(self.gates, (slice(None), one)), self.keys[:, one])

    def copy(self) -> "SparseExperts":
        """The same numbers in memory of their own, without a gradient."""
        return SparseExperts(stack.copy(self.delta), stack.copy(self.gates), self.keys.detach().clone())


def experts_of(pretrained: Stack, *, experts: int, features: int, seeds: Sequence[int]) -> SparseExperts:
    """Experts at their start: no change, gates half open at random (standard deviation .71), keys near 0.

    experts: how many in every run (M) · features: how many numbers the net says of an image
    seeds: one a run; runs of one seed start alike
    """
    whole_number("experts", experts, least=1)
    whole_number("features", features, least=1)
    check_seeds(seeds, stack.count(pretrained))
    generators = [stream(seed, "experts") for seed in seeds]

    def drawn(shape: Sequence[int], scale: float) -> Tensor:
        runs = [scale * torch.randn(experts, *shape, generator=generator) for generator in generators]
        return stack.place(torch.stack(runs), pretrained)

    return SparseExperts(
        delta=stack.map(torch.zeros_like, pretrained),
        gates=stack.map(lambda tensor: drawn(tensor.shape[1:], 0.5**0.5), pretrained),
        keys=drawn([features], 0.05),
    )


def check_seeds(seeds: Sequence[int], runs: int) -> None:
    """Raises ParameterError unless `seeds` is a list of one whole number for each run."""
    check_list("seeds", seeds)
    if len(seeds) != runs:
        raise ParameterError(f"seeds: {len(seeds)} given, expected one for each of the {runs} runs.")


def interpolate(pretrained: Stack, experts: SparseExperts, alpha: Float[Tensor, "K T M"]) -> Stack:
    """The models of T tasks for each run, [K, T]: pretrained + (sum_m alpha_m z_m) * delta, gates at their median.

    Raises ShapeError unless there are as many pretrained nets as runs of experts, and rows of alpha.

    >>> import torch
    >>> from paramarket import smat, stack
    >>> pretrained = stack.init(stack.mlp(4, [3], 2), copies=5, seed=0)
    >>> experts = smat.experts_of(pretrained, experts=3, features=2, seeds=range(5))
    >>> models = smat.interpolate(pretrained, experts, torch.full((5, 7, 3), 1 / 3))
    >>> tuple(models["1.weight"].shape)  # 5 runs, 7 tasks
    (5, 7, 3, 4)
    """
    nets = stack.count(pretrained)
    runs = stack.count(experts.delta)
    if nets != runs:
        raise ShapeError(f"{nets} pretrained nets and {runs} runs of experts: expected as many of each.")
    return mix_masks(pretrained, stack.map(LAW.median, experts.gates), experts.delta, alpha)


def mix_masks(pretrained: Stack, masks: Stack, delta: Stack, alpha: Float[Tensor, "K T M"]) -> Stack:
    """`interpolate` for whoever has the masks, a stack [K, M], already."""

    def changed(weight: Tensor, mixed: Tensor, delta: Tensor) -> Tensor:
        return torch.addcmul(weight.unsqueeze(1), mixed, delta.unsqueeze(1))

    return stack.map(changed, pretrained, stack.mix(alpha, masks), delta)


def route(keys: Float[Tensor, "K M features"], support: Float[Tensor, "K T s features"]) -> Float[Tensor, "K T M"]:
    """alpha = s / sum s, s = sigmoid(key · e), where e is the mean of a task's pretrained features, of length sqrt(d).

    The mean is blind to the order of classes and examples. (The authors attend from the first class's prototype.)
    """
    mean = support.mean(dim=2)
    length = mean.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    e = mean / length * mean.shape[-1] ** 0.5
    scores = (e @ keys.mT).sigmoid()
    return scores / (scores.sum(dim=-1, keepdim=True) + 1e-8)


def open_gates(gates: Stack) -> Bool[Tensor, "K M weights"]:
    """Which gates are not 0 at their median, all weights of the net in one row."""
    return LAW.median(stack.vectors(gates, axes=2)) > 0


def closed_share(gates: Stack) -> Float[Tensor, "K M"]:
    """The share of an expert's gates that are 0 at their median, over the whole net."""
    return (~open_gates(gates)).float().mean(dim=2)


def expected_closed_share(gates: Stack) -> Float[Tensor, "K M"]:
    """The share of an expert's gates that is 0 in expectation, by their law; with a gradient."""
    return (1 - LAW.nonzero(stack.vectors(gates, axes=2))).mean(dim=2)


class Sparsity(NamedTuple):
    """How sparse K runs of M experts are, over the whole net; on the CPU.

    closed: the share of an expert's gates that are 0 at their median · expected: the share that is 0 on average, by
        their law
    merged: the share of weights whose gates are 0 in all experts of a run at once
    """

    closed: Float[Tensor, "K M"]
    expected: Float[Tensor, "K M"]
    merged: Float[Tensor, " K"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a run and expert: the columns of a grid, `expert` (from 0 on), and the three shares.

        `closed`, `expected`, and `merged`, which is the run's and stands beside each of its experts
        """
        experts = self.closed.shape[1]
        merged = self.merged.unsqueeze(1).expand(-1, experts)
        return stack.table(rows, {"expert": range(experts)}, closed=self.closed, expected=self.expected, merged=merged)


@torch.no_grad()
def sparsity(gates: Stack) -> Sparsity:
    """How sparse the experts with these gates, a stack [K, M], are: see `Sparsity`."""
    merged = (~open_gates(gates)).all(dim=1).float().mean(dim=1)
    return Sparsity(closed_share(gates).cpu(), expected_closed_share(gates).cpu(), merged.cpu())


def fixed_masks(experts: SparseExperts, kinds: Sequence[str], *, density: float, seeds: Sequence[int]) -> SparseExperts:
    """Experts with the gates of some runs set by hand, to be kept from learning (`Aims.learn_gates`).

    kinds, one a run: "learnt": as they are · "open": all open, dense tuning · "random": a share `density` of all
        weights, drawn anew for every expert · "last layer": as many, but in the last layer alone
    seeds: one a run; what is drawn hangs on a run's seed alone, so runs of one seed and kind get the same masks
    """
    _check_masks(kinds, density, stack.count(experts.gates))
    check_seeds(seeds, stack.count(experts.gates))
    last = stack.layers(experts.gates)[-1]
    total = sum(gate[0, 0].numel() for gate in experts.gates.values())
    in_last = sum(gate[0, 0].numel() for name, gate in experts.gates.items() if stack.layer_of(name) == last)
    chances_in_last = {"open": 1.0, "random": density, "last layer": min(1.0, density * total / in_last)}
    chances_elsewhere = {"open": 1.0, "random": density, "last layer": 0.0}
    gates = stack.copy(experts.gates)
    for run, (kind, seed) in enumerate(zip(kinds, seeds, strict=True)):
        if kind == "learnt":
            continue
        for name, gate in gates.items():
            chances = chances_in_last if stack.layer_of(name) == last else chances_elsewhere
            drawn = torch.rand(gate[run].shape, generator=stream(seed, "masks", name))
            gate[run] = torch.where(drawn < chances[kind], OPEN, CLOSED).to(gate)
    return experts._replace(gates=gates)


def _check_masks(kinds: Sequence[str], density: float, runs: int) -> None:
    check_list("kinds", kinds)
    if len(kinds) != runs:
        raise ParameterError(f"kinds: {len(kinds)} given, expected one for each of the {runs} runs.")
    for kind in kinds:
        if kind not in MASKS:
            raise ParameterError(unknown("kind of mask", kind, MASKS))
    if not 0 <= density <= 1:
        raise ParameterError(f"density = {density}: expected a share from 0 to 1.")


def overlap(one: Stack, other: Stack) -> Float[Tensor, "K M N"]:
    """Of the gates open in either of two masks, the share open in both, for every mask of one with every mask of other.

    Only masks over the same pretrained net can be compared. Chance: d / (2 - d) for a density of d. On the CPU.
    """
    a = open_gates(one).float()
    b = open_gates(other).to(a)
    both = a @ b.mT
    either = a.sum(dim=2).unsqueeze(2) + b.sum(dim=2).unsqueeze(1) - both
    return (both / either.clamp_min(1)).cpu()


def shuffle_within(gates: Stack, axis: str, generator: Generator) -> Stack:
    """Gates that trade places at random, for what two masks share by chance alone (see `overlap`).

    axis: "rows", so that a unit keeps how many gates of its inputs are open, or "columns", so that an input keeps how
        many of its outputs' are. Biases trade places with one another. Every run and expert is shuffled by itself.
    The generator is one of the CPU. Raises ParameterError for another axis, ShapeError for other gates than those of
    matrices and vectors.
    """
    if axis not in ("rows", "columns"):
        raise ParameterError(unknown("axis", axis, ("rows", "columns")))

    def shuffled(gate: Tensor) -> Tensor:
        if gate.ndim not in (3, 4):
            raise ShapeError(f"gates of shape {tuple(gate.shape)}: expected those of matrices or vectors, [K, M, ...].")
        along = 2 if gate.ndim == 4 and axis == "columns" else -1
        order = torch.rand(gate.shape, generator=generator).argsort(dim=along)
        return gate.gather(along, order.to(gate.device))

    return stack.map(shuffled, gates)


def storage(gates: Stack) -> pd.DataFrame:
    """What experts take to store or send, mean over runs: a row each for one expert, all experts and their mixture.

    Columns: numbers, kB (4 bytes a number, and a bit a weight for every mask). An expert alone, or a mixture, is what
    it adds to each weight it changes; all together are the shared change, and every expert's open gates.
    """
    opened = open_gates(gates).float().cpu()
    runs, experts, size = opened.shape
    every = opened.sum().item() / runs
    either = opened.amax(dim=1).sum().item() / runs
    numbers = pd.Series({"one expert": every / experts, "all experts": either + every, "their mixture": either})
    masks = pd.Series({"one expert": 1, "all experts": experts, "their mixture": 1})
    return pd.DataFrame({"numbers": numbers, "kB": (4 * numbers + masks * size / 8) / 1000})
