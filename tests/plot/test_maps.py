import matplotlib.colors
import pytest
import torch

from paramarket import merge, plot, stack
from paramarket.errors import ParameterError


def test_a_heatmap_writes_every_number_on_one_scale(drawn):
    plot.cka_heatmap({"a": torch.eye(3), "b": torch.rand(3, 3)}, ["1", "2", "3"], ("A", "B"), "title")
    tables = drawn()[:2]
    assert [cells.get_clim() for axis in tables for cells in axis.collections] == [(0, 1), (0, 1)]
    assert [text.get_text() for text in tables[0].texts] == ["1.00", *["0.00"] * 3, "1.00", *["0.00"] * 3, "1.00"]


def test_a_map_of_shares_puts_like_rows_beside_each_other(drawn):
    table = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.2, 0.8]])
    plot.share_map(table, ["a", "b", "c", "d"], ("row", "column"), "title")
    names = [label.get_text() for label in drawn()[0].get_yticklabels()]
    assert {frozenset(names[:2]), frozenset(names[2:])} == {frozenset("ac"), frozenset("bd")}


def test_a_harm_table_names_every_field_and_is_white_at_zero(drawn):
    rows = {"honest": {"quote": torch.tensor([4.0, 6.0])}, "cheat": {"quote": torch.tensor([-9.0, -11.0])}}
    plot.harm_table(rows, ("seller", "rule", "points"), "title")
    axis = drawn()[0]
    assert [text.get_text().split("\n")[0] for text in axis.texts] == ["+5.0", "-10.0"]
    (cells,) = axis.collections
    assert cells.get_clim() == (-10, 10)
    assert sum(matplotlib.colors.to_rgb(cells.cmap(cells.norm(0)))) > 2.8


def test_matrices_share_one_scale_centred_at_zero(drawn):
    plot.matrices({"before": torch.randn(4, 4), "after": 3 * torch.eye(4)}, "cosine", ("A", "B"), "title")
    axes = drawn()
    assert [(axis.get_xlabel(), axis.get_ylabel()) for axis in axes[:2]] == [("B", "A")] * 2
    assert axes[0].figure.get_suptitle() == "title"
    limits = [cells.get_clim() for axis in axes[:2] for cells in axis.collections]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["1", "2", "3", "4"]
    assert limits[0] == limits[1]
    assert limits[0][0] == -limits[0][1] <= -3


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
