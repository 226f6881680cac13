import inspect
import math
from dataclasses import FrozenInstanceError
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from paramarket import data
from paramarket.base import stream
from paramarket.errors import ParameterError
from paramarket.market import AUTHORS, FORMS, GRID, RULES, Agent, Market, Splits, Terms, plants
from paramarket.market.terms import check_market, check_splits

NAN = math.nan
NUMBERS = ("power", "cost", "fee", "claim", "warranted", "max_class_loss")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("form", "trades", r"unknown form 'trades'\. Did you mean 'trade'\? Known: alone, average, trade"),
        ("match", "weight", r"unknown match 'weight'\. Did you mean 'weights'\?"),
        ("rule", "auditing", r"unknown rule 'auditing'\. Did you mean 'audit'\?"),
        ("parts", "layer", r"unknown parts 'layer'\. Did you mean 'layers'\?"),
        ("by", "losses", r"unknown by 'losses'\. Did you mean 'loss'\?"),
        *[
            (name, value, rf"^{name} = {value}, expected a number between 0 and 1\.$")
            for name in ("power", "fee", "warranted")
            for value in (-0.1, 1.1, NAN)
        ],
        *[("cost", value, rf"^cost = {value}, expected a number between 0 and") for value in (-0.01, NAN, math.inf)],
        *[("claim", value, rf"^claim = {value}, expected a number between -100 and 100") for value in (NAN, 101.0)],
        *[("max_class_loss", value, rf"^max_class_loss = {value}, expected a number") for value in (-1.0, 101.0)],
        *[
            (name, value, rf"^{name} = {value}, expected a whole number ≥ 1\.$")
            for name in ("first", "every", "sellers")
            for value in (0, -1, 1.5, True)
        ],
        ("sellers", 4, "^sellers = 4, expected one to three"),
        *[(name, "0.5", rf"^{name} = '0\.5', expected a number") for name in NUMBERS],
        *[(name, True, rf"^{name} = True, expected a number") for name in NUMBERS],
        *[(name, [0.5], rf"^{name} = \[0\.5\], expected a number") for name in NUMBERS],
        *[(name, "2", rf"^{name} = '2', expected a whole number") for name in ("first", "every", "sellers")],
        *[(name, ["x"], rf"^unknown {name} \['x'\]") for name in ("form", "match", "rule", "by", "parts")],
        ("shares", (), r"^shares = \(\), expected one or more"),
        ("shares", (0.5, 1.5), r"^a share in shares = 1\.5, expected a number between 0 and 1"),
        ("shares", (-0.1,), r"^a share in shares = -0\.1,"),
        ("shares", 0.5, r"^shares = 0\.5, expected a list of numbers"),
        ("shares", "0.5", r"^shares = '0\.5', expected a list of numbers"),
        ("shares", np.float32(0.5), r"^shares = np\.float32\(0\.5\), expected a list"),
        ("shares", {0.5: 1}, r"^shares = \{0\.5: 1\}, expected a list"),
        ("shares", ["0.5"], r"^a share in shares = '0\.5'"),
        ("shares", [True], r"^a share in shares = True"),
        ("shares", [[0.5]], r"^a share in shares = \[0\.5\]"),
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
    """The second of the settings in their code, MNIST with Adam."""
    terms, how = AUTHORS["terms"], AUTHORS["settings"]
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
    made, rare = plants(split, classes, count=count, share=0.25, bid=7.0, seed=3), []
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
        plants(split, 2, count=count, share=0.5, bid=1.0, seed=0)


def test_what_plants_are_goes_by_name():
    split = data.Split(torch.zeros(2, 1), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="positional"):
        inspect.unwrap(plants)(split, 2, 2, 0.5, 1.0, 0)
    with pytest.raises(ParameterError, match=r"count = 2\.0, expected a whole number"):
        inspect.unwrap(plants)(split, 2, count=2.0, share=0.5, bid=1.0, seed=0)


def test_plants_of_another_seed_hold_other_examples(digits):
    one, other = (plants(digits.train, 10, count=2, share=0.1, bid=1.0, seed=seed)[0].split.x for seed in (0, 1))
    assert one.shape == other.shape
    assert not torch.equal(one, other)


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda shares: np.array(shares, dtype=object)])
def test_shares_in_any_sequence_are_one_and_the_same_terms(make):
    terms = Terms(shares=make([0.25, 0.5]))
    assert terms == Terms(shares=(0.25, 0.5))
    assert {terms: 1}[Terms(shares=[0.25, 0.5])] == 1  # hashable: markets are grouped by their terms
    assert [type(share) for share in terms.shares] == [float, float]


def test_numbers_of_numpy_are_numbers():
    terms = Terms(cost=np.float32(2), fee=np.float64(0.5), power=1, sellers=np.int64(2), first=np.int32(3), claim=7)
    assert terms == Terms(cost=2.0, fee=0.5, power=1.0, sellers=2, first=3, claim=7.0)
    kinds = [type(getattr(terms, name)) for name in ("cost", "fee", "power", "claim", "sellers", "first")]
    assert kinds == [float] * 4 + [int] * 2


# What stands in the wrong place


SOME = data.Split(torch.zeros(2, 1), torch.tensor([0, 1]))
PAIR = [Agent("A", SOME), Agent("B", None)]


@pytest.mark.parametrize(
    ("market", "said"),
    [
        (Market(Agent("A", None), Terms(), 0), r"^agents: expected a list of market\.Agent, got Agent\.$"),
        (Market(["A", "B"], Terms(), 0), r"^agents: expected a list of market\.Agent, got a list with str in it"),
        (Market({"A": PAIR[0]}, Terms(), 0), r"^agents: expected a list of market\.Agent, got dict"),
        (Market(PAIR, {"rule": "audit"}, 0), r"^terms: expected market\.Terms, got dict"),
        (Market(PAIR, Terms, 0), r"^terms: expected market\.Terms, got type"),
        *[
            (Market(PAIR, Terms(), seed), r"^the seed of a market = .*, expected a whole number ≥ 0")
            for seed in (-1, True, 1.5, "0", None)
        ],
        (Market([Agent(1, None), PAIR[0]], Terms(), 0), "^the name of an agent is 1, expected text"),
        (Market([Agent("A", SOME.x), PAIR[1]], Terms(), 0), r"^the split of agent A: expected data\.Split or None"),
        *[
            (Market([Agent("A", None, bid), PAIR[1]], Terms(), 0), rf"^the bid of agent A = {bid!r}, expected a number")
            for bid in (-0.01, NAN, math.inf, True, "5")
        ],
        (Market([Agent("A", None, 1.0, [1]), PAIR[1]], Terms(), 0), "^the weights of agent A: expected one model"),
        (Market([Agent("A", None, buys="no"), PAIR[1]], Terms(), 0), "^agent A: buys = 'no', expected True or False"),
        (Market([PAIR[0], PAIR[0]], Terms(), 0), "^2 agents are called 'A': the ledger knows them by name"),
    ],
)
def test_what_is_no_market_is_refused_by_name_and_for_one_cause(market, said):
    with pytest.raises(ParameterError, match=said):
        check_market(market)


def test_a_market_of_numpys_numbers_is_a_market():
    check_market(Market(tuple(PAIR), Terms(), np.int64(3)))
    check_market(Market([Agent("A", None, np.float32(2.5)), Agent("B", None, 1)], Terms(), 0))


def test_what_is_no_split_is_refused_by_name():
    with pytest.raises(ParameterError, match=r"^audit: expected data\.Split, got tuple|^audit: .*a tuple with Tensor"):
        check_splits(Splits(SOME, (SOME.x, SOME.y), SOME))


SAME_BID = [5, 5.0, np.float32(5), np.float64(5), np.int64(5), np.array(5.0), torch.tensor(5.0), torch.tensor(5)]
SAME_BID += [torch.tensor(5.0, dtype=torch.bfloat16), Fraction(5), Decimal(5), np.float16(5)]
NO_BID = ["5", b"5", None, True, np.bool_(True), [5.0], torch.ones(2), np.ones(1), 5j, 10**400, -(10**400), object()]


@pytest.mark.parametrize("bid", SAME_BID, ids=lambda bid: f"{type(bid).__name__} {getattr(bid, 'dtype', '')}")
def test_a_bid_may_be_a_number_of_any_make(bid):
    agents = [Agent(name, None, bid) for name in "ab"]
    check_market(Market(agents, Terms(), 0))


@pytest.mark.parametrize("bid", [*NO_BID, -0.01, math.nan, math.inf, 1e11], ids=lambda bid: type(bid).__name__)
def test_what_is_no_number_is_no_bid(bid):
    with pytest.raises(ParameterError, match=r"the bid of agent a = .*, expected a number between 0 and"):
        check_market(Market([Agent("a", None, bid)], Terms(), 0))
