import numpy as np
import pandas as pd
import pytest
import torch

from paramarket import plot
from paramarket.base import interval


def error_bars(axis):
    """{(colour, row): (low, high)} of seaborn's error bars: lines without a mark, nan between their parts."""
    bars = {}
    for line in axis.lines:
        x, y = line.get_data()
        if line.get_marker() == "None" and np.isfinite(x).any():
            bars[line.get_color(), round(np.nanmean(y), 6)] = (np.nanmin(x), np.nanmax(x))
    return bars


SEEDS = torch.rand(5, generator=torch.Generator().manual_seed(0))


def test_ways_show_every_cost_and_cut_off_what_lies_far_below(drawn):
    good = {f"way {k}": (0.9 + SEEDS / 50, 1, 0.02) for k in range(4)}
    plot.ways(good | {"bad": (SEEDS / 10, 1, 0.0), "ensemble": (0.95 + SEEDS / 50, 3, 0.0)}, 0.5, "title")
    (axis,) = drawn()
    texts = [text.get_text() for text in axis.texts]
    assert sum("far below" in text for text in texts) == 1
    assert any("20 ms" in text for text in texts)
    assert any("3    1.50" in text for text in texts)
    assert axis.get_xlim()[0] > 0.7
    bars = error_bars(axis)
    assert len(bars) == 6
    assert bars[plot.COLOURS[0], 0] == pytest.approx(interval(good["way 0"][0])[1:])


ONE = {"one": torch.tensor([0.9, 1.0, 1.1])}
BOTH = ONE | {"mixed": torch.tensor([1.8, 2.0, 2.5])}
COSTS = [("1,000", "60"), ("9,000", "61"), ("8,000", "480")]


def sheet(*reached):
    rows = {"abc"[k]: plot.PriceRow(each, COSTS[k]) for k, each in enumerate(reached)}
    plot.price_sheet(rows, ["kept", "once"], "nats", "title")


def test_a_price_sheet_has_a_row_a_way_from_the_top_and_its_costs_beside_it_under_their_headers(drawn):
    sheet(BOTH, BOTH, ONE)
    (axis,) = drawn()
    assert (axis.get_title(), axis.get_title(loc="left"), axis.get_xlabel()).count("title") == 1
    assert axis.get_xlabel() == "nats"
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    assert axis.yaxis.get_inverted()
    at = {text.get_text(): text.xy for text in axis.texts}
    assert len(axis.texts) == len(at) == 8
    for row, texts in enumerate(COSTS):
        assert [at[text] for text in texts] == [(at["kept"][0], row), (at["once"][0], row)]
    assert 1 < at["kept"][0] < at["once"][0]
    assert at["kept"][1] == at["once"][1] < 0


def test_a_price_sheet_marks_every_mean_in_its_row_with_its_interval(drawn):
    sheet(BOTH, ONE)
    (axis,) = drawn()
    one, mixed = (line for line in axis.lines if line.get_marker() in "oD" and len(line.get_xdata()))
    assert one.get_xdata() == pytest.approx([1, 1])
    assert mixed.get_xdata() == pytest.approx([2.1, np.nan], nan_ok=True)
    assert one.get_color() != mixed.get_color()
    assert list(one.get_ydata()) == list(mixed.get_ydata()) == [0, 1]
    expected = {
        (one.get_color(), 0): ONE["one"],
        (one.get_color(), 1): ONE["one"],
        (mixed.get_color(), 0): BOTH["mixed"],
    }
    bars = error_bars(axis)
    assert bars.keys() == expected.keys()
    for place, values in expected.items():
        assert bars[place] == pytest.approx(interval(values)[1:])


@pytest.mark.parametrize("reached", [(BOTH, BOTH, BOTH), (BOTH, ONE), (ONE, BOTH)])
def test_the_legend_of_a_price_sheet_holds_each_kind_once(drawn, reached):
    sheet(*reached)
    (axis,) = drawn()
    assert [text.get_text() for text in axis.get_legend().texts] == ["one", "mixed"]


def test_class_accuracy_has_a_place_for_every_kind(drawn):
    rows = {"A": torch.rand(5, 2), "B": torch.rand(5, 2)}
    plot.class_accuracy(["a", "b"], rows, "title", "camera")
    (axis,) = drawn()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b"]
    assert axis.get_xlabel() == "camera"
    marks = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_ydata())]
    for line, values in zip(marks, rows.values(), strict=True):
        assert line.get_ydata() == pytest.approx(values.mean(dim=0).tolist())


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
