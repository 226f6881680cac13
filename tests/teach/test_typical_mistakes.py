"""Every check against what learners hand in, and against the notebooks' solutions."""

import pytest
from exercises import solution
from mistakes import EXERCISES, TYPICAL

from paramarket import teach


def test_every_check_has_an_exercise_and_three_typical_mistakes():
    checks = {name for name in teach.__all__ if name.startswith("check_")}
    assert checks == set(EXERCISES) == set(TYPICAL)
    for mistakes in TYPICAL.values():
        assert len(mistakes) >= 3
        assert {"constant", "input"} <= mistakes.keys()


each_mistake = pytest.mark.parametrize(
    ("check", "mistake"), [(check, mistake) for check, mistakes in TYPICAL.items() for mistake in mistakes]
)


@each_mistake
def test_a_typical_mistake_is_found_and_told_in_words(check, mistake, capsys):
    getattr(teach, check)(TYPICAL[check][mistake])
    printed = capsys.readouterr().out
    assert printed.startswith("✗ ")
    assert len(printed.split()) >= 5


@pytest.mark.parametrize("check", TYPICAL)
def test_the_solution_holds(check, capsys):
    getattr(teach, check)(solution(EXERCISES[check]))
    assert capsys.readouterr().out.endswith("holds on fresh random input.\n")


@pytest.mark.full
def test_there_is_a_place_for_every_alpha_that_may_be_asked_for(capsys):
    """On the grid that the hint names; the check asks for thousandths from .65 to .9."""
    places = solution(EXERCISES["check_only_training"])
    for alpha in range(650, 901, 10):
        beta, cost = places(alpha / 1000)
        assert 0.5 <= beta <= alpha / 1000
        assert cost > 0
