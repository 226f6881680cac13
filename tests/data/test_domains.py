import pytest
import torch

from paramarket import data
from paramarket.base import stream
from paramarket.errors import ShapeError


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


def test_turned_keeps_the_labels_and_together_the_order(digits):
    there = data.rotate_split(digits.audit, 30.0)
    assert torch.equal(there.y, digits.audit.y)
    assert torch.equal(there.x, data.rotate(digits.audit.x, 30.0))
    both = data.concat(digits.audit, there)
    assert torch.equal(both.x, torch.cat([digits.audit.x, there.x]))
    assert torch.equal(both.y, torch.cat([there.y, there.y]))


def test_a_split_seen_through_domains_keeps_its_labels_and_each_domain_looks_alike_in_all_splits(digits):
    looks = {name: data.DOMAINS[name] for name in ("upright", "permute-pixels", "noise")}
    looks |= {"more noise": data.DOMAINS["noise"]}
    upright, permuted, noise, more = data.in_domains(digits.quote, looks, seed=0)
    assert torch.equal(upright.x, digits.quote.x)
    assert all(torch.equal(view.y, digits.quote.y) for view in (upright, permuted, noise, more))
    assert not torch.equal(noise.x, more.x)  # each random domain has numbers of its own
    places = data.Split(torch.arange(64.0).view(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    order = data.in_domains(places, looks, seed=0)[1].x.flatten().long()
    assert torch.equal(permuted.x.flatten(1), digits.quote.x.flatten(1)[:, order])
    assert not torch.equal(data.in_domains(digits.quote, looks, seed=1)[1].x, permuted.x)


SHAPES = [
    (5, 1, 90, 20),
    (5, 1, 20, 90),
    (5, 3, 28, 28),
    (5, 1, 2, 2),
    (5, 1, 1, 1),
    (5, 2, 1, 7),
    (5, 1, 7, 1),
    (1, 1, 3, 3),
]


@pytest.mark.parametrize("name", data.DOMAINS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_of_any_shape_keep_it_or_are_refused_by_name(name, shape):
    x = torch.rand(shape, generator=stream(0))
    if name == "blur" and min(shape[2:]) < 3:
        with pytest.raises(ShapeError, match=r"blur needs images .* of 3×3 pixels or more, got shape"):
            data.DOMAINS[name](x, stream(0))
        return
    found = data.DOMAINS[name](x, stream(0))
    assert found.shape == shape
    assert found.isfinite().all()


@pytest.mark.parametrize("name", data.DOMAINS)
@pytest.mark.parametrize("shape", [(5, 7), (5, 4, 4), (5, 1, 0, 4), (5, 0, 4, 4), (2, 5, 1, 4, 4)])
def test_what_is_no_picture_is_refused_by_every_domain_that_looks_at_neighbours(name, shape):
    if name in ("upright", "invert", "noise") and 0 not in shape:
        assert data.DOMAINS[name](torch.zeros(shape), stream(0)).shape == shape
        return
    if name in ("upright", "invert", "noise"):
        return  # a split is never empty
    with pytest.raises(ShapeError, match=rf"{name} needs images \[n, channels, height, width\].*, got shape"):
        data.DOMAINS[name](torch.zeros(shape), stream(0))


@pytest.mark.parametrize("shape", [(5, 1, 90, 20), (5, 1, 20, 90), (5, 3, 28, 28), (5, 1, 2, 2)])
def test_a_third_of_the_shorter_side_is_hidden(shape):
    x = 1 + torch.rand(shape, generator=stream(0))
    hidden = (data.DOMAINS["occlude"](x, stream(0)) == x.min()).sum(dim=(1, 2, 3)) / shape[1]
    side = max(1, min(shape[2:]) // 3)
    assert ((hidden - side**2).abs() <= 1).all()  # the smallest pixel itself may lie elsewhere
