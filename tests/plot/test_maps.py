import pytest
import torch

from paramarket import merge, plot, stack
from paramarket.errors import ParameterError


def test_a_heatmap_writes_every_number_on_one_scale(drawn):
    plot.cka_heatmap({"a": torch.eye(3), "b": torch.rand(3, 3)}, ["1", "2", "3"], ("A", "B"), "title")
    tables = drawn()[:2]
    assert [cells.get_clim() for axis in tables for cells in axis.collections] == [(0, 1), (0, 1)]
    assert [text.get_text() for text in tables[0].texts] == ["1.00", *["0.00"] * 3, "1.00", *["0.00"] * 3, "1.00"]


def test_a_loss_plane_marks_the_three_models_where_they_lie(drawn):
    models = stack.init(stack.mlp(4, [3], 2), 3, seed=0)
    plane = merge.plane(*(stack.take(models, k) for k in range(3)), points=5)
    plot.loss_plane(plane, torch.rand(25) + 0.1, ["A", "B", "C"], "title")
    axis = drawn()[0]
    marked = torch.tensor([[float(line.get_xdata()[0]), float(line.get_ydata()[0])] for line in axis.lines])
    assert torch.allclose(marked, plane.corners.float())
    distances = plane.corners.norm(dim=1)[1:].tolist()
    away = [f"{name}\n{far:.0f} away" for name, far in zip("BC", distances, strict=True)]
    assert [text.get_text() for text in axis.texts] == ["A", *away]


def test_a_map_of_categories_colours_each_place_and_names_those_that_occur():
    places = stack.grid(x=[0.0, 1.0], y=[0.0, 0.5, 1.0])
    places["what"] = ["a", "a", "c", "a", "c", "c"]
    axis = plot.category_map(places, "x", "y", "what", {"a": "red", "b": "green", "c": "blue"}, "title")
    (mesh,) = axis.collections
    assert mesh.get_array().tolist() == [[0, 0], [0, 2], [2, 2]]  # a row for each y, a column for each x
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "c"]
    assert len({tuple(mesh.cmap(mesh.norm(code))) for code in range(3)}) == 3
    with pytest.raises(ParameterError, match=r"no colour for \['c'\]"):
        plot.category_map(places, "x", "y", "what", {"a": "red", "b": "green"}, "title")
