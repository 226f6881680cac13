import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from paramarket import base, contract, data, stack, train
from paramarket.errors import ParameterError, ShapeError

NET = stack.mlp(6, [5, 4], 3)
few = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30)
with_both = few.filter(lambda pairs: len({inside for _, inside in pairs}) == 2)


def one_model(pairs):
    scores = torch.tensor([[float(score) for score, _ in pairs]])
    member = torch.tensor([[inside for _, inside in pairs]])
    return scores, member


def some_split(n=12, seed=0):
    generator = base.stream(seed, "examples")
    x = torch.randn(n, 6, generator=generator)
    return data.Split(x, torch.randint(3, (n,), generator=generator))


def some_membership(models=4, n=40):
    return torch.rand(models, n, generator=base.stream(0, "members")) < 0.5


# How well an attack does


@given(with_both)
def test_auc_is_the_share_of_pairs_in_the_right_order_and_ties_count_half(pairs):
    scores, member = one_model(pairs)
    inside, outside = scores[member], scores[~member]
    won = (inside[:, None] > outside).double() + (inside[:, None] == outside).double() / 2
    assert contract.attack(scores, member).auc.item() == pytest.approx(won.mean().item(), abs=1e-6)


@given(with_both)
def test_only_the_order_of_scores_counts(pairs):
    scores, member = one_model(pairs)
    found, stretched = contract.attack(scores, member), contract.attack(scores.exp() - 7, member)
    assert torch.equal(found.auc, stretched.auc)
    assert torch.equal(found.tpr, stretched.tpr)


@given(with_both)
def test_who_turns_the_scores_round_turns_auc_round(pairs):
    scores, member = one_model(pairs)
    both = contract.attack(scores, member).auc + contract.attack(-scores, member).auc
    assert both.item() == pytest.approx(1, abs=1e-6)


@given(with_both, st.floats(0, 0.99))
def test_tpr_is_the_best_that_a_threshold_reaches_within_the_false_positives_allowed(pairs, fpr):
    scores, member = one_model(pairs)
    best = 0.0
    for threshold in [-math.inf, *scores.unique().tolist()]:
        accused = scores > threshold
        if accused[~member].float().mean() <= fpr:
            best = max(best, accused[member].float().mean().item())
    assert contract.attack(scores, member, fpr=fpr).tpr.item() == pytest.approx(best)


@given(with_both)
def test_right_or_wrong_gives_half_the_gap_between_members_and_others(pairs):
    """The attack on labels alone: AUC = 1/2 + (accuracy on members - accuracy on others) / 2."""
    scores, member = one_model(pairs)
    right = (scores > 0).float()
    gap = right[member].mean() - right[~member].mean()
    assert contract.attack(right, member).auc.item() == pytest.approx(0.5 + gap.item() / 2, abs=1e-6)


def test_a_perfect_attack_finds_all_and_a_blind_one_nobody():
    member = some_membership()
    perfect = contract.attack(member.float(), member)
    blind = contract.attack(torch.zeros(member.shape), member)
    assert perfect.auc.tolist() == perfect.tpr.tolist() == [1.0] * 4
    assert blind.auc.tolist() == [0.5] * 4
    assert blind.tpr.tolist() == [0.0] * 4


def test_attacks_on_a_stack_are_attacks_one_by_one():
    member = some_membership()
    scores = torch.randn(member.shape, generator=base.stream(0, "scores"))
    together = contract.attack(scores, member)
    for k in range(4):
        alone = contract.attack(scores[k : k + 1], member[k : k + 1])
        assert (alone.auc, alone.tpr) == (together.auc[k], together.tpr[k])
    rows = together.table(stack.grid(seed=range(4)))
    assert list(rows.columns) == ["seed", "auc", "tpr"]


def test_an_attack_needs_members_others_and_finite_scores():
    member = some_membership()
    scores = torch.zeros(member.shape)
    for all_alike in (torch.ones_like(member), torch.zeros_like(member)):
        with pytest.raises(ShapeError, match="model 0 has examples of one sort"):
            contract.attack(scores, all_alike)
    with pytest.raises(ParameterError, match="finite"):
        contract.attack(scores / 0, member)
    with pytest.raises(ParameterError, match=r"fpr = 1\.0"):
        contract.attack(scores, member, fpr=1.0)


# What is known of an example


def test_margins_are_the_log_odds_of_the_label():
    logits = 3 * torch.randn(4, 20, 5, generator=base.stream(0, "logits"))
    y = torch.randint(5, (20,), generator=base.stream(0, "labels"))
    p = logits.double().softmax(dim=-1)[:, torch.arange(20), y]
    found = contract.margins(logits.softmax(dim=-1), y)
    torch.testing.assert_close(found, (p.log() - (1 - p).log()).float(), rtol=1e-4, atol=1e-4)
    losses = -p.log()
    assert torch.equal(found.argsort(dim=1, descending=True), losses.argsort(dim=1))


def test_rounded_probabilities_have_finite_margins():
    rounded = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    found = contract.margins(rounded, torch.tensor([0, 0]), floor=0.05)
    torch.testing.assert_close(found, torch.tensor([[math.log(20), -math.log(20)]]))


def test_an_example_is_compared_with_those_others_that_never_saw_it():
    member = some_membership()
    member[:, 0] = True  # all saw it
    scores = torch.randn(member.shape, generator=base.stream(0, "scores"))
    found = contract.against_others(scores, member)
    for k in range(4):
        others = [j for j in range(4) if j != k]
        unseen = torch.cat([scores[j, ~member[j]] for j in others])
        for i in range(member.shape[1]):
            outside = [scores[j, i].item() for j in others if not member[j, i]]
            usual = np.mean(outside) if outside else unseen.mean().item()
            assert found[k, i].item() == pytest.approx(scores[k, i].item() - usual, abs=1e-5)


@given(st.floats(-50, 50, width=32), st.integers(0, 99))
def test_scores_that_are_equal_everywhere_leave_exactly_nothing(score, seed):
    """A rounding error that hung on who is a member would be found by an attack."""
    member = torch.rand(8, 40, generator=base.stream(seed, "members")) < 0.5
    assert (contract.against_others(torch.full(member.shape, score), member) == 0).all()


def test_what_is_easy_for_all_alike_is_no_matter():
    member = some_membership()
    member[0] = False  # so that each example has a model that never saw it
    member[1] = False
    scores = torch.randn(member.shape, generator=base.stream(0, "scores"))
    easy = 10 * torch.randn(member.shape[1], generator=base.stream(0, "easy"))
    found = contract.against_others(scores + easy, member)
    torch.testing.assert_close(found, contract.against_others(scores, member), rtol=0, atol=1e-4)


def test_gradient_norms_are_those_of_autograd():
    split, models = some_split(), stack.init(NET, 3, seed=0)
    found = contract.gradient_norms(NET, models, split.x, split.y)
    assert found.shape == (3, 12, 3)
    for k in range(3):
        for i in range(12):
            own = stack.map(lambda tensor: tensor.clone().requires_grad_(), stack.take(models, slice(k, k + 1)))
            loss = cross_entropy(stack.forward(NET, own, split.x[i : i + 1])[0], split.y[i : i + 1])
            slopes = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
            for at, layer in enumerate(("1", "3", "5")):
                size = math.hypot(slopes[f"{layer}.weight"].norm(), slopes[f"{layer}.bias"].norm())
                assert math.exp(found[k, i, at]) == pytest.approx(size, rel=1e-4, abs=1e-6)


def test_other_nets_are_refused():
    net = stack.residual_mlp(6, 5, 1, 3)
    split, models = some_split(), stack.init(net, 2, seed=0)
    with pytest.raises(ShapeError, match="a plain MLP"):
        contract.gradient_norms(net, models, split.x, split.y)


# Attacks that are learnt


def test_a_learnt_attack_knows_nothing_of_the_members_of_its_target():
    member = some_membership()
    features = torch.randn(*member.shape, 2, generator=base.stream(0, "features"))
    found = contract.learn_attack(features, member)
    for k in range(4):
        other = member.clone()
        other[k] = ~other[k]
        assert torch.equal(contract.learn_attack(features, other)[k], found[k])


def test_a_learnt_attack_finds_what_tells_members_from_others_even_if_they_lie_in_the_middle():
    member = some_membership(n=400)
    noise = torch.randn(*member.shape, 2, generator=base.stream(0, "features"))
    told = noise.clone()
    told[..., 0] *= torch.where(member, 0.1, 3.0)  # members lie close to 0, others on both sides
    assert contract.attack(contract.learn_attack(told, member), member).auc.min() > 0.9
    assert contract.attack(contract.learn_attack(noise, member), member).auc.mean() < 0.6


def test_units_of_features_are_no_matter():
    member = some_membership()
    features = torch.randn(*member.shape, 2, generator=base.stream(0, "features"))
    scaled = features * torch.tensor([1000.0, 0.001])
    found = contract.learn_attack(features, member)
    torch.testing.assert_close(contract.learn_attack(scaled, member), found, rtol=1e-3, atol=1e-4)


def test_a_learnt_attack_minimises_its_penalised_loss():
    """Its scores on the second model are those of a fit to the first, found by another way."""
    from scipy.optimize import minimize

    member = some_membership(models=2)
    features = torch.randn(*member.shape, 1, generator=base.stream(0, "features")) + member.unsqueeze(-1)
    both = torch.cat([features, features.square()], dim=-1).double().flatten(0, 1).numpy()
    terms = np.column_stack([(both - both.mean(axis=0)) / both.std(axis=0, ddof=1), np.ones(len(both))])
    first, second = terms[:40], terms[40:]
    sign = np.where(member[0], 1.0, -1.0)
    weight = np.where(member[0], 0.5 / member[0].sum(), 0.5 / (~member[0]).sum())

    def objective(w):
        return weight @ np.logaddexp(0, -sign * (first @ w)) + 1e-4 / 2 * w @ w

    best = minimize(objective, np.zeros(3), tol=1e-12).x
    np.testing.assert_allclose(contract.learn_attack(features, member)[1], second @ best, atol=1e-3)


def test_an_attack_is_learnt_from_others():
    member = some_membership(models=1)
    with pytest.raises(ShapeError, match="two or more"):
        contract.learn_attack(torch.zeros(*member.shape, 1), member)


# Training with noise


def private(data, copies=2, net=NET, **changed):
    how = {"steps": 3, "batch": len(data[0]), "lr": 0.5, "clip": 1e6, "noise": torch.zeros(copies), "seed": 0}
    return contract.fit_privately(net, stack.init(net, copies, seed=0), data, **how | changed)


def distance(a, b):
    """Between models, one by one: [K]."""
    return (stack.vectors(a) - stack.vectors(b)).norm(dim=1)


def test_without_noise_and_clipping_it_is_gradient_descent():
    splits = [some_split(seed=1), some_split(seed=2)]
    found = private(splits)
    models = stack.init(NET, 2, seed=0)
    for _ in range(3):
        models = stack.map(lambda tensor: tensor.detach().requires_grad_(), models)
        logits = stack.forward(NET, models, torch.stack([split.x for split in splits]))
        labels = torch.stack([split.y for split in splits])
        loss = cross_entropy(logits.mT, labels, reduction="none").mean(dim=1).sum()
        slopes = torch.autograd.grad(loss, list(models.values()))
        models = dict(zip(models, (t - 0.5 * s for t, s in zip(models.values(), slopes, strict=True)), strict=True))
    assert distance(found, models).max() < 1e-5


@given(st.floats(0.01, 10), st.integers(0, 11))
def test_one_example_moves_the_weights_by_no_more_than_its_share(clip, at):
    """Another example in its place: the old one's share is gone, the new one's has come."""
    split = some_split()
    x = split.x.clone()
    x[at] *= 100
    other = data.Split(x, split.y)
    how = {"steps": 1, "clip": clip}
    moved = distance(private([split, split], **how), private([other, other], **how))
    assert (moved <= 2 * 0.5 * clip / 12 + 1e-5).all()


def test_every_example_is_cut_to_the_same_length():
    """At a tiny clip each moves the weights by lr * clip / batch: one example alone does so exactly."""
    split = data.Split(some_split().x[:1], some_split().y[:1])
    found = private([split, split], steps=1, clip=1e-2)
    assert distance(found, stack.init(NET, 2, seed=0)).tolist() == pytest.approx([0.005, 0.005], rel=1e-3)


def test_the_noise_has_the_deviation_that_was_asked_for():
    net = stack.mlp(6, [400], 3)
    split = some_split()
    splits = [split, split, split]
    how = {"net": net, "copies": 3, "steps": 1, "clip": 0.3}
    quiet = stack.vectors(private(splits, **how))
    loud = stack.vectors(private(splits, noise=torch.tensor([0.0, 1.0, 2.0]), **how))
    drawn = (loud - quiet) / (0.5 * 0.3 / 12)
    assert (drawn[0] == 0).all()
    assert drawn.std(dim=1).tolist() == pytest.approx([0, 1, 2], rel=0.05)
    assert drawn.mean(dim=1).abs().max() < 0.15


def test_a_model_does_not_hang_on_those_beside_it():
    splits = [some_split(seed=1), some_split(n=20, seed=2), some_split(seed=3)]
    how = {"clip": 1.0, "batch": 6}
    three = private(splits, copies=3, noise=torch.ones(3), **how)
    two = private(splits[:2], copies=2, noise=torch.ones(2), **how)
    assert distance(stack.take(three, slice(2)), two).max() < 1e-5


def test_every_example_takes_part_with_the_same_chance():
    """Equal examples pull in one direction: how far the weights went tells how many there were, 500 of 2,000 or so."""
    one = some_split(n=1)
    alike = data.Split(one.x.expand(2000, -1), one.y.expand(2000))
    found = private([alike, alike], steps=1, batch=500, clip=1e-2)
    taking_part = distance(found, stack.init(NET, 2, seed=0)) * 500 / (0.5 * 1e-2)
    assert taking_part.tolist() == pytest.approx(taking_part.round().tolist(), abs=0.2)
    assert taking_part.tolist() == pytest.approx([500, 500], abs=100)  # five standard deviations
    assert taking_part[0] != taking_part[1]


def test_a_step_without_examples_is_noise_alone():
    """Of 12 examples one is expected, so now and then there is none."""
    found = private([some_split(), some_split()], batch=1, steps=20, clip=1.0)
    assert stack.vectors(found).isfinite().all()


def test_soft_answers_are_learnt_from_as_well():
    split = some_split()
    soft = data.Split(split.x, train.probabilities(split.y, 3))
    assert distance(private([split, split]), private([soft, soft])).max() == 0


def test_private_training_refuses_what_does_not_fit():
    split = some_split()
    with pytest.raises(ShapeError, match="1 splits and 2 noises for 2 models"):
        private([split])
    with pytest.raises(ParameterError, match="batch = 13, but a split holds 12"):
        private([split, split], batch=13)
    for wrong in ({"lr": 0.0}, {"clip": 0.0}, {"noise": torch.tensor([1.0, -1.0])}):
        with pytest.raises(ParameterError, match=r"expected lr, clip > 0, noise ≥ 0"):
            private([split, split], **wrong)


# What it promises


def by_quadrature(noise, rate, steps, delta):
    """ε from the integral that the divergence is: E[((1 - q) + q e^((2 x - 1) / 2 σ²))^α] over x of N(0, σ²)."""
    x = np.linspace(-60 * noise, 60 * noise, 400_001)
    density = -(x**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    ratio = np.logaddexp(np.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    best = math.inf
    for order in range(2, 33):
        inside = density + order * ratio
        top = inside.max()
        divergence = (top + math.log(np.exp(inside - top).sum() * (x[1] - x[0]))) / (order - 1)
        turned = math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, steps * divergence + turned)
    return best


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.3, 10), (2.0, 0.3, 100), (1.5, 0.1, 200)])
def test_the_promise_is_that_of_the_integral(noise, rate, steps):
    assert contract.epsilon(noise, rate, steps, 1e-4) == pytest.approx(
        by_quadrature(noise, rate, steps, 1e-4), rel=1e-6
    )


@given(st.floats(0.5, 10), st.integers(1, 1000))
def test_with_all_examples_in_every_step_it_is_the_gaussian_mechanism(noise, steps):
    """Its Rényi divergence is α / 2σ² a step (Mironov 2017)."""
    orders = np.arange(2, 257)
    turned = np.log((orders - 1) / orders) - (math.log(1e-4) + np.log(orders)) / (orders - 1)
    expected = (steps * orders / (2 * noise**2) + turned).min()
    assert contract.epsilon(noise, 1.0, steps, 1e-4) == pytest.approx(max(0, expected), rel=1e-9, abs=1e-9)


@given(st.floats(0.6, 5), st.floats(0.01, 0.5), st.integers(1, 500))
def test_more_noise_fewer_steps_and_fewer_examples_promise_more(noise, rate, steps):
    promised = contract.epsilon(noise, rate, steps, 1e-4)
    assert contract.epsilon(2 * noise, rate, steps, 1e-4) <= promised + 1e-9
    assert contract.epsilon(noise, rate / 2, steps, 1e-4) <= promised + 1e-9
    assert contract.epsilon(noise, rate, 2 * steps, 1e-4) >= promised - 1e-9
    assert contract.epsilon(noise, rate, steps, 1e-3) <= promised + 1e-9


@pytest.mark.parametrize(
    ("noise", "rate", "delta"), [(0.0, 0.1, 1e-4), (1.0, 0.0, 1e-4), (1.0, 1.1, 1e-4), (1.0, 0.1, 1)]
)
def test_no_promise_for_what_is_no_training_with_noise(noise, rate, delta):
    with pytest.raises(ParameterError, match="expected noise > 0"):
        contract.epsilon(noise, rate, 10, delta)
