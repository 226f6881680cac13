import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from paramarket import plot
from paramarket.base import interval


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_an_interval_for_seaborn_is_the_one_that_tables_show(values):
    assert plot.interval95(values) == interval(np.array(values))[1:]


def test_a_single_value_is_its_own_interval():
    assert plot.interval95([0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [np.nan], [1.0, np.nan], [np.inf, 1.0, 2.0]])
def test_no_interval_is_drawn_without_finite_values(values):
    assert np.isnan(plot.interval95(values)).all()


@given(low=st.floats(-1, 0.99), length=st.floats(0.01, 2))
@example(low=0.0, length=0.15)  # matplotlib, left alone, takes steps of 2.5 % along x
@example(low=0.0, length=0.2)  # and here along y
@pytest.mark.parametrize("side", ["x", "y"])
def test_each_label_in_per_cent_says_where_its_tick_is(low, length, side):
    axis = Figure(figsize=(4, 3)).subplots()
    axis.set(**{f"{side}lim": (low, low + length)})
    plot.percent(axis, side)
    ruler = getattr(axis, f"{side}axis")
    ticks, labels = ruler.get_majorticklocs(), [text.get_text() for text in ruler.get_majorticklabels()]
    told = [float(label.removesuffix("%").replace("−", "-")) for label in labels]
    np.testing.assert_allclose(told, 100 * ticks, atol=0.01)
    if length > 0.1:
        np.testing.assert_allclose(told, np.round(told), atol=1e-9)


def test_ticks_in_per_cent_stay_where_they_were_put():
    axis = Figure().subplots()
    axis.set_yticks([0.125, 0.5])
    plot.percent(axis)
    assert [text.get_text() for text in axis.get_yticklabels()] == ["12.5%", "50%"]


def test_controls_stay_away_where_nobody_is_there_to_move_them():
    called = []
    plot.controls(lambda k: called.append(k), k=(0, 3))
    assert not called
