"""Sparse interpolated experts: one shared change of a pretrained net, a mask of gates an expert, a router's keys.

theta_i = theta_pre + sum_m alpha_im (z_m * theta_delta) (SMAT, Chen et al. 2024). `smat` trains them, and passes these
names on: write `smat.interpolate`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paramarket.base import stream
from paramarket.errors import ParameterError
from paramarket.smat.gates import HardConcrete
from paramarket.stack import Stack, mix

LAW = HardConcrete()


class SparseExperts(NamedTuple):
    """K runs of M experts each. delta: theta_delta, a stack [K] · gates: log alpha of every weight, a stack [K, M]
    keys [K, M, features]: the router's, one an expert
    """

    delta: Stack
    gates: Stack
    keys: Float[Tensor, "K M features"]


def experts_of(pretrained: Stack, experts: int, features: int, seeds: Sequence[int]) -> SparseExperts:
    """Experts at their start: no change, gates half open at random (standard deviation .71), keys near 0.

    seeds: one a run; runs of one seed start alike
    """
    copies = len(next(iter(pretrained.values())))
    if experts < 1 or len(seeds) != copies:
        raise ParameterError(f"experts = {experts}, {len(seeds)} seeds: expected one expert or more, {copies} seeds.")
    streams = [stream(seed, "experts") for seed in seeds]
    delta = {name: torch.zeros_like(tensor) for name, tensor in pretrained.items()}

    def drawn(shape: Sequence[int], scale: float) -> Tensor:
        return torch.stack([scale * torch.randn(experts, *shape, generator=own) for own in streams])

    gates = {name: drawn(tensor.shape[1:], 0.5**0.5).to(tensor) for name, tensor in pretrained.items()}
    return SparseExperts(delta, gates, drawn([features], 0.05).to(next(iter(delta.values()))))


def interpolate(pretrained: Stack, experts: SparseExperts, alpha: Float[Tensor, "K T M"]) -> Stack:
    """The models of T tasks for each run, [K, T]: pretrained + (sum_m alpha_m z_m) * delta, gates at their median."""
    blend = mix(alpha, {name: LAW.median(gate) for name, gate in experts.gates.items()})
    return {
        name: tensor.unsqueeze(1) + blend[name] * experts.delta[name].unsqueeze(1)
        for name, tensor in pretrained.items()
    }


def route(keys: Float[Tensor, "K M features"], support: Float[Tensor, "K T s features"]) -> Float[Tensor, "K T M"]:
    """alpha = s / sum s, s = sigmoid(key · e), where e is the mean of a task's pretrained features, of length sqrt(d).

    The mean is blind to the order of classes and examples. (The authors attend from the first class's prototype.)
    """
    e = support.mean(dim=2)
    scores = (e / e.norm(dim=-1, keepdim=True).clamp_min(1e-8) * e.shape[-1] ** 0.5 @ keys.mT).sigmoid()
    return scores / (scores.sum(dim=-1, keepdim=True) + 1e-8)


def opened(gates: Stack) -> Bool[Tensor, "K M weights"]:
    """Which gates are not 0 at their median, all weights of the net in one row."""
    return torch.cat([(LAW.median(gate) > 0).flatten(2) for gate in gates.values()], dim=2)


def sparsity(gates: Stack) -> tuple[Float[Tensor, "K M"], Float[Tensor, "K M"], Float[Tensor, " K"]]:
    """By expert, over the whole net: the share of gates that are 0 at their median, the share expected to be 0 by the
    law; and the share that is 0 in all experts at once."""
    closed = (~opened(gates)).float()
    expected = torch.cat([1 - LAW.nonzero(gate).flatten(2) for gate in gates.values()], dim=2)
    return closed.mean(dim=2), expected.mean(dim=2), closed.amin(dim=1).mean(dim=1)


def held(experts: SparseExperts, how: Sequence[str], density: float) -> SparseExperts:
    """Experts with the gates of some runs set by hand, to be kept from learning (`Aims.learn`).

    how, a run: "learnt": as they are · "open": all open, dense tuning · "random": that share of all weights, drawn anew
    for every expert · "last layer": as many, but in the last layer alone
    """
    last, names = list(experts.gates)[-2:], list(experts.gates)
    total = sum(gate[0, 0].numel() for gate in experts.gates.values())
    inside = sum(experts.gates[name][0, 0].numel() for name in last)
    chances = {
        "open": (1.0, 1.0),
        "random": (density, density),
        "last layer": (0.0, min(1.0, density * total / inside)),
    }
    gates = {name: gate.clone() for name, gate in experts.gates.items()}
    for k, kind in enumerate(how):
        for name in names if kind != "learnt" else []:
            chance = chances[kind][name in last]
            drawn = torch.rand(gates[name][k].shape, generator=stream(k, "held", name)).to(gates[name])
            gates[name][k] = torch.where(drawn < chance, 9.0, -9.0)
    return experts._replace(gates=gates)


def overlap(one: Stack, other: Stack) -> Float[Tensor, "K M N"]:
    """Of the gates open in either of two masks, the share open in both, for every mask of one with every mask of other.

    Only masks over the same pretrained net can be compared. Chance: d / (2 - d) for a density of d.
    """
    a, b = (opened(gates).float() for gates in (one, other))
    both = a @ b.mT
    return both / (a.sum(dim=2).unsqueeze(2) + b.sum(dim=2).unsqueeze(1) - both).clamp_min(1)


def stored(gates: Stack) -> dict[str, tuple[float, float]]:
    """What experts take to store or send, {what: (numbers, kB)}, mean over runs: 4 bytes a number, a bit a place.

    An expert alone, or a mixture, is what it adds to each weight it changes; all together are the shared change, and
    every expert's open gates.
    """
    changed = opened(gates).float()
    size, (runs, experts, _) = changed.shape[2], changed.shape
    every, either = changed.sum().item() / runs, changed.amax(dim=1).sum().item() / runs
    parts = {"one expert": (every / experts, 1), "all experts": (either + every, experts), "their mixture": (either, 1)}
    return {what: (numbers, (4 * numbers + masks * size / 8) / 1000) for what, (numbers, masks) in parts.items()}
