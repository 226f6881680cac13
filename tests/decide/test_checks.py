import json
import re
import struct

import pytest
import torch
from torch import nn

from paramarket import base, data, decide, stack, train
from paramarket.errors import DataError, ParamarketError, ParameterError, WeightsError

DIGITS = data.load("digits")
NET = stack.mlp(64, [16], 10)


@pytest.fixture(scope="module")
def models():
    """Two plants, each with few examples of half the kinds; and one that learnt nothing."""
    rare = ([5, 6, 7, 8, 9], [0, 1, 2, 3, 4])
    held = [data.holding(DIGITS.train, kinds, 0.1, base.stream(0, "held", k)) for k, kinds in enumerate(rare)]
    return train.fit(NET, stack.init(NET, 2, seed=0), held, steps=200, batch=32, lr=3e-3, seed=0).stack


@pytest.fixture
def files(models, tmp_path):
    card = stack.card(NET, DIGITS)
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for k, path in enumerate(paths):
        stack.save(path, stack.take(models, k), card)
    return paths


def turn(params, order):
    """The same network with its classes in another order."""
    return params | {"3.weight": params["3.weight"][order], "3.bias": params["3.bias"][order]}


def test_two_files_of_one_architecture_are_a_pair(files, models):
    pair = decide.load_pair(*files, DIGITS)
    assert pair.net_a is pair.net_b
    assert all(torch.equal(pair.a[name], models[name][0]) for name in pair.a)
    assert pair.spec is not None
    assert pair.reason == ""


def test_two_architectures_share_predictions_only_and_it_says_why(files, tmp_path):
    wide = stack.mlp(64, [32], 10)
    stack.save(tmp_path / "wide.safetensors", stack.take(stack.init(wide, 1, seed=0), 0), stack.card(wide, DIGITS))
    pair = decide.load_pair(files[0], tmp_path / "wide.safetensors", DIGITS)
    assert pair.spec is None
    assert pair.reason == "two architectures: only predictions can be shared"


def test_another_structure_is_made_by_its_factory_and_what_makes_none_is_refused(files, monkeypatch, tmp_path):
    (tmp_path / "their_nets.py").write_text(
        "from paramarket import stack\n"
        "def small(classes):\n    return stack.mlp(64, [16], classes)\n"
        "def broken(classes):\n    raise RuntimeError('no')\n"
        "def number(classes):\n    return classes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pair = decide.load_pair(*files, DIGITS, architecture="their_nets:small")
    assert isinstance(pair.net_a, nn.Sequential)
    for architecture, told in {
        "their_nets:broken": "made no net (RuntimeError: no)",
        "their_nets:number": "made a int, expected a torch.nn.Module",
        "their_nets:absent": "made no net (AttributeError",
        "no_such_module:small": "made no net (ModuleNotFoundError",
        "vgg": "expected 'mlp', 'resnet18' or 'module:factory'",
    }.items():
        with pytest.raises(ParameterError, match=re.escape(told)):
            decide.load_pair(*files, DIGITS, architecture=architecture)


def spoil(path, how):
    """A file with one thing wrong."""
    tensors = stack.map(torch.clone, stack.load(path))  # a loaded tensor is a view of its file
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "pickle":
        torch.save(tensors, path)
    elif how == "huge header":
        path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])
    elif how == "missing":
        path.unlink()
    elif how == "NaN":
        stack.save_all(path, tensors | {"3.bias": torch.full((10,), torch.nan)})
    elif how == "wrong key":
        stack.save_all(path, {name.replace("3.", "4."): tensor for name, tensor in tensors.items()})
    elif how == "another input":
        net = stack.mlp(49, [16], 10)
        stack.save_all(path, stack.take(stack.init(net, 1, seed=0), 0))
    elif how == "other classes":
        stack.save_all(path, tensors, {"classes": json.dumps(list("abcdefghij"))})
    elif how == "another scale":
        stack.save_all(path, tensors, {"mean": "[0.5]"})
    elif how == "too few answers":
        net = stack.mlp(64, [16], 9)
        stack.save_all(path, stack.take(stack.init(net, 1, seed=0), 0))
    elif how == "no tensors":
        stack.save_all(path, {})


WRONG = {
    "truncated": "no readable safetensors file",
    "pickle": "is a pickle",
    "huge header": "no readable safetensors file",
    "missing": "is missing",
    "NaN": "'3.bias' holds values that are NaN or infinite",
    "wrong key": "4.",
    "another input": "does not run on examples of shape (1, 8, 8)",
    "other classes": "another interface: classes is",
    "another scale": "another interface: mean is",
    "too few answers": "answers with 9 numbers, and the data have 10 classes",
    "no tensors": "holds no MLP",
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", WRONG)
def test_one_wrong_file_is_one_clear_error_that_names_it(files, which, how):
    spoil(files[which], how)
    before = sorted(files[0].parent.iterdir())
    with pytest.raises(ParamarketError, match=re.escape(WRONG[how])) as found:
        decide.load_pair(*files, DIGITS)
    assert files[which].name in str(found.value)
    assert sorted(files[0].parent.iterdir()) == before


def test_a_file_without_a_card_is_taken_as_it_is(files):
    for path in files:
        stack.save_all(path, stack.load(path))
    assert decide.load_pair(*files, DIGITS).spec is not None


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0], [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_another_order_of_classes_is_found(models, order):
    params = turn(stack.take(models, 0), torch.tensor(order))
    with pytest.raises(WeightsError, match=r"B's network numbers its classes in another order than the data: .*'0'"):
        decide.known_answers(NET, params, DIGITS.quote, DIGITS.classes, "B's network")


def test_a_one_sided_network_and_one_that_learnt_nothing_are_not_accused(models):
    untrained = stack.init(NET, 40, seed=1)
    for params in [stack.take(models, k) for k in (0, 1)] + [stack.take(untrained, k) for k in range(40)]:
        decide.known_answers(NET, params, DIGITS.quote, DIGITS.classes, "it")


def test_too_few_examples_are_refused_with_the_number_that_would_do(files):
    pair = decide.load_pair(*files, DIGITS)
    few = data.Split(DIGITS.audit.x[:20], DIGITS.audit.y[:20])
    with pytest.raises(DataError, match=r"20 examples .* are too few .* to ± 10 points (\d+) are needed") as found:
        decide.enough_examples(pair, DIGITS.quote, few)
    needed = int(re.search(r"points (\d+) are", str(found.value))[1])
    many = data.Split(DIGITS.test.x[:needed], DIGITS.test.y[:needed])
    assert len(many) == needed
    decide.enough_examples(pair, DIGITS.quote, many)
    twins = pair._replace(b=pair.a)
    decide.enough_examples(twins, DIGITS.quote, few)
