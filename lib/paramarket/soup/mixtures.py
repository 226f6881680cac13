"""Mixtures of domains: weights h that say how much of each a customer sees, batches drawn by them, losses under them.

mix(h) = sum_i h_i D_i (Soup-of-Experts, Ablin et al. 2025): first a domain by h, then one of its examples. And how a
customer's h is found from a few examples, and how a specialist is tried before it ships.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from paramarket.base import Interval, check_list, interval, stream, whole_number
from paramarket.data import Split, concat
from paramarket.errors import DataError, ParameterError, ShapeError
from paramarket.stack import Stack, features, flat, forward, init, leading, mlp, table
from paramarket.train import Score, evaluate, fit


class WeightLaw(NamedTuple):
    """How domain weights are drawn: a number of domains from `support`, ends included, then Dirichlet(concentration).

    Which law the paper takes could not be verified; sparse weights are its idea, the numbers are ours.
    """

    support: tuple[int, int] = (1, 3)
    concentration: float = 1.0


def draw_weights(law: WeightLaw, domains: int, count: int, generator: Generator) -> Float[Tensor, "count domains"]:
    """`count` domain weights by a law; rows sum to 1.

    >>> from paramarket import base, soup
    >>> law = soup.WeightLaw(support=(2, 2))
    >>> h = soup.draw_weights(law, domains=5, count=3, generator=base.stream(0, "customers"))
    >>> tuple(h.shape), (h > 0).sum(dim=1).tolist()  # three customers, each with two of five domains
    ((3, 5), [2, 2, 2])
    """
    low, high = law.support
    a = law.concentration
    if not 1 <= low <= high <= domains or not 1e-6 <= a <= 1e6:
        raise ParameterError(f"{law}: expected 1 ≤ support ≤ {domains} domains, and a concentration from 1e-6 to 1e6.")
    size = torch.randint(low, high + 1, (count, 1), generator=generator)
    rank = torch.rand(count, domains, generator=generator).argsort(dim=1)
    drawn = torch._standard_gamma(torch.full((count, domains), a + 1), generator=generator).log()
    drawn += torch.rand(count, domains, generator=generator).clamp_min(1e-30).log() / a  # log Gamma(a), however small a
    return drawn.masked_fill(rank >= size, -torch.inf).softmax(dim=1)


def draw_plans(
    laws: Sequence[WeightLaw | None], domains: int, steps: int, *, seeds: Sequence[int]
) -> Float[Tensor, "K steps domains"]:
    """h for every step of K runs, drawn by each run's law; None: all domains alike, always. One seed, one random h.

    Raises ParameterError unless laws and seeds are lists of one length.
    """
    check_list("laws", laws)
    check_list("seeds", seeds)
    if len(laws) != len(seeds):
        raise ParameterError(f"{len(laws)} laws, {len(seeds)} seeds: expected a law for each seed.")
    even = torch.full((steps, domains), 1 / domains)
    plans = []
    for law, seed in zip(laws, seeds, strict=True):
        plans.append(even if law is None else draw_weights(law, domains, steps, stream(seed, "h")))
    return torch.stack(plans)


def check_weights(h: Float[Tensor, "... domains"], domains: int) -> None:
    """ParameterError unless h holds weights of that many domains: none negative, each row summing to 1."""
    if h.shape[-1] != domains:
        raise ParameterError(f"h has {h.shape[-1]} weights, expected one for each of {domains} domains.")
    if not (h >= 0).all() or ((h.sum(dim=-1) - 1).abs() > 1e-4).any():
        raise ParameterError(
            f"h = {h.flatten()[:8].tolist()} …: expected weights ≥ 0 that sum to 1; divide by their sum."
        )


def check_owners(h: Float[Tensor, "*K J domains"], copies: int) -> None:
    """ShapeError if every one of K has domain weights of its own, and K is another number than that of the runs."""
    if h.ndim == 3 and len(h) != copies:
        raise ShapeError(f"h is for {len(h)} runs, expected one for each of {copies}, or [J, domains] for all alike.")


class Batch(NamedTuple):
    """A step's examples for K runs, and the domain weights that each run's were drawn by."""

    x: Float[Tensor, "K batch ..."]
    y: Int[Tensor, "K batch"]
    h: Float[Tensor, "K domains"]


def batches(
    domains: Sequence[Split], h: Float[Tensor, "K steps domains"], batch: int, generators: Sequence[Generator]
) -> Iterator[Batch]:
    """For every step, examples of mix(h), with replacement, and that h.

    All are on the device of h. Runs that share a generator (the same object) share what is random. x is overwritten by
    the next batch.
    """
    check_list("generators", generators)
    check_weights(h, len(domains))
    batch = whole_number("batch", batch, least=1)
    x = torch.cat([split.x.to(h.device) for split in domains])
    y = torch.cat([split.y.to(h.device) for split in domains])
    sizes = torch.tensor([len(split) for split in domains])
    buffer = x.new_empty(len(h) * batch, *x.shape[1:])
    for part in h.split(64, dim=1):
        places = _draw_places(part.cpu(), sizes, batch, generators).to(h.device)
        for chosen, now in zip(places.unbind(1), part.unbind(1), strict=True):
            torch.index_select(x, 0, chosen.flatten(), out=buffer)
            yield Batch(buffer.unflatten(0, chosen.shape), y[chosen], now)


def _draw_places(h: Tensor, sizes: Tensor, batch: int, generators: Sequence[Generator]) -> Tensor:
    """Places [K, steps, batch] in the domains laid end to end: a domain by h, then one of its examples."""
    numbers = {id(own): torch.rand(2, h.shape[1], batch, generator=own) for own in dict.fromkeys(generators)}
    which, place = torch.stack([numbers[id(own)] for own in generators], dim=1)
    ends = h.cumsum(dim=-1)
    domain = torch.searchsorted(ends / ends[..., -1:], which, right=True).clamp_max(len(sizes) - 1)
    first = sizes.cumsum(0) - sizes
    return first[domain] + (place * sizes[domain]).long()


def scores_by_domain(net: nn.Module, models: Stack, domains: Sequence[Split]) -> Score:
    """Scores of K models on every domain: loss and accuracy [K, domains], class accuracy [K, domains, classes]."""
    scores = [evaluate(net, models, split) for split in domains]
    return Score(
        loss=torch.stack([score.loss for score in scores], dim=1),
        accuracy=torch.stack([score.accuracy for score in scores], dim=1),
        class_accuracy=torch.stack([score.class_accuracy for score in scores], dim=1),
    )


class MixtureScore(NamedTuple):
    """Mean cross-entropy (nats) and accuracy of models [K, J] under a mixture."""

    loss: Float[Tensor, "K J"]
    accuracy: Float[Tensor, "K J"]

    def table(self, rows: pd.DataFrame, along: Mapping[str, Iterable[object]]) -> pd.DataFrame:
        """One row for each of K and J: the columns of a grid, the axis J, `loss` (nats) and `accuracy` (a share).

        along: what J stands for, and the values along it: {"customer": names}
        """
        return table(rows, along, loss=self.loss, accuracy=self.accuracy)


def score_mixtures(
    net: nn.Module, models: Stack, domains: Sequence[Split], h: Float[Tensor, "*K J domains"]
) -> MixtureScore:
    """Scores of models [K, J], each under its own mixture: sum_i h_i L_i, no sampling; on the CPU."""
    check_weights(h, len(domains))
    by_domain = scores_by_domain(net, flat(models), domains)
    shape = leading(models, 2)
    loss = by_domain.loss.unflatten(0, shape) * h.cpu()
    accuracy = by_domain.accuracy.unflatten(0, shape) * h.cpu()
    return MixtureScore(loss.sum(dim=-1), accuracy.sum(dim=-1))


class DomainClassifier(NamedTuple):
    """A small net that tells which domain an image is of: one model of `net`, in a stack."""

    net: nn.Sequential
    model: Stack


def train_domain_classifier(
    domains: Sequence[Split], units: int, *, seed: int, device: torch.device | str = "cpu", **settings: float
) -> DomainClassifier:
    """A net of one hidden layer, trained on a device to tell the domains apart; settings: of `train.fit`."""
    net = mlp(domains[0].x[0].numel(), [units], len(domains))
    owner = torch.arange(len(domains)).repeat_interleave(torch.tensor([len(split) for split in domains]))
    examples = Split(concat(*domains).x, owner)
    start = init(net, 1, seed, device, purpose="domain classifier")  # not the numbers of a soup of the same seed
    return DomainClassifier(net, fit(net, start, examples, seed=seed, **settings).stack)


def hidden_features(
    classifier: DomainClassifier, x: Float[Tensor, "*customers n channels height width"]
) -> Float[Tensor, "*customers n units"]:
    """What a domain classifier's hidden units say of images, on the CPU: features to find domain weights by."""
    *_, hidden, _ = features(classifier.net, classifier.model, x.flatten(0, -4)).values()
    return hidden[0].cpu().unflatten(0, x.shape[:-3])


@torch.no_grad()
def score_ensemble(
    net: nn.Module,
    experts: Stack,
    classifier: DomainClassifier,
    domains: Sequence[Split],
    h: Float[Tensor, "*K J domains"],
    *,
    believed: Float[Tensor, "*K J domains"] | None = None,
) -> MixtureScore:
    """Scores under J mixtures h of K banks [K, domains], all kept, their answers weighed image by image; [K, J].

    The weight of expert i is b_i P(i | x), made to sum to 1. A classifier that has seen all domains alike says P(i | x)
    for equal shares; b turns that into a customer's own by Bayes' rule.
    h: the same for all banks, or each's own · believed: b, the shares that the customer takes for its own; None: it
    knows h. Raises ParameterError for an h or b that is no weights.
    """
    b = h if believed is None else believed
    check_weights(h, len(domains))
    check_weights(b, len(domains))
    if b.shape != h.shape:
        raise ParameterError(f"believed has shape {tuple(b.shape)}, h {tuple(h.shape)}: expected as many customers.")
    bank = leading(experts, 2)
    check_owners(h, bank[0])
    log_b = b.cpu().log().expand(bank[0], -1, -1).unsqueeze(2)  # [K, J, 1, domains]
    losses, accuracies = [], []
    for split in domains:
        y = split.y.cpu()
        which = forward(classifier.net, classifier.model, split.x)[0].log_softmax(dim=-1).cpu()  # log P(i | x), [n, i]
        weights = (log_b + which).softmax(dim=-1)  # [K, J, n, domains]
        answers = forward(net, flat(experts), split.x).softmax(dim=-1).cpu().unflatten(0, bank)
        weighed = torch.einsum("kjnd,kdnc->kjnc", weights, answers)
        truth = weighed[..., torch.arange(len(y)), y]
        losses.append(-truth.clamp_min(1e-12).log().mean(dim=-1))
        accuracies.append((weighed.argmax(dim=-1) == y).float().mean(dim=-1))
    loss = (torch.stack(losses, dim=-1) * h.cpu()).sum(dim=-1)
    accuracy = (torch.stack(accuracies, dim=-1) * h.cpu()).sum(dim=-1)
    return MixtureScore(loss, accuracy)


class Clusters(NamedTuple):
    """centroids, and shares [clusters, domains]: of a domain's examples, how many fall into each; columns sum to 1."""

    centroids: Float[Tensor, "clusters features"]
    shares: Float[Tensor, "clusters domains"]


def cluster_features(domains: Sequence[Float[Tensor, "_ features"]], count: int, *, seed: int) -> Clusters:
    """k-means (scipy, k-means++) over the features of all domains, and what every domain looks like in its clusters."""
    from scipy.cluster.vq import kmeans2  # not above: it takes longer to import than all the rest

    check_list("domains", domains)
    sizes = torch.tensor([len(each) for each in domains])
    if not 1 <= count <= sizes.sum():
        raise ParameterError(f"count = {count}, expected 1 to {int(sizes.sum())} clusters, as many as examples.")
    rows = torch.cat([each.cpu().double() for each in domains]).numpy()
    own = np.random.default_rng(stream(seed, "clusters").initial_seed())
    centroids, label = kmeans2(rows, count, iter=30, minit="++", rng=own)
    members = torch.zeros(count, len(sizes))
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    members.index_put_((torch.as_tensor(label).long(), owner), torch.ones(len(owner)), accumulate=True)
    members += 0.5  # no share is 0, however few the examples
    return Clusters(torch.as_tensor(centroids).float(), members / members.sum(dim=0))


def domain_weights(
    clusters: Clusters, examples: Float[Tensor, "*customers m features"], *, rounds: int = 0
) -> Float[Tensor, "*customers domains"]:
    """A customer's h from the features of a few examples, no labels: each goes to its nearest cluster.

    rounds = 0: the mean of P(domain | cluster), all domains equally likely beforehand; with one cluster a domain it is
    the histogram of the paper's Alg. 3. It blurs: an example whose cluster two domains share counts for both.
    rounds > 0: so many rounds of expectation-maximisation from there towards the most likely h.
    Raises DataError for a customer without examples.
    """
    rounds = whole_number("rounds", rounds, least=0)
    if examples.shape[-2] == 0:
        raise DataError("a customer without examples: expected one or more, to find its domain weights by.")
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

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """One row a specialist: the columns of a grid, `gain_nats` with `_low` and `_high` (its interval), `ships`."""
        return table(rows, **self.gain_nats.columns("gain_nats"), ships=self.ships)


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
    own, other = [cross_entropy(each.mT, y.to(each.device), reduction="none").cpu() for each in logits]
    gain = interval((other - own).mT, kind="examples")
    return Trial(gain, torch.as_tensor(gain.low) > 0)
