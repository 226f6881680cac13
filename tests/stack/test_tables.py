"""The laws of grids and tables: row k stands for model k, and every number stands behind the row it belongs to."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st

from paramarket import stack
from paramarket.errors import ParameterError, ShapeError

NAMES = st.text("abcdefgh", min_size=1, max_size=4)
VALUES = st.one_of(
    st.lists(st.text(max_size=4), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(-9, 9), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(-9, 9), min_size=1, max_size=4, unique=True),
    st.lists(st.booleans(), min_size=1, max_size=2, unique=True),
)
COLUMNS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=3)
GRID = stack.grid(method=["alone", "matched"], seed=range(3))


@st.composite
def measured(draw):
    """A grid, further axes and a tensor over both."""
    names = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    columns = {name: draw(VALUES) for name in names}
    first = dict(itertools.islice(columns.items(), draw(st.integers(1, len(names)))))
    along = {name: values for name, values in columns.items() if name not in first}
    rows = stack.grid(**first)
    shape = [len(rows), *map(len, along.values())]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return rows, along, torch.rand(shape, generator=generator)


@given(COLUMNS)
def test_a_grid_is_every_combination_and_the_last_column_changes_first(columns):
    grid = stack.grid(**columns)
    assert list(grid) == list(columns)
    assert list(grid.itertuples(index=False, name=None)) == list(itertools.product(*columns.values()))
    assert grid.index.tolist() == list(range(len(grid)))


def test_the_columns_of_a_grid_keep_their_types():
    grid = stack.grid(name="alone", seed=range(2), rate=[0.5, 1.0], tuned=[True, False])
    assert pd.api.types.is_string_dtype(grid.name)
    assert grid.dtypes[["seed", "rate", "tuned"]].tolist() == [np.int64, np.float64, np.bool_]


@pytest.mark.parametrize("make", [list, tuple, iter, np.array, torch.tensor, pd.Series, pd.Index])
def test_a_column_may_be_any_list_of_numbers(make):
    assert stack.grid(seed=make([3, 1, 2])).equals(stack.grid(seed=[3, 1, 2]))


@pytest.mark.parametrize("number", [3, np.int64(3), np.array(3), torch.tensor(3)])
def test_a_single_number_is_a_list_of_one(number):
    assert stack.grid(seed=number, name="alone").to_dict("list") == {"seed": [3], "name": ["alone"]}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "a grid needs one or more columns"),
        ({"seed": []}, "column 'seed' is empty"),
        ({"seed": range(0)}, "column 'seed' is empty"),
        ({"seed": [1, 2, 1]}, r"column 'seed' names a value twice.*\[1, 2, 1\]"),
        ({"seed": torch.tensor([1, 1])}, r"column 'seed' names a value twice.*\[1, 1\]"),
        ({"hidden": [[64], [32, 32]]}, "column 'hidden' holds lists"),
    ],
)
def test_a_grid_whose_rows_could_not_be_told_apart_is_refused(columns, says):
    with pytest.raises(ParameterError, match=says):
        stack.grid(**columns)


@given(measured())
def test_a_table_has_one_row_an_observation_and_every_number_stands_behind_its_own(drawn):
    rows, along, numbers = drawn
    table = stack.table(rows, along, value=numbers)
    assert list(table) == [*rows, *along, "value"]
    assert len(table) == numbers.numel()
    assert table.index.tolist() == list(range(len(table)))
    assert table.value.mean() == pytest.approx(numbers.mean().item(), abs=1e-6)
    for place in np.ndindex(*numbers.shape):
        wanted = [*rows.iloc[place[0]], *(values[k] for values, k in zip(along.values(), place[1:], strict=True))]
        row = table.iloc[np.ravel_multi_index(place, numbers.shape)]
        assert row.tolist() == [*wanted, numbers[place].item()]


@given(measured())
def test_the_mean_over_a_group_is_the_mean_over_an_axis(drawn):
    rows, along, numbers = drawn
    table = stack.table(rows, along, value=numbers)
    for axis, (name, values) in enumerate(along.items(), start=1):
        others = [k for k in range(numbers.ndim) if k != axis]
        by_value = table.groupby(name, sort=False).value.mean()
        assert by_value.index.tolist() == values
        assert by_value.to_numpy() == pytest.approx(numbers.mean(dim=others).numpy(), abs=1e-6)


def test_a_table_over_some_rows_of_a_grid_starts_to_count_anew():
    some = GRID.query("method == 'matched'")
    table = stack.table(some, loss=torch.tensor([3.0, 4.0, 5.0]))
    assert table.to_dict("list") == {"method": ["matched"] * 3, "seed": [0, 1, 2], "loss": [3.0, 4.0, 5.0]}
    assert table.index.tolist() == [0, 1, 2]


def test_several_measurements_stand_side_by_side_in_their_own_types():
    hits, counts = torch.tensor([True, False]), np.array([7, 8])
    table = stack.table(stack.grid(seed=range(2)), loss=torch.rand(2, dtype=torch.float64), hit=hits, n=counts)
    assert table.dtypes.tolist() == [np.int64, np.float64, np.bool_, np.int64]
    assert table.hit.tolist() == [True, False]
    assert table.n.tolist() == [7, 8]


def test_a_table_is_a_copy_and_leaves_its_rows_alone():
    rows, loss = stack.grid(seed=range(2)), torch.tensor([1.0, 2.0], requires_grad=True)
    table = stack.table(rows, loss=loss)
    with torch.no_grad():
        loss += 1
    assert table.loss.tolist() == [1.0, 2.0]
    assert list(rows) == ["seed"]


def test_what_was_measured_on_a_second_device_is_told_as_well():
    loss = torch.tensor([1.0, 2.0])
    with second_device() as device:
        table = stack.table(stack.grid(seed=range(2)), loss=loss.to(device))
    assert table.loss.tolist() == [1.0, 2.0]


@given(measured(), st.data())
def test_a_tensor_of_another_shape_is_refused(drawn, data):
    rows, along, numbers = drawn
    axis = data.draw(st.integers(0, numbers.ndim - 1))
    wrong = torch.cat([numbers, numbers.narrow(axis, 0, 1)], dim=axis)
    with pytest.raises(ShapeError, match="'value' has shape"):
        stack.table(rows, along, value=wrong)


def test_a_shape_that_does_not_fit_is_told_with_the_axes():
    with pytest.raises(ShapeError, match=r"'loss' has shape \(5,\), expected \(6,\): one for each row of the grid\."):
        stack.table(GRID, loss=torch.zeros(5))
    says = r"'loss' has shape \(2, 6\), expected \(6, 2\): one for each row of the grid, then day\."
    with pytest.raises(ShapeError, match=says):
        stack.table(GRID, {"day": [1, 2]}, loss=torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("along", "measured", "says"),
    [
        ({}, {"seed": torch.zeros(6)}, "two columns would be called 'seed'"),
        ({"seed": [1]}, {"loss": torch.zeros(6, 1)}, "two columns would be called 'seed'"),
        ({"loss": [1]}, {"loss": torch.zeros(6, 1)}, "two columns would be called 'loss'"),
        ({"class": ["cat", "cat"]}, {"loss": torch.zeros(6, 2)}, "column 'class' names a value twice"),
        ({"day": []}, {"loss": torch.zeros(6, 0)}, "column 'day' is empty"),
    ],
)
def test_a_table_whose_columns_or_rows_could_not_be_told_apart_is_refused(along, measured, says):
    with pytest.raises(ParameterError, match=says):
        stack.table(GRID, along, **measured)


@given(st.sets(st.integers(0, 5)), st.booleans())
def test_the_index_of_some_rows_takes_their_models(chosen, backwards):
    models = stack.init(stack.mlp(3, [2], 2), copies=len(GRID), seed=0)
    rows = GRID[GRID.index.isin(chosen)].sort_index(ascending=not backwards)
    taken = stack.take(models, rows.index)
    assert stack.count(taken) == len(rows)
    for place, k in enumerate(sorted(chosen, reverse=backwards)):
        assert torch.equal(taken["1.weight"][place], models["1.weight"][k])


@pytest.mark.parametrize("column", ["method", "rate", "seen"])
def test_an_index_that_does_not_number_rows_takes_nothing(column):
    table = stack.grid(method=["alone", "matched"], rate=[0.0, 1.0], seen=[True, False])
    models = stack.init(stack.mlp(3, [2], 2), copies=len(table), seed=0)
    with pytest.raises(ParameterError, match="expected whole numbers: those of a grid's rows"):
        stack.take(models, table.set_index(column).index)
