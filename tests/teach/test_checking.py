import pytest

from paramarket.errors import ExerciseError
from paramarket.teach.checking import fresh_generator, tell_learner


def test_every_check_draws_anew():
    assert fresh_generator().initial_seed() != fresh_generator().initial_seed()


def test_a_learner_is_told_what_is_wrong_and_never_stopped(capsys):
    def unwritten():
        raise NotImplementedError

    def broken():
        return [][0]

    tell_learner("right", lambda: "")
    tell_learner("wrong", lambda: "it is upside down.")
    tell_learner("empty", unwritten)
    tell_learner("broken", broken)
    assert capsys.readouterr().out.splitlines() == [
        "✓ right holds on fresh random input.",
        "✗ wrong: it is upside down.",
        "… empty is not written yet.",
        "✗ broken: it raised IndexError: list index out of range",
    ]


def test_where_nbgrader_executes_only_an_answer_that_holds_ends_without_an_error(capsys, monkeypatch):
    def unwritten():
        raise NotImplementedError

    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    tell_learner("right", lambda: "")
    with pytest.raises(ExerciseError, match="✗ wrong: it is upside down"):
        tell_learner("wrong", lambda: "it is upside down.")
    with pytest.raises(ExerciseError, match="… empty is not written yet"):
        tell_learner("empty", unwritten)
