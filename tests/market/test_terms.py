import math
from dataclasses import FrozenInstanceError

import pytest
import torch

from paramarket import data
from paramarket.base import stream
from paramarket.errors import ParameterError
from paramarket.market import AUTHORS, FORMS, GRID, RULES, Agent, Terms, plants

NAN = math.nan


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("form", "trades", r"unknown form 'trades'\. Did you mean 'trade'\? Known: alone, average, trade"),
        ("match", "weight", r"unknown match 'weight'\. Did you mean 'weights'\?"),
        ("rule", "auditing", r"unknown rule 'auditing'\. Did you mean 'audit'\?"),
        ("parts", "layer", r"unknown parts 'layer'\. Did you mean 'layers'\?"),
        ("by", "losses", r"unknown by 'losses'\. Did you mean 'loss'\?"),
        *[
            (name, value, rf"{name} = {value}, ")
            for name in ("power", "fee", "warranted")
            for value in (-0.1, 1.1, NAN)
        ],
        *[("cost", value, rf"cost = {value}, .*a cost from 0") for value in (-0.01, NAN)],
        *[
            (name, value, rf"{name} = {value}.*first and every from 1")
            for name in ("first", "every")
            for value in (0, -1)
        ],
        *[("sellers", value, rf"sellers = {value}: .*one to three sellers") for value in (0, 4)],
    ],
)
def test_a_bad_term_is_refused_by_name(name, value, said):
    with pytest.raises(ParameterError, match=said):
        Terms(**{name: value})


@pytest.mark.parametrize("name", ["power", "fee", "warranted"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_may_be_nothing_or_all(name, value):
    assert getattr(Terms(**{name: value}), name) == value


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", FORMS)
def test_equal_terms_are_one_and_no_one_changes_them(form, rule):
    terms = Terms(form=form, rule=rule)
    assert len({terms, Terms(form=form, rule=rule), Terms(form=form, rule=rule, cost=2.0)}) == 2
    with pytest.raises(FrozenInstanceError):
        terms.cost = 0.0


def test_the_grid_is_the_authors_who_try_neither_nothing_nor_half_nor_all():
    assert GRID == (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)


def test_the_authors_setting_is_theirs():
    """research/markets-and-contracts.md, 1.1: the second row, MNIST with Adam."""
    terms, how = AUTHORS["terms"], AUTHORS["how"]
    assert AUTHORS["hidden"] == [32, 32, 32, 16]
    assert AUTHORS["kept_share"] == 0.2
    assert (terms.match, terms.rule, terms.by, terms.shares, terms.first, terms.every) == (
        "weights",
        "quote",
        "loss",
        GRID,
        1,
        1,
    )
    assert {key: how[key] for key in ("rounds", "batch", "lr", "weight_decay", "reset")} == {
        "rounds": 50,
        "batch": 512,
        "lr": 0.01,
        "weight_decay": 0.0,
        "reset": True,
    }


def test_an_agent_learns_from_its_split_and_starts_anywhere_unless_told():
    agent = Agent("A", None)
    assert (agent.split, agent.weights, agent.buys) == (None, None, True)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("classes", [4, 5, 10])
def test_a_plant_holds_a_share_of_half_of_the_classes_and_all_of_the_others(classes, count):
    y = torch.arange(classes).repeat_interleave(20)
    split = data.Split(torch.arange(float(len(y))).unsqueeze(1), y)
    made, rare = plants(split, classes, count, 0.25, 7.0, seed=3), []
    assert [agent.name for agent in made] == list("ABCD")[:count]
    for k, agent in enumerate(made):
        counts = agent.split.y.bincount(minlength=classes)
        rare.append([c for c in range(classes) if counts[c] == 5])
        assert sorted(counts.tolist()) == [5] * (classes - classes // 2) + [20] * (classes // 2)
        assert (agent.bid, agent.weights, agent.buys) == (7.0, None, True)
        again = data.holding(split, rare[k], 0.25, stream(3, "plant", k))
        assert torch.equal(agent.split.x, again.x)
    assert rare[0] == list(range(classes // 2, classes))
    if count == 2 and classes % 2 == 0:
        assert rare[1] == list(range(classes - classes // 2))
    assert len({tuple(each) for each in rare}) == count


@pytest.mark.parametrize("count", [0, 27])
def test_plants_have_letters_for_names(count):
    split = data.Split(torch.zeros(2, 1), torch.tensor([0, 1]))
    with pytest.raises(ParameterError, match=rf"count = {count}, expected 1 to 26 agents"):
        plants(split, 2, count, 0.5, 1.0, seed=0)


def test_plants_of_another_seed_hold_other_examples(digits):
    one, other = (plants(digits.train, 10, 2, 0.1, 1.0, seed)[0].split.x for seed in (0, 1))
    assert one.shape == other.shape
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shares": ()}, r"shares = \(\), expected one or more"),
        ({"shares": (0.5, 1.5)}, r"shares = \(0\.5, 1\.5\)"),
        ({"shares": (-0.1,)}, r"shares = \(-0\.1,\)"),
        ({"max_class_loss": -1.0}, r"max_class_loss = -1\.0"),
        ({"claim": float("nan")}, "claim = nan"),
    ],
)
def test_what_cannot_be_tried_or_promised_is_refused(wrong, said):
    with pytest.raises(ParameterError, match=said):
        Terms(**wrong)
