import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import smat
from paramarket.base import stream
from paramarket.data import DOMAINS, Split
from paramarket.errors import DataError, ParameterError, ShapeError

# every pixel of an image tells its number in the split; a domain adds 1,000 times its own number
COUNTS = [7, 9, 8, 7]
LABELS = torch.cat([torch.full((n,), label) for label, n in enumerate(COUNTS)])
SPLIT = Split(torch.arange(len(LABELS)).float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4), LABELS)
MADE = {name: lambda x, generator, k=k: x + 1000 * k for k, name in enumerate(["a", "b", "c"])}
POOL = smat.task_pool(SPLIT, MADE, seed=0)


def draw(tasks, classes, ways, shots, queries, seed):
    sizes = {"tasks": tasks, "ways": ways, "shots": shots, "queries": queries}
    return smat.draw_tasks(POOL, classes, stream(seed, "tasks"), **sizes)


def test_a_pool_shows_the_same_images_in_every_domain_and_as_many_of_every_class():
    assert POOL.x.shape == (3, len(SPLIT), 1, 4, 4)
    assert torch.equal(POOL.x[2] - POOL.x[0], torch.full_like(POOL.x[0], 2000.0))
    assert POOL.places.shape == (4, 7)
    assert all((LABELS[places] == label).all() for label, places in enumerate(POOL.places))


def test_a_domain_looks_alike_in_all_splits(digits):
    only = {"permute-pixels": DOMAINS["permute-pixels"]}
    one, other = (smat.task_pool(Split(digits.quote.x[:100], digits.quote.y[:100]), only, seed=seed) for seed in (0, 0))
    assert torch.equal(one.x, other.x)
    assert not torch.equal(one.x, smat.task_pool(Split(digits.quote.x[:100], digits.quote.y[:100]), only, seed=1).x)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_every_ordered_pair_of_classes_is_a_class_of_pairs(seed, each):
    pairs = smat.side_by_side(SPLIT, each, seed=seed)
    assert pairs.x.shape == (16 * each, 1, 4, 8)
    assert pairs.y.bincount().tolist() == [each] * 16
    halves = pairs.x.split(4, dim=-1)
    assert all((half == half[:, :, :1, :1]).all() for half in halves)  # one image, whole
    left, right = (LABELS[half[:, 0, 0, 0].long()] for half in halves)
    assert torch.equal(4 * left + right, pairs.y)
    again = smat.side_by_side(SPLIT, each, seed=seed)
    assert torch.equal(again.x, pairs.x)


def test_pairs_are_drawn_from_all_images_on_either_side_and_anew_for_another_seed():
    pairs, others = (smat.side_by_side(SPLIT, 100, seed=seed) for seed in (0, 1))
    for half in pairs.x.split(4, dim=-1):
        assert half.unique().tolist() == list(range(len(SPLIT)))
    assert not torch.equal(pairs.x, others.x)
    twins = pairs.x[pairs.y % 5 == 0]  # of one class with itself
    assert not torch.equal(twins[..., :4], twins[..., 4:])


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ParameterError, match="each = 0, expected a whole number ≥ 1"):
        smat.side_by_side(SPLIT, 0, seed=0)
    with pytest.raises(ShapeError, match=r"pairs need images .* got shape \(31, 16\)"):
        smat.side_by_side(Split(SPLIT.x.flatten(1), LABELS), 1, seed=0)
    with pytest.raises(DataError, match=r"images of every class: \[7, 0, 9, 0, 8, 0, 7\] given"):
        smat.side_by_side(Split(SPLIT.x, LABELS * 2), 1, seed=0)
    with pytest.raises(DataError, match="got probabilities"):
        smat.side_by_side(Split(SPLIT.x, torch.full((31, 4), 0.25)), 1, seed=0)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 3), st.integers(1, 4))
def test_a_task_has_one_domain_and_of_every_way_one_class_and_no_example_twice(seed, ways, shots, queries):
    tasks = draw(5, range(4), ways, shots, queries, seed)
    assert tasks.support.shape == (5, ways * shots, 1, 4, 4)
    assert tasks.query.shape == (5, ways * queries, 1, 4, 4)
    for support, query, domain in zip(tasks.support, tasks.query, tasks.domain, strict=True):
        numbers = torch.cat([support, query])[:, 0, 0, 0].long()
        assert (numbers // 1000 == domain).all()
        assert len(numbers.unique()) == len(numbers)
        kinds = [LABELS[each[:, 0, 0, 0].long() % 1000].view(ways, -1) for each in (support, query)]
        assert all((kind == kind[:, :1]).all() for kind in kinds)
        assert torch.equal(kinds[0][:, 0], kinds[1][:, 0])
        assert len(kinds[0][:, 0].unique()) == ways


def test_all_domains_classes_and_examples_come_up():
    tasks = draw(400, [1, 3], 2, 1, 1, seed=0)
    numbers = tasks.support[:, :, 0, 0, 0].long()
    assert (numbers // 1000).unique().tolist() == [0, 1, 2]
    assert LABELS[numbers % 1000].unique().tolist() == [1, 3]
    assert len((numbers % 1000).unique()) == 14


def test_every_domain_can_have_as_many_tasks_one_domain_after_another():
    tasks = smat.fresh_tasks(POOL, range(4), seeds=[5, 6], tasks=2, ways=3, shots=1, queries=2, by_domain=True)
    assert tasks.domain.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert tasks.support.shape == (2, 6, 3, 1, 4, 4)
    assert torch.equal((tasks.query[:, :, 0, 0, 0, 0] // 1000).long(), tasks.domain)


def test_the_same_generator_draws_the_same_tasks():
    one, other = (draw(3, range(4), 3, 2, 2, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ((range(4), 5, 1, 1), "ways = 5"),
        ((range(4), 1, 1, 1), "ways = 1"),
        (([1, 1, 2], 2, 1, 1), r"classes = \[1, 1, 2\]"),
        (([0, 9], 2, 1, 1), r"classes = \[0, 9\]: expected some of \[0, 1, 2, 3\], each once"),
        ((range(4), 2, 0, 1), "shots = 0"),
        ((range(4), 2, 1, 0), "queries = 0"),
        ((range(4), 2, 4, 4), "shots = 4, queries = 4: expected 1 or more, 7 in all"),
    ],
)
def test_a_task_that_cannot_be_drawn_is_refused(how, said):
    with pytest.raises(ParameterError, match=said):
        draw(2, *how, seed=0)


def test_a_pool_without_domains_or_with_a_missing_class_is_refused():
    with pytest.raises(DataError, match="0 domains"):
        smat.task_pool(SPLIT, {}, seed=0)
    with pytest.raises(DataError, match="0 examples of the rarest class"):
        smat.task_pool(Split(SPLIT.x[:16], LABELS[:16] * 2), MADE, seed=0)


def test_the_nearest_prototype_wins_whatever_the_length_of_the_features():
    support = torch.tensor([[1.0, 0.0], [0.8, 0.2], [0.0, 1.0], [0.2, 0.8]])
    query = torch.tensor([[3.0, 0.1], [0.01, 0.2]])
    logits = smat.prototype_logits(support, query, 2)
    assert logits.argmax(dim=1).tolist() == [0, 1]
    assert torch.allclose(logits, smat.prototype_logits(5 * support, 7 * query, 2), atol=1e-5)
    assert logits[0, 0].item() == pytest.approx(10 * torch.cosine_similarity(query[0], support[:2].mean(0), 0).item())


def test_prototypes_know_no_names():
    """Ways in another order give the same logits in that order; examples of a way in another order change nothing."""
    said = torch.randn(6, 5, generator=stream(0, "said"))
    query = torch.randn(4, 5, generator=stream(0, "query"))
    logits = smat.prototype_logits(said, query, 3)
    turned = smat.prototype_logits(said.view(3, 2, 5)[[2, 0, 1]].flip(1).flatten(0, 1), query, 3)
    assert torch.allclose(turned, logits[:, [2, 0, 1]], atol=1e-5)
    assert smat.way_labels(3, 2).tolist() == [0, 0, 1, 1, 2, 2]


def test_an_empty_support_is_refused():
    for count in (0, 5):
        with pytest.raises(ParameterError, match=f"{count} examples to learn from, for 2 ways"):
            smat.prototype_logits(torch.zeros(count, 3), torch.zeros(1, 3), 2)
