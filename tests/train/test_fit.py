import numpy as np
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from orders import equal
from torch import nn
from torch.nn.functional import cross_entropy

from paramarket import data, stack, train
from paramarket.base import stream
from paramarket.errors import DataError, ParameterError, ShapeError, TrainingError
from paramarket.train.fit import _batches

NET = stack.mlp(64, [16], 10)


@pytest.fixture(scope="module")
def some(digits):
    return [data.holding(digits.train, [k], 0.2, stream(0, k)) for k in range(3)]


def close(one, other, atol=1e-5):
    return all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def plain_steps(net, split, steps, opt):
    """What anyone would write with PyTorch alone: the reference for a stack's training."""
    for _ in range(steps):
        opt.zero_grad()
        cross_entropy(net.train()(split.x), split.y).backward()
        opt.step()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["one-cycle", "constant"])
def test_a_stack_of_three_equals_three_alone(some, optimizer, schedule):
    how = {"steps": 20, "batch": 32, "lr": 1e-2, "optimizer": optimizer, "schedule": schedule}
    start = stack.init(NET, 3, seed=0)
    together = train.fit(NET, start, some, generators=[stream(5, k) for k in range(3)], **how)
    for k in range(3):
        alone = train.fit(NET, stack.take(start, [k]), some[k], generators=[stream(5, k)], **how)
        assert close(stack.take(together.stack, [k]), alone.stack)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_equals_a_plain_pytorch_loop(digits, optimizer):
    few = data.Split(digits.train.x[:50], digits.train.y[:50])  # one batch is all there is: its order cannot matter
    start = stack.init(NET, 2, seed=0)
    how = {"batch": 50, "lr": 1e-2, "optimizer": optimizer, "schedule": "constant", "weight_decay": 0.1}
    fitted = train.fit(NET, start, few, steps=20, **how).stack
    for k in range(2):
        plain = stack.mlp(64, [16], 10)
        plain.load_state_dict(stack.take(start, k))
        opt = {
            "adamw": torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1),
            "sgd": torch.optim.SGD(plain.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1),
        }[optimizer]
        plain_steps(plain, few, 20, opt)
        assert close(stack.take(fitted, k), dict(plain.named_parameters()))


def test_the_general_path_trains_like_the_batched_one(some):
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = stack.mlp(64, [16], 10)

        def forward(self, x):
            return self.inner(x)

    start = stack.init(NET, 3, seed=0)
    renamed = {f"inner.{name}": tensor for name, tensor in start.items()}
    batched = train.fit(NET, start, some, steps=20).stack
    general = train.fit(Same(), renamed, some, steps=20).stack
    assert close({f"inner.{name}": tensor for name, tensor in batched.items()}, general)


def test_batch_norm_trains_with_batch_statistics_as_each_module_alone(digits):
    net = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    few = data.Split(digits.train.x[:40], digits.train.y[:40])
    start = stack.init(net, 2, seed=0)
    fitted = train.fit(net, start, few, steps=5, batch=40, lr=1e-2, schedule="constant").stack
    for k in range(2):
        net.load_state_dict(stack.take(start, k), strict=False)
        plain_steps(net, few, 5, torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.01))
        expected = {name: tensor for name, tensor in net.state_dict().items() if tensor.is_floating_point()}
        assert close(stack.take(fitted, k), expected, atol=1e-4)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(some):
    start = stack.init(NET, 3, seed=0)
    one, again, other = (train.fit(NET, start, some, epochs=2, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one.stack[name], again.stack[name]) for name in start)
    assert not any(torch.equal(one.stack[name], other.stack[name]) for name in start)
    assert one.history.equals(again.history)


def test_fit_leaves_its_input_and_the_global_generator_alone(some):
    start = stack.init(NET, 3, seed=0)
    before = {name: tensor.clone() for name, tensor in start.items()}
    state = torch.get_rng_state()
    train.fit(NET, start, some, steps=3)
    assert all(torch.equal(start[name], before[name]) for name in start)
    assert not any(tensor.requires_grad for tensor in start.values())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_optimiser_goes_on_from_a_state(digits, optimizer):
    few = data.Split(digits.train.x[:50], digits.train.y[:50])  # one batch is all there is: its order cannot matter
    how = {"batch": 50, "schedule": "constant", "optimizer": optimizer}
    start = stack.init(NET, 2, seed=0)
    straight = train.fit(NET, start, few, steps=10, **how)
    half = train.fit(NET, start, few, steps=5, **how)
    rest = train.fit(NET, half.stack, few, steps=5, state=half.state, **how)
    fresh = train.fit(NET, half.stack, few, steps=5, **how)
    assert close(straight.stack, rest.stack, atol=1e-6)
    assert not close(straight.stack, fresh.stack, atol=1e-6)
    assert all(len(tensor) == 2 for tensor in half.state.values())


def test_a_state_that_does_not_fit_is_refused(digits):
    few = data.Split(digits.train.x[:50], digits.train.y[:50])
    start = stack.init(NET, 3, seed=0)
    state = train.fit(NET, start, few, steps=1).state
    with pytest.raises(ShapeError, match=r"'step' is \(3,\), expected \(2,\)"):
        train.fit(NET, stack.take(start, slice(2)), few, steps=1, state=state)
    with pytest.raises(ShapeError, match=r"'momentum_buffer/1\.weight' is nothing, expected \(3, 16, 64\)"):
        train.fit(NET, start, few, steps=1, optimizer="sgd", state=state)


def test_dropout_is_drawn_from_the_seed_and_leaves_the_global_generator_alone(digits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
    start, before = stack.init(net, 2, seed=0), torch.get_rng_state()
    one, again, other = (train.fit(net, start, digits.train, steps=3, seed=seed).stack for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["1.weight"], other["1.weight"])
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_is_counted_in_steps_of_the_largest_split(some):
    fitted = train.fit(NET, stack.init(NET, 3, seed=0), some, epochs=2, batch=100, keep=(0, 3, 20))
    per_epoch = -(-max(map(len, some)) // 100)
    assert fitted.history.step.unique().tolist() == [per_epoch, 2 * per_epoch]
    assert fitted.history.columns.tolist() == ["epoch", "step", "model", "loss"]
    assert len(fitted.history) == 2 * 3
    assert list(fitted.kept) == [0, 3, 20]
    assert torch.equal(fitted.kept[0]["1.weight"], stack.init(NET, 3, seed=0)["1.weight"])
    assert torch.equal(fitted.kept[20]["1.weight"], fitted.stack["1.weight"])


@given(st.lists(st.integers(3, 40), min_size=1, max_size=4), st.data(), st.integers(1, 16))
def test_every_model_sees_its_own_examples_once_a_round_whoever_shares_them(sizes, drawn, batch):
    whose = drawn.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=5))
    starts = torch.tensor([0, *sizes]).cumsum(0)
    splits = [
        data.Split(torch.arange(a, a + n, dtype=torch.float32)[:, None], torch.zeros(n, dtype=torch.long))
        for a, n in zip(starts.tolist(), sizes, strict=False)
    ]
    orders = [stream(0, k) for k in range(len(whose))]
    batches = _batches([splits[j] for j in whose], 1, batch, orders, torch.device("cpu"))
    rounds = -(-max(sizes) // batch) * 3
    seen = torch.cat([next(batches)[0][..., 0].clone() for _ in range(rounds)], dim=1)
    for k, j in enumerate(whose):
        a, n = int(starts[j]), sizes[j]
        whole = seen[k][: len(seen[k]) // n * n].view(-1, n).sort(dim=1).values
        assert (whole == torch.arange(a, a + n)).all()


def test_a_loss_that_is_not_finite_names_model_and_step(digits):
    start = stack.init(NET, 3, seed=0)
    start["1.weight"][1] *= float("inf")
    with pytest.raises(TrainingError, match="of model 1 are not finite at step 0 of 34: try a smaller lr"):
        train.fit(NET, start, digits.train, epochs=2)
    with pytest.raises(TrainingError, match="the loss of model 1 is not finite: look at its weights"):
        train.evaluate(NET, start, digits.test)
    with pytest.raises(TrainingError, match="of model 0 are not finite at step 1 of 1"):
        train.fit(NET, stack.init(NET, 1, seed=0), digits.train, steps=1, lr=1e42)


def test_bad_settings_are_refused_before_work_starts(digits):
    start, split = stack.init(NET, 2, seed=0), digits.train
    with pytest.raises(ParameterError, match="either epochs or steps"):
        train.fit(NET, start, split)
    with pytest.raises(ParameterError, match="epochs = 0"):
        train.fit(NET, start, split, epochs=0)
    with pytest.raises(ParameterError, match="Did you mean 'adamw'"):
        train.fit(NET, start, split, epochs=1, optimizer="adam")
    with pytest.raises(ParameterError, match="unknown schedule 'cosine'"):
        train.fit(NET, start, split, epochs=1, schedule="cosine")
    with pytest.raises(ParameterError, match="1 generators for 2 models"):
        train.fit(NET, start, split, epochs=1, generators=[stream(0)])
    for wrong in ({"epochs": 1.5}, {"batch": 0}, {"batch": -1}, {"lr": -1.0}, {"lr": float("nan")}):
        (name,) = wrong
        with pytest.raises((ParameterError, TypeCheckError), match=name):
            train.fit(NET, start, split, **({"epochs": 1} | wrong))
    with pytest.raises(DataError, match="labels from 0 to 12 in the splits for a net with 10 classes"):
        train.fit(NET, start, data.Split(split.x[:2], torch.tensor([0, 12])), epochs=1)
    for wrong in (torch.ones(2, 10), torch.tensor([[2.0, -1.0] + [0.0] * 8]).repeat(2, 1)):
        with pytest.raises(DataError, match="that sum to 1"):  # the gradient of softmax, p - t, rests on it
            train.fit(NET, start, data.Split(split.x[:2], wrong), epochs=1)
    with pytest.raises(ShapeError, match=r"examples of different shapes: \(1, 8, 8\), \(64,\)"):
        train.fit(NET, start, [split, data.Split(split.x.flatten(1), split.y)], epochs=1)
    with pytest.raises(ShapeError, match=r"'3\.weight' has shape \(10, 16\), expected \(16, 16\)"):
        train.fit(stack.mlp(64, [16, 16], 10), start, split, epochs=1)
    with pytest.raises(ShapeError, match="3 splits for 2 models"):
        train.fit(NET, start, [split] * 3, epochs=1)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ([5], "keep: step 5 lies beyond the last, 2"),
        (range(0, 9, 4), "keep: step 8 lies beyond the last, 2"),
        ([-1], "a step to keep = -1, expected a whole number ≥ 0"),
        ([0.5], "a step to keep = 0.5, expected a whole number"),
        (2, "keep = 2, expected a list of steps from 0 to 2"),
        ("12", "keep = '12', expected a list of steps"),
    ],
)
def test_a_step_that_training_never_reaches_cannot_be_kept(digits, keep, says):
    with pytest.raises((ParameterError, TypeCheckError)) as caught:
        train.fit.__wrapped__(NET, stack.init(NET, 1, seed=0), digits.train, steps=2, keep=keep)
    assert says in str(caught.value)


@pytest.mark.parametrize("number", [np.int64(2), np.int8(2), torch.tensor(2)])
def test_whole_numbers_of_any_make_are_the_same_setting(digits, number):
    start = stack.init(NET, 1, seed=0)
    plain = train.fit(NET, start, digits.train, steps=2, batch=2, seed=2, keep=[2])
    other = train.fit.__wrapped__(NET, start, digits.train, steps=number, batch=number, seed=number, keep=[number])
    assert equal(plain.kept[2], other.kept[2])


def test_models_that_took_different_numbers_of_steps_go_on_together_as_each_would_alone(digits):
    """Adam corrects for the steps taken: with one model's count for all, the others would be silently wrong."""
    start = stack.init(NET, 3, seed=0)
    how = {"schedule": "constant", "lr": 1e-2}
    fits = [train.fit(NET, stack.take(start, [k]), digits.train, steps=age, **how) for k, age in enumerate([1, 50, 1])]
    models, state = (stack.chain(getattr(fit, what) for fit in fits) for what in ("stack", "state"))
    on = train.fit(NET, models, digits.train, steps=3, state=state, generators=[stream(7, k) for k in range(3)], **how)
    assert on.state["step"].tolist() == [4, 53, 4]
    for k, one in enumerate(fits):
        alone = train.fit(NET, one.stack, digits.train, steps=3, state=one.state, generators=[stream(7, k)], **how)
        assert close(stack.take(on.stack, [k]), alone.stack, atol=1e-6)
        assert close(stack.take(on.state, [k]), alone.state, atol=1e-6)


def test_a_fit_on_a_second_device_is_the_cpus(some):
    start = stack.init(NET, 3, seed=0)
    frozen = {"1.weight": torch.ones(3, 1, 1)}
    here = train.fit(NET, start, some, steps=5, keep=[2], pull=frozen)
    with second_device() as device:
        away = stack.map(lambda tensor: tensor.to(device), start)
        there = train.fit(NET, away, some, steps=5, keep=[2], pull=frozen)
        again = train.fit(NET, there.stack, some, steps=1, state=there.state)
        assert stack.device(there.stack) == stack.device(there.kept[2]) == stack.device(again.stack) == device
        assert equal(stack.map(lambda tensor: tensor.cpu(), there.stack), here.stack)
    assert there.history.equals(here.history)


def test_one_step_is_enough(digits):
    assert len(train.fit(NET, stack.init(NET, 1, seed=0), digits.train, steps=1).history) == 1


def test_the_table_of_a_fit_is_its_history_with_the_grids_words_for_a_model(some):
    fitted = train.fit(NET, stack.init(NET, 3, seed=0), some, epochs=2, batch=100)
    rows = stack.grid(plant=["A", "B", "C"])
    table = fitted.table(rows)
    assert list(table) == ["plant", "epoch", "step", "loss"]
    assert len(table) == len(fitted.history)
    for told in fitted.history.itertuples():
        row = table.query("plant == @rows.plant[@told.model] and epoch == @told.epoch")
        assert row.step.tolist() == [told.step]
        assert row.loss.tolist() == [told.loss]


def test_a_history_of_other_models_than_the_grids_or_with_a_column_twice_is_refused(digits):
    fitted = train.fit(NET, stack.init(NET, 2, seed=0), digits.train, steps=1)
    with pytest.raises(ShapeError, match=r"has shape \(2, 1\), expected \(3, 1\)"):
        fitted.table(stack.grid(seed=range(3)))
    for name in ("epoch", "step", "loss"):
        with pytest.raises(ParameterError, match=f"two columns would be called '{name}'"):
            fitted.table(stack.grid(**{name: [1, 2]}))


def test_a_residual_net_of_torchvision_trains_as_a_stack(digits):
    net = data.torchvision().models.resnet18(num_classes=10)
    few = data.Split(digits.train.x[:8].expand(-1, 3, -1, -1).repeat(1, 1, 4, 4), digits.train.y[:8])
    start = stack.init(net, 2, seed=0)
    fitted = train.fit(net, start, few, steps=2, batch=8, lr=1e-3, schedule="constant").stack
    for k in range(2):
        net.load_state_dict(stack.take(start, k), strict=False)
        plain_steps(net, few, 2, torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01))
        assert torch.allclose(fitted["bn1.running_mean"][k], net.bn1.running_mean, atol=1e-3)
        assert torch.allclose(fitted["fc.weight"][k], net.fc.weight, atol=3e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_models_of_another_precision_learn_as_those_of_float32(dtype, optimizer):
    net = stack.mlp(6, [8], 3)
    start = stack.map(lambda tensor: tensor.to(dtype), stack.init(net, 2, seed=0))
    split = data.Split(torch.randn(60, 6, generator=stream(0, "half")), torch.arange(60) % 3)
    learnt = train.fit(net, start, split, steps=20, optimizer=optimizer).stack
    expected = train.fit(net, stack.map(torch.Tensor.float, start), split, steps=20, optimizer=optimizer).stack
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert {tensor.dtype for tensor in learnt.values()} == {kept}
    assert all(torch.allclose(learnt[name].float(), expected[name], atol=1e-4) for name in learnt)


class Counting(nn.Module):
    """It counts its steps, in place or anew, and keeps the mean of what it has seen."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x):
        if self.training:
            if self.in_place:
                self.steps += 1
                self.mean += (x.detach().mean(dim=0) - self.mean) / self.steps
            else:
                self.steps = self.steps + 1
                self.mean = self.mean + (x.detach().mean(dim=0) - self.mean) / self.steps
        return x


COUNTERS = {
    "in place": lambda: Counting(True),
    "anew": lambda: Counting(False),
    "BatchNorm, a plain mean": lambda: nn.BatchNorm1d(64, momentum=None),
    "BatchNorm": lambda: nn.BatchNorm1d(64),
}


@pytest.mark.parametrize("kind", COUNTERS)
def test_what_a_layer_counts_goes_on_from_step_to_step_and_from_fit_to_fit(digits, kind):
    net = nn.Sequential(nn.Flatten(), COUNTERS[kind](), nn.Linear(64, 10))
    before = stack.map(torch.clone, dict(net.state_dict()))
    few = data.Split(digits.train.x[:96], digits.train.y[:96])
    start = stack.init(net, 2, seed=0)
    settings = {"steps": 3, "batch": 16, "lr": 1e-12, "schedule": "constant"}
    first = train.fit(net, start, few, seed=0, **settings)
    second = train.fit(net, first.stack, few, seed=1, state=first.state, **settings)

    for k in range(2):
        alone = nn.Sequential(nn.Flatten(), COUNTERS[kind](), nn.Linear(64, 10))
        alone.load_state_dict(stack.take(start, k), strict=False)
        alone.train()
        for seed in (0, 1):
            order = torch.randperm(96, generator=stream(seed, "order", k))
            for chosen in order.split(16)[:3]:
                alone(few.x[chosen])
        expected = alone.state_dict()
        mean = "1.mean" if "1.mean" in expected else "1.running_mean"
        assert torch.allclose(second.stack[mean][k], expected[mean], atol=1e-5)
        (counter,) = [name for name in expected if name in ("1.steps", "1.num_batches_tracked")]
        assert second.state[f"counter/{counter}"].tolist() == [6, 6]
        assert expected[counter] == 6
    assert equal(before, dict(net.state_dict()))


def test_models_that_have_counted_differently_do_not_learn_side_by_side(digits):
    net = nn.Sequential(nn.Flatten(), Counting(True), nn.Linear(64, 10))
    done = train.fit(net, stack.init(net, 2, seed=0), digits.train, steps=2)
    state = done.state | {"counter/1.steps": torch.tensor([2, 3])}
    with pytest.raises(ShapeError, match=r"models of unlike age: '1\.steps' has counted differently"):
        train.fit(net, done.stack, digits.train, steps=2, state=state)
