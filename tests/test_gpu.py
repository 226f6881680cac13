"""`make gpu`, without a GPU: the comparison itself, on the tests' second device, and that it misses nothing."""

import ast
import importlib
import inspect

import gpu
import pytest
import torch
from devices import second_device

from paramarket.__main__ import HOME

ROOMS = ["align", "cka", "decide", "market", "merge", "price", "smat", "soup", "specialists", "stack", "train"]
# what tests use beside what they test
HOLDS = {"stack.take", "stack.join", "stack.count", "stack.grid", "market.Splits"}


def public():
    """{room.name: the thing} for all that the rooms of models give."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"paramarket.{room}")
        own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        names = getattr(module, "__all__", own)
        found |= {f"{room}.{name}": getattr(module, name) for name in names if not name.startswith("_")}
    return found


def named(tree):
    """Every a.b of a piece of code."""
    every = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {f"{node.value.id}.{node.attr}" for node in every}


def named_by_tests_of_the_second_device(path):
    """Every room.name that such a test of a file uses itself, or by a function of that file that it calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    waiting = [node for node in functions.values() if "with second_device()" in ast.unparse(node)]
    seen, found = set(), set()
    while waiting:
        node = waiting.pop()
        seen.add(node.name)
        found |= named(node)
        calls = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} & functions.keys()
        waiting += [functions[name] for name in calls - seen]
    return found


def takes_a_device(thing):
    """Whether a function, of those that can be asked, has a parameter called device."""
    try:
        return inspect.isfunction(thing) and "device" in inspect.signature(thing).parameters
    except ValueError:
        return False


def test_everything_tested_on_the_second_device_and_all_that_takes_one_is_compared_on_a_gpu():
    every = public()
    tests = [path for path in (HOME / "tests").rglob("test_*.py") if path.name != "test_gpu.py"]
    tested = set().union(*map(named_by_tests_of_the_second_device, tests)) & every.keys()
    takes = {name for name, thing in every.items() if takes_a_device(thing)}
    assert {"train.fit", "cka.cka_matrix", "smat.meta_tune"} <= tested
    assert {"stack.init", "market.run"} <= takes
    compared = named(ast.parse((HOME / "tests/gpu.py").read_text(encoding="utf-8")))
    assert sorted((tested | takes) - compared - HOLDS) == []


@pytest.mark.full
@pytest.mark.parametrize("path", [path for path in gpu.PATHS if path is not gpu.FUNCTIONAL])
def test_every_path_gives_the_cpus_numbers_on_a_second_device(path):
    with second_device() as device:
        rows = gpu.compare(path, device)
    assert rows
    assert [(what, away) for what, away in rows if away > 1e-5] == []


def test_what_torch_func_runs_repeats_its_numbers():
    assert all(away == 0 for _, away in gpu.compare(gpu.FUNCTIONAL, "cpu"))


def test_a_difference_is_absolute_up_to_1_and_relative_above_and_none_is_overlooked():
    assert gpu.difference(torch.tensor([0.5, 300.0]), torch.tensor([0.5, 200.0])) == pytest.approx(0.5)
    assert gpu.difference({"a": [torch.tensor(0.25)]}, {"a": [torch.tensor(0.5)]}) == 0.25
    assert gpu.difference(torch.tensor([torch.nan, torch.inf]), torch.tensor([torch.nan, torch.inf])) == 0
    for found, expected in (
        (torch.tensor([1, 0]), torch.tensor([0, 1])),
        (torch.tensor([torch.nan]), torch.tensor([1.0])),
        (torch.zeros(2), torch.zeros(3)),
        ("merge", "keep apart"),
    ):
        assert gpu.difference(found, expected) == torch.inf


def test_a_path_that_goes_wrong_or_stops_early_has_not_agreed(capsys):
    def path(device):
        yield "first", torch.zeros(1)
        if device != "cpu":
            raise RuntimeError("out of memory")
        yield "second", torch.zeros(1)

    assert gpu.compare(path, "elsewhere") == [("first", 0.0), ("second", torch.inf)]
    assert "out of memory" in capsys.readouterr().err


def test_without_a_gpu_it_says_that_nothing_was_checked(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PATHS", [])
    monkeypatch.setattr(gpu, "speeds", lambda device: {})
    assert gpu.main("cpu") == 0
    assert "0 of 0 agree" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert gpu.main("cuda") == 3
        assert capsys.readouterr().out.startswith("No cuda device here, so nothing was checked.")
