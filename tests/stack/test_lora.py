import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from paramarket import stack
from paramarket.errors import ParameterError, ShapeError, WeightsError


class Reader(nn.Module):
    """One of each layer that an adapter can touch."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 5)
        self.conv = nn.Conv2d(3, 4, 2)
        self.mixer = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6))


NET = Reader()


def base_params(seed=0):
    return stack.take(stack.init(NET, 1, seed=seed), 0)


def write(folder, tensors, **config):
    """An adapter in the layout of PEFT."""
    folder.mkdir(exist_ok=True)
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": False, **config}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    save_file(
        {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


A, B = torch.randn(2, 5), torch.randn(6, 2)
LINEAR = {"mixer.0.lora_A.weight": A, "mixer.0.lora_B.weight": B}


def test_a_delta_is_alpha_over_rank_times_b_a(tmp_path):
    delta = stack.load_lora(write(tmp_path, LINEAR), base_params())
    assert list(delta) == ["mixer.0.weight"]
    assert torch.allclose(delta["mixer.0.weight"], 3 * B @ A)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"mixer.0": 8}}, 4),
        ({"alpha_pattern": {"0": 8}}, 4),
        ({"alpha_pattern": {"ixer.0": 8}}, 3),
        ({"lora_alpha": 0.5}, 0.25),
        ({"fan_in_fan_out": None, "alpha_pattern": None}, 3),
    ],
)
def test_the_scale_is_read_off_the_config(tmp_path, config, scale):
    delta = stack.load_lora(write(tmp_path, LINEAR, **config), base_params())
    assert torch.allclose(delta["mixer.0.weight"], scale * B @ A)


def test_the_rank_is_that_of_the_file_whatever_the_config_says_of_others(tmp_path):
    wide = {"mixer.0.lora_A.weight": torch.eye(5), "mixer.0.lora_B.weight": torch.ones(6, 5)}
    delta = stack.load_lora(write(tmp_path, wide, r=2, rank_pattern={"mixer.0": 5}, lora_alpha=10), base_params())
    assert torch.equal(delta["mixer.0.weight"], torch.full((6, 5), 2.0))


def test_convolutions_embeddings_and_turned_weights(tmp_path):
    kernel, out = torch.randn(2, 3, 2, 2), torch.randn(4, 2, 1, 1)
    words, dims = torch.randn(2, 7), torch.randn(5, 2)
    tensors = {"conv.lora_A.weight": kernel, "conv.lora_B.weight": out}
    tensors |= {"words.lora_embedding_A": words, "words.lora_embedding_B": dims}
    delta = stack.load_lora(write(tmp_path, tensors), base_params())
    assert torch.allclose(delta["conv.weight"], 3 * torch.einsum("or,rikl->oikl", out[:, :, 0, 0], kernel), atol=1e-5)
    assert torch.allclose(delta["words.weight"], 3 * (dims @ words).T)
    turned = {"mixer.0.weight": base_params()["mixer.0.weight"].T.contiguous()}
    found = stack.load_lora(write(tmp_path / "turned", LINEAR, fan_in_fan_out=True), turned)
    assert torch.allclose(found["mixer.0.weight"], 3 * (B @ A).T)


def test_what_is_stored_whole_becomes_a_difference(tmp_path):
    base = base_params()
    tensors = {**LINEAR, "mixer.0.bias": torch.ones(6), "mixer.1.modules_to_save.weight": torch.zeros(6)}
    delta = stack.load_lora(write(tmp_path, tensors, bias="all"), base)
    whole = stack.add(base, delta)
    assert torch.allclose(whole["mixer.0.bias"], torch.ones(6))
    assert torch.allclose(whole["mixer.1.weight"], torch.zeros(6))
    assert torch.equal(whole["conv.weight"], base["conv.weight"])


def test_a_bias_of_b_is_scaled_as_well(tmp_path):
    tensors = {**LINEAR, "mixer.0.lora_B.bias": torch.ones(6)}
    assert torch.equal(stack.load_lora(write(tmp_path, tensors), base_params())["mixer.0.bias"], torch.full((6,), 3.0))


def test_adapters_of_unlike_rank_are_a_stack_that_mixes(tmp_path):
    base = base_params()
    wide = {"mixer.0.lora_A.weight": torch.randn(4, 5), "mixer.0.lora_B.weight": torch.randn(6, 4)}
    deltas = [
        stack.load_lora(write(tmp_path / "two", LINEAR), base),
        stack.load_lora(write(tmp_path / "four", wide), base),
    ]
    both = stack.join([stack.add(base, delta) for delta in deltas])
    half = stack.take(stack.mix(torch.tensor([[0.5, 0.5]]), both), 0)
    expected = base["mixer.0.weight"] + sum(delta["mixer.0.weight"] for delta in deltas) / 2
    assert torch.allclose(half["mixer.0.weight"], expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8))
def test_what_is_written_is_the_best_of_its_rank_and_reads_back(tmp_path_factory, seed, rank):
    folder, base = tmp_path_factory.mktemp("lora"), base_params()
    generator = torch.Generator().manual_seed(seed)
    delta = {
        name: torch.randn(base[name].shape, generator=generator)
        for name in ("words.weight", "conv.weight", "mixer.0.weight")
    }
    error = stack.save_lora(folder, NET, delta, rank)
    back = stack.load_lora(folder, base)
    lost = whole = 0.0
    for name, change in delta.items():
        values = torch.linalg.svdvals(change.flatten(1).double())
        assert (back[name] - change).norm().item() == pytest.approx(values[rank:].norm().item(), abs=1e-4)
        lost += values[rank:].square().sum().item()
        whole += values.square().sum().item()
    assert error.share == pytest.approx((lost / whole) ** 0.5, abs=1e-6)
    assert not error.left_out


def test_what_no_product_can_be_counts_as_lost(tmp_path):
    delta = {"mixer.0.weight": torch.ones(6, 5), "mixer.0.bias": torch.full((6,), 5**0.5)}
    error = stack.save_lora(tmp_path / "new", NET, delta, 1)
    assert error.left_out == ["mixer.0.bias"]
    assert error.share == pytest.approx(0.5**0.5)
    assert set(load_file(tmp_path / "new" / "adapter_model.safetensors")) == {
        "base_model.model.mixer.0.lora_A.weight",
        "base_model.model.mixer.0.lora_B.weight",
    }
    told = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (told["peft_type"], told["r"], told["lora_alpha"]) == ("LORA", 1, 1)
    assert told["target_modules"] == ["mixer.0"]


def test_a_delta_of_nothing_loses_nothing(tmp_path):
    assert stack.save_lora(tmp_path, NET, {"mixer.0.weight": torch.zeros(6, 5)}, 2).share == 0


@pytest.mark.parametrize(
    ("tensors", "config", "kind", "says"),
    [
        ({"mixer.0.lora_A.weight": A}, {}, WeightsError, "'mixer.0' has no lora_B"),
        ({"mixer.9.lora_A.weight": A, "mixer.9.lora_B.weight": B}, {}, ShapeError, "mixer.9.weight"),
        ({"mixer.0.lora_A.weight": A.T, "mixer.0.lora_B.weight": B}, {}, ShapeError, "share no rank"),
        ({"mixer.0.lora_A.weight": A, "mixer.0.lora_B.weight": B[:4]}, {}, ShapeError, r"is no \(6, 5\)"),
        ({**LINEAR, "mixer.0.lora_magnitude_vector": A[0].clone()}, {}, WeightsError, "merge it into its base first"),
        (LINEAR, {"use_dora": True}, WeightsError, "DoRA"),
        (LINEAR, {"peft_type": "IA3"}, WeightsError, "describes no LoRA adapter"),
        (LINEAR, {"lora_alpha": "six"}, ParameterError, "lora_alpha = 'six'"),
        ({"mixer.0.lora_A.weight": A * torch.nan, "mixer.0.lora_B.weight": B}, {}, WeightsError, "NaN"),
        ({**LINEAR, "mixer.1.weight": torch.ones(3)}, {}, ShapeError, r"'mixer.1.weight' has shape \(3,\)"),
    ],
)
def test_what_is_no_adapter_of_this_base_is_refused_by_name(tmp_path, tensors, config, kind, says):
    with pytest.raises(kind, match=says):
        stack.load_lora(write(tmp_path, tensors, **config), base_params())


def test_files_that_are_missing_pickled_or_damaged_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"adapter_config\.json, which says how"):
        stack.load_lora(tmp_path, base_params())
    write(tmp_path, LINEAR)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(WeightsError, match="is a pickle"):
        stack.load_lora(tmp_path, base_params())
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        stack.load_lora(tmp_path, base_params())


def test_a_delta_for_another_base_is_not_added_and_what_cannot_be_written_is_refused(tmp_path):
    base = base_params()
    with pytest.raises(ShapeError, match="nowhere"):
        stack.add(base, {"nowhere": torch.ones(1)})
    with pytest.raises(ShapeError, match=r"'conv.bias' has shape \(1,\), the base's has \(4,\)"):
        stack.add(base, {"conv.bias": torch.ones(1)})
    with pytest.raises(ParameterError, match="rank = 0"):
        stack.save_lora(tmp_path / "x", NET, {"mixer.0.weight": torch.ones(6, 5)}, 0)
    with pytest.raises(WeightsError, match="no matrix"):
        stack.save_lora(tmp_path / "x", NET, {"mixer.0.bias": torch.ones(6)}, 1)
    with pytest.raises(WeightsError, match="NaN or infinite"):
        stack.save_lora(tmp_path / "x", NET, {"mixer.0.weight": torch.full((6, 5), torch.nan)}, 1)
    assert not (tmp_path / "x").exists()
