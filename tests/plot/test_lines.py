import pytest
import torch

from paramarket import plot
from paramarket.base import interval


def test_curves_draw_mean_and_interval(drawn):
    values = torch.rand(5, 4)
    plot.curves(range(4), {"": {"A": values, "B": values + 1}}, ("day", "share"), "title")
    (axis,) = drawn()
    for shift, line, band in zip((0, 1), axis.lines, axis.collections, strict=False):
        mean, low, high = (each + shift for each in interval(values))
        assert line.get_ydata() == pytest.approx(mean)
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((low.min(), high.max()))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("day", "share")
    assert axis.figure.get_suptitle() == "title"


def test_a_line_keeps_its_colour_in_every_panel(drawn):
    a, b, c = torch.rand(3, 5, 2)
    plot.curves([0, 1], {"one": {"a": a, "b": b}, "other": {"b": b, "c": c}}, ("x", "y"), "title")
    one, other = drawn()
    by_height = {line.get_ydata()[0]: line.get_color() for line in one.lines if len(line.get_ydata())}
    again = {line.get_ydata()[0]: line.get_color() for line in other.lines if len(line.get_ydata())}
    (shared,) = by_height.keys() & again.keys()
    assert by_height[shared] == again[shared]
    assert len({*by_height.values(), *again.values()}) == 3


def test_curves_share_ticks_and_one_legend(drawn):
    lines = {"A": torch.rand(5, 3), "B": torch.rand(5, 3)}
    plot.curves([0, 10, 20], {"20°": lines, "30°": lines}, ("steps", "loss"), "title")
    axes = drawn()
    assert [axis.get_title(loc="left") for axis in axes] == ["20°", "30°"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0", "10", "20"]
    assert [text.get_text() for text in axes[0].figure.legends[0].texts] == ["A", "B"]


def test_sweeps_have_a_panel_a_setting_and_name_its_values(drawn):
    numbers, ends = {"matched": torch.rand(5, 2)}, torch.tensor([[0.8, 0.9]] * 5)
    panels = {"width": ([16, 512], numbers, ends), "learning_rate": ([5e-4, 0.1], numbers, ends)}
    plot.sweeps(panels, "barrier", "title")
    first, second = drawn()
    assert [label.get_text() for label in first.get_xticklabels()] == ["16\n80%", "512\n90%"]
    assert second.get_xlabel() == "learning rate"
    assert first.get_ylabel() == "barrier"


def test_a_purchase_is_read_off_at_its_own_height(drawn):
    curve = torch.tensor([[0.5, 0.6, 0.8], [0.6, 0.7, 0.8]])
    plot.labels_curve([0, 50, 400], curve, {"free": (torch.tensor([0.7, 0.72]), torch.tensor([200.0, 210.0]))}, "t")
    (axis,) = drawn()
    dropped = axis.lines[1]
    assert dropped.get_xdata() == pytest.approx([0, 205, 205])
    assert dropped.get_ydata()[0] == pytest.approx(0.71)
    assert [text.get_text() for text in axis.texts] == ["≈ 205"]
