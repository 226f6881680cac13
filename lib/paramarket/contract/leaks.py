"""What leaks: who can tell from a model, or its predictions, which examples it learnt from; and training against that.

A membership inference attack gives every example a score, the higher the more likely a member of the training set
(Shokri et al. 2017). K models are attacked at once on the same n examples: scores [K, n] beside `member` [K, n].
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

from paramarket import stack
from paramarket.base import stream, whole_number
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.stack import Stack, dense_plan
from paramarket.train import probabilities

NEWTON_STEPS = 20  # of a logistic regression: it has long settled
PENALTY = 1e-4  # on its squared weights, of features of standard deviation 1


class Attack(NamedTuple):
    """How well K attacks tell members from others.

    auc: the chance that a random member has a higher score than a random other; a tie counts half. Blind guessing: .5
    tpr: the share of members found where at most a small share of the others is accused. Blind guessing: that share
    """

    auc: Float[Tensor, " K"]
    tpr: Float[Tensor, " K"]

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows of a grid (see `stack.grid`), with `auc` and `tpr`."""
        return stack.table(rows, auc=self.auc, tpr=self.tpr)


def attack(scores: Float[Tensor, "K n"], member: Bool[Tensor, "K n"], *, fpr: float = 0.01) -> Attack:
    """How well scores tell members from others, one attack on each of K models.

    fpr: the largest share of others that may be accused. Everybody with a score above a threshold is accused, so of
    equal scores all or none. Carlini et al. 2022 say why it has to be small: a few found for sure are harm enough.
    The area under the ROC curve is the Mann–Whitney statistic (Hanley and McNeil 1982).
    Raises ShapeError unless every model has members and others, ParameterError for scores that are not finite.

    >>> import torch
    >>> from paramarket import contract
    >>> member = torch.tensor([[True, True, False, False]])
    >>> contract.attack(torch.tensor([[0.9, 0.4, 0.4, 0.1]]), member).auc
    tensor([0.8750])
    """
    if not scores.isfinite().all():
        raise ParameterError("scores of an attack have to be finite.")
    if not 0 <= fpr < 1:
        raise ParameterError(f"fpr = {fpr}, expected a share from 0 on, below 1.")
    members, others = _count_members(member)
    in_order = scores.sort(dim=1).values
    below = torch.searchsorted(in_order, scores)
    up_to = torch.searchsorted(in_order, scores, right=True)
    rank = (below + up_to + 1).double() / 2  # from 1 on; equal scores share the mean of their ranks
    of_members = (rank * member).sum(dim=1)
    auc = (of_members - members * (members + 1) / 2) / (members * others)

    of_others = scores.masked_fill(member, -torch.inf).sort(dim=1, descending=True).values
    accused = (fpr * others).floor().long().unsqueeze(1)  # so many others may lie above the threshold
    threshold = of_others.gather(1, accused)
    found = (member & (scores > threshold)).sum(dim=1)
    return Attack(auc.float(), found / members)


def _count_members(member: Bool[Tensor, "K n"]) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
    """How many members every model has, and how many others; ShapeError if it lacks one of the two."""
    members = member.sum(dim=1)
    others = (~member).sum(dim=1)
    lacking = ((members == 0) | (others == 0)).nonzero().flatten().tolist()
    if lacking:
        raise ShapeError(f"an attack needs members and others: model {lacking[0]} has examples of one sort alone.")
    return members, others


def margins(
    chances: Float[Tensor, "K n classes"], y: Int[Tensor, " n"], *, floor: float = 1e-12
) -> Float[Tensor, "K n"]:
    """How sure K models are of the labels y: log p_y - log(1 - p_y), in nats.

    The logit-scaled confidence of Carlini et al. 2022 (section IV.C). It puts examples in the order of the loss.
    chances: probabilities, of which those below `floor` count as `floor`: for rounded ones take half of a step
    """
    labels = y.to(chances.device).expand(len(chances), -1).unsqueeze(-1)
    own = chances.gather(-1, labels).squeeze(-1)
    others = chances.scatter(-1, labels, 0.0).sum(dim=-1)  # 1 - p_y would be 0 in float32 where a model is sure
    return own.clamp_min(floor).log() - others.clamp_min(floor).log()


def against_others(scores: Float[Tensor, "K n"], member: Bool[Tensor, "K n"]) -> Float[Tensor, "K n"]:
    """Scores, less the mean score that the same example has with those other models that never saw it.

    Some examples are easy for every model, seen or not. The offline likelihood-ratio attack with one variance for all
    (Carlini et al. 2022, section VI.A), or difficulty calibration (Watson et al. 2022): the other models of the stack
    are the attacker's reference models, trained alike on other examples. An example that all others saw is compared
    with the mean over what they never saw.
    """
    out = (~member).double()
    held = out * scores  # float64 adds these float32 exactly: a rounding would tell who is a member
    number = out.sum(dim=0) - out
    total = held.sum(dim=0) - held
    overall = total.sum(dim=1, keepdim=True) / number.sum(dim=1, keepdim=True).clamp_min(1)
    usual = torch.where(number > 0, total / number.clamp_min(1), overall)
    return (scores - usual).to(scores)


@torch.no_grad()
def gradient_norms(
    net: nn.Module, models: Stack, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]
) -> Float[Tensor, "K n layers"]:
    """Logarithm of the norm of every example's own gradient, layer by layer: what only the weights tell.

    White-box features of Nasr et al. 2019. For MLPs as `stack.mlp` makes them; ShapeError for any other net.
    """
    targets = one_hot(y, _classes(net)).to(x)
    parts = []
    for some, answers in zip(x.split(1000), targets.split(1000), strict=True):
        repeated = some.expand(stack.count(models), *some.shape)
        squares = [_squared_norms(*layer) for layer in _layers_of_examples(net, models, repeated, answers)]
        parts.append(torch.stack(squares, dim=-1))
    return torch.cat(parts, dim=1).clamp_min(1e-30).log() / 2


def learn_attack(features: Float[Tensor, "K n features"], member: Bool[Tensor, "K n"]) -> Float[Tensor, "K n"]:
    """Scores by a logistic regression that has learnt from the K - 1 other models, whose members are known.

    They are the attacker's shadow models, trained alike on other examples (Shokri et al. 2017). Features count with
    their squares: then it can express the log-likelihood ratio of two Gaussians. Members and others weigh half each.
    Raises ShapeError for a single model, and unless every model has members and others.
    """
    copies = len(features)
    _count_members(member)
    if copies < 2:
        raise ShapeError("an attack is learnt from other models: expected two or more.")
    exact = features.double()
    terms = torch.cat([exact, exact.square()], dim=-1).flatten(0, 1)
    terms = (terms - terms.mean(dim=0)) / terms.std(dim=0).clamp_min(1e-12)
    terms = torch.cat([terms, torch.ones_like(terms[:, :1])], dim=1)  # [K n, terms]
    truth = member.double().flatten()
    half = member / member.sum(dim=1, keepdim=True) + ~member / (~member).sum(dim=1, keepdim=True)
    others = 1 - torch.eye(copies).to(half)
    share = (others.unsqueeze(-1) * half).flatten(1).double()  # [K, K n], 0 for what the model itself was asked
    share = share / share.sum(dim=1, keepdim=True)

    weights = terms.new_zeros(copies, terms.shape[1])
    ridge = PENALTY * torch.eye(terms.shape[1]).to(terms)
    for _ in range(NEWTON_STEPS):
        chance = (weights @ terms.T).sigmoid()
        slope = (share * (chance - truth)) @ terms + PENALTY * weights
        spread = (share * chance * (1 - chance)).unsqueeze(1)
        curvature = (terms.T * spread) @ terms + ridge
        weights = weights - torch.linalg.solve(curvature, slope).clamp(-2, 2)  # far off a step may be far too long
    return torch.linalg.vecdot(terms.unflatten(0, (copies, -1)), weights.unsqueeze(1)).float()


@torch.no_grad()
def fit_privately(
    net: nn.Module,
    start: Stack,
    data: Sequence[Split],
    *,
    steps: SupportsIndex,
    batch: SupportsIndex,
    lr: float,
    clip: float,
    noise: Float[Tensor, " K"],
    seed: SupportsIndex,
) -> Stack:
    """Training with noise, K models at once: DP-SGD (Abadi et al. 2016, algorithm 1), at a constant learning rate.

    At every step each example takes part with chance batch / n. Its gradient, of all layers together, is cut to the
    norm `clip`, so no example moves the weights by more than lr · clip / batch. Gaussian noise of standard deviation
    noise · clip is added to the sum. `epsilon` says what that promises.
    data: a split for each model, with labels or probabilities · noise: a multiplier for each model
    For MLPs as `stack.mlp` makes them; ShapeError for any other net. ParameterError for a batch above n.
    """
    copies = stack.check(net, start)
    steps = whole_number("steps", steps, least=1)
    batch = whole_number("batch", batch, least=1)
    if len(data) != copies or len(noise) != copies:
        raise ShapeError(f"{len(data)} splits and {len(noise)} noises for {copies} models: expected one for each.")
    smallest = min(map(len, data))
    if batch > smallest:
        raise ParameterError(f"batch = {batch}, but a split holds {smallest} examples: expected no more than that.")
    if not (clip > 0 and lr > 0 and (noise >= 0).all()):
        raise ParameterError(f"lr = {lr}, clip = {clip}, noise = {noise.tolist()}: expected lr, clip > 0, noise ≥ 0.")
    generators = [stream(seed, "private", k) for k in range(copies)]
    targets = [probabilities(split.y, _classes(net)).to(split.x) for split in data]
    models = stack.copy(stack.single(start))
    for _ in range(steps):
        chosen = [_part_taking(len(split), batch, g) for split, g in zip(data, generators, strict=True)]
        index = pad_sequence(chosen, batch_first=True, padding_value=-1)  # the last example stands in, without weight
        x = torch.stack([split.x[some] for split, some in zip(data, index, strict=True)])
        answers = torch.stack([target[some] for target, some in zip(targets, index, strict=True)])
        summed = _clipped_sum(net, models, x, answers, index >= 0, clip)
        for name, tensor in models.items():
            drawn = torch.stack([torch.randn(tensor.shape[1:], generator=g) for g in generators])
            deviation = (noise * clip).view(-1, *[1] * (tensor.ndim - 1))
            tensor.sub_(summed[name] + (deviation * drawn).to(tensor), alpha=lr / batch)
    return models


def _part_taking(examples: int, batch: int, generator: torch.Generator) -> Int[Tensor, " some"]:
    """Each example with the same chance, on its own, so that `batch` are expected: Poisson sampling."""
    return (torch.rand(examples, generator=generator) < batch / examples).nonzero().flatten()


def _clipped_sum(
    net: nn.Module,
    models: Stack,
    x: Float[Tensor, "K n ..."],
    targets: Float[Tensor, "K n classes"],
    counts: Bool[Tensor, "K n"],
    clip: float,
) -> Stack:
    """The sum of the gradients of those examples that count, each cut to the norm `clip`.

    A gradient is linear in the error of its example: scaling the errors scales it, and one pass is enough.
    """
    layers = list(_layers_of_examples(net, models, x, targets))
    norms = sum(_squared_norms(error, read) for error, read in layers).sqrt()
    share = counts.to(norms) * (clip / norms.clamp_min(1e-12)).clamp(max=1.0)
    summed = {}
    for planned, (error, read) in zip(dense_plan(net), layers, strict=True):
        scaled = error * share.unsqueeze(-1)
        summed[f"{planned.name}.weight"] = scaled.mT @ read
        summed[f"{planned.name}.bias"] = scaled.sum(dim=1)
    return summed


def _squared_norms(error: Float[Tensor, "K n units"], read: Float[Tensor, "K n inputs"]) -> Float[Tensor, "K n"]:
    """Squared norm of every example's gradient of one layer, bias included (Goodfellow 2015).

    The gradient of the weights is the outer product of error and input, its norm the product of theirs.
    """
    return error.square().sum(dim=-1) * (read.square().sum(dim=-1) + 1)


def _layers_of_examples(
    net: nn.Module, models: Stack, x: Float[Tensor, "K n ..."], targets: Float[Tensor, "... n classes"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For every layer, the first one first: each example's error dL/d(W h + b) [K, n, units], and h, what it read.

    L is an example's own cross-entropy.
    """
    plan = dense_plan(net)
    if any(planned.residual for planned in plan):
        raise ShapeError("expected a plain MLP, as `stack.mlp` makes it, got one with residual blocks.")
    x = stack.place(x, models)
    targets = stack.place(targets, models)
    answers = stack.features(net, models, x)
    linears = [answers[planned.name] for planned in plan]
    read = [x.flatten(2), *(said.relu() for said in linears[:-1])]
    error = linears[-1].softmax(dim=-1) - targets
    errors = [error]
    for planned, h in zip(reversed(plan), reversed(read[1:]), strict=False):
        error = (error @ models[f"{planned.name}.weight"]) * (h > 0)
        errors.append(error)
    return zip(reversed(errors), read, strict=True)


def _classes(net: nn.Module) -> int:
    return net.get_submodule(dense_plan(net)[-1].name).out_features


def epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    """What training with noise promises: (ε, δ) differential privacy for adding or leaving out one example.

    Whoever sees the model, or anything made of it, accuses members at a rate of at most e^ε times that of others, + δ.
    noise: the noise multiplier · rate: batch / n · steps: of training · delta: a chance well below 1 / n
    Rényi divergence of the sampled Gaussian at the orders 2 to 256 (Mironov, Talwar and Zhang 2019, section 3.3),
    turned into ε as by Canonne, Kamath and Steinke 2020 (proposition 12).

    >>> from paramarket import contract
    >>> print(f"{contract.epsilon(noise=1.3, rate=250 / 60_000, steps=3_600, delta=1e-5):.2f}")
    0.94
    """
    if not (noise > 0 and 0 < rate <= 1 and 0 < delta < 1):
        raise ParameterError(
            f"noise = {noise}, rate = {rate}, delta = {delta}: expected noise > 0, shares from 0 to 1."
        )
    orders = torch.arange(2, 257, dtype=torch.float64).unsqueeze(1)
    k = torch.arange(257, dtype=torch.float64)
    out = (orders - k).clamp_min(0)
    ways = torch.lgamma(orders + 1) - torch.lgamma(k + 1) - torch.lgamma(out + 1)
    sampled = k * math.log(rate) + torch.special.xlogy(out, torch.tensor(1 - rate, dtype=torch.float64))
    terms = ways + sampled + k * (k - 1) / (2 * noise**2)
    divergence = terms.masked_fill(k > orders, -torch.inf).logsumexp(dim=1) / (orders.squeeze(1) - 1)
    alpha = orders.squeeze(1)
    promised = steps * divergence + ((alpha - 1) / alpha).log() - (math.log(delta) + alpha.log()) / (alpha - 1)
    return max(0.0, float(promised.min()))
