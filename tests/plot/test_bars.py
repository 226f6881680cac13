import numpy as np
import pandas as pd
import pytest
import torch

from paramarket import plot

SEEDS = torch.rand(5, generator=torch.Generator().manual_seed(0))


def ends(bar):
    """Where an error bar of seaborn begins and ends."""
    return np.nanmin(bar.get_ydata()), np.nanmax(bar.get_ydata())


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
        "75% kept",
        "nothing there",
    ]
    assert max(bar.get_x() + bar.get_width() for bar in axis.patches) == pytest.approx(1)
    assert [text.get_text() for text in axis.get_legend().texts] == ["buyer", "seller", "lost"]


def test_a_waterfall_steps_from_zero_to_the_sum(drawn):
    table = pd.DataFrame(
        {
            "what": ["saved", "nothing", "lost ground", "price"],
            "money": [100.0, 0.0, -30.0, -90.0],
            "sort": ["benefit", "benefit", "benefit", "cost"],
        }
    )
    plot.waterfall(table, "what", "money", "sort", "title", "€")
    (axis,) = drawn()
    spans = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in axis.patches]
    assert spans == [(0, 100), (100, 70), (70, -20), (0, -20)]
    up, down, worse, net = [bar.get_facecolor() for bar in axis.patches]
    assert down == worse
    assert len({up, down, net}) == 3
    assert [label.get_text() for label in axis.get_xticklabels()] == ["saved", "lost ground", "price", "net"]
    texts = {text.get_text(): text.xy for text in axis.texts}
    assert list(texts) == ["+100", "−30", "−90", "−20", "benefits", "costs"]
    assert texts["benefits"][0] == 0.5
    assert texts["costs"][0] == 2
    low, high = axis.get_ylim()
    assert low < -20
    assert high > 100
    assert axis.get_ylabel() == "€"
