import inspect

import numpy as np
import pytest
import torch
from devices import second_device
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2
from scipy.stats import beta, chisquare, kstest
from torch.nn.functional import cross_entropy

from paramarket import soup, stack, train
from paramarket.base import stream
from paramarket.data import Split
from paramarket.errors import DataError, ParameterError, ShapeError
from paramarket.soup import Clusters, WeightLaw

NET = stack.mlp(2, [4], 3)
SIZES = [5, 40, 11]
P = 1e-3  # of chi-square and Kolmogorov-Smirnov


def numbered(sizes=SIZES):
    """Every example carries its domain and its place there, and y both in one number."""
    parts = [torch.stack([torch.full((n,), float(d)), torch.arange(n).float()], dim=1) for d, n in enumerate(sizes)]
    return [Split(x, (100 * x[:, 0] + x[:, 1]).long()) for x in parts]


def noisy(sizes=SIZES):
    return [
        Split(torch.randn(n, 2, generator=stream(d)) + d, torch.randint(3, (n,), generator=stream(d, "y")))
        for d, n in enumerate(sizes)
    ]


def all_of(domains, h, batch, generators):
    """Every batch, kept: x [K, steps, batch, ...], y, h."""
    drawn = [step._replace(x=step.x.clone()) for step in soup.batches(domains, h, batch, generators)]
    return [torch.stack(part, dim=1) for part in zip(*drawn, strict=True)]


def fits(counts, expected=None):
    """Whether counts look drawn with these expectations, even ones if none are given: chi-square."""
    counts = counts.double()
    expected = torch.ones_like(counts) if expected is None else expected.double()
    expected = expected * counts.sum() / expected.sum()
    some = expected > 0
    assert (counts[~some] == 0).all()
    return some.sum() == 1 or chisquare(counts[some].numpy(), expected[some].numpy()).pvalue > P


def draw(support=(1, 3), concentration=1.0, domains=4, count=4000, seed=0):
    return soup.draw_weights(WeightLaw(support, concentration), domains, count, stream(seed, "law"))


@given(st.data(), st.integers(1, 9), st.floats(0.25, 50))  # below, the least weights may round to 0
def test_drawn_weights_are_weights_and_as_many_as_the_law_allows(data, domains, concentration):
    low = data.draw(st.integers(1, domains))
    high = data.draw(st.integers(low, domains))
    h = draw((low, high), concentration, domains, count=200)
    assert h.shape == (200, domains)
    assert (h >= 0).all()
    assert torch.allclose(h.sum(dim=1), torch.ones(200), atol=1e-5)
    support = (h > 0).sum(dim=1)
    assert low <= support.min() <= support.max() <= high
    soup.check_weights(h, domains)


@pytest.mark.parametrize("support", [(1, 3), (2, 4), (1, 1), (3, 3)])
def test_every_size_of_support_is_as_likely_and_so_is_every_choice_of_domains(support):
    low, high = support
    held = draw(support) > 0
    chosen = torch.bincount((held * torch.tensor([1, 2, 4, 8])).sum(dim=1), minlength=16)
    sizes = torch.tensor([bin(mask).count("1") for mask in range(16)])
    expected = torch.zeros(16)
    for size in range(low, high + 1):
        expected[sizes == size] = 1 / (sizes == size).sum()
    assert fits(chosen, expected)
    assert fits(torch.bincount(held.sum(dim=1))[low:])


@pytest.mark.parametrize(("size", "concentration"), [(2, 1.0), (3, 1.0), (3, 0.4), (4, 6.0)])
def test_within_the_support_the_weights_are_a_dirichlet(size, concentration):
    """A weight of a symmetric Dirichlet is Beta(a, (size - 1) a)."""
    h = draw((size, size), concentration)
    for d in range(4):
        own = h[h[:, d] > 0, d].numpy()
        assert kstest(own, beta(concentration, (size - 1) * concentration).cdf).pvalue > P


def test_a_large_concentration_is_near_uniform_and_a_small_one_near_one_hot():
    spread, peaked = (draw((3, 3), concentration) for concentration in (1e5, 0.03))
    assert (spread[spread > 0] - 1 / 3).abs().max() < 0.01
    assert (peaked.amax(dim=1) > 0.9).float().mean() > 0.85
    assert (draw((1, 1)).amax(dim=1) == 1).all()


def test_at_a_tiny_concentration_nearly_every_row_is_one_hot_and_none_is_nan():
    h = draw((3, 3), 1e-3)
    soup.check_weights(h, 4)
    assert not h.isnan().any()
    assert (h.amax(dim=1) > 1 - 1e-3).float().mean() > 0.97
    assert fits(torch.bincount(h.argmax(dim=1), minlength=4))


def test_the_same_generator_draws_the_same_weights():
    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(seed=1))


@pytest.mark.parametrize("support", [(0, 2), (2, 1), (1, 5), (-1, 1)])
def test_a_support_that_cannot_be_is_refused(support):
    with pytest.raises(ParameterError, match=r"expected 1 ≤ support ≤ 4 domains, and a concentration from 1e-6 to 1e6"):
        draw(support)


@pytest.mark.parametrize("concentration", [0.0, -1.0, 1e-7, 1e7, float("inf"), float("nan")])
def test_a_concentration_out_of_reason_is_refused(concentration):
    with pytest.raises(ParameterError, match=rf"concentration={concentration}\): expected"):
        draw(concentration=concentration)


def test_a_plan_holds_an_h_for_every_step_drawn_by_the_law_and_the_seed_of_each_run():
    law, narrow = WeightLaw((2, 3), 0.5), WeightLaw((1, 1))
    h = soup.draw_plans([law, None, law, law, narrow], 4, 70, seeds=[5, 5, 5, 6, 5])
    assert h.shape == (5, 70, 4)
    assert (h[1] == 1 / 4).all()
    assert torch.equal(h[0], h[2])
    assert torch.equal(h[0], soup.draw_plans([law], 4, 70, seeds=[5])[0])
    assert not torch.equal(h[0], h[3])
    assert ((h[[0, 2, 3]] > 0).sum(dim=2) >= 2).all()
    assert (h[4].amax(dim=1) == 1).all()
    soup.check_weights(h, 4)


def test_a_plan_for_domains_that_are_not_there_is_refused():
    with pytest.raises(ParameterError, match="expected 1 ≤ support ≤ 2 domains"):
        soup.draw_plans([None, WeightLaw((1, 3))], 2, 5, seeds=[0, 0])


def test_weights_are_told_from_what_is_none():
    soup.check_weights(torch.eye(3), 3)
    soup.check_weights(torch.full((2, 4, 3), 1 / 3), 3)
    for bad in ([0.5, 0.6, 0.0], [1.5, -0.5, 0.0], [0.2, 0.2, 0.2], [float("nan"), 1.0, 0.0], [float("inf"), 0, 0]):
        rows = torch.stack([torch.tensor([1.0, 0, 0]), torch.tensor(bad)])
        with pytest.raises(ParameterError, match=r"expected weights ≥ 0 that sum to 1; divide by their sum"):
            soup.check_weights(rows, 3)
    with pytest.raises(ParameterError, match="h has 3 weights, expected one for each of 4 domains"):
        soup.check_weights(torch.eye(3), 4)


def test_examples_come_from_the_splits_and_keep_their_labels():
    h = torch.stack([draw(domains=3, count=70), draw(domains=3, count=70, seed=1)])
    x, y, now = all_of(numbered(), h, 32, [stream(0), stream(1)])
    assert (x.shape, y.shape) == ((2, 70, 32, 2), (2, 70, 32))
    assert torch.equal(now, h)
    assert torch.equal(y, (100 * x[..., 0] + x[..., 1]).long())
    known = torch.cat([split.y for split in numbered()])
    assert torch.isin(y, known).all()
    asked = h.gather(2, x[..., 0].long())
    assert (asked > 0).all()  # from no domain that h does not ask for


@pytest.mark.parametrize("row", [[0.2, 0.5, 0.3], [0.0, 0.9, 0.1], [0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [1 / 3] * 3])
def test_domains_are_drawn_by_h_and_their_examples_evenly(row):
    h = torch.tensor(row).expand(1, 100, 3)
    _, y, _ = all_of(numbered(), h, 50, [stream(0, "chi")])
    domain, place = y.flatten() // 100, y.flatten() % 100
    assert fits(torch.bincount(domain, minlength=3), torch.tensor(row))
    for d in domain.unique():
        assert fits(torch.bincount(place[domain == d], minlength=SIZES[d]))


@pytest.mark.parametrize(("number", "first", "last"), [(0.0, 0, 0), (1 - 2**-24, -1, -1)])
def test_the_least_and_the_largest_random_number_stay_within_the_domains_asked_for(monkeypatch, number, first, last):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, number))
    for asked in ([1], [0, 1], [1, 2], [0, 1, 2]):
        h = torch.zeros(1, 1, 3)
        h[..., asked] = 1 / len(asked)
        (x, _, _), domain = all_of(numbered(), h, 1, [stream(0)]), asked[first]
        assert x.flatten().tolist() == [domain, range(SIZES[domain])[last]]


def test_the_same_generators_give_the_same_batches_and_runs_that_share_one_share_them():
    h = draw(domains=3, count=70)
    one, other = (all_of(numbered(), h.expand(3, -1, -1), 8, [g := stream(0), stream(1), g]) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert torch.equal(one[0][0], one[0][2])
    assert not torch.equal(one[0][0], one[0][1])
    for k, seed in enumerate([0, 1, 0]):
        alone = all_of(numbered(), h[None], 8, [stream(seed)])
        assert torch.equal(alone[0][0], one[0][k])


def test_the_loss_on_a_mixture_is_the_mixture_of_the_losses():
    domains, models = noisy(), stack.init(NET, 1, seed=0)
    h = torch.tensor([0.5, 0.2, 0.3])
    x, y, _ = all_of(domains, h.expand(1, 200, 3), 100, [stream(0, "importance")])
    logits = stack.forward(NET, models, x.flatten(1, 2))
    losses = cross_entropy(logits.mT, y.flatten(1), reduction="none")
    wanted = (h * soup.scores_by_domain(NET, models, domains).loss).sum()
    assert (losses.mean() - wanted).abs() < 4 * losses.std() / len(losses[0]) ** 0.5
    assert (losses.mean() - soup.scores_by_domain(NET, models, domains).loss.mean()).abs() > (
        losses.mean() - wanted
    ).abs()


def test_batches_without_examples_and_weights_of_other_domains_are_refused():
    with pytest.raises(ParameterError, match="batch = 0, expected a whole number ≥ 1"):
        next(soup.batches(numbered(), torch.eye(3)[None], 0, [stream(0)]))
    with pytest.raises(ParameterError, match="h has 3 weights, expected one for each of 2 domains"):
        next(soup.batches(numbered()[:2], torch.eye(3)[None], 4, [stream(0)]))
    with pytest.raises(ParameterError, match="expected weights ≥ 0 that sum to 1"):
        next(soup.batches(numbered(), torch.ones(1, 2, 3), 4, [stream(0)]))


def test_a_batch_names_its_parts_and_its_h_is_that_of_the_step():
    h = draw(domains=3, count=70)[None]
    for step, drawn in enumerate(soup.batches(numbered(), h, 8, [stream(0)])):
        assert drawn._fields == ("x", "y", "h")
        assert torch.equal(drawn.y, (100 * drawn.x[..., 0] + drawn.x[..., 1]).long())
        assert torch.equal(drawn.h, h[:, step])


def test_what_is_no_list_is_refused_by_its_name():
    law = WeightLaw()
    unchecked = [inspect.unwrap(each) for each in (soup.draw_plans, soup.batches, soup.cluster_features)]
    draw_plans, batches, cluster_features = unchecked  # as a notebook calls them
    for laws, seeds, name in ((law.support[0], [0], "laws"), ([law], 0, "seeds"), ("12", [0, 1], "laws")):
        with pytest.raises(ParameterError, match=f"^{name} = .*expected a list"):
            draw_plans(laws, 4, 5, seeds=seeds)
    with pytest.raises(ParameterError, match="2 laws, 1 seeds: expected a law for each seed"):
        draw_plans([law, None], 4, 5, seeds=[0])
    with pytest.raises(ParameterError, match=r"^generators = .*expected a list"):
        next(batches(numbered(), torch.eye(3)[None], 4, stream(0)))
    with pytest.raises(ParameterError, match=r"^domains = .*expected a list"):
        cluster_features(iter([torch.eye(3)]), 1, seed=0)


def test_scores_by_domain_are_those_of_evaluate():
    models, domains = stack.init(NET, 2, seed=0), noisy()
    found = soup.scores_by_domain(NET, models, domains)
    assert (found.loss.shape, found.class_accuracy.shape) == ((2, 3), (2, 3, 3))
    for d, split in enumerate(domains):
        for part, wanted in zip(found, train.evaluate(NET, models, split), strict=True):
            assert torch.equal(part[:, d], wanted)


def family():
    """Models [2, 5], their scores by domain [2, 5, 3], and weights [2, 5, 3]."""
    models, domains = stack.init(NET, 10, seed=0), noisy()
    h = soup.draw_plans([WeightLaw(), WeightLaw()], 3, 5, seeds=[0, 1])
    scores = soup.scores_by_domain(NET, models, domains)
    return stack.unflat(models, (2, 5)), domains, [scores.loss.view(2, 5, 3), scores.accuracy.view(2, 5, 3)], h


def test_a_score_under_a_mixture_is_the_mixture_of_the_scores_by_domain():
    models, domains, by, h = family()
    for found, each in zip(soup.score_mixtures(NET, models, domains, h), by, strict=True):
        assert found.shape == (2, 5)
        assert torch.allclose(found, torch.einsum("kjd,kjd->kj", each, h))


def test_a_score_under_a_one_hot_h_is_that_of_the_domain():
    models, domains, by, _ = family()
    for d in range(3):
        h = torch.eye(3)[d].expand(2, 5, -1)
        for found, each in zip(soup.score_mixtures(NET, models, domains, h), by, strict=True):
            assert torch.equal(found, each[..., d])


@pytest.mark.parametrize("axes", [2, 3])
def test_scores_of_all_runs_may_be_asked_for_under_the_same_h(axes):
    models, domains, _, h = family()
    one = soup.score_mixtures(NET, models, domains, h[0] if axes == 2 else h[:1])
    other = soup.score_mixtures(NET, models, domains, h[:1].expand(2, -1, -1))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_a_score_under_what_is_no_mixture_is_refused():
    models, domains, _, h = family()
    with pytest.raises(ParameterError, match="h has 3 weights, expected one for each of 2 domains"):
        soup.score_mixtures(NET, models, domains[:2], h)
    for bad in (2 * h, h - 1, h * torch.nan):
        with pytest.raises(ParameterError, match=r"expected weights ≥ 0 that sum to 1; divide by their sum"):
            soup.score_mixtures(NET, models, domains, bad)


CENTRES = 50 * torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0], [-1, -1, -1]])


def blobs(counts, *purpose):
    """Examples of domains that lie far apart: so many of each."""
    owner = torch.arange(4).repeat_interleave(torch.tensor(counts))
    return CENTRES[owner] + torch.randn(len(owner), 3, generator=stream(0, "blobs", *purpose))


def apart(seed=0):
    return soup.cluster_features([blobs([1000 * (d == own) for d in range(4)], own) for own in range(4)], 4, seed=seed)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_shares_of_a_domain_sum_to_one_and_none_is_zero(count):
    domains = list(torch.randn(3, 60, 2, generator=stream(0, "shares")) + torch.tensor([0.0, 1, 3]).view(3, 1, 1))
    found = soup.cluster_features(domains, count, seed=0)
    assert (found.centroids.shape, found.shares.shape) == ((count, 2), (count, 3))
    assert torch.allclose(found.shares.sum(dim=0), torch.ones(3))
    assert (found.shares > 0).all()
    again, other = (soup.cluster_features(domains, count, seed=seed) for seed in (0, 1))
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))
    assert count == 1 or not torch.equal(found.centroids, other.centroids)


def test_clusters_draw_from_their_own_stream_of_the_seed_and_a_seed_that_is_no_whole_number_is_refused(monkeypatch):
    cluster = inspect.unwrap(soup.cluster_features)  # as a notebook calls it: without the type checker of the tests
    monkeypatch.setattr(soup.mixtures, "stream", inspect.unwrap(stream))
    domains = list(torch.randn(3, 60, 2, generator=stream(0, "shares")))
    own = np.random.default_rng(stream(5, "clusters").initial_seed())
    wanted, _ = kmeans2(torch.cat(domains).double().numpy(), 6, iter=30, minit="++", rng=own)
    for seed in (5, np.int64(5)):
        assert np.array_equal(cluster(domains, 6, seed=seed).centroids, wanted.astype(np.float32))
    for seed in (0.5, None, True, -1, np.random.default_rng(0)):
        with pytest.raises(ParameterError, match="expected a whole number ≥ 0"):
            cluster(domains, 6, seed=seed)


def test_domains_far_apart_have_a_cluster_each():
    found = apart()
    whose = found.shares.argmax(dim=1)
    assert sorted(whose.tolist()) == [0, 1, 2, 3]
    assert torch.allclose(found.centroids, CENTRES[whose], atol=0.3)
    assert (found.shares.amax(dim=1) > 0.99).all()


def test_a_big_domain_counts_no_more_than_a_small_one():
    """Of either domain a half lies in each cluster."""
    domains = [blobs([n, n, 0, 0], n) for n in (100, 1000, 200, 400)]
    found = soup.cluster_features(domains, 2, seed=0)
    assert torch.allclose(found.shares, torch.full((2, 4), 0.5))
    assert torch.allclose(soup.domain_weights(found, blobs([3, 1, 0, 0])), torch.full((4,), 0.25))


def test_more_clusters_than_examples_or_none_are_refused():
    for count in (0, 7):
        with pytest.raises(ParameterError, match=f"count = {count}, expected 1 to 6 clusters"):
            soup.cluster_features([torch.eye(3), -torch.eye(3)], count, seed=0)


@pytest.mark.parametrize("counts", [[1, 0, 0, 0], [0, 3, 1, 0], [5, 5, 5, 5], [1, 2, 3, 4]])
@pytest.mark.parametrize("rounds", [0, 1, 20])
def test_between_domains_far_apart_h_is_the_histogram_of_the_examples(counts, rounds):
    examples, wanted = blobs(counts, "customer"), torch.tensor(counts) / sum(counts)
    assert torch.allclose(soup.domain_weights(apart(), examples, rounds=rounds), wanted, atol=0.01)
    exact = Clusters(CENTRES, torch.eye(4))
    assert torch.allclose(soup.domain_weights(exact, examples, rounds=rounds), wanted, atol=1e-6)


def crowd(shares, places):
    """Clusters on a line with these shares, and customers whose examples lie at such places, a little off."""
    centroids = torch.arange(float(len(shares)))[:, None]
    return Clusters(centroids, shares), (places + 0.2)[..., None]


def overlapping(clusters, domains, *purpose):
    return torch.rand(clusters, domains, generator=stream(0, *purpose)).add(0.02).pow(2)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 30), st.integers(0, 99))
def test_rounds_of_expectation_maximisation_never_make_the_examples_less_likely(domains, clusters, m, seed):
    shares = overlapping(clusters, domains, seed)
    shares = shares / shares.sum(dim=0)
    places = torch.randint(clusters, (m,), generator=stream(seed, "places"))
    found, examples = crowd(shares, places)
    past = -torch.inf
    for rounds in range(8):
        h = soup.domain_weights(found, examples, rounds=rounds)
        soup.check_weights(h, domains)
        likelihood = (shares[places] @ h).log().mean().item()
        assert likelihood >= past - 1e-5
        past = likelihood


def test_without_rounds_h_is_the_mean_of_what_each_example_says_of_its_domain():
    shares = torch.tensor([[0.5, 0.2], [0.5, 0.0], [0.0, 0.8]])
    found, examples = crowd(shares, torch.tensor([0, 0, 1, 2]))
    wanted = (2 * torch.tensor([5 / 7, 2 / 7]) + torch.tensor([1.0, 1.0])) / 4
    assert torch.allclose(soup.domain_weights(found, examples), wanted)


def test_many_rounds_find_the_most_likely_h_and_without_any_it_is_blurred():
    shares = overlapping(6, 3, "true")
    shares, true = shares / shares.sum(dim=0), torch.tensor([0.7, 0.3, 0.0])
    places = torch.multinomial(shares @ true, 4000, replacement=True, generator=stream(0, "places"))
    found, examples = crowd(shares, places)
    blurred, sharp = (soup.domain_weights(found, examples, rounds=rounds) for rounds in (0, 2000))
    assert (sharp - true).abs().max() < 0.05 < 0.1 < (blurred - true).abs().max()
    likely = shares[places]
    slope = (likely / (likely @ sharp)[:, None]).mean(dim=0)  # where h is best: 1, or less where h is 0
    assert slope[sharp > 0.01].tolist() == pytest.approx([1.0] * 2, abs=1e-3)
    assert (slope < 1 + 1e-3).all()


def several(*customers):
    shares = overlapping(5, 3)
    return crowd(shares / shares.sum(dim=0), torch.randint(5, (*customers, 12), generator=stream(0, "several")))


@pytest.mark.parametrize("rounds", [0, 7])
def test_the_order_of_the_examples_does_not_matter(rounds):
    found, examples = several()
    one, other = (soup.domain_weights(found, each, rounds=rounds) for each in (examples, examples.flip(0)))
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("rounds", [0, 7])
def test_many_customers_at_once_are_each_as_alone(rounds):
    found, examples = several(2, 3)
    together = soup.domain_weights(found, examples, rounds=rounds)
    assert together.shape == (2, 3, 3)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(together[i, j], soup.domain_weights(found, examples[i, j], rounds=rounds), atol=1e-6)
    assert not torch.allclose(together[0, 0], together[1, 2], atol=1e-2)


@pytest.mark.parametrize("customers", [(), (2,)])
def test_a_customer_without_examples_is_refused(customers):
    with pytest.raises(DataError, match="a customer without examples: expected one or more"):
        soup.domain_weights(apart(), torch.zeros(*customers, 0, 3))


def test_fewer_rounds_than_none_are_refused():
    with pytest.raises(ParameterError, match="rounds = -1, expected a whole number ≥ 0"):
        soup.domain_weights(apart(), torch.zeros(1, 3), rounds=-1)


def test_features_may_be_float64():
    examples = blobs([1, 2, 3, 4], "customer")
    one, other = (soup.domain_weights(apart(), each, rounds=3) for each in (examples, examples.double()))
    assert torch.equal(one, other)


TOLD = {"steps": 60, "lr": 0.01}


def stripes(n, *purpose):
    """Noisy images [n, 1, 4, 4] of two domains: bright on the left, or on top."""
    bright = torch.zeros(2, 1, 1, 4, 4)
    bright[0, ..., :2], bright[1, ..., :2, :] = 1, 1
    return [each + 0.3 * torch.randn(n, 1, 4, 4, generator=stream(d, *purpose)) for d, each in enumerate(bright)]


@pytest.fixture(scope="module")
def taught():
    domains = [Split(x, torch.zeros(len(x)).long()) for x in stripes(200, "train")]
    return domains, soup.train_domain_classifier(domains, 8, seed=0, **TOLD)


@pytest.mark.parametrize("rounds", [0, 20])
def test_from_what_a_domain_classifier_sees_the_domains_of_a_customer_are_found(taught, rounds):
    domains, classifier = taught
    found = soup.cluster_features([soup.hidden_features(classifier, split.x) for split in domains], 4, seed=0)
    left, top = stripes(60, "customer")
    for images, wanted in ((torch.cat([left, top]), 0.5), (torch.cat([left, top[:20]]), 0.75), (left, 1.0), (top, 0.0)):
        h = soup.domain_weights(found, soup.hidden_features(classifier, images), rounds=rounds)
        assert h.tolist() == pytest.approx([wanted, 1 - wanted], abs=0.1)


def test_many_customers_at_once_are_each_seen_as_alone(taught):
    _, classifier = taught
    images = torch.stack([torch.cat(stripes(3, "customer", c)) for c in range(6)]).unflatten(0, (2, 3))
    together = soup.hidden_features(classifier, images)
    assert together.shape == (2, 3, 6, 8)
    assert soup.hidden_features(classifier, images[0, 0]).shape == (6, 8)
    for i in range(2):
        assert torch.allclose(together[i], soup.hidden_features(classifier, images[i]), atol=1e-6)
        for j in range(3):
            assert torch.allclose(together[i, j], soup.hidden_features(classifier, images[i, j]), atol=1e-6)


def test_the_same_seed_makes_the_same_domain_classifier_and_labels_do_not_matter(taught):
    domains, classifier = taught
    images, labelled = torch.cat(stripes(5, "look")), [Split(split.x, split.y + d) for d, split in enumerate(domains)]
    again, other = (soup.train_domain_classifier(labelled, 8, seed=seed, **TOLD) for seed in (0, 1))
    assert torch.equal(soup.hidden_features(classifier, images), soup.hidden_features(again, images))
    assert not torch.allclose(soup.hidden_features(classifier, images), soup.hidden_features(other, images), atol=1e-2)


def test_a_domain_classifier_and_a_model_of_the_same_seed_and_shape_do_not_start_alike(taught):
    domains, _ = taught
    still = soup.train_domain_classifier(domains, 8, seed=0, steps=1, lr=1e-30)
    start = stack.init(stack.mlp(16, [8], 2), 1, seed=0)
    assert not torch.allclose(still.model["1.weight"], start["1.weight"], atol=1e-3)


def test_a_domain_classifier_is_trained_on_its_device_with_the_same_numbers(taught):
    domains, classifier = taught
    with second_device() as device:
        away = [Split(split.x.to(device), split.y.to(device)) for split in domains]
        for splits in (domains, away):
            model = soup.train_domain_classifier(splits, 8, seed=0, device=device, **TOLD).model
            assert stack.device(model) == device
            assert all(torch.equal(model[name].cpu(), wanted) for name, wanted in classifier.model.items())


def bank(domains, classes=2):
    """Two banks of one net a domain, and labels that the domains see otherwise: what one calls 0, the other calls 1."""
    labelled = [Split(split.x, torch.full_like(split.y, d)) for d, split in enumerate(domains)]
    net = stack.mlp(16, [4], classes)
    models = train.fit(net, stack.init(net, 4, seed=1), labelled * 2, steps=60, lr=0.03).stack
    return net, stack.unflat(models, (2, 2)), labelled


def test_with_one_domain_the_ensemble_is_its_expert_and_with_a_mixture_it_asks_the_right_one(taught):
    domains, classifier = taught
    net, experts, labelled = bank(domains)
    eye, even = torch.eye(2), torch.full((1, 2), 0.5)
    alone = soup.score_mixtures(net, experts, labelled, eye)
    found = soup.score_ensemble(net, experts, classifier, labelled, eye)
    assert torch.allclose(found.loss, alone.loss, atol=1e-5)
    assert torch.equal(found.accuracy, alone.accuracy)
    asked = soup.score_ensemble(net, experts, classifier, labelled, even)
    single = soup.score_mixtures(net, experts, labelled, even.expand(2, -1))
    assert asked.loss.shape == asked.accuracy.shape == (2, 1)
    assert (asked.loss[:, 0] < 0.3 * single.loss.amin(dim=1)).all()
    assert (asked.accuracy[:, 0] > single.accuracy.amax(dim=1)).all()


def test_who_believes_its_own_h_is_the_one_who_knows_it_and_who_believes_another_is_judged_on_its_own(taught):
    domains, classifier = taught
    net, experts, labelled = bank(domains)
    h = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    knows = soup.score_ensemble(net, experts, classifier, labelled, h)
    same = soup.score_ensemble(net, experts, classifier, labelled, h, believed=h)
    assert all(torch.equal(*pair) for pair in zip(knows, same, strict=True))
    first = torch.tensor([[1.0, 0.0]])  # asks the first expert alone
    astray = soup.score_ensemble(net, experts, classifier, labelled, h, believed=first.expand(2, -1))
    for j in (0, 1):
        alone = soup.score_mixtures(net, experts, labelled, h[j].expand(2, -1))
        assert torch.allclose(astray.loss[:, j], alone.loss[:, 0], atol=1e-5)
        assert torch.allclose(astray.accuracy[:, j], alone.accuracy[:, 0])
    assert (knows.loss < astray.loss).all()


def test_every_bank_may_have_customers_of_its_own(taught):
    domains, classifier = taught
    net, experts, labelled = bank(domains)
    h = torch.tensor([[[0.9, 0.1]], [[0.3, 0.7]]])  # one customer a bank
    found = soup.score_ensemble(net, experts, classifier, labelled, h)
    for k in range(2):
        alone = soup.score_ensemble(net, experts, classifier, labelled, h[k])
        assert torch.allclose(found.loss[k], alone.loss[k], atol=1e-6)
        assert torch.equal(found.accuracy[k], alone.accuracy[k])
    with pytest.raises(ShapeError, match="h is for 3 runs, expected one for each of 2"):
        soup.score_ensemble(net, experts, classifier, labelled, h[:1].expand(3, -1, -1))


def test_an_expert_that_the_classifier_rules_out_still_answers_who_believes_in_it_alone(taught):
    domains, classifier = taught
    net, experts, labelled = bank(domains)
    sure = classifier._replace(model=stack.map(lambda tensor: 1000 * tensor, classifier.model))  # P(i | x) is 0 or 1
    eye = torch.eye(2)
    found = soup.score_ensemble(net, experts, sure, labelled, eye, believed=eye.flip(0))
    alone = soup.score_mixtures(net, stack.map(lambda tensor: tensor.flip(1), experts), labelled, eye)
    assert torch.allclose(found.loss, alone.loss, atol=1e-4)


def test_what_a_customer_believes_has_to_be_weights_of_the_same_domains_and_customers(taught):
    domains, classifier = taught
    net, experts, labelled = bank(domains)
    eye = torch.eye(2)
    for bad in (2 * eye, eye - 1):
        with pytest.raises(ParameterError, match="expected weights ≥ 0 that sum to 1"):
            soup.score_ensemble(net, experts, classifier, labelled, eye, believed=bad)
    score = inspect.unwrap(soup.score_ensemble)  # as a notebook calls it
    with pytest.raises(ParameterError, match=r"believed has shape \(1, 2\), h \(2, 2\)"):
        score(net, experts, classifier, labelled, eye, believed=eye[:1])


def test_answers_are_weighed_by_hand_as_by_the_ensemble(taught):
    """h_i P(i | x), made to sum to 1, image by image."""
    domains, classifier = taught
    net, experts, labelled = bank(domains)
    h, x, y = torch.tensor([0.2, 0.8]), labelled[1].x[:5], labelled[1].y[:5]
    weighed = h * stack.forward(classifier.net, classifier.model, x)[0].softmax(dim=1)
    weighed = weighed / weighed.sum(dim=1, keepdim=True)
    says = stack.forward(net, stack.take(experts, 0), x).softmax(dim=2)
    by_hand = -(weighed[:, 0] * says[0, range(5), y] + weighed[:, 1] * says[1, range(5), y]).log().mean()
    few = [Split(x, y)] * 2  # the same images as both domains: h weighs the answers, not the domains
    found = soup.score_ensemble(net, experts, classifier, few, h.unsqueeze(0))
    assert found.loss[0, 0] == pytest.approx(by_hand.item(), abs=1e-5)
    right = (weighed.unsqueeze(2) * says.transpose(0, 1)).sum(dim=1).argmax(dim=1) == y
    assert found.accuracy[0, 0] == pytest.approx(right.float().mean().item())


@pytest.fixture(scope="module")
def pair():
    """Examples whose label is the sign of their first feature, a model that knows, and one that does not."""
    x = torch.randn(60, 2, generator=stream(0, "trial"))
    split = Split(x, (x[:, 0] > 0).long())
    start = stack.init(NET, 1, seed=0)
    knows = train.fit(NET, start, split, steps=200, lr=0.03).stack
    return knows, start, split


def tried(one, other, split):
    count = stack.count(one)
    return soup.trial(NET, one, other, split.x.expand(count, -1, -1), split.y.expand(count, -1))


def test_a_model_tried_against_itself_gains_nothing_and_does_not_ship(pair):
    knows, _, split = pair
    found = tried(knows, knows, split)
    assert np.array_equal(found.gain_nats, np.zeros((3, 1)))
    assert not found.ships.any()


def test_a_clearly_better_model_ships_and_a_worse_one_does_not(pair):
    knows, start, split = pair
    both = tried(stack.chain([knows, start]), stack.chain([start, knows]), split)
    losses = train.evaluate(NET, stack.chain([knows, start]), split).loss
    assert both.gain_nats.mean[0] == pytest.approx((losses[1] - losses[0]).item(), abs=1e-5)
    assert 0.3 < both.gain_nats.low[0] < both.gain_nats.mean[0] < both.gain_nats.high[0]
    assert [-each[1] for each in both.gain_nats] == pytest.approx([both.gain_nats[k][0] for k in (0, 2, 1)])
    assert both.ships.tolist() == [True, False]


def test_many_are_tried_at_once_as_one_by_one_each_on_its_own_examples(pair):
    knows, start, split = pair
    one, other = stack.chain([knows, start]), stack.chain([start, knows])
    x, y = split.x.view(2, 30, 2), split.y.view(2, 30)
    found = soup.trial(NET, one, other, x, y)
    for k in (0, 1):
        alone = soup.trial(NET, stack.take(one, [k]), stack.take(other, [k]), x[[k]], y[[k]])
        assert [each[k] for each in found.gain_nats] == pytest.approx([each[0] for each in alone.gain_nats], abs=1e-6)


def test_a_trial_is_paired_so_that_a_small_gain_everywhere_is_seen(pair):
    _, start, split = pair
    split = Split(split.x, torch.zeros_like(split.y))
    better = {**start, "3.bias": start["3.bias"] + torch.tensor([0.01, 0, 0])}
    found = tried(better, start, split)
    losses = cross_entropy(stack.forward(NET, start, split.x)[0], split.y, reduction="none")
    assert found.ships.all()
    assert found.gain_nats.high - found.gain_nats.low < 0.1 * losses.std().item() / len(split) ** 0.5


def test_a_gain_seen_on_two_examples_that_disagree_does_not_ship(pair):
    _, start, split = pair
    split = Split(split.x[:1].expand(2, -1), torch.tensor([0, 1]))
    better = {**start, "3.bias": start["3.bias"] + torch.tensor([1.0, -0.3, -1.0])}
    found = tried(better, start, split)
    assert found.gain_nats.low < 0 < found.gain_nats.mean
    assert not found.ships.any()


def test_a_trial_on_fewer_than_two_examples_is_refused(pair):
    knows, start, split = pair
    with pytest.raises(DataError, match="1 examples: expected two or more"):
        tried(knows, start, Split(split.x[:1], split.y[:1]))


def shown_of(net, experts, classifier, domains, h):
    """Everything that is shown of models, as plain tensors."""
    shown = next(soup.batches(domains, h.unsqueeze(1), 6, [stream(0), stream(1)]))
    features = soup.hidden_features(classifier, shown.x)
    clusters = soup.cluster_features([soup.hidden_features(classifier, split.x) for split in domains], 3, seed=0)
    tried = soup.trial(net, stack.take(experts, 0), stack.take(experts, 1), shown.x, shown.y)
    scores = soup.score_mixtures(net, experts, domains, h)
    ensemble = soup.score_ensemble(net, experts, classifier, domains, h)
    guessed = soup.domain_weights(clusters, features)
    return [features, *clusters, torch.as_tensor(tried.gain_nats.low), tried.ships, *scores, *ensemble, guessed]


def test_what_is_shown_of_models_on_another_device_is_on_the_cpu_with_the_same_numbers(taught):
    domains, classifier = taught
    net, experts, labelled = bank(domains)
    h = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    wanted = shown_of(net, experts, classifier, labelled, h)
    with second_device() as device:
        experts, model = (stack.map(lambda tensor: tensor.to(device), models) for models in (experts, classifier.model))
        away = [Split(split.x.to(device), split.y.to(device)) for split in labelled]
        for splits, own in ((labelled, h), (labelled, h.to(device)), (away, h.to(device))):
            found = shown_of(net, experts, classifier._replace(model=model), splits, own)
            assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_batches_are_on_the_device_of_their_weights_wherever_the_domains_are():
    h = draw(domains=3, count=70)[None]
    wanted = all_of(numbered(), h, 8, [stream(0)])
    with second_device() as device:
        away = [Split(split.x.to(device), split.y.to(device)) for split in numbered()]
        for splits, own in ((numbered(), h.to(device)), (away, h), (away, h.to(device))):
            found = all_of(splits, own, 8, [stream(0)])
            assert {each.device for each in found} == {own.device}
            assert all(torch.equal(each.cpu(), right) for each, right in zip(found, wanted, strict=True))


def test_the_table_of_mixtures_has_a_row_a_model_and_mixture():
    loss, accuracy = torch.rand(2, 2, 3, generator=stream(0, "mixtures"))
    score = soup.MixtureScore(loss, accuracy)
    customers = ["Ann", "Bob", "Cleo"]
    table = score.table(stack.grid(seed=[0, 1]), {"customer": customers})
    assert len(table) == 6
    for row in table.itertuples():
        place = row.seed, customers.index(row.customer)
        assert row.loss == loss[place].item()
        assert row.accuracy == accuracy[place].item()
    with pytest.raises(ShapeError, match=r"'loss' has shape \(2, 3\), expected \(3, 3\)"):
        score.table(stack.grid(seed=range(3)), {"customer": customers})
    with pytest.raises(ShapeError, match=r"'loss' has shape \(2, 3\), expected \(2, 2\)"):
        score.table(stack.grid(seed=range(2)), {"customer": customers[:2]})


def test_the_table_of_scores_by_domain_has_a_row_a_model_and_domain():
    found = soup.scores_by_domain(NET, stack.init(NET, 2, seed=0), noisy())
    table = found.table(stack.grid(seed=[0, 1]), {"domain": ["upright", "turned", "edges"]})
    assert table.domain.tolist() == ["upright", "turned", "edges"] * 2
    assert table.loss.tolist() == found.loss.flatten().tolist()


def test_the_table_of_a_trial_has_a_row_a_specialist(pair):
    one, other, split = pair
    found = tried(stack.chain([one, other]), stack.chain([other, one]), split)
    table = found.table(stack.grid(customer=["Ann", "Bob"]))
    assert list(table) == ["customer", "gain_nats", "gain_nats_low", "gain_nats_high", "ships"]
    assert table.ships.tolist() == found.ships.tolist()
    assert table.gain_nats.tolist() == found.gain_nats.mean.tolist()
    assert table.gain_nats_low.tolist() == found.gain_nats.low.tolist()
    assert table.gain_nats_high.tolist() == found.gain_nats.high.tolist()
    with pytest.raises(ShapeError, match=r"has shape \(2,\), expected \(3,\)"):
        found.table(stack.grid(customer=range(3)))
