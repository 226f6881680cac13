import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from paramarket import plot
from paramarket.errors import ParameterError

SCHEMATICS = [plot.soup_schematic, plot.mask_schematic]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def squares(axis):
    """The colours of every matrix that is drawn, [matrices, rows, columns, 3]."""
    filled = [patch for patch in axis.patches if type(patch) is Rectangle and patch.get_fill()]
    small = [patch.get_facecolor()[:3] for patch in filled if patch.get_width() == pytest.approx(0.2)]
    return np.array(small).reshape(-1, 5, 5, 3)


@pytest.mark.parametrize("experts", [1, 2, 3, 4])
def test_a_soup_is_drawn_as_a_base_its_experts_and_their_sum(drawn, experts):
    plot.soup_schematic(experts)
    (axis,) = drawn()
    assert len(squares(axis)) == experts + 2
    said = texts(axis)
    assert said.count("+") == experts
    assert said.count("=") == 1
    for i in range(1, experts + 1):
        assert f"expert $E_{i}$" in said
        assert any(text.startswith(rf"$\alpha_{i}$ = ") for text in said)


@pytest.mark.parametrize("experts", [1, 2, 3, 4])
def test_a_task_is_drawn_as_the_pretrained_weights_but_where_a_mask_is_open(drawn, experts):
    plot.mask_schematic(experts)
    (axis,) = drawn()
    change, *masks, added, pretrained, network = squares(axis)
    assert len(masks) == experts
    is_open = [(mask < 1).any(axis=-1) for mask in masks]
    for mask, through in zip(masks, is_open, strict=True):
        assert through.sum() == 4
        assert np.array_equal(mask[through], change[through])
    touched = np.any(is_open, axis=0)
    assert (added[~touched] == 1).all()
    assert np.array_equal(network[touched], added[touched])
    assert np.array_equal(network[~touched], pretrained[~touched])
    alphas = [float(text.split("= ")[1]) for text in texts(axis) if text.startswith("× ")]
    assert sum(alphas) == pytest.approx(1)


@pytest.mark.parametrize("draw", SCHEMATICS)
def test_a_schematic_is_the_same_at_every_call_and_names_lie_within_it(drawn, draw):
    pictures = []
    for _ in range(2):
        draw()
        (axis,) = drawn()
        figure = axis.figure
        pictures.append(np.array(figure.canvas.buffer_rgba()))
        for text in filter(Text.get_text, axis.texts):  # an arrow is a text without one
            box = text.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= figure.bbox.width, text.get_text()
            assert 0 <= box.y0 < box.y1 <= figure.bbox.height, text.get_text()
        assert axis.get_title(loc="left")
        plt.close(figure)
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("draw", SCHEMATICS)
@pytest.mark.parametrize("experts", [-1, 0, 5])
def test_more_experts_than_can_be_told_apart_or_none_are_refused(draw, experts):
    with pytest.raises(ParameterError, match=rf"^experts = {experts}[:,] expected"):
        draw(experts)
