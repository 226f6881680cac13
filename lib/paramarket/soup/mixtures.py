"""Mixtures of domains: weights h that say how much of each a customer sees, batches drawn by them, losses under them.

mix(h) = sum_i h_i D_i (Soup-of-Experts, Ablin et al. 2025): first a domain by h, then one of its examples. And how a
customer's h is found from a few examples, and how a specialist is tried before it ships.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from paramarket.base import Interval, interval, stream
from paramarket.data import Split, together
from paramarket.errors import DataError, ParameterError
from paramarket.stack import Stack, features, flat, forward, init, mlp
from paramarket.train import Score, evaluate, fit


class Law(NamedTuple):
    """How domain weights are drawn: a number of domains from `support`, ends included, then Dirichlet(concentration).

    Which law the paper takes could not be verified; sparse weights are its idea, the numbers are ours.
    """

    support: tuple[int, int] = (1, 3)
    concentration: float = 1.0


def draw_weights(law: Law, domains: int, count: int, generator: Generator) -> Float[Tensor, "count domains"]:
    """`count` domain weights by a law; rows sum to 1."""
    (low, high), a = law.support, law.concentration
    if not 1 <= low <= high <= domains or not 1e-6 <= a <= 1e6:
        raise ParameterError(f"{law}: expected 1 ≤ support ≤ {domains} domains, and a concentration from 1e-6 to 1e6.")
    size = torch.randint(low, high + 1, (count, 1), generator=generator)
    rank = torch.rand(count, domains, generator=generator).argsort(dim=1)
    drawn = torch._standard_gamma(torch.full((count, domains), a + 1), generator=generator).log()
    drawn += torch.rand(count, domains, generator=generator).clamp_min(1e-30).log() / a  # log Gamma(a), however small a
    return drawn.masked_fill(rank >= size, -torch.inf).softmax(dim=1)


def plan(
    laws: Sequence[Law | None], domains: int, steps: int, seeds: Sequence[int]
) -> Float[Tensor, "K steps domains"]:
    """h for every step of K runs, drawn by each run's law; None: all domains alike, always. One seed, one random h."""
    even = torch.full((steps, domains), 1 / domains)
    runs = zip(laws, seeds, strict=True)
    return torch.stack([even if law is None else draw_weights(law, domains, steps, stream(s, "h")) for law, s in runs])


def check_weights(h: Float[Tensor, "... domains"], domains: int) -> None:
    """ParameterError unless h holds weights of that many domains: none negative, each row summing to 1."""
    if h.shape[-1] != domains:
        raise ParameterError(f"h has {h.shape[-1]} weights, expected one for each of {domains} domains.")
    if not (h >= 0).all() or ((h.sum(dim=-1) - 1).abs() > 1e-4).any():
        raise ParameterError(
            f"h = {h.flatten()[:8].tolist()} …: expected weights ≥ 0 that sum to 1; divide by their sum."
        )


def batches(
    domains: Sequence[Split], h: Float[Tensor, "K steps domains"], batch: int, generators: Sequence[Generator]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For every step, examples of mix(h), with replacement, and that h: x [K, batch, ...], y [K, batch], [K, domains].

    Runs that share a generator (the same object) share what is random. x is overwritten by the next batch.
    """
    check_weights(h, len(domains))
    x, y = (torch.cat([getattr(split, part) for split in domains]).to(h.device) for part in ("x", "y"))
    sizes = torch.tensor([len(split) for split in domains])
    if batch < 1 or sizes.min() < 1:
        raise DataError(f"batch = {batch}, domains of {sizes.tolist()} examples: expected 1 or more of each.")
    buffer = x.new_empty(len(h) * batch, *x.shape[1:])
    for part in h.split(64, dim=1):
        places = _chosen(part.cpu(), sizes, batch, generators).to(h.device)
        for chosen, now in zip(places.unbind(1), part.unbind(1), strict=True):
            torch.index_select(x, 0, chosen.flatten(), out=buffer)
            yield buffer.unflatten(0, chosen.shape), y[chosen], now


def _chosen(h: Tensor, sizes: Tensor, batch: int, generators: Sequence[Generator]) -> Tensor:
    """Places [K, steps, batch] in the domains laid end to end: a domain by h, then one of its examples."""
    unique = {id(own): torch.rand(2, h.shape[1], batch, generator=own) for own in dict.fromkeys(generators)}
    which, place = torch.stack([unique[id(own)] for own in generators], dim=1)
    ends = h.cumsum(dim=-1)
    domain = torch.searchsorted(ends / ends[..., -1:], which, right=True).clamp_max(len(sizes) - 1)
    return (sizes.cumsum(0) - sizes)[domain] + (place * sizes[domain]).long()


def by_domain(net: nn.Module, models: Stack, domains: Sequence[Split]) -> Score:
    """Scores of K models on every domain: loss and accuracy [K, domains], class accuracy [K, domains, classes]."""
    return Score(*(torch.stack(each, dim=1) for each in zip(*(evaluate(net, models, s) for s in domains), strict=True)))


def score(
    net: nn.Module, models: Stack, h: Float[Tensor, "*K J domains"], domains: Sequence[Split]
) -> tuple[Float[Tensor, "K J"], Float[Tensor, "K J"]]:
    """Loss (nats) and accuracy of models [K, J], each under its own mixture: sum_i h_i L_i, no sampling."""
    check_weights(h, len(domains))
    runs, count = next(iter(models.values())).shape[:2]
    scores = by_domain(net, flat(models), domains)
    return tuple((each.cpu().view(runs, count, -1) * h.cpu()).sum(dim=-1) for each in scores[:2])


class Teller(NamedTuple):
    """A small net that tells which domain an image is of."""

    net: nn.Sequential
    model: Stack


def teller(domains: Sequence[Split], units: int, *, seed: int, **how: float) -> Teller:
    """Trained to tell the domains apart; how: of `train.fit`."""
    net = mlp(domains[0].x[0].numel(), [units], len(domains))
    owner = torch.arange(len(domains)).repeat_interleave(torch.tensor([len(split) for split in domains]))
    return Teller(net, fit(net, init(net, 1, seed), Split(together(*domains).x, owner), seed=seed, **how).stack)


def look(told: Teller, x: Float[Tensor, "*customers n channels height width"]) -> Float[Tensor, "*customers n units"]:
    """What a teller's hidden units say of images: features to find domain weights by."""
    hidden = list(features(told.net, told.model, x.cpu().flatten(0, -4)).values())[-2][0]
    return hidden.unflatten(0, x.shape[:-3])


@torch.no_grad()
def told_loss(
    net: nn.Module, experts: Stack, told: Teller, h: Float[Tensor, "J domains"], domains: Sequence[Split]
) -> Float[Tensor, "K J"]:
    """Loss under J mixtures of K banks [K, domains], all kept: their answers weighed, image by image, by h_i P(i | x).

    A teller that has seen all domains alike says P(i | x) for equal shares; a customer's own shares are h.
    """
    rows, losses = flat(experts), []
    for split in domains:
        weighed = h.unsqueeze(1) * forward(told.net, told.model, split.x)[0].softmax(dim=-1).cpu()  # [J, n, domains]
        weighed = weighed / weighed.sum(dim=-1, keepdim=True)
        says = forward(net, rows, split.x).softmax(dim=-1)
        right = says[:, torch.arange(len(split)), split.y].cpu().view(-1, len(domains), len(split))
        losses.append(-torch.einsum("jnd,kdn->kjn", weighed, right).clamp_min(1e-12).log().mean(dim=-1))
    return (torch.stack(losses, dim=-1) * h).sum(dim=-1)


class Clusters(NamedTuple):
    """centroids, and shares [clusters, domains]: of a domain's examples, how many fall into each; columns sum to 1."""

    centroids: Float[Tensor, "clusters features"]
    shares: Float[Tensor, "clusters domains"]


def clusters(domains: Sequence[Float[Tensor, "_ features"]], count: int, seed: int) -> Clusters:
    """k-means (scipy, k-means++) over the features of all domains, and what every domain looks like in its clusters."""
    from scipy.cluster.vq import kmeans2  # not above: it takes longer to import than all the rest

    sizes = torch.tensor([len(each) for each in domains])
    if not 1 <= count <= sizes.sum():
        raise ParameterError(f"count = {count}, expected 1 to {int(sizes.sum())} clusters, as many as examples.")
    found, label = kmeans2(torch.cat(list(domains)).double().cpu().numpy(), count, iter=30, minit="++", rng=seed)
    held = torch.zeros(count, len(sizes))
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    held.index_put_((torch.as_tensor(label).long(), owner), torch.ones(len(owner)), accumulate=True)
    return Clusters(torch.as_tensor(found).float(), (held + 0.5) / (held + 0.5).sum(dim=0))


def domain_weights(
    clusters: Clusters, examples: Float[Tensor, "*customers m features"], rounds: int = 0
) -> Float[Tensor, "*customers domains"]:
    """A customer's h from the features of a few examples, no labels: each goes to its nearest cluster.

    rounds = 0: the mean of P(domain | cluster), all domains equally likely beforehand; with one cluster a domain it is
    the histogram of the paper's Alg. 3. It blurs: an example whose cluster two domains share counts for both.
    rounds > 0: so many rounds of expectation-maximisation from there towards the most likely h.
    """
    if examples.shape[-2] == 0 or rounds < 0:
        raise DataError(f"{examples.shape[-2]} examples, {rounds} rounds: expected one or more, and none or more.")
    nearest = torch.cdist(examples.cpu().float(), clusters.centroids).argmin(dim=-1)
    likely = clusters.shares[nearest]  # [..., m, domains]
    h = torch.full_like(likely[..., 0, :], 1 / likely.shape[-1])
    for _ in range(rounds + 1):
        joint = h.unsqueeze(-2) * likely
        h = (joint / joint.sum(dim=-1, keepdim=True)).mean(dim=-2)
    return h


class Trial(NamedTuple):
    """What each of K specialists gained over another model on examples, nats, and whether it ships: low > 0."""

    gain_nats: Interval
    ships: Bool[Tensor, " K"]


@torch.no_grad()
def trial(
    net: nn.Module, specialists: Stack, others: Stack, x: Float[Tensor, "K m ..."], y: Int[Tensor, "K m"]
) -> Trial:
    """Try K specialists, each beside another model, on m labelled examples of its customer, before they ship.

    The interval is a bootstrap over the examples, paired: too narrow for a handful. DataError for fewer than two.
    """
    if y.shape[1] < 2:
        raise DataError(f"{y.shape[1]} examples: expected two or more of the customer's, to try a model on.")
    logits = [forward(net, models, x) for models in (specialists, others)]
    losses = [cross_entropy(each.mT, y.to(each.device), reduction="none").cpu() for each in logits]
    gain = interval((losses[1] - losses[0]).mT, kind="examples")
    return Trial(gain, torch.as_tensor(gain.low) > 0)
