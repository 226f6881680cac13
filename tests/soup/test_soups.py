import inspect

import numpy as np
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from orders import equal
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from paramarket import data, soup, stack
from paramarket.base import stream
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError, TrainingError
from paramarket.soup import Kind, Soup, WeightLaw, batches, draw_weights, scores_by_domain
from paramarket.train import evaluate

NET = stack.mlp(5, [4], 3)
DOMAINS = 4
HOW = {"batch": 16, "lr": 1e-2}


def blobs(domains=DOMAINS, features=5):
    """Domains that disagree: the same kind of x, each with a rule of its own for y."""
    drawn = stream(0, "blobs")
    xs = torch.randn(domains, 60, features, generator=drawn)
    rules = torch.randn(domains, features, 3, generator=drawn)
    return [Split(x, (x @ rule).argmax(dim=1)) for x, rule in zip(xs, rules, strict=True)]


def weights(*seeds, steps=40):
    return torch.stack([draw_weights(WeightLaw(), DOMAINS, steps, stream(seed, "h")) for seed in seeds])


def in_type(given, dtype):
    return Soup(*(stack.map(lambda tensor: tensor.to(dtype), part) for part in given))


def lived(experts=3, seeds=(0,), dtype=torch.float32, net=NET):
    """Soups whose experts are no longer 0."""
    start = soup.init_soups(net, DOMAINS, experts=[experts] * len(seeds), seeds=seeds, hidden=6)
    drawn = stream(1, "lived")
    moved = start._replace(experts=stack.map(lambda tensor: torch.randn(tensor.shape, generator=drawn), start.experts))
    return in_type(moved, dtype)


def trained(start, h, seeds, domains=None, **how):
    return soup.train_soups(NET, start, domains or blobs(), h, seeds=seeds, **HOW | how)


def one_of(given, k):
    return Soup(*(stack.take(part, [k]) for part in given))


def same(one, other, atol=None):
    pairs = [(part[name], wanted[name]) for part, wanted in zip(one, other, strict=True) for name in wanted]
    return all(torch.equal(*pair) if atol is None else torch.allclose(*pair, atol=atol) for pair in pairs)


def straight(router, matrix):
    """The router made h -> matrix h: its hidden units carry h, which is never negative, through the ReLU."""
    made = stack.map(torch.zeros_like, router)
    made["1.weight"][:, :DOMAINS] = torch.eye(DOMAINS, dtype=matrix.dtype)
    made["3.weight"][:, :, :DOMAINS] = matrix
    return made


def test_a_one_hot_router_gives_the_base_plus_one_expert():
    start = lived(seeds=(0, 1))
    found = soup.combine(start, torch.eye(3).expand(2, 3, 3))
    assert equal(found, {name: base.unsqueeze(1) + start.experts[name] for name, base in start.base.items()})


def test_a_router_that_asks_for_nothing_gives_the_base_bit_for_bit():
    start = lived(seeds=(0, 1))
    assert equal(stack.take(soup.combine(start, torch.zeros(2, 1, 3)), (slice(None), 0)), start.base)


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.floats(-2, 2), st.floats(-2, 2))
def test_what_the_experts_add_is_linear_in_alpha(numbers, a, b):
    start, pair = lived(dtype=torch.float64), torch.tensor(numbers, dtype=torch.float64).view(2, 3)
    found = soup.combine(start, torch.stack([*pair, a * pair[0] + b * pair[1]])[None])
    for name, base in start.base.items():
        one, other, both = (found[name] - base.unsqueeze(1))[0]
        assert torch.allclose(both, a * one + b * other, atol=1e-9)


def test_a_straight_router_makes_theta_affine_in_h_and_one_with_corners_does_not():
    bent = lived(dtype=torch.float64)
    # a unit that opens where the first domain's share passes 1/2
    bent.router["1.weight"][:, 0], bent.router["1.bias"][:, 0] = torch.tensor([1.0, 0, 0, 0]).double(), -0.5
    flat = bent._replace(router=straight(bent.router, torch.randn(3, DOMAINS, generator=stream(2)).double()))
    ends = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0]]).double()
    h = torch.cat([ends, ends.mean(dim=0, keepdim=True)])
    for given_, affine in ((flat, True), (bent, False)):
        one, other, middle = soup.specialists(given_, h)["1.weight"][0]
        assert torch.allclose(middle, (one + other) / 2, atol=1e-12) == affine


def test_experts_in_another_order_with_their_rows_of_the_router_change_nothing():
    start, order, h = lived(dtype=torch.float64), [2, 0, 1], weights(0, steps=5)[0]
    last = {name: start.router[name][:, order] for name in ("3.weight", "3.bias")}
    moved = start._replace(experts=stack.take(start.experts, (slice(None), order)), router=start.router | last)
    one, other = (soup.specialists(each, h) for each in (start, moved))
    assert all(torch.allclose(tensor, other[name], atol=1e-12) for name, tensor in one.items())
    assert not torch.allclose(soup.alphas(start, h), soup.alphas(moved, h))


def plain(start, h, seed, domains):
    """Training as the paper writes it, for one soup: no stack, no flat weights, PyTorch's own layers. Losses, theta."""
    base, experts, router = ({name: t[0].clone().requires_grad_() for name, t in part.items()} for part in start)
    opt = torch.optim.Adam([*base.values(), *experts.values(), *router.values()])
    losses = []
    for step, now in enumerate(batches(domains, h, HOW["batch"], [stream(seed, "mixtures")])):
        opt.param_groups[0]["lr"] = HOW["lr"] * (1 - step / h.shape[1])
        alpha = router["3.weight"] @ (router["1.weight"] @ now.h[0] + router["1.bias"]).relu() + router["3.bias"]
        theta = {name: tensor + sum(map(torch.mul, alpha, experts[name])) for name, tensor in base.items()}
        loss = cross_entropy(functional_call(NET, theta, (now.x[0],)), now.y[0])
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses, Soup(*({name: t.detach()[None] for name, t in part.items()} for part in (base, experts, router)))


@pytest.mark.parametrize("experts", [0, 3])
def test_training_is_the_plain_loop_step_by_step(experts):
    start, h = soup.init_soups(NET, DOMAINS, experts=[experts], seeds=[3], hidden=6), weights(0)
    wanted, ended = plain(start, h, 3, blobs())
    found, losses = trained(start, h, [3])
    assert losses[0].tolist() == pytest.approx(wanted, abs=1e-4)
    assert same(found, ended, atol=1e-3)
    assert found.base["1.weight"].shape == (1, 4, 5)
    assert found.experts["1.weight"].shape == (1, experts, 4, 5)


def test_a_smaller_soup_beside_a_bigger_one_trains_as_it_would_alone_and_its_padding_stays_zero():
    start, h = soup.init_soups(NET, DOMAINS, experts=[1, 3, 0], seeds=[5, 6, 7], hidden=6), weights(5, 6, 7)
    found, losses = trained(start, h, [5, 6, 7])
    for k, (few, seed) in enumerate([(1, 5), (3, 6), (0, 7)]):
        base, experts, router = one_of(start, k)
        last = {name: router[name][:, :few] for name in ("3.weight", "3.bias")}
        alone = Soup(base, stack.take(experts, (slice(None), slice(few))), router | last)
        alone, own = trained(alone, h[[k]], [seed])
        assert torch.allclose(losses[[k]], own, atol=1e-4)
        for name, tensor in found.experts.items():
            assert torch.allclose(tensor[[k], :few], alone.experts[name], atol=1e-3)
            assert (tensor[k, few:] == 0).all()
        assert all((found.router[name][k, few:] == 0).all() for name in last)
    assert all((tensor[1] != 0).any() for tensor in found.experts.values())


def test_the_gradients_are_those_of_finite_differences_and_of_the_formulas():
    start, h, double = lived(dtype=torch.float64), weights(0)[0, :1].double(), torch.float64
    x, y = torch.randn(7, 5, generator=stream(3), dtype=double), torch.arange(7) % 3
    shapes = [(part, name) for part in (0, 1, 2) for name in start[part]]
    leaves = [start[part][name].clone().requires_grad_() for part, name in shapes]

    def loss(*tensors):
        made = Soup({}, {}, {})
        for (part, name), tensor in zip(shapes, tensors, strict=True):
            made[part][name] = tensor
        models = stack.take(soup.combine(made, soup.alphas(made, h)), 0)
        return cross_entropy(stack.apply(NET, models, x, shared=True, training=True)[0], y)

    assert torch.autograd.gradcheck(loss, leaves)
    wanted = dict(zip(shapes, torch.autograd.grad(loss(*leaves), leaves), strict=True))

    # what `train_soups` does at every step, on rows of weights
    bank = soup.soups._bank(start).requires_grad_()
    router = stack.map(torch.Tensor.requires_grad_, stack.copy(start.router))
    theta = soup.soups._theta(bank, stack.mlp_of(router), router, h)
    theta.retain_grad()
    models = stack.from_vectors(theta, stack.take(start.base, 0))
    cross_entropy(stack.apply(NET, models, x, shared=True, training=True)[0], y).backward()
    rows = stack.from_vectors(bank.grad, stack.take(start.base, 0))
    assert all(torch.allclose(rows[name][:, 0], wanted[0, name]) for name in rows)
    assert all(torch.allclose(rows[name][:, 1:], wanted[1, name]) for name in rows)
    assert all(torch.allclose(tensor.grad, wanted[2, name]) for name, tensor in router.items())
    slope, alpha = theta.grad, soup.alphas(start, h)
    assert torch.allclose(bank.grad, torch.cat([torch.ones(1, 1, 1).double(), alpha], dim=2).mT * slope)
    assert torch.allclose(router["3.bias"].grad, (bank[:, 1:] @ slope.mT).squeeze(2))  # <E_i, G>: dalpha / dbias = 1


def test_the_same_seeds_give_the_same_soup_bit_for_bit_and_others_another():
    start, h = lived(seeds=(0, 1)), weights(0, 0)
    (one, losses), (other, again) = (trained(start, h, [4, 5]) for _ in range(2))
    assert same(one, other)
    assert torch.equal(losses, again)
    assert not torch.equal(losses, trained(start, h, [4, 6])[1])


def test_runs_of_one_seed_start_alike_and_see_the_same_examples():
    start = soup.init_soups(NET, DOMAINS, experts=[2, 2, 2], seeds=[8, 8, 9])
    assert same(one_of(start, 0), one_of(start, 1))
    assert not equal(one_of(start, 0).base, one_of(start, 2).base)
    assert not equal(one_of(start, 0).router, one_of(start, 2).router)
    assert all((tensor == 0).all() for tensor in start.experts.values())
    _, losses = trained(start, weights(0, 0, 0), [8, 8, 9])
    assert torch.allclose(losses[0], losses[1], atol=1e-5)
    assert not torch.allclose(losses[0], losses[2], atol=1e-2)


def test_the_router_does_not_start_with_the_numbers_of_the_base_where_both_have_the_same_shape():
    start = soup.init_soups(stack.mlp(20, [32], 10), 20, experts=[10], seeds=[0])
    for name, tensor in start.base.items():
        assert start.router[name].shape == tensor.shape
        assert not (start.router[name] == tensor).any()


def test_a_run_does_not_depend_on_those_beside_it():
    start, h = lived(seeds=(0, 1, 2)), weights(0, 1, 2)
    found, losses = trained(start, h, [0, 1, 2])
    alone, own = trained(one_of(start, 1), h[[1]], [1])
    assert same(one_of(found, 1), alone, atol=1e-3)
    assert torch.allclose(losses[[1]], own, atol=1e-4)
    other, beside = trained(start, torch.cat([weights(3), h[1:]]), [0, 1, 2])
    assert same(one_of(other, 1), one_of(found, 1))
    assert torch.equal(beside[1:], losses[1:])
    assert not torch.equal(beside[0], losses[0])


@pytest.mark.parametrize("experts", [0, 3])
def test_training_and_asking_leave_the_start_as_it_is_and_give_a_soup_of_its_own(experts):
    start, kept = lived(experts), lived(experts)
    found, _ = trained(start, weights(0), [0])
    models = soup.specialists(found, torch.eye(DOMAINS)) if experts else {}
    assert same(start, kept)
    kept = Soup(*({name: tensor.clone() for name, tensor in part.items()} for part in found))
    for tensor in [*models.values(), *start.base.values(), *start.experts.values(), *start.router.values()]:
        tensor.fill_(7)
    assert same(found, kept)
    assert not any(tensor.requires_grad for part in found for tensor in part.values())


def test_specialists_are_plain_models_that_run_without_their_soup():
    start, h, x = lived(seeds=(0, 1)), weights(0, steps=5)[0], torch.randn(9, 5, generator=stream(4))
    found = soup.specialists(start, h)
    assert list(found) == [name for name, _ in NET.named_parameters()]
    assert not any(tensor.requires_grad for tensor in found.values())
    alpha = soup.alphas(start, h)
    for k in range(2):
        assert stack.check(NET, stack.take(found, k)) == 5
        logits = stack.forward(NET, stack.take(found, k), x)
        for j in range(5):
            model = {n: b[k] + torch.tensordot(alpha[k, j], start.experts[n][k], 1) for n, b in start.base.items()}
            assert torch.allclose(logits[j], functional_call(NET, model, (x,)), atol=1e-4)


def test_a_soup_without_experts_is_one_model_for_every_customer():
    start = soup.init_soups(NET, DOMAINS, experts=[0, 0], seeds=[0, 1])
    assert soup.alphas(start, torch.eye(DOMAINS)).shape == (2, DOMAINS, 0)
    for j in range(DOMAINS):
        assert equal(stack.take(soup.specialists(start, torch.eye(DOMAINS)), (slice(None), j)), start.base)


def test_with_an_identity_router_and_an_expert_a_domain_one_hot_training_is_that_of_each_expert_alone():
    start, eye = lived(DOMAINS, dtype=torch.float64), torch.eye(DOMAINS).double()
    start = start._replace(router=straight(start.router, eye))
    xs, ys = (torch.stack([getattr(split, part) for split in blobs()]) for part in ("x", "y"))
    experts = {name: tensor.clone().requires_grad_() for name, tensor in start.experts.items()}
    alone = [
        {n: (b[0] + start.experts[n][0, i]).requires_grad_() for n, b in start.base.items()} for i in range(DOMAINS)
    ]
    for _ in range(20):
        models = stack.take(soup.combine(start._replace(experts=experts), soup.alphas(start, eye)), 0)
        logits = stack.apply(NET, models, xs.double(), shared=False, training=True)
        cross_entropy(logits.mT, ys, reduction="none").mean(dim=1).sum().backward()
        for x, y, model in zip(xs.double(), ys, alone, strict=True):
            cross_entropy(functional_call(NET, model, (x,)), y).backward()
        for tensor in [*experts.values(), *(each for model in alone for each in model.values())]:
            tensor.data -= 0.3 * tensor.grad
            tensor.grad = None
    found = soup.specialists(start._replace(experts={n: t.detach() for n, t in experts.items()}), eye)
    for i, model in enumerate(alone):
        assert all(torch.allclose(found[name][0, i], tensor, atol=1e-9) for name, tensor in model.items())
    assert any((found[name] - tensor[:, None]).abs().max() > 0.1 for name, tensor in start.base.items())


LINEAR = stack.mlp(5, [], 3)


@pytest.fixture(scope="module")
def straight_net():
    """A soup of linear models, trained, float64, and every domain's examples: x [4, 60, 5], y [4, 60]."""
    start = soup.init_soups(LINEAR, DOMAINS, experts=[3], seeds=[0])
    found, _ = soup.train_soups(LINEAR, start, blobs(), weights(0, steps=600), seeds=[0], lr=1e-2)
    xs, ys = (torch.stack([getattr(split, part) for split in blobs()]) for part in ("x", "y"))
    return in_type(found, torch.float64), xs.double(), ys


def said(given, alpha, x):
    return stack.apply(LINEAR, stack.take(soup.combine(given, alpha), 0), x, shared=False, training=True)


def test_no_router_beats_the_best_alpha_and_a_trained_one_comes_near_it(straight_net):
    """For linear models the loss is convex in alpha: descent finds the best one for sure."""
    given_, x, y = straight_net

    def loss(alpha):
        return cross_entropy(said(given_, alpha, x).mT, y, reduction="none").mean(dim=1)

    asked = soup.alphas(given_, torch.eye(DOMAINS))
    best = asked.clone().requires_grad_()
    opt = torch.optim.LBFGS([best], max_iter=200, line_search_fn="strong_wolfe")
    opt.step(lambda: (opt.zero_grad(), total := loss(best).sum(), total.backward())[1])
    least, own, none = loss(best).detach(), loss(asked), loss(torch.zeros_like(asked))
    assert (least <= own).all()
    assert (own.mean() - least.mean()) < 0.3 * (none.mean() - least.mean())


def test_for_linear_models_and_squared_loss_the_best_alpha_solves_the_normal_equations(straight_net):
    given_, x, y = straight_net
    aim = torch.nn.functional.one_hot(y).double()
    zero = torch.zeros(1, DOMAINS, 3).double()
    base = said(given_, zero, x)
    added = torch.stack([said(given_, zero + torch.eye(3)[i], x) - base for i in range(3)], dim=-1).flatten(1, 2)
    best = torch.linalg.lstsq(added, (aim - base).flatten(1).unsqueeze(2)).solution.squeeze(2)[None].requires_grad_()
    mse_loss(said(given_, best, x), aim).backward()
    assert best.grad.abs().max() < 1e-10
    for other in (soup.alphas(given_, torch.eye(DOMAINS)), zero, best.detach() + 0.01):
        assert mse_loss(said(given_, best, x), aim) < mse_loss(said(given_, other, x), aim)


def test_on_digits_turned_a_soup_beats_the_one_model_for_all_on_every_domain(digits):
    net, turns, seeds, steps = stack.mlp(64, [12], 10), [0, 90, 180, 270], [0, 1, 2], 700
    train, test = ([data.rotate_split(split, turn) for turn in turns] for split in (digits.train, digits.test))
    h = torch.cat([weights(*seeds, steps=steps), torch.full((3, steps, DOMAINS), 1 / DOMAINS)])
    start = soup.init_soups(net, DOMAINS, experts=[DOMAINS] * 3 + [0] * 3, seeds=seeds * 2)
    found, losses = soup.train_soups(net, start, train, h, seeds=seeds * 2, batch=64)
    asked = soup.specialists(found, torch.eye(DOMAINS))
    scores = [scores_by_domain(net, stack.take(asked, (slice(None), d)), [test[d]]) for d in range(DOMAINS)]
    loss, accuracy = (torch.cat([getattr(score, what) for score in scores], dim=1) for what in ("loss", "accuracy"))
    assert losses.shape == (6, steps)
    assert (losses[:, -50:].mean(dim=1) < 0.7 * losses[:, :50].mean(dim=1)).all()
    assert (loss[:3].mean(dim=0) < 0.8 * loss[3:].mean(dim=0)).all()
    assert (accuracy[:3].mean(dim=0) > accuracy[3:].mean(dim=0)).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_h_at_every_step_trains_for_that_mixture_alone(seed):
    h = torch.tensor([1.0, 0, 0, 0]).expand(1, 300, DOMAINS)
    found, _ = trained(soup.init_soups(NET, DOMAINS, experts=[0], seeds=[seed]), h, [seed])
    loss = scores_by_domain(NET, found.base, blobs()).loss[0]
    assert loss[0] < 0.6 < loss[1:].min()


def asked():
    return torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.5, 0], [1.0, 0, 0, 0]])


def test_models_alone_are_soups_without_experts_that_see_one_h_bit_for_bit():
    h, seeds = asked(), [4, 7]
    found = soup.train_alone(NET, blobs(), h, steps=30, seeds=seeds, **HOW)
    each = [4, 4, 4, 7, 7, 7]
    start = soup.init_soups(NET, DOMAINS, experts=[0] * 6, seeds=each)
    constant = torch.cat([h, h]).unsqueeze(1).repeat(1, 30, 1)
    wanted, _ = trained(start, constant, each)
    assert found["1.weight"].shape == (2, 3, 4, 5)
    assert equal(stack.flat(found), wanted.base)


def test_models_of_one_seed_begin_alike_and_see_the_same_examples_of_the_same_h():
    found = soup.train_alone(NET, blobs(), asked(), steps=20, seeds=[4, 7], **HOW)
    assert all(torch.allclose(tensor[:, 0], tensor[:, 2], atol=1e-5) for tensor in found.values())
    assert not any(torch.allclose(tensor[:, 0], tensor[:, 1], atol=1e-3) for tensor in found.values())
    still = soup.train_alone(NET, blobs(), asked(), steps=1, seeds=[4, 7], batch=16, lr=1e-30)
    for j in range(3):
        models = stack.take(still, (slice(None), j))
        assert equal(models, soup.init_soups(NET, DOMAINS, experts=[0, 0], seeds=[4, 7]).base)


def test_models_alone_go_on_from_a_start_for_each_seed_and_h_and_leave_it_as_it_is():
    start, kept = (stack.unflat(stack.init(NET, 6, seed=9), (2, 3)) for _ in range(2))
    still = soup.train_alone(NET, blobs(), asked(), steps=1, seeds=[4, 7], start=start, batch=16, lr=1e-30)
    assert equal(still, kept)
    found = soup.train_alone(NET, blobs(), asked(), steps=20, seeds=[4, 7], start=start, **HOW)
    assert equal(start, kept)
    second = stack.take(kept, (slice(None), 1))
    wanted = soup.init_soups(NET, DOMAINS, experts=[0] * 2, seeds=[4, 7])._replace(base=second)
    wanted, _ = trained(wanted, asked()[1].expand(2, 20, -1), [4, 7])
    assert all(torch.allclose(found[name][:, 1], tensor, atol=1e-5) for name, tensor in wanted.base.items())
    for tensor in found.values():
        tensor.fill_(7)
    assert equal(start, kept)


def test_each_model_alone_knows_its_own_domain_best():
    found = soup.train_alone(NET, blobs(), torch.eye(DOMAINS), steps=300, seeds=[0], **HOW)
    loss = scores_by_domain(NET, stack.take(found, 0), blobs()).loss
    assert torch.equal(loss.argmin(dim=1), torch.arange(DOMAINS))
    assert torch.equal(loss.argmin(dim=0), torch.arange(DOMAINS))


def test_models_alone_of_no_mixture_and_a_start_for_other_seeds_are_refused():
    with pytest.raises(ParameterError, match="h has 3 weights, expected one for each of 4 domains"):
        soup.train_alone(NET, blobs(), torch.eye(3), steps=5, seeds=[0])
    with pytest.raises(ParameterError, match="expected weights ≥ 0 that sum to 1"):
        soup.train_alone(NET, blobs(), 2 * torch.eye(4), steps=5, seeds=[0])
    start = stack.unflat(stack.init(NET, 6, seed=0), (2, 3))
    with pytest.raises(ShapeError, match="6 soups, 8 seeds"):
        soup.train_alone(NET, blobs(), torch.eye(4), steps=5, seeds=[0, 1], start=start)
    with pytest.raises(ShapeError, match="h is for 3 runs, expected one for each of 2"):
        soup.train_alone(NET, blobs(), torch.eye(4).expand(3, -1, -1), steps=5, seeds=[0, 1])


def test_every_seed_may_have_customers_of_its_own():
    h = torch.stack([asked(), asked().flip(1)])
    found = soup.train_alone(NET, blobs(), h, steps=20, seeds=[4, 7], **HOW)
    for k, seed in enumerate([4, 7]):
        wanted = soup.train_alone(NET, blobs(), h[k], steps=20, seeds=[seed], **HOW)
        for name, tensor in wanted.items():
            assert torch.allclose(found[name][k], tensor[0], atol=1e-5)


def test_every_soup_may_be_asked_for_weights_of_its_own():
    start = lived(seeds=(0, 1))
    h = torch.stack([asked(), asked().flip(1)])
    found = soup.specialists(start, h)
    for k in range(2):
        wanted = soup.specialists(start, h[k])
        for name, tensor in wanted.items():
            assert torch.allclose(found[name][k], tensor[k], atol=1e-6)
    with pytest.raises(ShapeError, match="h is for 3 runs, expected one for each of 2"):
        soup.specialists(start, torch.eye(4).expand(3, -1, -1))


BAD = {
    "negative": ([1.5, -0.5, 0, 0], "expected weights ≥ 0 that sum to 1"),
    "too much": ([0.5, 0.5, 0.5, 0], "expected weights ≥ 0 that sum to 1"),
    "too little": ([0.25, 0.25, 0.25, 0], "expected weights ≥ 0 that sum to 1"),
    "nan": ([float("nan"), 1, 0, 0], "expected weights ≥ 0 that sum to 1"),
    "too short": ([0.5, 0.25, 0.25], "h has 3 weights, expected one for each of 4 domains"),
    "too long": ([0.5, 0.5, 0, 0, 0], "h has 5 weights, expected one for each of 4 domains"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_h_that_is_no_weights_is_refused(name):
    row, message = BAD[name]
    with pytest.raises(ParameterError, match=message):
        soup.alphas(lived(), torch.tensor([row]))
    h = torch.full((1, 3, len(row)), 1 / len(row))
    h[0, 1] = torch.tensor(row)
    with pytest.raises(ParameterError, match=message):
        trained(lived(), h, [0])


def test_soups_seeds_and_h_that_do_not_match_are_refused():
    start, h = lived(seeds=(0, 1)), weights(0, 1)
    for own, seeds in ((h, [0]), (h, [0, 1, 2]), (h[:1], [0, 1]), (h[:, :0], [0, 1])):
        with pytest.raises(ShapeError, match=rf"2 soups, {len(seeds)} seeds, h of shape .* expected h for each"):
            trained(start, own, seeds)


def test_parts_that_do_not_fit_are_refused():
    start, h, few = lived(), weights(0), torch.full((1, 3, 3), 1 / 3)
    with pytest.raises(ShapeError, match=r"'1\.weight' has shape \(4, 5\), expected \(6, 5\)"):
        soup.train_soups(stack.mlp(5, [6], 3), start, blobs(), h, seeds=[0])
    with pytest.raises(ShapeError, match="x brings 6 values per example to layer '1', expected 5"):
        trained(start, h, [0], blobs(features=6))
    with pytest.raises(ShapeError, match="x brings 3 values per example to layer '1', expected 4"):
        trained(start, few, [0], blobs()[:3])
    with pytest.raises(ShapeError, match="mix needs weights"):
        soup.combine(start, torch.zeros(1, 2, 5))
    with pytest.raises(ParameterError, match="batch = 0"):
        trained(start, h, [0], batch=0)


@pytest.mark.parametrize(
    ("domains", "experts", "seeds", "hidden"),
    [(4, [2, 2], [0], 8), (4, [-1], [0], 8), (4, [], [], 8), (4, [2], [0], 0), (0, [2], [0], 8)],
)
def test_a_soup_that_cannot_be_is_refused(domains, experts, seeds, hidden):
    with pytest.raises(ParameterError, match="expected a number ≥ 0 for each seed, 1 or more units and domains"):
        soup.init_soups(NET, domains, experts=experts, seeds=seeds, hidden=hidden)


INIT, TRAIN = (inspect.unwrap(each) for each in (soup.init_soups, soup.train_soups))  # without the tests' type checker


def test_what_is_no_list_or_no_whole_number_is_refused_by_its_name():
    start, h = lived(), weights(0, steps=5)
    calls = [
        ("experts", lambda bad: INIT(NET, DOMAINS, experts=bad, seeds=[0])),
        ("seeds", lambda bad: INIT(NET, DOMAINS, experts=[2], seeds=bad)),
        ("seeds", lambda bad: TRAIN(NET, start, blobs(), h, seeds=bad)),
        ("seeds", lambda bad: inspect.unwrap(soup.train_kinds)(NET, blobs(), KINDS, steps=5, seeds=bad)),
        ("seeds", lambda bad: inspect.unwrap(soup.train_alone)(NET, blobs(), h[0], steps=5, seeds=bad)),
    ]
    for name, call in calls:
        for bad in (3, "3", {3}, None):
            with pytest.raises(ParameterError, match=f"^{name} = .*expected a list"):
                call(bad)
        for bad in ([1.5], ["3"], [True]):
            with pytest.raises(ParameterError, match=f"^{name} = .*expected a whole number"):
                call(bad)
    with pytest.raises(ParameterError, match=r"^kinds = .*expected \{name: Kind\}"):
        inspect.unwrap(soup.train_kinds)(NET, blobs(), list(KINDS.values()), steps=5, seeds=[0])


def test_lists_of_any_make_hold_the_same_experts_and_seeds():
    wanted = trained(soup.init_soups(NET, DOMAINS, experts=[2, 2], seeds=[3, 3]), weights(0, 0), [3, 3])
    for twos, threes in ((torch.tensor([2, 2]), torch.tensor([3, 3])), (np.array([2, 2]), np.array([3, 3]))):
        start = INIT(NET, DOMAINS, experts=twos, seeds=threes)
        found = TRAIN(NET, start, blobs(), weights(0, 0), seeds=threes, **HOW)
        assert same(found.soup, wanted.soup)
        assert torch.equal(found.losses, wanted.losses)


NOT_FINITE = "the loss or the weights of model 0 are not finite at step "


@pytest.mark.parametrize("experts", [0, 3])
def test_training_that_leaves_the_finite_numbers_says_where(experts):
    start = soup.init_soups(NET, DOMAINS, experts=[experts] * 2, seeds=[0, 1])
    with pytest.raises(TrainingError, match=NOT_FINITE + r"\d of 40: try a smaller lr"):
        trained(start, weights(0, 1), [0, 1], lr=1e30)


@pytest.mark.parametrize("experts", [0, 3])
def test_a_last_step_that_leaves_the_finite_numbers_is_noticed_too(experts):
    """The loss is of the weights before the step, and they were finite."""
    start = soup.init_soups(NET, DOMAINS, experts=[experts] * 2, seeds=[0, 1])
    with pytest.raises(TrainingError, match=NOT_FINITE + "1 of 1: try a smaller lr"):
        trained(start, weights(0, 1, steps=1), [0, 1], lr=3e38)


def test_a_soup_begins_alike_whatever_stands_beside_it():
    one = soup.init_soups(NET, DOMAINS, experts=[2], seeds=[5])
    three = soup.init_soups(NET, DOMAINS, experts=[4, 2, 0], seeds=[1, 5, 5])
    assert equal(stack.take(three.base, [1]), one.base)
    for name, tensor in one.router.items():
        cut = three.router[name][1:2, :2] if name.startswith("3") else three.router[name][1:2]
        assert torch.equal(cut, tensor)
    assert not three.router["3.weight"][1, 2:].any()
    assert not three.router["3.bias"][2].any()


KINDS = {"generic": Kind(0), "soup": Kind(3, WeightLaw((1, 2)))}
LOW = Kind(3, WeightLaw((1, 2)), rank=1)


def test_kinds_are_trained_as_each_would_be_alone_in_the_order_of_seeds():
    both = soup.train_kinds(NET, blobs(), KINDS, steps=40, seeds=[0, 1], **HOW)
    assert list(both) == list(KINDS)
    assert len(both["generic"].experts["1.weight"][0]) == 0
    for name, kind in KINDS.items():
        one = soup.train_kinds(NET, blobs(), {name: kind}, steps=40, seeds=[1], **HOW)
        assert same(one_of(both[name], 1), one[name], atol=1e-4)
        assert len(both[name].base["1.weight"]) == 2


def test_experts_of_low_rank_have_that_rank_and_come_as_plain_soups():
    kinds = {"one": LOW, "two": LOW._replace(rank=2)}
    found = soup.train_kinds(NET, blobs(), kinds, steps=40, seeds=[0, 1], **HOW)
    assert list(found) == list(kinds)
    for rank, each in enumerate(found.values(), start=1):
        assert {name: tensor.shape for name, tensor in each.experts.items()} == {
            "1.weight": (2, 3, 4, 5),
            "1.bias": (2, 3, 4),
            "3.weight": (2, 3, 3, 4),
            "3.bias": (2, 3, 3),
        }
        assert list(each.base) == list(each.experts) == [name for name, _ in NET.named_parameters()]
        for name in ("1.weight", "3.weight"):
            assert (torch.linalg.matrix_rank(each.experts[name], rtol=1e-4) == rank).all()
        assert not any(tensor.requires_grad for part in each for tensor in part.values())
        models = soup.specialists(each, torch.eye(DOMAINS))
        assert stack.leading(models, 2) == (2, DOMAINS)


def test_experts_of_low_rank_begin_at_0_so_that_the_first_model_is_the_base():
    start = soup.init_soups(NET, DOMAINS, experts=[3, 3], seeds=[0, 1])
    factors = soup.soups._factors(start, 2, [0, 1])
    theta = soup.soups._low_rank_theta(factors, stack.mlp_of(start.router), start.router, weights(0, 1)[:, 0])
    assert {name: tensor.tolist() for name, tensor in theta.items()} == {
        name: tensor.tolist() for name, tensor in start.base.items()
    }
    assert all(not tensor.any() for tensor in factors.left.values())
    assert all(tensor.any() for tensor in factors.right.values())


def test_the_factors_of_a_seed_do_not_depend_on_what_stands_beside_it_and_no_two_are_alike():
    one = soup.soups._factors(soup.init_soups(NET, DOMAINS, experts=[2], seeds=[5]), 2, [5])
    both = soup.soups._factors(soup.init_soups(NET, DOMAINS, experts=[4, 2], seeds=[1, 5]), 2, [1, 5])
    for name, tensor in one.right.items():
        assert torch.equal(both.right[name][1, :2], tensor[0])
        drawn = both.right[name].flatten(0, 1).flatten(1)
        assert len(drawn.unique(dim=0)) == 8
    square = soup.soups._factors(soup.init_soups(stack.mlp(4, [4], 3), DOMAINS, experts=[2], seeds=[5]), 2, [5])
    assert not torch.equal(square.right["1.weight"], square.right["3.weight"])


def test_factors_of_full_rank_whose_second_is_orthogonal_say_what_dense_experts_say():
    start, h = lived(seeds=(0, 1), dtype=torch.float64), weights(0, 1)[:, 0].double()
    factors = soup.soups._factors(start, 5, [0, 1])
    for name, tensor in factors.right.items():
        inputs = tensor.shape[3]
        turned = torch.linalg.qr(torch.randn(2, 3, inputs, inputs, generator=stream(5)).double())[0]  # A_i
        factors.right[name] = turned
        factors.left[name] = (start.experts[name] @ turned.mT).transpose(1, 2)  # B_i = E_i A_i^T
    theta = soup.soups._low_rank_theta(factors, stack.mlp_of(start.router), start.router, h)
    bank = soup.soups._bank(start)
    dense = soup.soups._theta(bank, stack.mlp_of(start.router), start.router, h)
    for name, tensor in stack.from_vectors(dense, stack.take(start.base, 0)).items():
        assert torch.allclose(theta[name], tensor, atol=1e-12)
    base, experts = soup.soups._multiply_out(factors)
    assert all(torch.allclose(tensor, start.experts[name], atol=1e-12) for name, tensor in experts.items())
    assert equal(base, start.base)


def moved_factors(start, rank, seeds):
    """Factors whose first is no longer 0."""
    factors = soup.soups._factors(start, rank, seeds)
    for name, tensor in factors.left.items():
        drawn = torch.randn(tensor.shape, generator=stream(6, name)).to(tensor)
        factors.left[name] = drawn.requires_grad_()
    return factors


def test_the_gradients_of_factors_are_those_through_the_dense_sum():
    start, h = lived(seeds=(0, 1), dtype=torch.float64), weights(0, 1)[:, 0].double()
    x, y = torch.randn(7, 5, generator=stream(3), dtype=torch.float64), torch.arange(7) % 3
    factors = moved_factors(start, 2, [0, 1])
    router = stack.map(Tensor.requires_grad_, stack.copy(start.router))
    learnt = [*(tensor for part in factors for tensor in part.values()), *router.values()]

    def slopes(models):
        logits = stack.apply(NET, models, x, shared=True, training=True)
        losses = cross_entropy(logits.mT, y.expand(2, -1), reduction="none").mean(dim=1)
        return torch.autograd.grad(losses.sum(), learnt)

    found = slopes(soup.soups._low_rank_theta(factors, stack.mlp_of(router), router, h))
    products = stack.map(lambda left, right: torch.einsum("konr,knri->knoi", left, right), *factors[1:3])
    both = products | factors.others
    dense = Soup(factors.base, {name: both[name] for name in factors.base}, router)
    alpha = stack.apply(stack.mlp_of(router), router, h.unsqueeze(1), shared=False, training=True)
    wanted = slopes(stack.take(soup.combine(dense, alpha), (slice(None), 0)))
    assert all(torch.allclose(*pair, atol=1e-12) for pair in zip(found, wanted, strict=True))
    assert all(slope.any() for slope in found)


def test_dense_kinds_are_the_same_bit_for_bit_beside_kinds_of_low_rank():
    alone = soup.train_kinds(NET, blobs(), KINDS, steps=20, seeds=[0, 1], **HOW)
    between = {"generic": KINDS["generic"], "low": LOW, "soup": KINDS["soup"]}
    beside = soup.train_kinds(NET, blobs(), between, steps=20, seeds=[0, 1], **HOW)
    assert list(beside) == list(between)
    assert all(same(beside[name], alone[name]) for name in KINDS)


def test_kinds_of_low_rank_are_trained_as_each_would_be_alone():
    kinds = {"few": LOW, "many": LOW._replace(experts=5), "none": Kind(0, rank=1)}
    both = soup.train_kinds(NET, blobs(), kinds, steps=40, seeds=[0, 1], **HOW)
    for name, kind in kinds.items():
        one = soup.train_kinds(NET, blobs(), {name: kind}, steps=40, seeds=[1], **HOW)
        assert same(one_of(both[name], 1), one[name], atol=1e-4)
        assert stack.leading(both[name].experts, 2) == (2, kind.experts)
    generic = soup.train_kinds(NET, blobs(), {"none": Kind(0)}, steps=40, seeds=[0, 1], **HOW)
    assert same(both["none"], generic["none"], atol=1e-4)  # without experts there is nothing of low rank


def test_experts_of_low_rank_tell_domains_apart_where_one_model_cannot():
    kinds = {"generic": Kind(0), "low": LOW._replace(law=WeightLaw((1, 1)))}
    found = soup.train_kinds(NET, blobs(), kinds, steps=400, seeds=[0, 1], **HOW)
    loss = soup.score_single_domains(NET, found, blobs()).loss
    assert (loss[:, 1] < 0.9 * loss[:, 0]).all()


def test_convolutions_have_factors_too():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images = [Split(torch.randn(20, 1, 4, 4, generator=stream(d, "images")), torch.arange(20) % 3) for d in range(2)]
    found = soup.train_kinds(net, images, {"low": LOW}, steps=5, seeds=[0], **HOW)["low"]
    assert found.experts["0.weight"].shape == (1, 3, 4, 1, 3, 3)
    assert (torch.linalg.matrix_rank(found.experts["0.weight"].flatten(3), rtol=1e-4) == 1).all()


@pytest.mark.parametrize("rank", [0, -1, 1.5, "2", True])
def test_a_rank_that_is_none_is_refused_before_work_starts(rank, monkeypatch):
    kinds = {"dense": Kind(2), "low": inspect.unwrap(Kind)(2, rank=rank)}
    monkeypatch.setattr(soup.soups, "train_soups", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ParameterError, match=r"^rank = .*, expected a whole number ≥ 1"):
        inspect.unwrap(soup.train_kinds)(NET, blobs(), kinds, steps=5, seeds=[0])
    with pytest.raises(ParameterError, match=r"^rank = .*, expected a whole number ≥ 1"):
        inspect.unwrap(soup.stored_numbers)(NET, kinds["low"], DOMAINS)


def test_experts_that_have_lived_cannot_go_on_at_low_rank():
    with pytest.raises(ParameterError, match="rank = 1: experts of low rank start at 0, these do not"):
        trained(lived(), weights(0), [0], rank=1)


def test_a_model_alone_keeps_itself():
    assert soup.stored_numbers(NET, Kind(0), DOMAINS) == soup.stored_numbers(NET, Kind(0, rank=2), DOMAINS) == 39


@pytest.mark.parametrize("experts", [1, 3])
def test_what_a_soup_keeps_is_counted_as_it_is_built(experts):
    start = soup.init_soups(NET, DOMAINS, experts=[experts], seeds=[0])
    built = sum(tensor.numel() for part in start for tensor in part.values())
    assert soup.stored_numbers(NET, Kind(experts), DOMAINS) == built
    factors = soup.soups._factors(start, 1, [0])
    learnt = sum(tensor.numel() for part in (*factors, start.router) for tensor in part.values())
    assert soup.stored_numbers(NET, Kind(experts, rank=1), DOMAINS) == learnt


def test_the_higher_the_rank_the_more_is_kept_up_to_dense_experts():
    kept = [soup.stored_numbers(NET, Kind(3, rank=rank), DOMAINS) for rank in range(1, 9)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] == soup.stored_numbers(NET, Kind(3), DOMAINS)


def test_the_score_of_single_domains_is_the_mean_of_every_specialist_at_home():
    soups, domains = soup.train_kinds(NET, blobs(), KINDS, steps=40, seeds=[0, 1], **HOW), blobs()
    loss, right = soup.score_single_domains(NET, soups, domains)
    assert loss.shape == right.shape == (2, 2)
    for j, each in enumerate(soups.values()):
        models = soup.specialists(each, torch.eye(DOMAINS))
        home = [evaluate(NET, stack.take(models, (slice(None), d)), split) for d, split in enumerate(domains)]
        assert torch.allclose(loss[:, j], torch.stack([score.loss for score in home]).mean(dim=0), atol=1e-5)
        assert torch.allclose(right[:, j], torch.stack([score.accuracy for score in home]).mean(dim=0), atol=1e-5)


def soups_trained(device):
    """One of everything that trains or builds models, on a device."""
    h = weights(0, 1, steps=3)
    start = soup.init_soups(NET, DOMAINS, experts=[3, 2], seeds=[0, 1], device=device)
    fit = soup.train_soups(NET, start, blobs(), h, seeds=[0, 1], **HOW)
    kinds = soup.train_kinds(NET, blobs(), KINDS, steps=3, seeds=[0], device=device, **HOW)
    low = soup.train_kinds(NET, blobs(), {"low": LOW}, steps=3, seeds=[0], device=device, **HOW)["low"]
    begin = soup.specialists(kinds["generic"], h[0])
    alone = soup.train_alone(NET, blobs(), h[0], steps=3, seeds=[0], start=begin, device=device, **HOW)
    scores = soup.score_single_domains(NET, kinds, blobs())
    models = [alone, soup.specialists(fit.soup, h[0]), soup.specialists(kinds["generic"], h[0]), *kinds["soup"], *low]
    return models, [soup.alphas(fit.soup, h[0])], [fit.losses, *scores]


def test_soups_on_another_device_stay_there_and_what_is_shown_comes_back_with_the_same_numbers():
    models, asked, shown = soups_trained("cpu")
    with second_device() as device:
        models_away, asked_away, shown_away = soups_trained(device)
        for stack_here, stack_away in zip(models, models_away, strict=True):
            assert stack.device(stack_away) == device
            assert equal(stack_here, stack.map(Tensor.cpu, stack_away))
        assert asked_away[0].device == device
        assert torch.equal(asked_away[0].cpu(), asked[0])
    assert all(torch.equal(*pair) for pair in zip(shown, shown_away, strict=True))


def test_the_table_of_training_has_a_row_a_soup_and_step():
    found = trained(lived(seeds=(0, 1)), weights(0, 1, steps=3), [0, 1])
    table = found.table(stack.grid(seed=[0, 1]))
    assert table.seed.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.step.tolist() == [1, 2, 3] * 2
    assert table.loss.tolist() == found.losses.flatten().tolist()
    with pytest.raises(ShapeError, match=r"'loss' has shape \(2, 3\), expected \(1, 3\)"):
        found.table(stack.grid(seed=[0]))


def test_the_table_of_single_domains_has_a_row_a_seed_and_soup():
    kinds = {"generic": lived(experts=0, seeds=(0, 1)), "soup": lived(seeds=(0, 1))}
    score = soup.score_single_domains(NET, kinds, blobs())
    table = score.table(stack.grid(seed=[0, 1]), {"soup": kinds})
    assert table.soup.tolist() == ["generic", "soup"] * 2
    assert table.loss.tolist() == score.loss.flatten().tolist()
    assert table.accuracy.tolist() == score.accuracy.flatten().tolist()
