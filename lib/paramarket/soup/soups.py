"""Soup of Experts (Ablin et al. 2025): a base and experts trained so that every mixture of them is a good model.

Theta(h) = S + sum_i phi_i(h) E_i for domain weights h (see `mixtures`); phi is a small MLP, without a softmax. Out come
plain parameters: no soup is needed to run a specialist. A model trained alone is a soup without experts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from paramarket.base import stream, watched
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.soup.mixtures import Law, batches, check_weights, plan, score
from paramarket.stack import Stack, chain, check, init, mix, mlp, run, take
from paramarket.train import finite, one_step


class Soup(NamedTuple):
    """K soups. base: S, a stack [K] · experts: E, a stack [K, n] · router: phi, a stack [K] of MLPs domains -> n."""

    base: Stack
    experts: Stack
    router: Stack


def soup_of(
    net: nn.Module,
    domains: int,
    experts: Sequence[int],
    seeds: Sequence[int],
    hidden: int = 32,
    device: torch.device | str = "cpu",
) -> Soup:
    """K soups at their start: S as PyTorch draws it, E 0, phi random; soups of one seed start alike.

    experts: how many each soup has, 0 for a model trained alone. All share one shape: where a soup has fewer than the
    largest, phi never asks the rest, and they stay 0 in training, for neither can move without the other.
    """
    if len(experts) != len(seeds) or not seeds or min(experts) < 0 or min(hidden, domains) < 1:
        asked = f"experts = {list(experts)}, {len(seeds)} seeds, hidden = {hidden}, {domains} domains"
        raise ParameterError(f"{asked}: expected a number ≥ 0 for each seed, 1 or more units and domains.")
    base = chain([init(net, 1, seed, device) for seed in seeds])
    router = chain([_drawn(domains, hidden, n, max(experts), s, device) for n, s in zip(experts, seeds, strict=True)])
    return Soup(base, {name: t.new_zeros(len(t), max(experts), *t.shape[1:]) for name, t in base.items()}, router)


def _drawn(domains: int, hidden: int, n: int, most: int, seed: int, device: torch.device | str) -> Stack:
    """phi of a soup of n experts, by PyTorch's own rule; its last layer has 0 for the experts that it does not have."""
    router = init(mlp(domains, [hidden], max(1, n)), 1, seed, device)
    for name in list(router)[-2:]:
        own = router[name][:, :n]
        router[name] = torch.cat([own, own.new_zeros(1, most - n, *own.shape[2:])], dim=1)
    return router


def alphas(soup: Soup, h: Float[Tensor, "J domains"]) -> Float[Tensor, "K J n"]:
    """phi(h): how much of each expert J domain weights ask of every soup."""
    phi = _phi(soup.router)
    check_weights(h, phi[1].in_features)
    return run(phi, soup.router, h.to(soup.router["1.weight"]), shared=True, training=True)


def _phi(router: Stack) -> nn.Sequential:
    first, last = router["1.weight"], router["3.weight"]
    return mlp(first.shape[2], [first.shape[1]], max(1, last.shape[1]))  # a Linear of no outputs warns


def combine(soup: Soup, alpha: Float[Tensor, "K J n"]) -> Stack:
    """S + sum_i alpha_i E_i: [K, J] models, linear in alpha."""
    parts = {name: torch.cat([base.unsqueeze(1), soup.experts[name]], dim=1) for name, base in soup.base.items()}
    return mix(torch.cat([alpha.new_ones(*alpha.shape[:2], 1), alpha], dim=2), parts)


@torch.no_grad()
def specialists(soup: Soup, h: Float[Tensor, "J domains"]) -> Stack:
    """Theta(h) of every soup for J domain weights at once, a stack [K, J] of plain models."""
    return combine(soup, alphas(soup, h))


def pretrain(
    net: nn.Module,
    start: Soup,
    domains: Sequence[Split],
    h: Float[Tensor, "K steps domains"],
    *,
    seeds: Sequence[int],
    batch: int = 128,
    lr: float = 3e-3,
) -> tuple[Soup, Float[Tensor, "K steps"]]:
    """Train K soups at once, a step for every h: Theta(h), a batch of mix(h), one backward for S, E and phi.

    The same h at every step trains for that mixture alone. Adam, its rate falling to 0 in a line. Runs of one seed see
    the same random numbers. Returns the soups, and their loss at every step, nats. Raises ShapeError, ParameterError
    for an h that is no weights, TrainingError where losses or weights are not finite.
    """
    copies, steps, own = check(net, start.base), h.shape[1], {seed: stream(seed, "mixtures") for seed in seeds}
    if not copies == len(h) == len(seeds) or steps < 1:
        raise ShapeError(
            f"{copies} soups, {len(seeds)} seeds, h of shape {tuple(h.shape)}: expected h for each of them."
        )
    bank, phi = _flat(start).requires_grad_(), _phi(start.router)
    router = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.router.items()}
    opt = torch.optim.Adam([bank, *(router.values() if bank.shape[1] > 1 else ())], lr, fused=True)
    pace, losses = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=steps), []
    drawn, told = batches(domains, h.to(bank), batch, [own[s] for s in seeds]), f"training {copies} soups"
    for x, y, now in tqdm(drawn, told, total=steps, leave=False, delay=1, disable=not watched()):
        losses.append(one_step(net, _apart(_theta(bank, phi, router, now), start.base), x, y, opt))
        pace.step()
    finite(losses, router | {"S and E": bank.detach()}, steps)
    parts = _apart(bank.detach(), start.base)
    base, experts = ({name: part[:, where].clone() for name, part in parts.items()} for where in (0, slice(1, None)))
    return Soup(base, experts, {name: tensor.detach() for name, tensor in router.items()}), torch.stack(losses, dim=1)


def cook(
    net: nn.Module,
    domains: Sequence[Split],
    kinds: Mapping[str, tuple[int, Law | None]],
    steps: int,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    **how: float,
) -> dict[str, Soup]:
    """Kinds of soups, {name: (experts, law of h)}, for every seed, all trained in one stack.

    (0, None) is the generic model, all domains alike. how: of `pretrain`
    """
    numbers, laws = zip(*(kind for kind in kinds.values() for _ in seeds), strict=True)
    runs = list(seeds) * len(kinds)
    start = soup_of(net, len(domains), numbers, runs, device=device)
    done, _ = pretrain(net, start, domains, plan(laws, len(domains), steps, runs), seeds=runs, **how)
    spans = [slice(k * len(seeds), (k + 1) * len(seeds)) for k in range(len(kinds))]
    return {name: _some(done, span, n) for (name, (n, _)), span in zip(kinds.items(), spans, strict=True)}


def _some(soup: Soup, runs: slice, experts: int) -> Soup:
    """Some of the runs, without the experts that they do not have."""
    base, bank, router = (take(part, runs) for part in soup)
    last = {name: router[name][:, :experts] for name in list(router)[-2:]}
    return Soup(base, {name: tensor[:, :experts] for name, tensor in bank.items()}, router | last)


def one_domain_each(
    net: nn.Module, soups: Mapping[str, Soup], domains: Sequence[Split]
) -> tuple[Float[Tensor, "seeds soups"], Float[Tensor, "seeds soups"]]:
    """Loss and accuracy of the specialists for one domain each, there, mean over the domains."""
    h = torch.eye(len(domains))
    found = [score(net, specialists(soup, h), h, domains) for soup in soups.values()]
    return tuple(torch.stack([each[part].mean(dim=1) for each in found], dim=1) for part in (0, 1))


def alone(
    net: nn.Module,
    domains: Sequence[Split],
    h: Float[Tensor, "J domains"],
    steps: int,
    *,
    seeds: Sequence[int],
    start: Stack | None = None,
    device: torch.device | str = "cpu",
    **how: float,
) -> Stack:
    """One model for each h and seed, trained on that mixture and no other, a stack [seeds, J]; see `pretrain`.

    A one-hot h makes the expert of a domain; any other retrains for a customer (CRISP, Grangier et al. 2024, which
    weighs examples to the same end). start: models [seeds] to go on from, by default the seed's own draw
    """
    each, count = [seed for seed in seeds for _ in h], len(h)
    begun = soup_of(net, len(domains), [0] * len(each), each, device=device)
    if start is not None:
        begun = begun._replace(base={name: tensor.repeat_interleave(count, dim=0) for name, tensor in start.items()})
    always = h.repeat(len(seeds), 1).unsqueeze(1).expand(-1, steps, -1)
    done, _ = pretrain(net, begun, domains, always, seeds=each, **how)
    return {name: tensor.unflatten(0, (len(seeds), count)) for name, tensor in done.base.items()}


def _flat(soup: Soup) -> Float[Tensor, "K experts weights"]:
    """S and E, every model a row: one product a step for all its tensors, one tensor for the optimiser."""
    rows = [torch.cat([base.unsqueeze(1), soup.experts[name]], dim=1).flatten(2) for name, base in soup.base.items()]
    return torch.cat(rows, dim=2).detach()


def _apart(rows: Float[Tensor, "... weights"], like: Stack) -> Stack:
    """Rows of weights as models again, views into them."""
    shapes = {name: tensor.shape[1:] for name, tensor in like.items()}
    parts = rows.split([shape.numel() for shape in shapes.values()], dim=-1)
    return {name: part.unflatten(-1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _theta(bank: Tensor, phi: nn.Module, router: Stack, h: Float[Tensor, "K domains"]) -> Float[Tensor, "K weights"]:
    """Theta(h), an h for each soup. With G the gradient of Theta: G for S, alpha_i G for E_i, <E_i, G> for alpha_i."""
    if bank.shape[1] == 1:
        return bank[:, 0]
    alpha = run(phi, router, h.unsqueeze(1), shared=False, training=True)
    return torch.bmm(torch.cat([torch.ones_like(alpha[..., :1]), alpha], dim=2), bank).squeeze(1)
