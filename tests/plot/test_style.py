import pytest
import torch

from paramarket import plot

SEEDS = torch.rand(5, generator=torch.Generator().manual_seed(0))


def test_money_bars_add_up(drawn):
    plot.money_bars({"A": {"x": SEEDS, "y": SEEDS}, "B": {"x": SEEDS}}, "euros", "title")
    (axis,) = drawn()
    widest = max(bar.get_x() + bar.get_width() for bar in axis.patches)
    assert widest == pytest.approx(2 * SEEDS.mean().item(), abs=1e-6)
    assert axis.get_xlabel() == "euros"


def test_class_accuracy_has_a_place_for_every_kind(drawn):
    plot.class_accuracy(["a", "b"], {"A": torch.rand(5, 2), "B": torch.rand(5, 2)}, "title")
    assert [label.get_text() for label in drawn()[0].get_xticklabels()] == ["a", "b"]


def test_controls_stay_away_where_nobody_is_there_to_move_them():
    called = []
    plot.controls(lambda k: called.append(k), k=(0, 3))
    assert not called
