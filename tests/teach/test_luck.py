"""How lucky a mistake would have to be, and a right answer how unlucky: every check, over and over."""

import pytest
from exercises import solution
from mistakes import DRAWN, EXERCISES, TYPICAL

from paramarket import teach

pytestmark = pytest.mark.rare

each_mistake = pytest.mark.parametrize(
    ("check", "mistake"), [(check, mistake) for check, mistakes in TYPICAL.items() for mistake in mistakes]
)


class Counted:
    """An answer, and how often it has been asked for."""

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def __call__(self, *given):
        self.calls += 1
        return self.answer(*given)


@each_mistake
def test_no_mistake_passes_by_luck(check, mistake, capsys):
    """Out of many runs none passes; and a check that draws all its cases alike tells early.

    A mistake that a case lets pass with a chance p passes n of them with the chance p to the n. Estimated by how many
    cases it took, that is below 1e-6.
    """
    repeats = {"check_purchase": 3}.get(check, 30)
    right = Counted(solution(EXERCISES[check]))
    getattr(teach, check)(right)
    wrong = Counted(TYPICAL[check][mistake])
    capsys.readouterr()
    for _ in range(repeats):
        getattr(teach, check)(wrong)
    assert capsys.readouterr().out.count("✗") == repeats
    if check in DRAWN and wrong.calls > (DRAWN[check] + 1) * repeats:
        missed = 1 - repeats / (wrong.calls - DRAWN[check] * repeats)
        assert missed ** (right.calls - DRAWN[check]) < 1e-6


@pytest.mark.parametrize("check", sorted(set(TYPICAL) - {"check_purchase", "check_only_training"}))
def test_a_right_answer_never_fails(check, capsys):
    right = solution(EXERCISES[check])
    for _ in range(30):
        getattr(teach, check)(right)
    assert "✗" not in capsys.readouterr().out
