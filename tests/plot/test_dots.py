import pandas as pd
import torch

from paramarket import plot
from paramarket.base import interval


def test_a_purchase_is_a_row_with_what_was_told_audited_and_true(drawn):
    audited = interval(torch.rand(50, 3).numpy(), "examples")
    plot.gain_rows(["x", "y", "z"], torch.tensor([1.0, 2.0, 3.0]), audited, torch.tensor([0.5, 1.5, 2.5]), "title")
    (axis,) = drawn()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["x", "y", "z"]
    data = [list(line.get_xdata()) for line in axis.lines]
    assert [1.0, 2.0, 3.0] in data
    assert [0.5, 1.5, 2.5] in data
    assert audited.low.tolist() in data


def test_dots_stand_on_what_was_measured_with_its_own_interval(drawn):
    table = pd.DataFrame({"way": ["a", "b", "c"]})
    for measure in ("gain", "change"):
        table[measure] = [0.0, 2.0, -1.0]
        table[f"{measure}_low"] = [-1.0, 1.5, -3.0]
        table[f"{measure}_high"] = [0.5, 4.0, 0.0]
    plot.interval_dots(table, "way", {"gain": "points", "change": "lost"}, "title", limits={"change": -1.0})
    for axis, words in zip(drawn(), ["points", "lost"], strict=True):
        dots, lines = axis.collections[1], axis.collections[0]
        assert axis.get_xlabel() == words
        assert dots.get_offsets().tolist() == [[0, 0], [2, 1], [-1, 2]]
        assert [segment[:, 0].tolist() for segment in lines.get_segments()] == [[-1, 0.5], [1.5, 4], [-3, 0]]
        assert axis.yaxis.get_inverted()
    assert [label.get_text() for label in drawn()[0].get_yticklabels()] == ["a", "b", "c"]
    assert [axis.lines[0].get_xdata()[0] for axis in drawn()] == [0.0, -1.0]
