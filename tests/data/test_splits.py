import hashlib
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import data
from paramarket.base import stream
from paramarket.data import splits
from paramarket.errors import DataError, ParameterError

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
    for name, (digest, _, _) in data.BUNDLED.items():
        assert hashlib.sha256((data.ROOT / f"{name}.npz").read_bytes()).hexdigest() == digest
        assert digest in readme


def test_images_for_a_network_are_its_own_numbers_and_its_own_order_of_classes(digits):
    mean, std, classes = torch.tensor([3.0]), torch.tensor([2.0]), digits.classes[::-1]
    seen = data.for_network(digits, mean, std, classes)
    for part in PARTS:
        before, after = getattr(digits, part), getattr(seen, part)
        raw = before.x * digits.std + digits.mean
        assert torch.allclose(after.x, (raw - 3) / 2, atol=1e-5)
        assert [classes[k] for k in after.y] == [digits.classes[k] for k in before.y]
    back = data.for_network(seen, digits.mean, digits.std, digits.classes)
    assert torch.allclose(back.audit.x, digits.audit.x, atol=1e-5)
    assert torch.equal(back.audit.y, digits.audit.y)
    same = data.for_network(digits, digits.mean, digits.std, digits.classes)
    assert torch.equal(same.quote.x, digits.quote.x)


def test_what_no_network_can_have_expected_is_refused(digits):
    one, classes = torch.ones(1), digits.classes
    with pytest.raises(DataError, match="digits has 1 channels; the network was trained with 3 means and 3"):
        data.for_network(digits, torch.ones(3), torch.ones(3), classes)
    with pytest.raises(DataError, match="a std above 0"):
        data.for_network(digits, one, 0 * one, classes)
    with pytest.raises(DataError, match=r"the network answers with cat, dog\. Expected the same names\."):
        data.for_network(digits, one, one, ["cat", "dog"])


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


@given(st.integers(2, 30), st.floats(0, 1), st.sets(st.integers(0, 9), min_size=1, max_size=5))
def test_the_shares_of_a_class_are_disjoint_and_fair(digits, students, keep, rare):
    shares = [
        data.holding(digits.train, sorted(rare), keep, stream(0, "class"), student=student, students=students)
        for student in range(1, students + 1)
    ]
    rows = [row.numpy().tobytes() for share in shares for row in share.x.flatten(1)]
    assert len(set(rows)) == len(rows)
    common = next(label for label in range(10) if label not in rare)
    counts = [int((share.y == common).sum()) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == int((digits.train.y == common).sum())


def test_a_student_outside_the_class_is_refused(digits, generator):
    with pytest.raises(ParameterError, match="student = 31, expected a number from 1 to 30"):
        data.holding(digits.train, [0], 0.5, generator, student=31)


@given(st.floats(0, 1))
def test_flipped_labels_are_as_many_as_asked_for_and_never_the_old_ones(digits, share):
    flipped = data.flip_labels(digits.train, share, 10, stream(0, "flip"))
    changed = flipped.y != digits.train.y
    assert int(changed.sum()) == round(share * len(digits.train))
    assert flipped.y.min() >= 0
    assert flipped.y.max() <= 9
    assert torch.equal(flipped.x, digits.train.x)


def test_flipped_labels_are_spread_evenly(digits, generator):
    flipped = data.flip_labels(digits.train, 1.0, 10, generator)
    counts = ((flipped.y - digits.train.y) % 10).bincount(minlength=10)[1:]
    assert (counts / counts.sum() - 1 / 9).abs().max() < 0.05


def test_bad_shares_are_refused(digits, generator):
    with pytest.raises(ParameterError, match=r"share = 1\.5"):
        data.flip_labels(digits.train, 1.5, 10, generator)


def six_rows(folder):
    path = folder / "six.csv"
    path.write_text("a,b,label\n" + "".join(f"{k},{k * k},{'xy'[k % 2]}\n" for k in range(6)))
    return path


def no_rows(folder):
    path = folder / "none.csv"
    path.write_text("a,b,label\n")
    return path


def no_arrays(folder):
    np.savez(folder / "none.npz", x=np.zeros((0, 4)), y=np.zeros(0, dtype=int))
    return folder / "none.npz"


def three_arrays(folder):
    np.savez(folder / "three.npz", x=np.zeros((3, 4)), y=np.arange(3))
    return folder / "three.npz"


@pytest.mark.parametrize("make", [six_rows, no_rows, three_arrays, no_arrays])
def test_too_few_examples_for_four_splits_are_refused_with_their_file(tmp_path, make):
    path = make(tmp_path)
    rarest = r"\d examples of \d classes, \d of class '.': too few for four splits"
    with pytest.raises(DataError, match=rf"{re.escape(str(path))} has ({rarest}|no examples)"):
        data.from_files(path)


def test_ten_of_each_class_are_enough_for_four_splits(tmp_path):
    path = tmp_path / "twenty.csv"
    path.write_text("a,label\n" + "".join(f"{k},{'xy'[k % 2]}\n" for k in range(20)))
    found = data.from_files(path)
    assert [len(getattr(found, part)) for part in PARTS] == [12, 2, 2, 4]


def two_classes(folder, often, rarely):
    path = folder / "pets.csv"
    labels = ["x"] * often + ["rare"] * rarely
    path.write_text("a,label\n" + "".join(f"{k},{label}\n" for k, label in enumerate(labels)))
    return path


def test_a_class_too_rare_for_one_of_the_splits_is_refused_by_name(tmp_path):
    message = r"pets\.csv has 21 examples of 2 classes, 1 of class 'rare': too few .* Give 9 or more of each class"
    with pytest.raises(DataError, match=message):
        data.from_files(two_classes(tmp_path, 20, 1))
    with pytest.raises(DataError, match=r"8 of class 'rare': .*, audit would have none"):
        data.from_files(two_classes(tmp_path, 20, 8))
    found = data.from_files(two_classes(tmp_path, 20, 9))
    assert all(getattr(found, part).y.bincount().min() >= 1 for part in PARTS)


def test_a_class_that_is_named_and_never_occurs_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 4)), y=np.arange(40) % 2, classes=["no", "yes", "perhaps"])
    with pytest.raises(DataError, match=r"0 of class 'perhaps': .*train and quote and audit and test would have none"):
        data.from_files(tmp_path / "a.npz")


@pytest.mark.parametrize("tested", [None, 1])
def test_the_number_asked_for_is_the_least_from_which_on_every_split_gets_an_example(tested):
    def smallest_part(count):
        labels = torch.zeros(count + (tested or 0), dtype=torch.long)
        return min(map(len, splits._stratified(labels, tested, stream(0)).values()))

    assert all(smallest_part(count) >= 1 for count in range(splits.ENOUGH, 300))
    assert (smallest_part(splits.ENOUGH - 1) == 0) == (tested is None)  # a set with its own test needs fewer


WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]


@pytest.mark.parametrize("dtype", WHOLE)
def test_labels_of_any_whole_type_are_the_same_labels(dtype):
    y = torch.arange(6) % 3
    found = data.Split(torch.zeros(6, 2), y.to(dtype))
    assert found.y.dtype == torch.int64
    assert torch.equal(found.y, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool])
def test_examples_of_any_real_type_are_float32(dtype):
    x = torch.arange(12).view(6, 2) % 2
    found = data.Split(x.to(dtype), torch.zeros(6, dtype=torch.int64))
    assert found.x.dtype == torch.float32
    assert torch.equal(found.x, x.float())


def test_probabilities_of_any_floating_type_are_float32():
    found = data.Split(torch.zeros(6, 2), torch.full((6, 4), 0.25, dtype=torch.float64))
    assert found.y.dtype == torch.float32


NO_LABELS = {
    "floating point": torch.arange(6.0),
    "truth values": torch.ones(6, dtype=torch.bool),
    "complex numbers": torch.ones(6, dtype=torch.complex64),
    "two axes": torch.zeros(6, 1, dtype=torch.int64),
    "three axes": torch.zeros(6, 1, 1),
    "below 0": torch.arange(6) - 1,
    "what a loss leaves out": torch.full((6,), -100),
}


@pytest.mark.parametrize("kind", NO_LABELS)
def test_what_is_no_label_is_refused_before_it_can_score(kind):
    with pytest.raises(
        DataError, match=r"y of a split is .* of shape .*: expected whole numbers|label -\d+ in a split"
    ):
        data.Split(torch.zeros(6, 2), NO_LABELS[kind])


def test_examples_that_are_no_real_numbers_or_too_large_are_refused():
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(DataError, match=r"x of a split holds torch\.complex64"):
        data.Split(torch.zeros(2, 2, dtype=torch.complex64), y)
    with pytest.raises(DataError, match="beyond those of float32"):
        data.Split(torch.full((2, 2), 1e39, dtype=torch.float64), y)
    split = object.__new__(data.Split)  # past the types that only tests check
    object.__setattr__(split, "x", np.zeros((2, 2)))
    with pytest.raises(DataError, match="x of a split is of type ndarray, expected a tensor"):
        split.__post_init__()
