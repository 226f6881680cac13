import multiprocessing
import shutil

import pytest
import torch

from paramarket import base, errors, runs, stack
from paramarket.runs import cache


def noise(shape, seed):
    return {"w": torch.randn(shape, generator=base.stream(seed))}


def test_cached_builds_once_and_is_exact(tmp_path):
    first, again = (runs.cached(noise, folder=tmp_path, shape=[3], seed=0) for _ in range(2))
    assert torch.equal(first["w"], noise([3], 0)["w"])
    assert torch.equal(first["w"], again["w"])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["input", "source", "threads"])
def test_cached_builds_again_when_anything_it_was_made_from_changes(tmp_path, monkeypatch, change):
    runs.cached(noise, folder=tmp_path, shape=[3], seed=0)
    build = noise
    if change == "source":

        def build(shape, seed):
            return {"w": torch.zeros(shape)}

    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    runs.cached(build, folder=tmp_path, shape=[3], seed=int(change == "input"))
    assert len(list(tmp_path.iterdir())) == 2


def test_cached_tells_data_nets_and_tensors_apart_by_content(tmp_path, digits):
    def build(**inputs):
        return {"w": torch.zeros(1)}

    inputs = [{"x": digits.train}, {"x": digits.test}, {"x": stack.mlp(3, [4], 2)}, {"x": stack.mlp(3, [5], 2)}]
    inputs += [{"x": torch.zeros(2)}, {"x": torch.ones(2)}, {"x": {"a": 1}}]
    for each in inputs * 2:
        runs.cached(build, folder=tmp_path, **each)
    assert len(list(tmp_path.iterdir())) == len(inputs)
    with pytest.raises(errors.ParameterError, match="cannot tell the content of a object"):
        runs.cached(build, folder=tmp_path, x=object())


def test_a_damaged_artefact_is_built_again_and_a_failed_one_leaves_nothing(tmp_path):
    runs.cached(noise, folder=tmp_path, shape=[3], seed=0)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:20], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        assert torch.equal(runs.cached(noise, folder=tmp_path, shape=[3], seed=0)["w"], noise([3], 0)["w"])
    assert torch.equal(runs.cached(noise, folder=tmp_path, shape=[3], seed=0)["w"], noise([3], 0)["w"])

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.cached(broken, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def _build_in_child(folder):
    return runs.cached(noise, folder=folder, shape=[200_000], seed=0)["w"].sum().item()


def test_two_runs_at_once_do_not_collide(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_build_in_child, [tmp_path] * 4)
    assert len(set(sums)) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["base.py", "stack/values.py", "runs/child.py"])
def test_the_key_covers_the_library_room_by_room(tmp_path, monkeypatch, name):
    library = shutil.copytree(cache.LIBRARY, tmp_path / "library", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "LIBRARY", library)
    before = cache._key(noise, {"seed": 0})
    assert cache._key(noise, {"seed": 0}) == before
    (library / name).write_text((library / name).read_text() + "# changed\n")
    changed = cache._key(noise, {"seed": 0})
    (library / name).rename(library / "moved.py")
    assert len({before, changed, cache._key(noise, {"seed": 0})}) == 3


KINDS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16]
KINDS += [torch.float32, torch.float64, torch.complex64, torch.uint16]


@pytest.mark.parametrize("dtype", KINDS)
def test_whatever_goes_into_a_cache_comes_out(tmp_path, dtype):
    def build(n):
        numbers = torch.arange(n).to(dtype)
        return {"z": numbers, "scalar": numbers[1], "none": numbers[:0], "a": numbers.view(2, -1).mT, "again": numbers}

    made = build(6)
    for _ in range(2):
        found = runs.cached(build, folder=tmp_path, n=6)
        assert list(found) == list(made)
        for name, tensor in made.items():
            assert found[name].dtype == dtype
            assert torch.equal(found[name], tensor)


def test_what_is_not_finite_comes_out_of_a_cache_too(tmp_path):
    def build(n):
        return {"accuracy": torch.tensor([1.0, float("nan"), float("-inf")])}

    for _ in range(2):
        found = runs.cached(build, folder=tmp_path, n=1)["accuracy"]
        assert found.nan_to_num(7, 8, 9).tolist() == [1, 7, 9]


def test_models_come_out_of_a_cache_with_their_layers_in_order(tmp_path):
    def build(depth):
        return stack.init(stack.mlp(3, [2] * depth, 2), 2, seed=0)

    made = build(7)
    for _ in range(2):
        found = runs.cached(build, folder=tmp_path, depth=7)
        assert stack.layers(found) == stack.layers(made) == ["1", "3", "5", "7", "9", "11", "13", "15"]
        assert torch.equal(stack.vectors(found), stack.vectors(made))


def test_cached_refuses_what_it_would_lose_and_what_it_cannot_read(tmp_path):
    def numbers(seed):
        return {"w": torch.zeros(2), "order": [1, 0]}

    def nothing(seed):
        return None

    with pytest.raises(errors.WeightsError, match=r"'order' is a list, expected dense tensors by name"):
        runs.cached(numbers, folder=tmp_path, seed=0)
    with pytest.raises(errors.ParameterError, match=r"nothing gave a NoneType, expected a dict of tensors"):
        runs.cached(nothing, folder=tmp_path, seed=0)
    with pytest.raises(errors.ParameterError, match="cannot read the source of <built-in function abs>"):
        runs.cached(abs, folder=tmp_path)
    assert not list(tmp_path.iterdir())
