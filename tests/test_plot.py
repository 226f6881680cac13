import matplotlib.pyplot as plt
import pytest
import torch

from paramarket import plot
from paramarket.base import interval

SEEDS = torch.rand(5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def canvas(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    plot.style()
    yield
    plt.close("all")


def drawn():
    """The figure's axes, after a full drawing: a broken label or tick would raise here."""
    figure = plt.gcf()
    figure.canvas.draw()
    return figure.axes


def test_learning_curves_draw_mean_and_interval():
    values = torch.rand(5, 4)
    plot.learning_curves(range(4), {"A": values, "B": values + 1}, "title")
    (axis,) = drawn()
    assert torch.allclose(torch.tensor(axis.lines[0].get_ydata()), values.double().mean(0))
    low = axis.collections[0].get_paths()[0].vertices[:, 1].min()
    assert low == pytest.approx(interval(values).low.min())
    assert axis.get_title(loc="left") == "title"
    assert axis.get_xlabel() == "training (epochs)"


def test_share_bars_start_at_zero_and_carry_every_seed():
    plot.share_bars({"one": SEEDS, "other": SEEDS / 2}, "title", "share", guessing=0.1)
    (axis,) = drawn()
    assert axis.get_ylim()[0] == 0
    assert [bar.get_height() for bar in axis.patches] == pytest.approx(
        [SEEDS.mean().item(), SEEDS.mean().item() / 2], abs=1e-6
    )
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert sorted(dots[0].get_ydata()) == pytest.approx(sorted(SEEDS.tolist()))


def test_money_bars_add_up():
    plot.money_bars({"A": {"x": SEEDS, "y": SEEDS}, "B": {"x": SEEDS}}, "euros", "title")
    (axis,) = drawn()
    assert max(bar.get_x() + bar.get_width() for bar in axis.patches) == pytest.approx(
        2 * SEEDS.mean().item(), abs=1e-6
    )
    assert axis.get_xlabel() == "euros"


def test_the_other_pictures_draw():
    plot.image_row(torch.rand(3, 1, 8, 8), ["a", "b\nc", "d"], "title")
    assert len(drawn()) == 3
    plot.filters({"A": torch.randn(4, 8, 8), "B": torch.randn(4, 8, 8)}, 8, "title")
    assert [axis.get_title() for axis in drawn()][:4] == ["unit 8", "unit 9", "unit 10", "unit 11"]
    plot.layer_bars(["1", "2"], {"A": torch.rand(5, 2), "B": torch.rand(5, 2)}, "correlation", "title")
    assert len(drawn()[0].patches) == 4
    plot.class_accuracy(["a", "b"], {"A": torch.rand(5, 2), "B": torch.rand(5, 2)}, "title")
    assert [label.get_text() for label in drawn()[0].get_xticklabels()] == ["a", "b"]


def test_controls_stay_away_where_nobody_is_there_to_move_them():
    called = []
    plot.controls(lambda k: called.append(k), k=(0, 3))
    assert not called
