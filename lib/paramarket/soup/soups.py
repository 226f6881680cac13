"""Soup of Experts (Ablin et al. 2025): a base and experts trained so that every mixture of them is a good model.

Theta(h) = S + sum_i phi_i(h) E_i for domain weights h (see `mixtures`); phi is a small MLP, without a softmax. Out come
plain parameters: no soup is needed to run a specialist. A model trained alone is a soup without experts.

Experts may be of low rank, a product of two thin matrices each, as in LoRA (Hu et al. 2022, section 4.1): much less to
store. The paper has such experts too; in which form could not be checked.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from paramarket import stack
from paramarket.base import check_list, is_watched, stream, whole_number
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.soup.mixtures import (
    MixtureScore,
    WeightLaw,
    batches,
    check_owners,
    check_weights,
    draw_plans,
    score_mixtures,
)
from paramarket.stack import Params, Stack
from paramarket.train import AdamW, check_finite, learning_rates, make_backward, probabilities

ROUTER_UNITS = 32  # hidden units of phi


class Soup(NamedTuple):
    """K soups. base: S, a stack [K] · experts: E, a stack [K, n] · router: phi, a stack [K] of MLPs domains -> n."""

    base: Stack
    experts: Stack
    router: Stack


class SoupFit(NamedTuple):
    """What training leaves behind: the soups, and the loss of each at every step, nats."""

    soup: Soup
    losses: Float[Tensor, "K steps"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a soup and step: the columns of a grid, `step` (from 1 on), `loss` (nats, of the step's batch)."""
        steps = range(1, self.losses.shape[1] + 1)
        return stack.table(rows, {"step": steps}, loss=self.losses)


class Kind(NamedTuple):
    """A kind of soup: how many experts it has, how h is drawn in training, and of which rank the experts are.

    law: None: all domains alike, always · rank: None: dense experts; else every expert of a matrix [out, in] is
    E_i = B_i A_i with B_i [out, rank] and A_i [rank, in], while what is no matrix (biases) stays dense
    """

    experts: int
    law: WeightLaw | None = None
    rank: int | None = None


def init_soups(
    net: nn.Module,
    domains: int,
    *,
    experts: Sequence[int],
    seeds: Sequence[int],
    hidden: int = ROUTER_UNITS,
    device: torch.device | str = "cpu",
) -> Soup:
    """K soups at their start: S as PyTorch draws it, E 0, phi random; soups of one seed start alike.

    experts: how many each soup has, 0 for a model trained alone. All share one shape: where a soup has fewer than the
    largest, phi never asks the rest, and they stay 0 in training, for neither can move without the other.
    seeds: one a soup · hidden: units of phi
    Raises ParameterError unless there is a number of experts, 0 or more, for each seed.
    """
    experts = _whole_numbers("experts", experts)
    seeds = _whole_numbers("seeds", seeds)
    if len(experts) != len(seeds) or not seeds or min(experts) < 0 or min(hidden, domains) < 1:
        given = f"experts = {experts}, {len(seeds)} seeds, hidden = {hidden}, {domains} domains"
        raise ParameterError(f"{given}: expected a number ≥ 0 for each seed, 1 or more units and domains.")
    most = max(experts)
    base = stack.chain([stack.init(net, 1, seed, device) for seed in seeds])
    routers = []
    for count, seed in zip(experts, seeds, strict=True):
        phi = stack.mlp(domains, [hidden], max(1, count))
        drawn = stack.init(phi, 1, seed, device, purpose="router")  # not the numbers of S
        routers.append(_resize_router(drawn, count, most))
    none = stack.map(lambda tensor: tensor.new_zeros(len(tensor), most, *tensor.shape[1:]), base)
    return Soup(base, none, stack.chain(routers))


def _whole_numbers(name: str, values: Any) -> list[int]:
    """A list's values as Python's own: two tensors of one seed are two keys, two whole numbers are one."""
    check_list(name, values)
    return [whole_number(name, value) for value in values]


def _resize_router(router: Stack, experts: int, places: int) -> Stack:
    """phi for its first `experts` alone, with 0 in its last layer for the rest of the `places`."""

    def resize(tensor: Float[Tensor, "K outputs ..."]) -> Float[Tensor, "K places ..."]:
        own = tensor[:, :experts]
        return torch.cat([own, own.new_zeros(len(own), places - experts, *own.shape[2:])], dim=1)

    *_, last = stack.layers(router)
    weight, bias = f"{last}.weight", f"{last}.bias"
    return router | {weight: resize(router[weight]), bias: resize(router[bias])}


def alphas(soup: Soup, h: Float[Tensor, "*K J domains"]) -> Float[Tensor, "K J n"]:
    """phi(h): how much of each expert J domain weights ask of every soup; h is the same for all soups, or each's own.

    On the soups' device, to build models of.
    """
    first, *_ = stack.layers(soup.router)
    check_weights(h, soup.router[f"{first}.weight"].shape[2])
    copies, experts = stack.leading(soup.experts, 2)
    check_owners(h, copies)
    h = stack.place(h, soup.router)
    if experts == 0:  # PyTorch warns of a layer without outputs
        return h.new_zeros(copies, h.shape[-2], 0)
    return stack.apply(stack.mlp_of(soup.router), soup.router, h, shared=h.ndim == 2, training=True)


def combine(soup: Soup, alpha: Float[Tensor, "K J n"]) -> Stack:
    """S + sum_i alpha_i E_i: [K, J] models, linear in alpha.

    >>> import torch
    >>> from paramarket import soup, stack
    >>> soups = soup.init_soups(stack.mlp(4, [3], 2), domains=5, experts=[8, 8], seeds=[0, 1])
    >>> models = soup.combine(soups, alpha=torch.zeros(2, 6, 8))
    >>> tuple(models["1.weight"].shape)
    (2, 6, 3, 4)
    >>> bool((models["1.weight"][:, 0] == soups.base["1.weight"]).all())
    True
    """
    parts = stack.map(lambda base, experts: torch.cat([base.unsqueeze(1), experts], dim=1), soup.base, soup.experts)
    whole = alpha.new_ones(*alpha.shape[:2], 1)
    return stack.mix(torch.cat([whole, alpha], dim=2), parts)


@torch.no_grad()
def specialists(soup: Soup, h: Float[Tensor, "*K J domains"]) -> Stack:
    """Theta(h) of every soup for J domain weights at once, a stack [K, J] of plain models; h: see `alphas`.

    >>> import torch
    >>> from paramarket import soup, stack
    >>> soups = soup.init_soups(stack.mlp(4, [3], 2), domains=5, experts=[8, 8], seeds=[0, 1])
    >>> stack.leading(soup.specialists(soups, torch.eye(5)), 2)  # two soups, a specialist for each domain
    (2, 5)
    """
    return combine(soup, alphas(soup, h))


def train_soups(
    net: nn.Module,
    start: Soup,
    domains: Sequence[Split],
    h: Float[Tensor, "K steps domains"],
    *,
    seeds: Sequence[int],
    batch: int = 128,
    lr: float = 3e-3,
    rank: int | None = None,
) -> SoupFit:
    """Train K soups at once, a step for every h: Theta(h), a batch of mix(h), one backward for S, E and phi.

    The same h at every step trains for that mixture alone. Adam, its rate falling to 0 in a line. seeds: one a soup,
    for the examples that it draws; runs of one seed see the same random numbers. rank: of the experts, see `Kind`; they
    have to start at 0. Raises ShapeError, ParameterError for an h that is no weights and for a rank that cannot be,
    TrainingError where losses or weights are not finite.
    """
    seeds = _whole_numbers("seeds", seeds)
    copies = stack.check(net, start.base)
    steps = h.shape[1]
    if not copies == len(h) == len(seeds) or steps < 1:
        raise ShapeError(
            f"{copies} soups, {len(seeds)} seeds, h of shape {tuple(h.shape)}: expected h for each of them."
        )
    _check_rank(rank, start.experts)
    router = stack.map(Tensor.requires_grad_, stack.copy(start.router))
    has_experts = stack.leading(start.experts, 2)[1] > 0
    phi = stack.mlp_of(router) if has_experts else None
    is_dense = rank is None or not has_experts
    if is_dense:
        bank = _bank(start).requires_grad_()
        one = stack.take(start.base, 0)
        learnt = [bank]
        theta_of = partial(_dense_theta, bank, phi, router, one)
    else:
        factors = _factors(start, rank, seeds)
        learnt = [tensor for part in factors for tensor in part.values()]
        theta_of = partial(_low_rank_theta, factors, phi, router)
    if has_experts:
        learnt.extend(router.values())
    losses = _descend(net, start.base, theta_of, learnt, domains, h, seeds=seeds, batch=batch, lr=lr)
    if is_dense:
        base = stack.copy(stack.from_vectors(bank[:, 0], one))
        experts = stack.copy(stack.from_vectors(bank[:, 1:], one))
    else:
        base, experts = _multiply_out(factors)
    found = Soup(base, experts, stack.map(Tensor.detach, router))
    check_finite(losses, found.router | {"S": stack.vectors(base), "E": stack.vectors(experts, axes=2)}, steps)
    return SoupFit(found, losses.T.cpu())


def _check_rank(rank: int | None, experts: Stack) -> None:
    if rank is None:
        return
    whole_number("rank", rank, least=1)
    if any(tensor.any() for tensor in experts.values()):
        raise ParameterError(f"rank = {rank}: experts of low rank start at 0, these do not (see `init_soups`).")


def _descend(
    net: nn.Module,
    models: Stack,
    theta_of: Callable[[Float[Tensor, "K domains"]], Stack],
    learnt: Sequence[Tensor],
    domains: Sequence[Split],
    h: Float[Tensor, "K steps domains"],
    *,
    seeds: Sequence[int],
    batch: int,
    lr: float,
) -> Float[Tensor, "steps K"]:
    """Move what is learnt, in place, a step for every h; theta_of: Theta(h) from it. Gives the losses, nats.

    models: of the shapes, device and type of Theta(h)
    """
    optimizer = AdamW(learnt)
    rates = learning_rates("linear", lr, h.shape[1])
    mixed = stack.copy(models)  # Theta(h) of every soup, overwritten at every step
    slopes = stack.map(torch.zeros_like, mixed)  # and the gradients with respect to it
    backward = make_backward(net, mixed, slopes, batch)
    classes = stack.forward(net, models, domains[0].x[:1]).shape[-1]

    own = {seed: stream(seed, "mixtures") for seed in seeds}  # one object a seed: `batches` draws once for all its runs
    drawn = batches(domains, stack.place(h, models), batch, [own[seed] for seed in seeds])
    losses = []
    bar = tqdm(drawn, f"training {len(h)} soups", total=len(rates), leave=False, delay=1, disable=not is_watched())
    for examples, rate in zip(bar, rates, strict=True):
        theta = theta_of(examples.h)
        for name, tensor in theta.items():
            mixed[name].copy_(tensor.detach())
        losses.append(backward(examples.x, probabilities(examples.y, classes)))
        gradients = torch.autograd.grad(list(theta.values()), learnt, [slopes[name] for name in theta])
        optimizer.step(gradients, rate)
    return torch.stack(losses)


def _bank(soup: Soup) -> Float[Tensor, "K parts weights"]:
    """S, then every E_i, a row each: one product a step for all their tensors, one tensor for the optimiser."""
    base = stack.vectors(soup.base).unsqueeze(1)
    return torch.cat([base, stack.vectors(soup.experts, axes=2)], dim=1).detach()


def _theta(
    bank: Float[Tensor, "K parts weights"], phi: nn.Sequential | None, router: Stack, h: Float[Tensor, "K domains"]
) -> Float[Tensor, "K weights"]:
    """Theta(h), an h for each soup. With G the gradient of Theta: G for S, alpha_i G for E_i, <E_i, G> for alpha_i."""
    if phi is None:  # no experts
        return bank[:, 0]
    alpha = stack.apply(phi, router, h.unsqueeze(1), shared=False, training=True)
    return torch.bmm(torch.cat([torch.ones_like(alpha[..., :1]), alpha], dim=2), bank).squeeze(1)


def _dense_theta(
    bank: Float[Tensor, "K parts weights"],
    phi: nn.Sequential | None,
    router: Stack,
    like: Params,
    h: Float[Tensor, "K domains"],
) -> Stack:
    """`_theta` as models, with the names and shapes of the one model `like`."""
    return stack.from_vectors(_theta(bank, phi, router, h), like)


class _Factors(NamedTuple):
    """What is learnt of K soups whose experts are of low rank, by name.

    base: S, [K, ...] · left: B_i of every matrix, [K, out, n, rank] · right: A_i, [K, n, rank, in]
    others: E_i of what is no matrix, [K, n, ...]
    """

    base: Stack
    left: Stack
    right: Stack
    others: Stack


def _factors(start: Soup, rank: int, seeds: Sequence[int]) -> _Factors:
    """Factors at their start: B is 0, so that every expert is; A is normal with variance 1 / rank.

    With that variance a first step of Adam, which moves every number of B by the learning rate, moves the numbers of
    B A by about as much: the learning rate of dense experts serves here too.
    """
    copies, experts = stack.leading(start.experts, 2)
    left, right, others = {}, {}, {}
    for name, tensor in start.experts.items():
        if tensor.ndim < 4:
            others[name] = tensor.detach().clone().requires_grad_()
            continue
        outputs, inputs = tensor.flatten(3).shape[2:]
        drawn = []
        for seed in seeds:
            for expert in range(experts):
                drawn.append(torch.randn(rank, inputs, generator=stream(seed, "A", name, expert)))
        normal = torch.stack(drawn).unflatten(0, (copies, experts)).to(tensor)
        left[name] = tensor.new_zeros(copies, outputs, experts, rank).requires_grad_()
        right[name] = (normal / rank**0.5).requires_grad_()
    return _Factors(stack.map(Tensor.requires_grad_, stack.copy(start.base)), left, right, others)


def _low_rank_theta(factors: _Factors, phi: nn.Sequential, router: Stack, h: Float[Tensor, "K domains"]) -> Stack:
    """Theta(h), an h for each soup: S + [alpha_1 B_1 … alpha_n B_n] [A_1; …; A_n], one product a matrix."""
    alpha = stack.apply(phi, router, h.unsqueeze(1), shared=False, training=True)  # [K, 1, n]
    theta = {}
    for name, base in factors.base.items():
        if name in factors.others:
            summed = torch.baddbmm(base.view(len(base), 1, -1), alpha, factors.others[name].flatten(2))
        else:
            weighed = factors.left[name] * alpha.unsqueeze(3)
            summed = torch.baddbmm(base.flatten(2), weighed.flatten(2), factors.right[name].flatten(1, 2))
        theta[name] = summed.view_as(base)
    return theta


@torch.no_grad()
def _multiply_out(factors: _Factors) -> tuple[Stack, Stack]:
    """S and every E_i = B_i A_i as plain tensors: stacks [K] and [K, n]."""
    experts = {}
    for name, base in factors.base.items():
        if name in factors.others:
            experts[name] = factors.others[name].detach()
        else:
            product = factors.left[name].transpose(1, 2) @ factors.right[name]
            experts[name] = product.unflatten(3, base.shape[2:])
    return stack.map(Tensor.detach, factors.base), experts


def stored_numbers(net: nn.Module, kind: Kind, domains: int) -> int:
    """How many numbers a soup of that kind keeps: S, its experts (of low rank, if so) and phi.

    A matrix that two factors would not make shorter is kept whole. Raises ParameterError for a rank below 1.

    >>> from paramarket import soup, stack
    >>> net = stack.mlp(64, [12], 10)  # 910 numbers
    >>> soup.stored_numbers(net, soup.Kind(0), domains=8)
    910
    >>> soup.stored_numbers(net, soup.Kind(8), domains=8), soup.stored_numbers(net, soup.Kind(8, rank=2), domains=8)
    (8742, 3206)
    """
    if kind.rank is not None:
        whole_number("rank", kind.rank, least=1)
    one = stack.take(stack.init(net, 1, seed=0), 0)
    base = sum(tensor.numel() for tensor in one.values())
    if kind.experts == 0:
        return base
    router = stack.init(stack.mlp(domains, [ROUTER_UNITS], kind.experts), 1, seed=0)
    expert = sum(_expert_numbers(tensor, kind.rank) for tensor in one.values())
    return base + kind.experts * expert + stack.vectors(router).numel()


def _expert_numbers(tensor: Tensor, rank: int | None) -> int:
    if rank is None or tensor.ndim < 2:
        return tensor.numel()
    outputs, inputs = tensor.flatten(1).shape
    return min(tensor.numel(), rank * (outputs + inputs))


def train_kinds(
    net: nn.Module,
    domains: Sequence[Split],
    kinds: Mapping[str, Kind],
    *,
    steps: int,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    **settings: float,
) -> dict[str, Soup]:
    """Train several kinds of soups, {name: kind}, with every seed, all at once: {name: its soups, in order of seeds}.

    `Kind(0)` is the generic model, all domains alike. Experts of low rank come multiplied out; kinds of one rank are
    trained in one stack. settings: of `train_soups`
    Raises ParameterError unless kinds have names, ranks are whole numbers ≥ 1 or None, and seeds are a list.
    """
    if not isinstance(kinds, Mapping):
        raise ParameterError(f"kinds = {kinds!r}, expected {{name: Kind}}.")
    seeds = _whole_numbers("seeds", seeds)
    for kind in kinds.values():
        if kind.rank is not None:
            whole_number("rank", kind.rank, least=1)
    found = {}
    for rank in dict.fromkeys(kind.rank for kind in kinds.values()):
        alike = {name: kind for name, kind in kinds.items() if kind.rank == rank}
        found.update(_train_alike(net, domains, alike, rank, steps=steps, seeds=seeds, device=device, **settings))
    return {name: found[name] for name in kinds}


def _train_alike(
    net: nn.Module,
    domains: Sequence[Split],
    kinds: Mapping[str, Kind],
    rank: int | None,
    *,
    steps: int,
    seeds: Sequence[int],
    device: torch.device | str,
    **settings: float,
) -> dict[str, Soup]:
    """`train_kinds` for kinds of one rank, in one stack."""
    every = [kind for kind in kinds.values() for _ in seeds]
    runs = [seed for _ in kinds for seed in seeds]
    start = init_soups(net, len(domains), experts=[kind.experts for kind in every], seeds=runs, device=device)
    h = draw_plans([kind.law for kind in every], len(domains), steps, seeds=runs)
    trained = train_soups(net, start, domains, h, seeds=runs, rank=rank, **settings).soup
    found = {}
    for k, (name, kind) in enumerate(kinds.items()):
        of_kind = slice(k * len(seeds), (k + 1) * len(seeds))
        experts = stack.take(trained.experts, (of_kind, slice(kind.experts)))  # without padding, see `init_soups`
        router = _resize_router(stack.take(trained.router, of_kind), kind.experts, kind.experts)
        found[name] = Soup(stack.take(trained.base, of_kind), experts, router)
    return found


def score_single_domains(net: nn.Module, soups: Mapping[str, Soup], domains: Sequence[Split]) -> MixtureScore:
    """Scores of the specialists for one domain each, there, mean over the domains: [seeds, soups]."""
    h = torch.eye(len(domains))
    scores = [score_mixtures(net, specialists(soup, h), domains, h) for soup in soups.values()]
    loss = torch.stack([score.loss.mean(dim=1) for score in scores], dim=1)
    accuracy = torch.stack([score.accuracy.mean(dim=1) for score in scores], dim=1)
    return MixtureScore(loss, accuracy)


def train_alone(
    net: nn.Module,
    domains: Sequence[Split],
    h: Float[Tensor, "*seeds J domains"],
    *,
    steps: int,
    seeds: Sequence[int],
    start: Stack | None = None,
    device: torch.device | str = "cpu",
    **settings: float,
) -> Stack:
    """One model for each h and seed, trained on that mixture and no other, a stack [seeds, J]; see `train_soups`.

    A one-hot h makes the expert of a domain; any other retrains for a customer (CRISP, Grangier et al. 2024, which
    weighs examples to the same end). h: the same for all seeds, or each's own · start: models [seeds, J] to go on from,
    as `specialists` gives; by default the seed's own draw
    """
    seeds = _whole_numbers("seeds", seeds)
    check_owners(h, len(seeds))
    customers = h.shape[-2]
    runs = [seed for seed in seeds for _ in range(customers)]
    begun = init_soups(net, len(domains), experts=[0] * len(runs), seeds=runs, device=device)
    if start is not None:
        begun = begun._replace(base=stack.flat(start))
    every = h.expand(len(seeds), -1, -1).flatten(0, 1)
    always = every.unsqueeze(1).expand(-1, steps, -1)
    trained = train_soups(net, begun, domains, always, seeds=runs, **settings).soup
    return stack.unflat(trained.base, (len(seeds), customers))
