import inspect
import itertools

import numpy as np
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import equal, shuffle, spec_of
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from paramarket import align, market, stack, train
from paramarket.base import interval
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.stack import Residual

NETS = {
    "MLP": lambda: stack.mlp(64, [12, 8], 10),
    "residual MLP": lambda: stack.residual_mlp(64, 8, 2, 10),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 10)),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    ),
    "no hidden layer": lambda: stack.mlp(64, [], 10),
    "ReLU first": lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)),
    "block first": lambda: nn.Sequential(nn.Flatten(), Residual(64), nn.Linear(64, 10)),
    "transformer": lambda: stack.vit(1, 8, 10, units=8, heads=2, blocks=1),
}
SMALL = stack.mlp(6, [5], 3)
every_net = pytest.mark.parametrize("name", NETS)
seeds = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def split(digits):
    return Split(digits.quote.x[:60], digits.quote.y[:60])


def lines(net, buyers, sellers, seed=0):
    """Lineups of models that know nothing of each other."""
    models = stack.init(net, buyers * (1 + sellers), seed)
    return stack.unflat(models, (buyers, 1 + sellers))


def drawn(seed, n=30, shape=(6,), classes=3):
    generator = torch.Generator().manual_seed(seed)
    return Split(torch.randn(n, *shape, generator=generator), torch.randint(0, classes, (n,), generator=generator))


def deal(seed, sellers=1, shares=(0.25, 0.5, 0.9), parts="whole"):
    """Three small lineups, the mixtures to try, and examples."""
    models = lines(SMALL, 3, sellers, seed)
    return models, market.purchase_weights(shares, len(stack.layers(models)), sellers=sellers, parts=parts), drawn(seed)


def alone(net, params, split):
    """Loss and hit of one model on every example, by itself."""
    logits = stack.forward(net, stack.join([params]), split.x)[0]
    return cross_entropy(logits, split.y, reduction="none"), logits.argmax(dim=1) == split.y


# What is tried


@given(
    st.lists(st.floats(0, 1), max_size=5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(market.PARTS),
)
def test_every_mixture_is_whole_and_the_first_is_no_purchase(shares, layers, sellers, parts):
    weights = market.purchase_weights(shares, layers, sellers=sellers, parts=parts)
    groups = {1: 1, 2: 3, 3: 7}[sellers]
    assert len(weights) == 1 + len(shares) * groups * (1 + layers if parts == "layers" else 1)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(len(weights), layers))
    assert (weights[0] == torch.tensor([1.0] + [0.0] * sellers)).all()
    assert (weights >= 0).all()
    for row in weights.flatten(0, 1):
        assert len(row[1:][row[1:] > 0].unique()) <= 1  # sellers in equal parts


def test_every_group_of_three_sellers_gets_every_share():
    weights = market.purchase_weights([0.3, 0.6], 1, sellers=3)[1:, 0]
    groups = [g for size in (1, 2, 3) for g in itertools.combinations((1, 2, 3), size)]
    assert [
        (tuple((row[1:] > 0).nonzero().flatten().add(1).tolist()), round(1 - row[0].item(), 6)) for row in weights
    ] == [(group, share) for group in groups for share in (0.3, 0.6)]


def test_weights_for_another_number_of_layers_are_refused():
    with pytest.raises(ShapeError, match="weights for 3 layers, expected 2: 1, 3"):
        market.mix_layers(lines(SMALL, 2, 1), torch.rand(2, 4, 3, 2))


def test_an_unknown_part_is_refused():
    with pytest.raises(ParameterError, match=r"unknown parts 'layer'\. Did you mean 'layers'\?"):
        market.purchase_weights([0.5], 2, parts="layer")


@pytest.mark.parametrize("name", ["MLP", "residual MLP", "convolutions"])
def test_a_mixture_of_one_layer_changes_only_that_layer(name):
    net = NETS[name]()
    models = lines(net, 2, 1)
    layers = stack.layers(models)
    weights = market.purchase_weights([0.4], len(layers), parts="layers")
    made = market.mix_layers(models, weights.expand(2, -1, -1, -1))
    for c, layer in enumerate(layers, start=2):  # 0 is no purchase, 1 the whole net
        for key, tensor in made.items():
            own, other = models[key][:, 0], models[key][:, 1]
            if key.startswith(f"{layer}."):
                assert torch.allclose(tensor[:, c], 0.6 * own + 0.4 * other, atol=1e-6)
            else:
                assert torch.equal(tensor[:, c], own)


@every_net
def test_all_mixtures_at_once_are_each_mixture_by_itself(name, split):
    net = NETS[name]()
    models = lines(net, 3, 2)
    weights = market.purchase_weights([0.2, 0.7], len(stack.layers(models)), sellers=2, parts="layers")
    few = Split(split.x[:20], split.y[:20])
    made = market.mix_layers(models, weights.expand(3, -1, -1, -1))
    own = [[alone(net, stack.take(made, (q, c)), few) for c in range(len(weights))] for q in range(3)]
    for block in (1, 700, 2**19):
        loss, hit = market.evaluate_mixtures(net, models, weights, few, block=block)
        for q, c in itertools.product(range(3), range(len(weights))):
            assert torch.allclose(loss[q, c], own[q][c][0], atol=1e-5)
            assert torch.equal(hit[q, c], own[q][c][1])


# Lineups


# Weights of residual blocks are matched from where they stand, because no start is best there: not for any order.
ORDERLESS = [(name, match) for name in NETS for match in ("weights", "activations")]
ORDERLESS.remove(("residual MLP", "weights"))


@pytest.mark.parametrize(("name", "match"), ORDERLESS)
def test_the_order_of_a_sellers_units_changes_no_mixture(name, match, split):
    net = NETS[name]()
    spec, models = spec_of(net, split.x[:1]), stack.init(net, 2, seed=1)
    other = stack.take(models, 1)
    swapped = stack.join([stack.take(models, 0), align.permute(spec, shuffle(spec, other, name), other)])
    assert equal(models, swapped) == (not align.sizes(spec, other))
    weights = market.purchase_weights([0.25, 0.5, 0.75], len(stack.layers(models)))
    losses = []
    for both in (models, swapped):
        line = market.lineup(net, spec, both, buyers=[0], sellers=[[1]], match=match, x=split.x)
        losses.append(market.evaluate_mixtures(net, line, weights, split).losses)
    assert torch.allclose(*losses, atol=1e-4)


def test_without_a_match_the_models_stay_as_they_are(split):
    net = NETS["MLP"]()
    spec, models = spec_of(net, split.x[:1]), stack.init(net, 3, seed=0)
    rows = market.lineup(net, spec, models, buyers=[2, 0], sellers=[[0, 1], [1, 2]], match="none", x=split.x)
    assert equal(rows, stack.take(models, torch.tensor([[2, 0, 1], [0, 1, 2]])))


@pytest.mark.parametrize("match", ["weights", "activations"])
def test_a_pair_is_matched_once_and_the_way_back_is_the_inverse(match, split, monkeypatch):
    net, asked = NETS["MLP"](), []
    spec, models = spec_of(net, split.x[:1]), stack.init(net, 3, seed=0)
    matcher = getattr(align, f"{match[:-1]}_matching")

    def counted(*args, **more):
        asked.append(matcher(*args, **more))
        return asked[-1]

    monkeypatch.setattr(align, matcher.__name__, counted)
    everyone, others = [0, 1, 2], [[1, 2], [0, 2], [0, 1]]
    rows = market.lineup(net, spec, models, buyers=everyone, sellers=others, match=match, x=split.x)
    assert len(asked) == 3
    for p, (one, other) in zip(asked, [(0, 1), (0, 2), (1, 2)], strict=True):
        there = stack.take(rows, (one, 1 + [k for k in range(3) if k != one].index(other)))
        back = stack.take(rows, (other, 1 + [k for k in range(3) if k != other].index(one)))
        assert equal(there, align.permute(spec, p, stack.take(models, other)))
        assert equal(back, align.permute(spec, align.inverse(p), stack.take(models, one)))


def test_a_number_is_no_list_of_shares_and_a_half_no_number_of_layers():
    weights = inspect.unwrap(market.purchase_weights)
    with pytest.raises(ParameterError, match=r"shares = 0\.5, expected a list"):
        weights(0.5, 2)
    with pytest.raises(ParameterError, match=r"layers = 2\.0, expected a whole number ≥ 1"):
        weights([0.5], 2.0)
    with pytest.raises(ParameterError, match=r"sellers = 0, expected a whole number ≥ 1"):
        weights([0.5], 2, sellers=0)


def test_a_buyer_is_no_list_of_buyers(split):
    net = NETS["MLP"]()
    spec, models = spec_of(net, split.x[:1]), stack.init(net, 2, seed=0)
    with pytest.raises(ParameterError, match="buyers = 0, expected a list"):
        inspect.unwrap(market.lineup)(net, spec, models, buyers=0, sellers=[[1]], match="none", x=split.x)


@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 2), (4, 3)])
def test_every_buyer_has_its_own_classes(shape):
    models, weights, split = deal(0)
    own = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"own_classes has shape .*, expected a row for each of 3 buyers, of 3"):
        inspect.unwrap(market.quote)(SMALL, models, weights, split, own_classes=own)


def test_an_unknown_match_is_refused(split):
    net = NETS["MLP"]()
    spec, models = spec_of(net, split.x[:1]), stack.init(net, 2, seed=0)
    with pytest.raises(ParameterError, match=r"unknown match 'weight'\. Did you mean 'weights'\?"):
        market.lineup(net, spec, models, buyers=[0], sellers=[[1]], match="weight", x=split.x)
    with pytest.raises(ParameterError, match="2 buyers, sellers for 1"):
        market.lineup(net, spec, models, buyers=[0, 1], sellers=[[1]], match="none", x=split.x)


# Quotes


@given(seeds, st.integers(1, 3), st.sampled_from(market.PARTS))
def test_a_quote_is_the_mixture_with_the_lowest_loss_and_never_a_harm(seed, sellers, parts):
    models, weights, split = deal(seed, sellers, parts=parts)
    found = market.quote(SMALL, models, weights, split)
    assert (found.gain_nats >= 0).all()
    least = found.losses.amin(dim=1)
    for q, c in enumerate(found.choice.tolist()):
        assert torch.equal(found.weights[q], weights[c])
        assert found.losses[q, c] <= (1 + 1e-6) * least[q]
        assert (found.losses[q, :c] > (1 + 1e-6) * least[q]).all()
        got, had = (alone(SMALL, each, split) for each in (stack.take(found.models, q), stack.take(models, (q, 0))))
        assert found.losses[q, c].item() == pytest.approx(got[0].mean().item(), abs=1e-5)
        assert found.gain_nats[q].item() == pytest.approx((had[0].mean() - got[0].mean()).item(), abs=1e-5)
        points = 100 * (got[1].float().mean() - had[1].float().mean())
        assert found.gain_points[q].item() == pytest.approx(points.item(), abs=1e-3)
        assert found.gain_relative[q].item() == pytest.approx(1 - (got[0].mean() / had[0].mean()).item(), abs=1e-5)


@given(seeds)
def test_more_sellers_are_never_a_worse_quote(seed):
    models, weights, split = deal(seed, sellers=3)
    best = market.quote(SMALL, models, weights, split).losses.amin(dim=1)
    for seller in (1, 2, 3):
        one = stack.take(models, (slice(None), [0, seller]))
        pair = market.quote(SMALL, one, market.purchase_weights((0.25, 0.5, 0.9), 2), split).losses.amin(dim=1)
        assert (best <= pair + 1e-6).all()


@pytest.mark.parametrize("match", market.MATCHES)
@every_net
def test_a_seller_equal_to_the_buyer_brings_nothing(name, match, split):
    net = NETS[name]()
    spec, models = spec_of(net, split.x[:1]), stack.take(stack.init(net, 1, seed=0), [0, 0])
    both = market.lineup(net, spec, models, buyers=[0], sellers=[[1]], match=match, x=split.x)
    weights = market.purchase_weights([0.0, 0.3, 0.5, 1.0], len(stack.layers(both)))
    found = market.quote(net, both, weights, split)
    assert found.choice.item() == found.gain_nats.item() == found.gain_points.item() == 0
    assert found.losses[0, [1, 4]].tolist() == pytest.approx([found.losses[0, 0].item()] * 2, abs=1e-6)


@given(seeds)
def test_a_share_of_nothing_gains_exactly_nothing(seed):
    models, weights, split = deal(seed, shares=(0.0,))
    found = market.quote(SMALL, models, weights, split)
    assert found.choice.tolist() == [0] * 3
    assert found.gain_nats.tolist() == found.gain_points.tolist() == found.gain_relative.tolist() == [0] * 3
    assert equal(found.models, stack.take(models, (slice(None), 0)))


@given(seeds, st.sampled_from([0.0, 2.0, 10.0, 30.0]), st.sampled_from([[0], [1, 2], [0, 1, 2]]))
def test_no_purchase_costs_more_on_known_classes_than_the_guard_allows(seed, bound, classes):
    models, weights, split = deal(seed)
    own = torch.zeros(3, 3, dtype=torch.bool)
    own[:, classes] = True
    found = market.quote(SMALL, models, weights, split, own_classes=own, max_class_loss=bound)
    at_home = torch.isin(split.y, torch.tensor(classes))
    for q in range(3):
        before = alone(SMALL, stack.take(models, (q, 0)), split)[1][at_home]
        after = alone(SMALL, stack.take(found.models, q), split)[1][at_home]
        if len(before):
            assert 100 * (before.float().mean() - after.float().mean()) <= bound + 1e-3
    assert (found.gain_nats >= 0).all()
    free = market.quote(SMALL, models, weights, split)
    loose = market.quote(SMALL, models, weights, split, own_classes=own, max_class_loss=100.0)
    assert torch.equal(loose.choice, free.choice)


def test_the_guard_keeps_a_buyer_from_unlearning_what_it_knows():
    """The buyer always says 0, the seller always 1, by as much; nine of ten examples are a 1."""
    net = nn.Sequential(nn.Linear(1, 2))
    models = {"0.weight": torch.zeros(1, 2, 2, 1), "0.bias": torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])}
    split = Split(torch.zeros(10, 1), torch.tensor([0] + [1] * 9))
    weights, own = market.purchase_weights([0.2, 0.4, 0.8], 1), torch.tensor([[True, False]])
    quotes = {}
    for bound in (100.0, 99.0, 0.0):
        quotes[bound] = market.quote(net, models, weights, split, own_classes=own, max_class_loss=bound)
    assert quotes[100.0].choice.item() == 3
    assert quotes[99.0].choice.item() == 2
    held = quotes[0.0]
    assert held.gain_points.item() == 0
    assert held.weights.flatten().tolist() == pytest.approx([0.6, 0.4])
    logits = torch.tensor([0.6 * 2, 0.4 * 2]).expand(10, 2)
    assert held.losses[0, 2].item() == pytest.approx(cross_entropy(logits, split.y).item(), abs=1e-6)


@pytest.mark.parametrize(("known", "lost"), [(300, 3), (200, 2), (300, 6), (700, 7), (1000, 30)])
def test_what_costs_exactly_what_the_guard_allows_is_on_offer(known, lost):
    """The buyer is right on all it knows, the seller on all but `lost` of it, and on much else; 1 point is 1 point."""
    net = nn.Sequential(nn.Linear(2, 2))
    weight = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]])
    models = {"0.weight": weight, "0.bias": torch.zeros(1, 2, 2)}  # the seller takes one input for the other
    one, other = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    x = torch.cat([one.expand(lost, -1), (one + other).expand(known - lost, -1), one.expand(2000, -1)])
    split = Split(x, torch.tensor([0] * known + [1] * 2000))
    allowed = 100 * lost / known
    weights, own = market.purchase_weights([1.0], 1), torch.tensor([[True, False]])
    for bound, choice in ((allowed, 1), (allowed - 0.01, 0)):
        found = market.quote(net, models, weights, split, own_classes=own, max_class_loss=bound)
        assert found.choice.item() == choice


def test_of_equally_good_mixtures_the_first_is_chosen_no_purchase_before_all():
    net = nn.Sequential(nn.Linear(1, 2))
    models = {"0.weight": torch.zeros(1, 2, 2, 1), "0.bias": torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])}
    split = Split(torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]))  # buyer and seller are mirror images, the middle best
    weights = market.purchase_weights([1.0, 0.5, 0.5], 1)
    assert market.quote(net, models, weights[[0, 1]], split).choice.item() == 0
    assert market.quote(net, models, weights, split).choice.item() == 2


@given(seeds)
def test_a_gain_in_points_is_the_exact_number_that_money_may_hang_on(seed):
    """So many examples more of so many: in float32 it would be a little less, and its value a cent too low."""
    models, weights, split = deal(seed)
    offer = market.quote(SMALL, models, weights, split)
    hits = market.evaluate_mixtures(SMALL, models, weights, split).hits.sum(dim=-1)
    more = hits[torch.arange(len(hits)), offer.choice] - hits[:, 0]
    exact = [100 * count / len(split) for count in more.tolist()]
    assert offer.gain_points.tolist() == pytest.approx(exact, abs=1e-12)


def test_the_best_share_of_unbiased_regressions_weighs_by_precision():
    """MSE ((1 - w) b + w s) is least at w = V_b / (V_b + V_s), where it is V_b V_s / (V_b + V_s)."""
    generator, errors, spreads = torch.Generator().manual_seed(0), [], []
    for examples in (20, 50):
        x = torch.randn(examples, 5, generator=generator, dtype=torch.float64)
        noise = torch.randn(20_000, examples, generator=generator, dtype=torch.float64)
        errors.append(noise @ torch.linalg.pinv(x).mT)
        spreads.append(torch.linalg.inv(x.mT @ x).trace().item())
    models = {"0.weight": torch.stack(errors, dim=1).unsqueeze(2)}  # a repeat is a lineup
    weights = market.purchase_weights([k / 200 for k in range(1, 201)], 1)
    mse = market.mix_layers(models, weights.expand(20_000, -1, -1, -1))["0.weight"].square().sum(dim=(2, 3)).mean(dim=0)
    buyer, seller = spreads
    assert 1 - weights[mse.argmin(), 0, 0].item() == pytest.approx(buyer / (buyer + seller), abs=0.02)
    assert mse.min().item() == pytest.approx(buyer * seller / (buyer + seller), rel=0.02)
    assert mse[0].item() / mse.min().item() == pytest.approx(1 + buyer / seller, rel=0.03)


# Audits


def test_an_audit_says_what_a_plain_evaluation_says(digits):
    net = NETS["MLP"]()
    before, after = (stack.init(net, 3, seed=seed) for seed in (0, 1))
    after = train.fit(net, after, digits.train, steps=30).stack
    some = digits.audit.y != 4
    split = Split(digits.audit.x[some], digits.audit.y[some])
    found = market.audit(net, before, after, split)
    was, becomes = (train.evaluate(net, models, split) for models in (before, after))
    assert np.allclose(found.gain_points.mean, 100 * (becomes.accuracy - was.accuracy), atol=1e-3)
    assert np.allclose(found.gain_nats.mean, was.loss - becomes.loss, atol=1e-5)
    assert np.allclose(found.gain_relative.mean, 1 - becomes.loss / was.loss, atol=1e-5)
    assert found.class_points[:, 4].isnan().all()
    others = [k for k in range(10) if k != 4]
    by_class = 100 * (becomes.class_accuracy - was.class_accuracy)[:, others]
    assert torch.allclose(found.class_points[:, others], by_class, atol=1e-3)
    shares = one_hot(split.y, 10).float().mean(dim=0)[others]
    assert np.allclose(found.class_points[:, others] @ shares, found.gain_points.mean, atol=1e-3)


def test_the_intervals_of_an_audit_are_over_its_examples(digits):
    net = NETS["MLP"]()
    before, after = (stack.init(net, 2, seed=seed) for seed in (0, 1))
    found = market.audit(net, before, after, digits.audit)
    for k in range(2):
        (was, wrong), (becomes, right) = (alone(net, stack.take(m, k), digits.audit) for m in (before, after))
        nats, points = interval(was - becomes, "examples"), interval(100 * (right.float() - wrong.float()), "examples")
        assert np.allclose([part[k] for part in found.gain_nats], nats, atol=1e-5)
        assert np.allclose([part[k] for part in found.gain_points], points, atol=1e-3)
        assert np.allclose([part[k] for part in found.gain_relative], np.array(nats) / was.mean().item(), atol=1e-5)


def test_sixteen_times_the_examples_narrow_an_interval_to_a_quarter(digits):
    net = NETS["MLP"]()
    before, after = (stack.init(net, 2, seed=seed) for seed in (0, 1))
    many = Split(digits.audit.x.repeat(16, 1, 1, 1), digits.audit.y.repeat(16))
    few, more = (market.audit(net, before, after, split) for split in (digits.audit, many))
    for name in ("gain_points", "gain_nats", "gain_relative"):
        wide, narrow = (getattr(of, name).high - getattr(of, name).low for of in (few, more))
        assert np.allclose(narrow / wide, 0.25, atol=0.03)
        assert np.allclose(getattr(few, name).mean, getattr(more, name).mean, atol=1e-4)


def test_an_audit_of_no_change_is_exactly_nothing(digits):
    net = NETS["MLP"]()
    models = stack.init(net, 2, seed=0)
    found = market.audit(net, models, models, digits.audit)
    assert all((np.array(part) == 0).all() for part in found[:3])
    assert not found.class_points.any()


# A second device


def away(tensors, device):
    return stack.map(lambda tensor: tensor.to(device), tensors)


@pytest.mark.parametrize("match", market.MATCHES)
@pytest.mark.parametrize("name", ["MLP", "residual MLP", "ReLU first"])
def test_models_stay_on_their_device_and_what_is_shown_comes_back(name, match, split):
    net = NETS[name]()
    spec, models = spec_of(net, split.x[:1]), stack.init(net, 3, seed=0)
    weights = market.purchase_weights([0.2, 0.5], len(stack.layers(models)), sellers=2)
    meet = {"buyers": [0, 2], "sellers": [[1, 2], [0, 1]], "match": match}
    own = torch.arange(20).view(2, 10) % 3 > 0

    def purchase(models, examples, masks):
        line = market.lineup(net, spec, models, **meet, x=examples.x)
        offer = market.quote(net, line, weights, examples, own_classes=masks, max_class_loss=1.0)
        return line, offer, market.audit(net, stack.take(line, (slice(None), 0)), offer.models, examples)

    line, offer, found = purchase(models, split, own)
    with second_device() as device:
        there = Split(split.x.to(device), split.y.to(device))
        for examples, masks in ((split, own), (there, own.to(device))):
            far_line, far_offer, far_found = purchase(away(models, device), examples, masks)
            assert stack.device(far_line) == stack.device(far_offer.models) == device
            assert equal(away(far_line, "cpu"), line)
            assert equal(away(far_offer.models, "cpu"), offer.models)
            for got, wanted in zip(far_offer[:-1], offer[:-1], strict=True):
                assert torch.equal(got, wanted)  # refuses what is away
            assert all(np.array_equal(*both) for both in zip(far_found[:3], found[:3], strict=True))
            assert torch.equal(far_found.changes, found.changes)
            assert torch.equal(far_found.class_points.nan_to_num(), found.class_points.nan_to_num())


@given(seeds)
def test_the_table_of_quotes_has_a_row_a_lineup(seed):
    models, weights, split = deal(seed, sellers=2, parts="layers")
    offer = market.quote(SMALL, models, weights, split)
    table = offer.table(stack.grid(buyer=["A", "B", "C"]))
    assert list(table) == ["buyer", "mixture", "share", "gain_nats", "gain_points", "gain_relative"]
    assert table.mixture.tolist() == offer.choice.tolist()
    assert table.gain_nats.tolist() == offer.gain_nats.tolist()
    assert table.gain_points.tolist() == offer.gain_points.tolist()
    assert table.gain_relative.tolist() == offer.gain_relative.tolist()
    of_sellers = offer.weights[:, :, 1:].sum(dim=2).mean(dim=1)
    assert table.share.to_numpy() == pytest.approx(of_sellers.numpy(), abs=1e-6)
    with pytest.raises(ShapeError, match=r"'mixture' has shape \(3,\), expected \(2,\)"):
        offer.table(stack.grid(buyer=["A", "B"]))


@given(seeds)
def test_the_tables_of_an_audit_have_a_row_a_purchase_or_a_row_a_purchase_and_class(seed):
    models, weights, split = deal(seed)
    offer = market.quote(SMALL, models, weights, split)
    found = market.audit(SMALL, stack.take(models, (slice(None), 0)), offer.models, drawn(seed + 1))
    rows = stack.grid(buyer=["A", "B", "C"])
    table = found.table(rows)
    for name in ("gain_points", "gain_nats", "gain_relative"):
        mean, low, high = getattr(found, name)
        assert table[name].tolist() == mean.tolist()
        assert table[f"{name}_low"].tolist() == low.tolist()
        assert table[f"{name}_high"].tolist() == high.tolist()
    by_class = found.class_table(rows, ["cat", "dog", "fox"])
    wide = by_class.pivot(index="buyer", columns="class", values="gain_points")
    np.testing.assert_array_equal(wide.to_numpy(), found.class_points.numpy())
    with pytest.raises(ShapeError, match=r"'gain_points' has shape \(3,\), expected \(2,\)"):
        found.table(stack.grid(buyer=["A", "B"]))
    with pytest.raises(ShapeError, match=r"'gain_points' has shape \(3, 3\), expected \(3, 2\)"):
        found.class_table(rows, ["cat", "dog"])


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ParameterError, match=r"shares = \[.*\], expected numbers between 0 and 1"):
        market.purchase_weights([0.5, share], 2)


@pytest.mark.parametrize("row", [[0.5, 0.6], [1.0, 1.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_mixtures_that_do_not_sum_to_one_are_refused(row, split):
    weights = torch.tensor(row).expand(3, 2, 2)
    for call in (market.quote, market.evaluate_mixtures):
        with pytest.raises(ParameterError, match="weights of a mixture must sum to 1"):
            call(SMALL, lines(SMALL, 2, 1), weights, split)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_quote_on_half_precision_is_that_on_the_same_numbers(dtype, split):
    net = NETS["MLP"]()
    models = stack.map(lambda tensor: tensor.to(dtype), lines(net, 2, 1))
    weights = market.purchase_weights([0.25, 0.5], len(stack.layers(models)))
    found = market.quote(net, models, weights, split)
    exact = market.quote(net, stack.map(torch.Tensor.float, models), weights, split)
    assert torch.equal(found.losses, exact.losses)
    assert all(torch.equal(found.models[name], exact.models[name].to(dtype)) for name in found.models)


def test_adapters_of_a_transformer_are_quoted_and_sold_whatever_their_ranks(tmp_path, split):
    net = stack.vit(1, 8, 10, units=8, heads=2, blocks=1)
    base, other, third = (stack.take(stack.init(net, 3, seed=0), k) for k in range(3))
    models = [base]
    for rank, model in ((1, other), (4, third)):
        delta = {name: tensor - base[name] for name, tensor in model.items()}
        stack.save_lora(tmp_path / f"rank{rank}", net, delta, rank)
        models.append(stack.add(base, stack.load_lora(tmp_path / f"rank{rank}", base)))
    lineup = stack.unflat(stack.join(models), (1, 3))
    weights = market.purchase_weights([0.5, 1.0], layers=len(stack.layers(base)), sellers=2)
    quote = market.quote(net, lineup, weights, split)
    sold = stack.take(quote.models, [0])
    assert train.evaluate(net, sold, split).loss.item() == pytest.approx(
        quote.losses[0, quote.choice[0]].item(), abs=1e-4
    )
    assert quote.gain_nats[0] >= 0
