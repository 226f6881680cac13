import math

import numpy as np
import pytest

from paramarket import base, market
from paramarket.errors import ParameterError
from paramarket.market import STRATEGIES, class_game

CLASSES = 3
PLAYS = [(others, name) for others, names in class_game.OTHERS.items() for name in names]


@pytest.fixture(scope="module")
def kept():
    return market.read_class_game()


@pytest.fixture(scope="module")
def anew(kept):
    return market.play_classes(CLASSES, seed=int(kept.seed[0]))


def test_every_class_has_one_row_for_each_strategy_and_others(anew):
    assert anew["class"].tolist() == [k for k in range(CLASSES) for _ in PLAYS]
    assert list(zip(anew.others, anew.strategy, strict=True)) == PLAYS * CLASSES
    assert set(anew.strategy[anew.others == "honest"]) == set(STRATEGIES)
    assert set(anew.strategy[anew.own_bid]) == {"half bid", "noise, low bid"}
    assert anew.kinds.between(*class_game.KINDS).all()
    assert anew.kept.between(*class_game.KEPT).all()
    assert (anew.groupby("class")[["kinds", "kept"]].nunique() == 1).all(axis=None)


def test_a_copier_is_turned_away_and_no_network_of_ones_own(anew):
    assert anew.turned_away[anew.strategy.isin(["copy", "permuted copy"])].all()
    assert not anew.turned_away[~anew.strategy.isin(["copy", "permuted copy", "part copy"])].any()
    away = anew[anew.turned_away]
    assert (away[["money", "won"]] == 0).all(axis=None)
    assert away[["handed_in", "after"]].isna().all(axis=None)


def test_what_is_won_is_money_and_points_above_the_own_trained_network(anew):
    """The same reference for all strategies of a class, so between them only money and the last accuracy count."""
    reference = anew[(anew.strategy == "honest") & (anew.others == "honest")].set_index("class").handed_in
    for row in anew[~anew.turned_away].itertuples():
        points = 100 * (row.after - reference[row[anew.columns.get_loc("class") + 1]])
        assert row.won == pytest.approx(row.money + class_game.VALUE * points)


def test_noise_knows_nothing_and_a_sandbagger_little(anew):
    handed_in = anew.pivot_table(values="handed_in", index="class", columns="strategy")
    assert (handed_in.noise < handed_in.honest - 0.3).all()
    assert (handed_in.sandbag < handed_in.honest - 0.1).all()


def test_what_is_handed_in_hangs_neither_on_the_others_nor_on_the_bid(anew):
    handed_in = anew.pivot_table(values="handed_in", index=["class", "strategy"], columns="others").dropna()
    assert len(handed_in) == 4 * CLASSES
    assert (handed_in["honest"] == handed_in["two sandbag"]).all()
    by_strategy = anew[anew.others == "honest"].pivot(index="class", columns="strategy", values="handed_in")
    assert (by_strategy["half bid"] == by_strategy["honest"]).all()
    assert (by_strategy["noise, low bid"] == by_strategy["noise"]).all()


def test_others_who_hold_back_have_less_to_sell(kept):
    """The same network is handed in, so all that is left to differ is what the others know."""
    after = kept[kept.strategy == "noise"].pivot(index="class", columns="others", values="after")
    assert base.interval(after["honest"] - after["two sandbag"]).low > 0


def test_a_class_hangs_on_its_number_and_not_on_how_many_there_are(anew, kept):
    alone = market.play_classes(1, seed=int(kept.seed[0]))
    first = anew[anew["class"] == 0]
    same = ["class", "kinds", "kept", "others", "strategy"]
    assert alone[same].equals(first[same])
    assert np.allclose(alone.handed_in, first.handed_in, atol=0.01, equal_nan=True)


def test_another_seed_draws_other_classes(anew):
    assert not np.allclose(market.play_classes(1, seed=99).kept, anew.kept[: len(PLAYS)])


def test_no_class_is_an_error():
    with pytest.raises(ParameterError, match="classes = 0, expected a whole number ≥ 1"):
        market.play_classes(0, seed=0)


# The kept table


def test_the_kept_table_is_what_the_code_says_today(anew, kept):
    """Rounding may turn one purchase in many from machine to machine. More than that: run `classes --keep` again."""
    first = kept.head(len(anew))
    same = ["class", "kinds", "others", "strategy", "own_bid", "turned_away"]
    assert anew[same].equals(first[same])
    close = np.isclose(anew.won, first.won, atol=300)
    assert close.sum() >= len(anew) - 2
    assert np.allclose(anew.handed_in, first.handed_in, atol=0.02, equal_nan=True)


@pytest.mark.parametrize(
    ("others", "strategy"),
    [
        *[("honest", name) for name in ("noise", "sandbag", "half training", "copy", "permuted copy", "part copy")],
        *[("two sandbag", name) for name in ("noise", "sandbag", "half training")],
    ],
)
def test_on_average_the_honest_wins_most_of_what_the_game_allows(kept, others, strategy):
    """Over two hundred classes, whatever the others do. In a single class luck may turn it."""
    summary = market.class_game_summary(kept).set_index(["others", "strategy"])
    assert kept["class"].nunique() >= 200
    assert summary.honest_more_low[others, strategy] > 0


def test_under_the_old_score_noise_would_win(kept):
    """Counted from what was handed in, as it once was: the law above is a law of the rule, not of the networks."""
    gain = 100 * class_game.VALUE * (kept.after - kept.handed_in)
    old = kept.assign(won=(kept.money + gain).fillna(0.0))
    summary = market.class_game_summary(old).set_index(["others", "strategy"])
    assert (summary.honest_more_high[:, "noise"] < 0).all()
    assert (summary.honest_more_high[:, "sandbag"] < 0).all()


def test_a_quarter_of_anothers_network_passes_the_door_and_is_merely_not_better(kept):
    """Of networks as small as these; on average, for in a third of the classes it is."""
    summary = market.class_game_summary(kept).set_index("strategy")
    assert summary.turned_away["part copy"] == 0
    assert summary.other_better["part copy"] > 0


def test_with_bids_of_their_own_students_would_bid_less(kept):
    """Why nobody names a bid: half of the true one pays, with the same network."""
    summary = market.class_game_summary(kept).set_index("strategy")
    assert summary.honest_more_high["half bid"] < 0
    assert summary.honest_more["noise, low bid"] < summary.honest_more["noise"].min()


def test_a_table_is_kept_whole_with_its_seed(tmp_path, monkeypatch, kept):
    table = kept.head(2 * len(PLAYS)).drop(columns="seed")
    monkeypatch.setattr(class_game, "CLASS_GAME", tmp_path / "kept.csv")
    market.write_class_game(table, seed=5)
    again = market.read_class_game()
    assert again.seed.tolist() == [5] * len(table)
    assert again.drop(columns="seed").equals(table)


def test_differences_are_those_of_one_class_and_the_summary_counts_them():
    """In the first class the honest wins 3 more than noise, in the second 1 less; the others win what it wins."""
    rows = market.read_class_game().head(2 * len(PLAYS)).assign(won=10.0)
    rows.loc[(rows.strategy == "noise") & (rows["class"] == 0), "won"] = 7.0
    rows.loc[(rows.strategy == "noise") & (rows["class"] == 1), "won"] = 11.0
    differences = market.class_game_differences(rows)
    for others, strategy in PLAYS:
        of_play = differences[(differences.others == others) & (differences.strategy == strategy)]
        expected = {"noise": [3, -1], "honest": []}.get(strategy, [0, 0])
        assert of_play.sort_values("class").honest_more.tolist() == expected
    summary = market.class_game_summary(rows).set_index(["others", "strategy"])
    assert summary.index.tolist() == [play for play in PLAYS if play[1] != "honest"]
    counts = summary[["honest_better", "equal", "other_better"]]
    assert counts.loc["honest", "noise"].tolist() == [1, 0, 1]
    assert counts.loc["two sandbag", "noise"].tolist() == [1, 0, 1]
    assert counts.loc["honest", "copy"].tolist() == [0, 2, 0]
    assert summary.turned_away["honest", "copy"] == 2
    assert summary.own_bid.sum() == 2
    half = 12.706205 * math.sqrt(8 / 2)  # Student's t with one degree of freedom
    assert summary.honest_more["honest", "noise"] == 1.0
    assert summary.honest_more_high["honest", "noise"] == pytest.approx(1 + half, rel=1e-5)
