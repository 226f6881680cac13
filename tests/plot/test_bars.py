import pytest
import torch

from paramarket import plot

SEEDS = torch.rand(5, generator=torch.Generator().manual_seed(0))


def test_share_bars_start_at_zero_and_carry_every_seed(drawn):
    plot.share_bars({"one": SEEDS, "other": SEEDS / 2}, "title", "share", guessing=0.1)
    (axis,) = drawn()
    assert axis.get_ylim()[0] == 0
    heights = [SEEDS.mean().item(), SEEDS.mean().item() / 2]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx(heights, abs=1e-6)
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert sorted(dots[0].get_ydata()) == pytest.approx(sorted(SEEDS.tolist()))


def test_layer_bars_have_one_bar_a_layer_and_name(drawn):
    plot.layer_bars(["1", "2"], {"A": torch.rand(5, 2), "B": torch.rand(5, 2)}, "correlation", "title")
    assert len(drawn()[0].patches) == 4


def test_money_bars_add_up(drawn):
    plot.money_bars({"A": {"x": SEEDS, "y": SEEDS}, "B": {"x": SEEDS}}, "euros", "title")
    (axis,) = drawn()
    widest = max(bar.get_x() + bar.get_width() for bar in axis.patches)
    assert widest == pytest.approx(2 * SEEDS.mean().item(), abs=1e-6)
    assert axis.get_xlabel() == "euros"


def test_surplus_bars_are_as_long_as_what_there_is_and_name_the_share_that_is_kept(drawn):
    half = torch.tensor([0.5, 0.5])
    rounded = {"buyer": half, "seller": half, "lost": torch.tensor([1e-16, -2e-16])}
    bars = {
        "all": {"buyer": half, "seller": half},
        "rounded": rounded,
        "some": {"buyer": half, "seller": half / 2, "lost": half / 2},
    }
    plot.surplus_bars({**bars, "none": {"buyer": 0 * half}}, "euros", "title")
    (axis,) = drawn()
    assert [text.get_text() for text in axis.texts] == [
        "all kept",
        "all kept",
        "75.0% kept; lost 0.25 [0.25, 0.25]",
        "nothing there",
    ]
    assert max(bar.get_x() + bar.get_width() for bar in axis.patches) == pytest.approx(1)
    assert [text.get_text() for text in axis.get_legend().texts] == ["buyer", "seller", "lost"]
