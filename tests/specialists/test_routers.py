import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm

from paramarket import merge, specialists, stack, train
from paramarket.base import stream
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError

NETS = {"mlp": stack.mlp(6, [5, 5, 5], 3), "residual": stack.residual_mlp(6, 5, 3, 3)}
KINDS = {
    "router": lambda net: specialists.Router(net, 2),
    "single": lambda net: specialists.Router(net, 2, single=True),
    "reach": lambda net: specialists.Router(net, 2, reach=2),
    "top": lambda net: specialists.Router(net, 2, top=1),
    "outputs": lambda net: specialists.OutputRouter(net, 2),
}
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
SPLIT = Split(X, torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1)))
each_net, each_kind = pytest.mark.parametrize("net", NETS.values(), ids=NETS), pytest.mark.parametrize("kind", KINDS)


def experts(net, copies=3, number=2):
    return [stack.init(net, copies, seed=100 + k) for k in range(number)]


def run(router, models):
    return stack.forward(router, models, X)


@each_net
@each_kind
def test_twins_make_a_router_the_model_itself(net, kind):
    """Whatever the gates say, shares sum to 1; only where layers of other places are used it is another model."""
    twin, router = experts(net)[0], KINDS[kind](net)
    models = specialists.fit_router(router, [twin, twin], SPLIT, steps=5, batch=20).stack
    same = torch.allclose(run(router, models).log_softmax(-1), stack.forward(net, twin, X).log_softmax(-1), atol=1e-4)
    assert same == (kind not in ("reach", "top"))


@each_net
def test_before_it_learns_a_router_averages_features_layer_by_layer(net):
    both, router = experts(net), specialists.Router(net, 2)
    said = run(router, specialists.init_router(router, both))
    h, linears = X.expand(3, -1, -1), [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    for name in linears:
        parts = [h @ one[f"{name}.weight"].mT + one[f"{name}.bias"].unsqueeze(1) for one in both]
        mean = sum(part if name == linears[-1] else part.relu() for part in parts) / 2
        h = h + mean if name.endswith(".linear") else mean
    assert torch.allclose(said, h, atol=1e-5)


@each_net
def test_before_it_learns_an_output_router_is_the_ensemble(net):
    both, router = experts(net), specialists.OutputRouter(net, 2)
    said = run(router, specialists.init_router(router, both)).exp()
    for k in range(3):
        pair = stack.join([stack.take(one, k) for one in both])
        assert torch.allclose(said[k], merge.ensemble(net, pair, X), atol=1e-5)


@each_net
@each_kind
def test_only_gates_learn_and_they_learn_something(net, kind):
    both, router = experts(net), KINDS[kind](net)
    start = specialists.init_router(router, both)
    after = specialists.fit_router(router, both, SPLIT, steps=25, batch=20, lr=5e-2).stack
    gates = {name for name, _ in router.named_parameters()}
    assert all(torch.equal(after[name], start[name]) for name in start if name not in gates)
    assert all(not torch.equal(after[name], start[name]) for name in gates)
    before = cross_entropy(run(router, start).mT, SPLIT.y.expand(3, -1), reduction="none").mean(dim=1)
    assert (train.evaluate(router, after, SPLIT).loss < before).all()


@each_net
@each_kind
def test_many_routers_at_once_are_each_one_alone(net, kind):
    both, router, how = experts(net), KINDS[kind](net), {"steps": 4, "batch": 20}
    orders = [stream(seed, "order") for seed in (5, 6, 7)]
    together = specialists.fit_router(router, both, SPLIT, generators=orders, **how).stack
    for k in range(3):
        own, order = [stack.take(one, [k]) for one in both], stream(5 + k, "order")
        alone = specialists.fit_router(router, own, SPLIT, generators=[order], **how).stack
        assert all(torch.allclose(together[name][k], tensor[0], atol=1e-5) for name, tensor in alone.items())


@given(st.integers(0, 1000))
def test_a_router_with_sharp_gates_is_the_expert_they_point_to(seed):
    """The first layer's input decides: gates that read one sign send an input to one expert, for all layers."""
    net = NETS["mlp"]
    both, router = experts(net, copies=1), specialists.Router(net, 2, single=True)
    models = specialists.init_router(router, both)
    direction = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    models["gate0"] = 1e4 * torch.stack([direction, -direction])[None]
    chosen = (layer_norm(X, (6,)) @ direction < 0).long()
    said = torch.stack([stack.forward(net, one, X)[0] for one in both])
    assert torch.allclose(run(router, models)[0], said[chosen, torch.arange(40)], atol=1e-3)


def test_only_the_largest_shares_count_and_they_are_not_scaled_up():
    net = NETS["mlp"]
    both = experts(net, copies=1)
    router = specialists.Router(net, 2, top=1, single=True)
    models = specialists.init_router(router, both)
    models["gate0"] = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0.0, 0, 0, 0, 0, 0]])[None]
    first = layer_norm(X, (6,))[:, 0].sigmoid()  # the share of the first expert
    share, chosen = torch.maximum(first, 1 - first), (first < 0.5).long()
    h = X
    for name in ("1", "3", "5", "7"):
        said = torch.stack([h @ one[f"{name}.weight"][0].T + one[f"{name}.bias"][0] for one in both])
        said = said if name == "7" else said.relu()
        h = share.unsqueeze(1) * said[chosen, torch.arange(40)]
    assert torch.allclose(run(router, models)[0], h, atol=1e-5)


def test_a_layer_reaches_for_those_above_then_below_of_its_own_shape():
    router = specialists.Router(NETS["residual"], 2, reach=3)
    assert router.offered == [[0], [1, 2, 3], [2, 3, 1], [3, 2, 1], [4]]
    assert {name: tuple(gate.shape) for name, gate in router.named_parameters()} == {
        "gate0": (2, 6), "gate1": (6, 5), "gate2": (6, 5), "gate3": (6, 5), "gate4": (2, 5)
    }  # fmt: skip
    assert specialists.Router(NETS["residual"], 2).offered == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("settings", [{"reach": 0}, {"top": 0}, {"top": 3}, {"reach": 2, "single": True}])
def test_settings_that_make_no_router_are_refused(settings):
    with pytest.raises(ParameterError, match="expected reach ≥ 1"):
        specialists.Router(NETS["mlp"], 2, **settings)


def test_experts_that_do_not_fit_are_refused():
    net = NETS["mlp"]
    router = specialists.Router(net, 2)
    with pytest.raises(ShapeError, match="over 2 experts got 3 stacks"):
        specialists.init_router(router, experts(net, number=3))
    with pytest.raises(ShapeError, match=r"got 2 stacks of \[2, 3\] models"):
        specialists.init_router(router, [experts(net)[0], experts(net, copies=2)[0]])
    with pytest.raises(ShapeError, match=r"1\.weight"):
        specialists.init_router(router, experts(stack.mlp(6, [4, 5, 5], 3)))
    with pytest.raises(ShapeError, match=r"expected an MLP as `stack\.mlp`"):
        specialists.Router(nn.Sequential(nn.Conv2d(1, 2, 3)), 2)
    with pytest.raises(ParameterError, match="experts = 0"):
        specialists.OutputRouter(net, 0)


def test_of_equal_experts_only_one_is_used():
    net = NETS["mlp"]
    both, router = experts(net, copies=1), specialists.Router(net, 2, top=1)
    models = specialists.init_router(router, both)
    h = X
    for name in ("1", "3", "5", "7"):  # the first of two equal shares, one half of it
        said = h @ both[0][f"{name}.weight"][0].T + both[0][f"{name}.bias"][0]
        h = 0.5 * (said if name == "7" else said.relu())
    assert torch.allclose(run(router, models)[0], h, atol=1e-5)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(6, 3), nn.ReLU()),
    ],
)
def test_experts_that_a_router_would_not_compute_are_refused(net):
    with pytest.raises(ShapeError, match=r"expected an MLP as `stack\.mlp`"):
        specialists.OutputRouter(net, 2)


@each_net
@each_kind
def test_on_a_second_device_a_router_says_what_it_says_on_the_cpu(net, kind):
    """One router at a time: the second device of the tests does not serve torch.func."""
    both, router = experts(net), KINDS[kind](net)
    models = specialists.init_router(router, both)
    expected = run(router, models)
    with second_device() as other:
        moved = [stack.map(lambda tensor: tensor.to(other), one) for one in both]
        away = specialists.init_router(router, moved)
        assert {tensor.device for tensor in away.values()} == {other}
        said = torch.func.functional_call(router, stack.take(away, 1), (X.to(other),))
        assert torch.allclose(said.cpu(), expected[1], atol=1e-5)


def test_the_tables_of_routers_have_a_row_a_router_and_epoch_or_a_row_a_router():
    net = NETS["mlp"]
    router = specialists.Router(net, 2)
    rows = stack.grid(checkpoint=[20, 80, 320])
    fitted = specialists.fit_router(router, experts(net), SPLIT, steps=4, batch=20)
    history = fitted.table(rows)
    assert history.checkpoint.tolist() == [20, 20, 80, 80, 320, 320]
    assert history.step.tolist() == [2, 4] * 3
    score = train.evaluate(router, fitted.stack, SPLIT)
    assert score.table(rows).loss.tolist() == score.loss.tolist()
