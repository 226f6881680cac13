import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_controls_stay_away_where_nobody_is_there_to_move_them():
    called = []
    plot.controls(lambda k: called.append(k), k=(0, 3))
    assert not called
