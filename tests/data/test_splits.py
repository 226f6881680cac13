import hashlib
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import data
from paramarket.base import stream
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
        data.holding(digits.train, sorted(rare), keep, stream(0, "class"), student, students)
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


@pytest.mark.parametrize("name", data.DOMAINS)
def test_a_domain_keeps_the_shape_and_depends_on_its_generator_alone(digits, name):
    x = digits.test.x[:20]
    before = torch.get_rng_state()
    one, again, other = (data.DOMAINS[name](x, stream(0, "domain", k)) for k in (0, 0, 1))
    assert torch.equal(one, again)
    assert one.shape == x.shape
    assert one.isfinite().all()
    assert torch.equal(one, x) == (name == "upright")
    assert torch.equal(one, other) == (name not in ("noise", "occlude", "permute-pixels"))
    assert torch.equal(before, torch.get_rng_state())


def test_rotating_goes_counter_clockwise_and_back():
    x = data.load("mnist-5k").test.x[:8]
    assert torch.allclose(data.rotate(x, 0.0), x, atol=1e-5)
    assert torch.allclose(data.rotate(x, 90.0), torch.rot90(x, 1, (2, 3)), atol=1e-4)
    assert (data.rotate(data.rotate(x, 30.0), -30.0) - x).square().mean() < 0.1 * x.square().mean()


def test_turned_images_keep_a_clean_background():
    x = data.load("mnist-5k").test.x[:8]
    for turned in (data.rotate(x, 45.0), data.DOMAINS["shear"](x, stream(0))):
        assert turned.min().item() == pytest.approx(x.min().item(), abs=1e-5)
        assert (turned < x.min() + 1e-3).float().mean() > 0.6


def test_inverting_twice_and_permuting_keep_every_value(digits):
    x = digits.test.x[:5]
    invert = data.DOMAINS["invert"]
    assert torch.allclose(invert(invert(x, None), None), x, atol=1e-5)
    shuffled = data.DOMAINS["permute-pixels"](x, stream(0))
    assert torch.equal(shuffled.flatten(1).sort().values, x.flatten(1).sort().values)


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


def test_dropped_pixels_become_background(digits):
    x = digits.test.x
    dropped = data.drop_pixels(x, 0.3, stream(0))
    changed = (dropped != x).float().mean() / (x != x.min()).float().mean()
    assert changed.item() == pytest.approx(0.3, abs=0.02)
    assert set(dropped[dropped != x].unique().tolist()) == {x.min().item()}


def test_bad_shares_are_refused(digits, generator):
    with pytest.raises(ParameterError, match=r"share = 1\.5"):
        data.flip_labels(digits.train, 1.5, 10, generator)
    with pytest.raises(ParameterError, match=r"share = -0\.1"):
        data.drop_pixels(digits.train.x, -0.1, generator)


def test_turned_keeps_the_labels_and_together_the_order(digits):
    there = data.turned(digits.audit, 30.0)
    assert torch.equal(there.y, digits.audit.y)
    assert torch.equal(there.x, data.rotate(digits.audit.x, 30.0))
    both = data.together(digits.audit, there)
    assert torch.equal(both.x, torch.cat([digits.audit.x, there.x]))
    assert torch.equal(both.y, torch.cat([there.y, there.y]))


@given(st.floats(0, 1), st.integers(0, 1000))
def test_exchanged_keeps_the_size_and_draws_no_example_twice(share, seed):
    own, other = (
        data.Split(sign * torch.arange(1.0, n + 1)[:, None], torch.arange(n)) for sign, n in ((1, 20), (-1, 30))
    )
    found = data.exchanged(own, other, share, stream(seed, "exchange"))
    assert len(found) == 20
    assert (found.x < 0).sum() == round(20 * share)
    assert len(found.x.unique()) == 20
    assert torch.equal(found.x.flatten().abs() - 1, found.y.float())


def test_more_than_there_is_cannot_be_exchanged():
    own, other = (data.Split(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long)) for n in (10, 3))
    assert data.exchanged(own, other, 0.0, stream(0)) is own
    with pytest.raises(DataError, match="5 examples to exchange, the other split has 3"):
        data.exchanged(own, other, 0.5, stream(0))
    with pytest.raises(ParameterError, match=r"share = 1\.5"):
        data.exchanged(own, other, 1.5, stream(0))


def test_a_split_seen_through_domains_keeps_its_labels_and_each_domain_looks_alike_in_all_splits(digits):
    looks = {name: data.DOMAINS[name] for name in ("upright", "permute-pixels", "noise")}
    looks |= {"more noise": data.DOMAINS["noise"]}
    upright, permuted, noise, more = data.seen(digits.quote, looks, seed=0)
    assert torch.equal(upright.x, digits.quote.x)
    assert all(torch.equal(view.y, digits.quote.y) for view in (upright, permuted, noise, more))
    assert not torch.equal(noise.x, more.x)  # each random domain has numbers of its own
    places = data.Split(torch.arange(64.0).view(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    order = data.seen(places, looks, seed=0)[1].x.flatten().long()
    assert torch.equal(permuted.x.flatten(1), digits.quote.x.flatten(1)[:, order])
    assert not torch.equal(data.seen(digits.quote, looks, seed=1)[1].x, permuted.x)
