import json
import os
import struct

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


def test_layers_come_back_in_their_order(tmp_path):
    """safetensors sorts names by their letters: 11 before 3."""
    many = stack.init(stack.mlp(4, [3] * 6, 2), 1, seed=0)
    params = stack.take(many, 0)
    stack.save(tmp_path / "a.safetensors", params, {})
    assert list(stack.load(tmp_path / "a.safetensors")) == list(params)
    save_file(params, tmp_path / "foreign.safetensors")
    assert list(stack.load(tmp_path / "foreign.safetensors")) == list(params)


@pytest.mark.parametrize("order", ["[", "[1, 2]", '["w", "w"]', '{"w": 1}', "[" * 5000, "null"])
def test_an_order_that_is_none_changes_nothing(tmp_path, order):
    save_file({"w": torch.zeros(1), "b": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"order": order})
    assert equal(stack.load(tmp_path / "a.safetensors"), {"b": torch.ones(2), "w": torch.zeros(1)})


CARD = {
    "mean": "[0.1317373663187027, 0.0]",
    "std": "[0.3090158402919, 2.0]",
    "classes": '["0", "1"]',
    "shape": "[1, 28]",
}
SAME = [
    {"mean": "[0.1317373514175415, 0.0]"},
    {"mean": "[0.1317373663187027, -1e-09]"},
    {"mean": "[0.1317373663187027, 0]"},
    {"std": "[0.30901584, 2]"},
    {"std": "[ 0.3090158402919,2.0 ]"},
    {"shape": "[1,28]"},
]
OTHER = [
    {"mean": "[0.1318, 0.0]"},
    {"mean": "[0.1317373663187027, 0.001]"},
    {"mean": "[0.1317373663187027]"},
    {"mean": "[0.1317373663187027, NaN]"},
    {"mean": "[0.1317373663187027, null]"},
    {"mean": "[0.1317373663187027, false]"},
    {"mean": "0.1317373663187027"},
    {"mean": "[" * 5000},
    {"mean": "[0.1317373663187027, " + "9" * 400 + "]"},
    {"std": "[0.3090158402919, 2.001]"},
    {"std": "[0.3090158402919, Infinity]"},
    {"classes": '["1", "0"]'},
    {"classes": "[0, 1]"},
    {"shape": "[1, 29]"},
    {"shape": "[1, 28.5]"},
    {"shape": "[true, 28]"},
]


@pytest.mark.parametrize("change", SAME)
def test_numbers_on_a_card_agree_up_to_rounding(tmp_path, change):
    stack.save(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {**CARD, **change})
    assert equal(stack.load(tmp_path / "a.safetensors", CARD), {"w": torch.zeros(1)})


@pytest.mark.parametrize("change", OTHER)
def test_a_card_that_says_something_else_is_refused(tmp_path, change):
    stack.save(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {**CARD, **change})
    (field,) = change
    with pytest.raises(WeightsError, match=rf"a\.safetensors has another interface: {field} is"):
        stack.load(tmp_path / "a.safetensors", CARD)


@pytest.mark.parametrize("numbers", [1e-9, 1e9])
def test_what_is_small_is_compared_in_its_own_size(tmp_path, numbers):
    stack.save(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {"std": f"[{numbers}]", "mean": f"[{numbers}]"})
    for other in (1.001 * numbers, 2 * numbers, -numbers):
        with pytest.raises(WeightsError, match="another interface: std is"):
            stack.load(tmp_path / "a.safetensors", {"std": f"[{other}]"})
    stack.load(tmp_path / "a.safetensors", {"std": f"[{numbers * (1 + 1e-7)}]"})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_numbers_that_nothing_computes_with_are_refused_by_name(tmp_path, dtype):
    params = {"w": torch.ones(3).to(dtype)}
    save_file(params, tmp_path / "a.safetensors")
    for call in (lambda: stack.load(tmp_path / "a.safetensors"), lambda: stack.save(tmp_path / "b", params, {})):
        with pytest.raises(WeightsError, match=rf"'w' holds {dtype}, expected float16, bfloat16, float32 or float64"):
            call()
    assert not (tmp_path / "b").exists()


def test_whatever_is_no_file_of_weights_is_refused_with_its_name(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "zeros").write_bytes(bytes(100))
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "empty", "zeros", "link", "pipe", "nothing"):
        for read in (stack.load, stack.load_all, stack.card_of):
            with pytest.raises(WeightsError, match=f"{name} is (no file|missing|no readable safetensors file)"):
                read(tmp_path / name)


def with_header(path, header, body=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + body)


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
        {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 0]}},
        {"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}},
        {"w": {"dtype": "Q8", "shape": [1], "data_offsets": [0, 1]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}},
        {"__metadata__": {"a": 1}},
        b"[" * 100_000,
        b"\xff" * 20,
    ],
)
def test_a_header_that_claims_too_much_is_refused(tmp_path, header):
    with_header(tmp_path / "a.safetensors", header)
    for read in (stack.load, stack.load_all, stack.card_of):
        with pytest.raises(WeightsError, match=r"a\.safetensors is no readable safetensors file"):
            read(tmp_path / "a.safetensors")


@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_a_file_with_any_byte_changed_is_the_same_or_refused(tmp_path_factory, place, value, cut):
    folder = tmp_path_factory.mktemp("weights")
    params = stack.take(models((3, [2], 2), 1)[1], 0)
    stack.save(folder / "good", params, CARD)
    content = bytearray((folder / "good").read_bytes())
    place %= len(content)
    content[place] = value
    (folder / "a").write_bytes(content[:place] if cut else content)
    try:
        found = stack.load(folder / "a", CARD)
    except WeightsError as error:
        assert str(folder / "a") in str(error)  # noqa: PT017
        return
    assert all(torch.equal(found[name], params[name]) for name in params)
