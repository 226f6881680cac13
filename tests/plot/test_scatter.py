import pytest
import torch

from paramarket import plot


def test_a_trail_shows_every_seed_and_goes_along_the_means(drawn):
    x, y = torch.rand(5, 4), torch.rand(5, 4)
    plot.trails({"20°": (x, y)}, ("CKA", "loss"), "title")
    (axis,) = drawn()
    (dots,) = axis.collections
    spots = torch.tensor(dots.get_offsets().data).float()
    assert set(map(tuple, spots.tolist())) == set(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
    line = axis.lines[0]
    assert torch.allclose(torch.tensor(line.get_ydata()), y.mean(dim=0).double(), atol=1e-6)
    assert [text.get_text() for text in axis.get_legend().texts] == ["20°"]


def test_a_frontier_places_each_setting_at_its_mean_with_its_interval(drawn):
    line, knob = (plot.Spots(labels, *torch.rand(3, 2, 5)) for labels in ([0, 10], [0.5, 1]))
    plot.frontier(line, {"knob": knob}, ("own", "merged", "CKA"), "title")
    axis = drawn()[0]
    assert [text.get_text() for text in axis.texts] == ["0", "10", "0.5", "1"]
    means = [*line.x.mean(dim=1).tolist(), *knob.x.mean(dim=1).tolist()]
    assert [text.xy[0] for text in axis.texts] == pytest.approx(means, abs=1e-6)
    assert [text.get_text() for text in axis.figure.legends[0].texts] == ["free, stopped at a step", "knob"]


def test_a_plane_has_every_method_at_its_mean(drawn):
    spots = {name: (torch.rand(5), torch.rand(5)) for name in ("a", "b")}
    plot.method_plane(spots, ("in", "out"), "title")
    axis = drawn()[0]
    at = [(line.lines[0].get_xdata()[0], line.lines[0].get_ydata()[0]) for line in axis.containers]
    assert at == [pytest.approx((x.mean().item(), y.mean().item()), abs=1e-6) for x, y in spots.values()]
    assert [text.get_text() for text in axis.figure.legends[0].texts] == ["a", "b"]
