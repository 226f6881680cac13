import hashlib
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import data, sources
from paramarket.base import DataError, ParameterError, stream

SIZES = {"mnist-5k": (3000, 500, 500, 1000), "digits": (1077, 180, 180, 360)}
PARTS = ("train", "quote", "audit", "test")


@pytest.mark.parametrize(("name", "side"), [("mnist-5k", 28), ("digits", 8)])
def test_bundled_sets(name, side):
    found = data.load(name)
    splits = [getattr(found, part) for part in PARTS]
    assert sum(map(len, splits)) == {"mnist-5k": 5000, "digits": 1797}[name]
    for split, size in zip(splits, SIZES[name], strict=True):
        assert split.x.shape[1:] == (1, side, side)
        assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)
        assert abs(len(split) - size) <= 5
        counts = split.y.bincount(minlength=10) / len(split)
        assert (counts - 0.1).abs().max() < 0.01  # stratified
    assert abs(found.train.x.mean()) < 1e-4
    assert abs(found.train.x.std() - 1) < 1e-4


def test_splits_are_disjoint_and_the_same_every_time():
    one, other = data.load("mnist-5k"), data.load("mnist-5k")
    rows = torch.cat([getattr(one, part).x.flatten(1) for part in PARTS])
    assert len({row.numpy().tobytes() for row in rows}) == 5000
    assert all(torch.equal(getattr(one, part).x, getattr(other, part).x) for part in PARTS)


def test_an_unknown_set_offers_the_nearest():
    with pytest.raises(DataError, match=r"unknown dataset 'mnist5k'\. Did you mean 'mnist-5k'\?"):
        data.load("mnist5k")


def test_a_missing_bundle_names_file_and_remedy(tmp_path):
    with pytest.raises(DataError, match=r"digits\.npz is missing\. Restore it with .git checkout"):
        data.load("digits", root=tmp_path)


def test_a_damaged_bundle_is_refused(tmp_path):
    content = bytearray((data.ROOT / "digits.npz").read_bytes())
    content[1000] ^= 1
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged: its SHA-256 is [0-9a-f]{64}, expected 6f80"):
        data.load("digits", root=tmp_path)
    shutil.copy(data.ROOT / "digits.npz", tmp_path)
    assert data.load("digits", root=tmp_path).name == "digits"


def test_provenance_states_the_hashes_of_the_files():
    readme = (data.ROOT / "README.md").read_text()
    for name, (digest, _, _) in sources.BUNDLED.items():
        assert hashlib.sha256((data.ROOT / f"{name}.npz").read_bytes()).hexdigest() == digest
        assert digest in readme


@given(st.sets(st.integers(0, 9), min_size=1), st.floats(0, 1))
def test_a_holding_keeps_its_share_of_some_classes_and_all_of_the_others(digits, classes, keep):
    if keep == 0 and len(classes) == 10:
        return
    held = data.holding(digits.train, sorted(classes), keep, stream(0, "holding"))
    before, after = (split.y.bincount(minlength=10) for split in (digits.train, held))
    expected = [round(keep * int(n)) if label in classes else int(n) for label, n in enumerate(before)]
    assert after.tolist() == expected


def test_holdings_of_other_streams_differ(digits):
    one, other = (data.holding(digits.train, [0], 0.5, stream(0, k)) for k in range(2))
    assert not torch.equal(one.x, other.x)


def test_a_holding_of_nothing_is_refused(digits, generator):
    with pytest.raises(DataError, match="empty split"):
        data.holding(digits.train, list(range(10)), 0.0, generator)


def test_a_holding_refuses_bad_shares_and_classes(digits, generator):
    with pytest.raises(ParameterError, match=r"keep = 1\.5"):
        data.holding(digits.train, [0], 1.5, generator)
    with pytest.raises(ParameterError, match="no example of class 11"):
        data.holding(digits.train, [11], 0.5, generator)


def test_a_split_refuses_unequal_lengths_and_nothing():
    with pytest.raises(DataError, match="3 examples and 2 labels"):
        data.Split(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(DataError, match="empty split"):
        data.Split(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
