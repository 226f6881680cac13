import pytest
import torch

from paramarket import plot


def test_a_purchase_is_read_off_at_its_own_height(drawn):
    curve = torch.tensor([[0.5, 0.6, 0.8], [0.6, 0.7, 0.8]])
    plot.labels_curve([0, 50, 400], curve, {"free": (torch.tensor([0.7, 0.72]), torch.tensor([200.0, 210.0]))}, "t")
    (axis,) = drawn()
    dropped = axis.lines[1]
    assert dropped.get_xdata() == pytest.approx([0, 205, 205])
    assert dropped.get_ydata()[0] == pytest.approx(0.71)
    assert [text.get_text() for text in axis.texts] == ["≈ 205"]
