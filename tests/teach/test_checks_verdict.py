import math

import pytest

from paramarket import decide, teach


def choose_way(table, allowed):
    fine = table[(table.gain_points_low > 0) & (table.own_class_change >= -allowed)]
    return fine.sort_values("gain_points").way.iloc[-1] if len(fine) else "nothing"


def the_largest(table, allowed):
    return table.way[table.gain_points.idxmax()]


def without_a_guard(table, allowed):
    return choose_way(table, 100.0)


def examples_needed(better, worse, precision):
    variance = better + worse - (better - worse) ** 2
    return math.ceil(variance * (1.96 / precision) ** 2)


def as_if_unpaired(better, worse, precision):
    return math.ceil(0.5 * (1.96 / precision) ** 2)


def break_even(costs, worth_of_a_point, alone):
    return alone + costs / worth_of_a_point


def from_nothing(costs, worth_of_a_point, alone):
    return costs / worth_of_a_point


RIGHT = [
    (teach.check_choose_way, choose_way),
    (teach.check_examples_needed, examples_needed),
    (teach.check_examples_needed, decide.pilot_examples),
    (teach.check_break_even, break_even),
]
WRONG = [
    (teach.check_choose_way, the_largest, "it takes "),
    (teach.check_choose_way, without_a_guard, "It harms the buyer's own classes by "),
    (teach.check_choose_way, lambda table, allowed: 3, "expected one of nothing, a, b"),
    (teach.check_examples_needed, as_if_unpaired, "it says "),
    (teach.check_break_even, from_nothing, "is left, not 0"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_a_right_answer_holds(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.parametrize(("check", "answer", "told"), WRONG)
def test_a_wrong_answer_is_told_why(check, answer, told, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗")
    assert told in printed
