from paramarket import plot


def test_controls_stay_away_where_nobody_is_there_to_move_them():
    called = []
    plot.controls(lambda k: called.append(k), k=(0, 3))
    assert not called
