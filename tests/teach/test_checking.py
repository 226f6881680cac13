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
