"""CKA against ckatorch and pytorch-cka (PyPI, extra `peers`), a float64 reference and the machine's own limit."""

import time

import pytest
import torch
from conftest import peak, seconds

from paramarket import cka

HALF = {512: 10 / 16, 2000: 36 / 64}  # of a symmetric product, formed in four or eight blocks


def clouds(n, features, count, seed):
    """Representations that share a part, so that no CKA is near 0."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, features, generator=generator)
    return [shared + k / 4 * torch.randn(n, features, generator=generator) for k in range(1, count + 1)]


@pytest.mark.parametrize("debiased", [False, True])
def bench_one_pair(row, debiased):
    ckatorch = pytest.importorskip("ckatorch", reason="pip install -e '.[peers]'")
    x, y = clouds(8000, 512, 2, seed=0)
    limit, ours = peak(), seconds(lambda: cka.linear_cka(x, y, debiased))
    theirs = seconds(lambda: ckatorch.cka_base(x, y, unbiased=debiased), rounds=1)
    name = f"one pair, n=8,000, p=512, {'debiased' if debiased else 'biased'}"
    row(f"{name}: times faster than ckatorch 1.0.3", "≥ 15.00", theirs / ours)
    exact = cka.linear_cka(x, y, debiased, torch.float64)
    row(f"{name}: distance from float64, in 1e-6", "≤ 1.00", 1e6 * abs(cka.linear_cka(x, y, debiased) - exact))
    flops = (1 + 2 * HALF[512]) * 2 * 8000 * 512**2  # X'Y, and half of X'X and Y'Y
    row(f"{name}: share of matmul peak", "≥ 0.50", flops / ours / 1e9 / limit)


def bench_all_pairs(row):
    ckatorch = pytest.importorskip("ckatorch", reason="pip install -e '.[peers]'")
    parts = clouds(2000, 512, 16, seed=1)
    xs, ys = ({str(k): part for k, part in enumerate(side)} for side in (parts[::2], parts[1::2]))
    limit, ours = peak(), seconds(lambda: cka.cka_matrix(xs, ys, debiased=True))
    start = time.perf_counter()
    table = torch.tensor([[float(ckatorch.cka_base(x, y, unbiased=True)) for y in ys.values()] for x in xs.values()])
    theirs = time.perf_counter() - start
    row("8 × 8 layers, n=2,000, p=512: times faster than ckatorch 1.0.3", "≥ 40.00", theirs / ours)
    exact = cka.cka_matrix(xs, ys, debiased=True, dtype=torch.float64)
    away = (cka.cka_matrix(xs, ys, debiased=True) - exact).abs().max().item()
    row("8 × 8 layers: distance from float64, in 1e-6", "≤ 1.00", 1e6 * away)
    row("8 × 8 layers: distance of ckatorch from float64, in 1e-6", "", 1e6 * (table - exact).abs().max().item())
    flops = 16 * HALF[2000] * 2 * 2000**2 * 512  # half of 16 Gram matrices
    row("8 × 8 layers: share of matmul peak", "≥ 0.50", flops / ours / 1e9 / limit)


def layers(n, count, seed):
    """{layer: representation} twice, half of `count` each."""
    parts = clouds(n, 512, count, seed)
    return tuple({str(k): part for k, part in enumerate(side)} for side in (parts[::2], parts[1::2]))


PAIR, TABLE, SMALL = "one pair, n=8,000", "8 × 8 layers, n=2,000", "8 × 8 layers, n=500"


@pytest.mark.parametrize(
    ("what", "n", "count", "bar"), [(PAIR, 8000, 2, 15), (TABLE, 2000, 16, 1.8), (SMALL, 500, 16, 1)]
)
def bench_against_pytorch_cka(row, what, n, count, bar):
    """It knows the debiased estimate alone."""
    peer = pytest.importorskip("cka", reason="pip install -e '.[peers]'")
    xs, ys = layers(n, count, seed=2)
    lists = [list(side.values()) for side in (xs, ys)]
    theirs = seconds(lambda: peer.cka_from_features(*lists), rounds=3)
    ours = seconds(lambda: cka.cka_matrix(xs, ys, debiased=True))
    row(f"{what}, p=512, debiased: times faster than pytorch-cka 1.1.3", f"≥ {bar:.2f}", theirs / ours)
    exact = cka.cka_matrix(xs, ys, debiased=True, dtype=torch.float64)
    row(f"{what}: distance of pytorch-cka from float64, in 1e-6", "", 1e6 * far(peer.cka_from_features(*lists), exact))


def far(found, exact):
    return (found - exact).abs().max().item()


@pytest.mark.parametrize("mean", [10, 100])
def bench_large_means(row, mean):
    peer = pytest.importorskip("cka", reason="pip install -e '.[peers]'")
    x, y = (part + mean for part in clouds(2000, 512, 2, seed=3))
    exact = cka.cka_matrix({"x": x}, {"y": y}, debiased=True, dtype=torch.float64)
    ours = cka.cka_matrix({"x": x}, {"y": y}, debiased=True)
    row(f"features of mean {mean}: distance from float64, in 1e-6", "≤ 1.00", 1e6 * far(ours, exact))
    row(f"features of mean {mean}: distance of pytorch-cka from float64", "", far(peer.cka_from_features(x, y), exact))
