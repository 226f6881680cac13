"""The table that says which model of a stack is which, and what was measured of each.

Row k of a grid stands for model k. What is measured goes behind the rows: one row an observation, as pandas and seaborn
want it.
"""

from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Shaped
from torch import Tensor

from paramarket.errors import ParameterError, ShapeError


def grid(**columns: object) -> pd.DataFrame:
    """Every combination of the columns' values, one row a model; the last column changes first.

    A column is a list (or a range, an array, a tensor) of values that differ; a single text or number is a list of one.
    Raises ParameterError for a column that is empty or names a value twice.

    >>> from paramarket import stack
    >>> stack.grid(method=["alone", "matched"], seed=range(2))
        method  seed
    0    alone     0
    1    alone     1
    2  matched     0
    3  matched     1
    """
    values = {name: _values(name, column) for name, column in columns.items()}
    if not values:
        raise ParameterError("a grid needs one or more columns, such as stack.grid(seed=range(5)).")
    return pd.MultiIndex.from_product(values.values(), names=values).to_frame(index=False)


def _values(name: str, column: object) -> list[object]:
    if isinstance(column, (Tensor, np.ndarray)):
        column = column.tolist()  # two tensors that hold one number are not equal to Python
    is_list = isinstance(column, Iterable) and not isinstance(column, (str, bytes))
    values = list(column) if is_list else [column]
    if not values:
        raise ParameterError(f"column {name!r} is empty: there would be no row.")
    if not all(isinstance(value, Hashable) for value in values):
        raise ParameterError(f"column {name!r} holds lists: expected texts or numbers, {values} are none.")
    if len(set(values)) < len(values):
        raise ParameterError(f"column {name!r} names a value twice, and rows could not be told apart: {values}.")
    return values


def table(
    rows: pd.DataFrame,
    along: Mapping[str, Iterable[object]] | None = None,
    **measured: Shaped[Tensor, "K ..."] | np.ndarray,
) -> pd.DataFrame:
    """The rows of a grid with what was measured behind them: one row an observation.

    along: the further axes of what was measured, by name, and the values along each: {"day": range(10), "agent": names}
    for tensors [K, 10, agents]. Every tensor, or array, becomes a column under its own name.
    Raises ShapeError for one that is not [K, *along], ParameterError for a name that is there already, and for an axis
    that names a value twice.

    >>> import torch
    >>> from paramarket import stack
    >>> right = torch.tensor([[1.0, 0.5], [0.75, 0.25]])
    >>> stack.table(stack.grid(network=["A", "B"]), {"kind": ["cat", "dog"]}, accuracy=right)
      network kind  accuracy
    0       A  cat      1.00
    1       A  dog      0.50
    2       B  cat      0.75
    3       B  dog      0.25
    """
    along = {name: _values(name, values) for name, values in (along or {}).items()}
    shape = (len(rows), *map(len, along.values()))
    for name in [*along, *measured]:
        if name in rows or (name in along and name in measured):
            raise ParameterError(f"two columns would be called {name!r}: rename one of them.")
    for name, tensor in measured.items():
        if tuple(tensor.shape) != shape:
            axes = ", then ".join(["one for each row of the grid", *along])
            raise ShapeError(f"{name!r} has shape {tuple(tensor.shape)}, expected {shape}: {axes}.")
    places = pd.MultiIndex.from_product([range(len(rows)), *along.values()]).to_frame(index=False)
    repeated = rows.iloc[places[0]].reset_index(drop=True)
    for k, name in enumerate(along, start=1):
        repeated[name] = places[k]
    for name, tensor in measured.items():
        numbers = tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else tensor
        repeated[name] = numbers.flatten()
    return repeated
