import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from paramarket import data, stack, train
from paramarket.errors import DataError, ShapeError

NET = stack.mlp(64, [16], 10)


def test_evaluate_weighs_every_example_the_same(digits):
    many = stack.init(NET, 2, seed=0)
    whole, parts = (train.evaluate(NET, many, digits.test, batch=batch) for batch in (10_000, 7))
    logits = stack.forward(NET, many, digits.test.x)
    for k in range(2):
        hit = logits[k].argmax(-1) == digits.test.y
        assert whole.loss[k].item() == pytest.approx(cross_entropy(logits[k], digits.test.y).item(), abs=1e-5)
        assert whole.accuracy[k].item() == pytest.approx(hit.float().mean().item(), abs=1e-6)
        assert whole.class_accuracy[k, 3].item() == pytest.approx(
            hit[digits.test.y == 3].float().mean().item(), abs=1e-6
        )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts, strict=True))


def test_evaluate_says_nan_of_a_class_it_has_no_example_of_and_refuses_unknown_labels(digits):
    many, only = stack.init(NET, 1, seed=0), digits.test.y == 3
    score = train.evaluate(NET, many, data.Split(digits.test.x[only], digits.test.y[only]))
    assert score.class_accuracy[0].isnan().tolist() == [k != 3 for k in range(10)]
    with pytest.raises(DataError, match="label 12 in a split for a net with 10 classes"):
        train.evaluate(NET, many, data.Split(digits.test.x[:1], torch.tensor([12])))


def test_a_score_is_the_same_from_a_second_device_and_comes_back_to_the_cpu(digits):
    many = stack.init(NET, 3, seed=0)
    with second_device() as device:
        there = train.evaluate(NET, stack.map(lambda tensor: tensor.to(device), many), digits.test)
    here = train.evaluate(NET, many, digits.test)
    assert all(torch.equal(one, other) for one, other in zip(there, here, strict=True))


@given(st.integers(1, 4), st.integers(1, 3))
def test_the_table_of_a_score_has_a_row_a_model_or_a_row_a_model_and_class(models, classes):
    generator = torch.Generator().manual_seed(10 * models + classes)
    loss, accuracy = torch.rand(2, models, generator=generator)
    by_class = torch.rand(models, classes, generator=generator)
    score, rows = train.Score(loss, accuracy, by_class), stack.grid(seed=range(models))
    table = score.table(rows)
    assert list(table) == ["seed", "loss", "accuracy"]
    assert table.loss.tolist() == loss.tolist()
    assert table.accuracy.tolist() == accuracy.tolist()
    names = list("abc")[:classes]
    long = score.class_table(rows, names)
    assert list(long) == ["seed", "class", "accuracy"]
    assert (long.pivot(index="seed", columns="class", values="accuracy").to_numpy() == by_class.numpy()).all()


def test_the_score_of_lines_names_their_further_axis():
    loss, accuracy = torch.rand(2, 3, 5)
    score = train.Score(loss, accuracy, torch.rand(3, 5, 2))
    table = score.table(stack.grid(pair=range(3)), {"t": torch.linspace(0, 1, 5)})
    assert list(table) == ["pair", "t", "loss", "accuracy"]
    assert (table.pivot(index="pair", columns="t", values="loss").to_numpy() == loss.numpy()).all()
    assert table.t.unique().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_score_of_other_models_than_the_grids_is_refused():
    score = train.Score(torch.rand(3), torch.rand(3), torch.rand(3, 2))
    with pytest.raises(ShapeError, match=r"'loss' has shape \(3,\), expected \(2,\)"):
        score.table(stack.grid(seed=range(2)))
    with pytest.raises(ShapeError, match=r"'accuracy' has shape \(3, 2\), expected \(3, 1\)"):
        score.class_table(stack.grid(seed=range(3)), ["cat"])


@given(st.integers(0, 1000), st.floats(0.2, 5))
def test_no_other_temperature_has_a_lower_loss(seed, sharpness):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (60,), generator=generator)
    logits = sharpness * (torch.randn(2, 60, 4, generator=generator) + torch.nn.functional.one_hot(y, 4))
    best = train.fit_temperatures(logits, y)

    def loss(temperatures):
        return train.score_logits(logits / temperatures.view(-1, 1, 1), y).loss

    for factor in (0.5, 0.9, 1.1, 2.0):
        inside = (best * factor > 1 / 20) & (best * factor < 20)
        assert (loss(best * factor) >= loss(best) - 1e-5)[inside].all()


def test_a_temperature_takes_back_what_logits_were_multiplied_with_and_changes_no_answer(digits):
    trained = train.fit(NET, stack.init(NET, 3, seed=0), digits.train, steps=60).stack
    logits = train.logits(NET, trained, digits.quote.x)
    best = train.fit_temperatures(logits, digits.quote.y)
    assert torch.allclose(train.fit_temperatures(3 * logits, digits.quote.y), 3 * best, rtol=1e-3)
    plain, calibrated = (train.score_logits(each, digits.quote.y) for each in (logits, logits / best.view(-1, 1, 1)))
    assert torch.equal(plain.accuracy, calibrated.accuracy)
    assert (calibrated.loss <= plain.loss + 1e-6).all()


def test_temperatures_stay_within_bounds():
    right = torch.eye(2).repeat(1, 3, 1) / 10  # never wrong: the sharper, the better
    wrong = right.flip(-1)
    y = torch.tensor([0, 1] * 3)
    assert train.fit_temperatures(torch.cat([right, wrong]), y).tolist() == pytest.approx([1 / 20, 20], rel=1e-3)


def test_logits_are_those_of_forward_and_their_score_is_evaluates(digits):
    many = stack.init(NET, 2, seed=0)
    logits = train.logits(NET, many, digits.test.x, batch=7)
    assert torch.allclose(logits, stack.forward(NET, many, digits.test.x), atol=1e-5)
    for one, other in zip(
        train.score_logits(logits, digits.test.y), train.evaluate(NET, many, digits.test), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)
