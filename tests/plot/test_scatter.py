import pytest
import torch

from paramarket import plot


def test_a_plane_has_every_method_at_its_mean(drawn):
    spots = {name: (torch.rand(5), torch.rand(5)) for name in ("a", "b")}
    plot.method_plane(spots, ("in", "out"), "title")
    axis = drawn()[0]
    at = [(line.lines[0].get_xdata()[0], line.lines[0].get_ydata()[0]) for line in axis.containers]
    assert at == [pytest.approx((x.mean().item(), y.mean().item()), abs=1e-6) for x, y in spots.values()]
    assert [text.get_text() for text in axis.figure.legends[0].texts] == ["a", "b"]
