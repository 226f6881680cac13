import torch

from paramarket import plot


def test_an_image_row_captions_every_image(drawn):
    plot.image_row(torch.rand(3, 1, 8, 8), ["a", "b\nc", "d"], "title")
    assert [axis.get_title() for axis in drawn()] == ["a", "b\nc", "d"]


def test_filters_number_their_units(drawn):
    plot.filters({"A": torch.randn(4, 8, 8), "B": torch.randn(4, 8, 8)}, 8, "title")
    assert [axis.get_title() for axis in drawn()][:4] == ["unit 8", "unit 9", "unit 10", "unit 11"]
