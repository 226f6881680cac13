import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orders import equal
from safetensors.torch import save_file
from torch import nn

from paramarket import stack
from paramarket.errors import WeightsError

SHAPES = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 8), max_size=3), st.integers(2, 5))


def models(shape, copies, seed=0):
    net = stack.mlp(*shape)
    return net, stack.init(net, copies, seed)


@given(SHAPES)
def test_saving_and_loading_is_exact(tmp_path_factory, digits, shape):
    net, many = models(shape, 1)
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    card = stack.card(net, digits)
    stack.save(path, stack.take(many, 0), card)
    assert equal(stack.load(path, card), stack.take(many, 0))
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_another_interface_is_refused_by_field(tmp_path, digits):
    net, many = models((64, [4], 10), 1)
    card = stack.card(net, digits)
    stack.save(tmp_path / "a.safetensors", stack.take(many, 0), card)
    with pytest.raises(WeightsError, match=r"another interface: classes is \[.*\], expected other"):
        stack.load(tmp_path / "a.safetensors", {**card, "classes": "other"})
    save_file(stack.take(many, 0), tmp_path / "bare.safetensors")
    assert equal(stack.load(tmp_path / "bare.safetensors"), stack.take(many, 0))
    with pytest.raises(WeightsError, match="architecture is no such entry"):
        stack.load(tmp_path / "bare.safetensors", card)


def test_a_pickle_is_refused_with_the_conversion(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"is a pickle.*refused.*weights_only=True.*a\.safetensors"):
        stack.load(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    bad = {"w": torch.tensor([1.0, value])}
    with pytest.raises(WeightsError, match="'w' holds values that are NaN or infinite"):
        stack.save(tmp_path / "a.safetensors", bad, {})
    assert not list(tmp_path.iterdir())
    save_file(bad, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="'w' holds values that are NaN or infinite"):
        stack.load(tmp_path / "a.safetensors")


def test_damaged_and_missing_files_are_refused(tmp_path, digits):
    net, many = models((64, [4], 10), 1)
    path = tmp_path / "a.safetensors"
    stack.save(path, stack.take(many, 0), stack.card(net, digits))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged: its tensors do not have the content hash"):
        stack.load(path)
    path.write_bytes(content[:40])
    with pytest.raises(WeightsError, match="no readable safetensors file"):
        stack.load(path)
    with pytest.raises(WeightsError, match="is missing"):
        stack.load(tmp_path / "b.safetensors")


def test_integer_buffers_are_left_out_and_kept_by_the_module(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    params = stack.load(tmp_path / "a.safetensors")
    assert "1.num_batches_tracked" not in params
    net[1].num_batches_tracked += 7
    assert not net.load_state_dict(params, strict=False).unexpected_keys
    assert net[1].num_batches_tracked == 7
