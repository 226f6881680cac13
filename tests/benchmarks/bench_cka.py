"""CKA against ckatorch (PyPI, extra `peers`), against a float64 reference and against the machine's own limit."""

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
