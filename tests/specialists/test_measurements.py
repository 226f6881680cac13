import pytest
import torch
from devices import second_device
from torch.nn.functional import cross_entropy

from paramarket import cka, data, merge, specialists, stack
from paramarket.errors import ShapeError
from paramarket.specialists import measurements

NET = stack.residual_mlp(64, 8, 2, 10)


@pytest.fixture(scope="module")
def couples(digits):
    bases = stack.init(NET, 3, seed=0)
    left, right = ([data.rotate_split(digits.quote, angle)] * 3 for angle in (-20.0, 20.0))
    a, b = specialists.specialise(NET, bases, left, right, keep=[20], batch=32, lr=5e-3)
    return a, b, bases


def test_every_measurement_is_what_its_definition_says_of_each_couple(couples, digits, monkeypatch):
    monkeypatch.setattr(measurements, "COUPLES_AT_ONCE", 2)
    found = specialists.measure(NET, *couples, digits.quote)
    x, y = digits.quote.x, digits.quote.y
    for k in range(3):
        a, b, base = (stack.take(models, [k]) for models in couples)
        logits = {name: stack.forward(NET, one, x)[0] for name, one in (("a", a), ("b", b), ("base", base))}
        logits["average"] = stack.forward(NET, merge.average_pairs(a, b), x)[0]
        hidden = {name: stack.features(NET, one, x)["4"] for name, one in (("a", a), ("b", b), ("base", base))}
        right = {name: (each.argmax(-1) == y).float().mean().item() for name, each in logits.items()}
        loss = {name: cross_entropy(each, y).item() for name, each in logits.items()}
        sure = {name: each.softmax(-1) for name, each in logits.items()}
        together = (sure["a"] + sure["b"]) / 2
        tasks = [torch.cat([(one[name] - base[name]).flatten() for name in base]) for one in (a, b)]
        expected = {
            "weight_distance": (tasks[0] - tasks[1]).norm().item(),
            "task_cosine": (tasks[0] @ tasks[1] / (tasks[0].norm() * tasks[1].norm())).item(),
            "cka": cka.linear_cka(hidden["a"][0], hidden["b"][0], debiased=True),
            "base_cka": sum(cka.linear_cka(hidden[n][0], hidden["base"][0], debiased=True) for n in "ab") / 2,
            "disagreement": (logits["a"].argmax(-1) != logits["b"].argmax(-1)).float().mean().item(),
            "confidence_gain": (together.amax(-1).mean() - sure["base"].amax(-1).mean()).item(),
            "barrier": loss["average"] - (loss["a"] + loss["b"]) / 2,
            "gain": right["average"] - right["base"],
        }
        assert {name: each[k].item() for name, each in found._asdict().items()} == pytest.approx(expected, abs=1e-4)


def test_twins_that_never_parted_are_all_alike_and_gain_nothing(digits):
    twins = stack.init(NET, 2, seed=1)
    found = specialists.measure(NET, twins, twins, twins, digits.quote)
    assert torch.allclose(found.cka, torch.ones(2), atol=1e-5)
    assert torch.allclose(found.base_cka, torch.ones(2), atol=1e-5)
    for name in ("weight_distance", "task_cosine", "disagreement", "confidence_gain", "barrier", "gain"):
        assert getattr(found, name).abs().max().item() == pytest.approx(0, abs=1e-6)


def test_labels_are_looked_at_by_the_last_two_alone(couples, digits):
    shifted = data.Split(digits.quote.x, (digits.quote.y + 1) % 10)
    found = specialists.measure(NET, *couples, digits.quote)._asdict()
    again = specialists.measure(NET, *couples, shifted)._asdict()
    assert {name for name in found if not torch.equal(found[name], again[name])} == {"barrier", "gain"}


def test_the_table_of_measurements_has_a_row_a_couple(couples, digits):
    found = specialists.measure(NET, *couples, digits.quote)
    table = found.table(stack.grid(pair=range(3)))
    assert list(table) == ["pair", *specialists.Measurements._fields]
    assert table.gain.tolist() == found.gain.tolist()


def test_couples_that_are_none_are_refused(couples, digits):
    a, b, bases = couples
    with pytest.raises(ShapeError, match="3 models in a, 2 in b, 3 bases"):
        specialists.measure(NET, a, stack.take(b, slice(2)), bases, digits.quote)


def test_a_job_pulls_with_itself_and_its_gradient_is_autograds(couples, digits):
    _, _, bases = couples
    same = specialists.gradient_cosine(NET, bases, digits.quote, digits.quote)
    assert torch.allclose(same, torch.ones(3), atol=1e-5)
    turned = data.rotate_split(digits.quote, 30.0)
    slopes = []
    for split in (digits.quote, turned):
        leaves = stack.map(lambda tensor: tensor.clone().requires_grad_(), stack.take(bases, [1]))
        cross_entropy(stack.forward(NET, leaves, split.x)[0], split.y).backward()
        slopes.append(torch.cat([leaf.grad.flatten() for leaf in leaves.values()]))
    expected = torch.nn.functional.cosine_similarity(*slopes, dim=0)
    found = specialists.gradient_cosine(NET, bases, digits.quote, turned)
    assert found[1].item() == pytest.approx(expected.item(), abs=1e-4)


def test_on_a_second_device_couples_are_measured_as_on_the_cpu(couples, digits):
    here = specialists.measure(NET, *couples, digits.quote)
    cosine = specialists.gradient_cosine(NET, couples[2], digits.quote, digits.audit)
    with second_device() as other:
        away = [stack.map(lambda tensor: tensor.to(other), models) for models in couples]
        there = specialists.measure(NET, *away, digits.quote)
        cosine_there = specialists.gradient_cosine(NET, away[2], digits.quote, digits.audit)
    for found, expected in zip([*there, cosine_there], [*here, cosine], strict=True):
        assert found.device.type == "cpu"
        assert torch.allclose(found, expected, atol=1e-4)
