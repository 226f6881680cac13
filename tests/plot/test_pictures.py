import torch

from paramarket import merge, plot, stack


def test_an_image_row_captions_every_image(drawn):
    plot.image_row(torch.rand(3, 1, 8, 8), ["a", "b\nc", "d"], "title")
    assert [axis.get_title() for axis in drawn()] == ["a", "b\nc", "d"]


def test_filters_number_their_units(drawn):
    plot.filters({"A": torch.randn(4, 8, 8), "B": torch.randn(4, 8, 8)}, 8, "title")
    assert [axis.get_title() for axis in drawn()][:4] == ["unit 8", "unit 9", "unit 10", "unit 11"]


def test_matrices_share_one_scale_centred_at_zero(drawn):
    plot.matrices({"before": torch.randn(4, 4), "after": 3 * torch.eye(4)}, "cosine", "title", ("A", "B"))
    limits = [image.get_clim() for axis in drawn() for image in axis.images]
    assert limits[0] == limits[1]
    assert limits[0][0] == -limits[0][1] <= -3


def test_a_loss_plane_marks_the_three_models_where_they_lie(drawn):
    models = stack.init(stack.mlp(4, [3], 2), 3, seed=0)
    plane = merge.plane(*(stack.take(models, k) for k in range(3)), steps=5)
    plot.loss_plane(plane, torch.rand(25) + 0.1, ["A", "B", "C"], "title")
    axis = drawn()[0]
    marked = torch.tensor([[float(line.get_xdata()[0]), float(line.get_ydata()[0])] for line in axis.lines])
    assert torch.allclose(marked, plane.corners.float())
    distances = plane.corners.norm(dim=1)[1:].tolist()
    away = [f"{name}\n{far:.0f} away" for name, far in zip("BC", distances, strict=True)]
    assert [text.get_text() for text in axis.texts] == ["A", *away]
