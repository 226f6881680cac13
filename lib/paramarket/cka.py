"""Representation similarity: centred kernel alignment (CKA; Kornblith et al. 2019), biased and debiased.

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = XXᵀ and L = YYᵀ for the linear kernel

Biased: HSIC_0 = tr(KHLH) / (n - 1)² with H = I - 11ᵀ/n. Two clouds of pure noise then score about
sqrt(pq / ((n + p)(n + q))): .857 at n = 128, p = q = 768. Debiased: the unbiased HSIC_1 (Song et al. 2012), near 0 for
noise; a ratio of estimates, it may come out a little below 0 or above 1, and is never clipped.
"""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paramarket.errors import DataError, ParameterError, ShapeError

Layers = Mapping[Hashable, Tensor]  # {layer or step: representation [*batch, n, features]}, as `stack.features` gives


def linear_cka(
    x: Float[Tensor, "*batch n p"],
    y: Float[Tensor, "*batch _ q"],
    debiased: bool = False,
    dtype: torch.dtype = torch.float32,
) -> float | Float[Tensor, "*batch"]:
    """CKA of two representations of the same n examples: 1 if they are equal up to rotation, scale and shift.

    A float for one pair; with batch axes one float64 number each. Inputs are centred in float64, products formed in
    `dtype`, sums taken in float64. Raises DataError for constant features, values that are not finite and too few
    examples (2; debiased 4), ShapeError where n differs.
    """
    value = cka_matrix({"x": x}, {"y": y}, debiased, dtype)[..., 0, 0]
    return value.item() if value.ndim == 0 else value


def cka_matrix(
    xs: Layers, ys: Layers, debiased: bool = False, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch xs ys"]:
    """Linear CKA of every x with every y, layers with layers or checkpoints with checkpoints; see `linear_cka`.

    Each may have its own number of features. All products of one x with all y are formed at once.
    """
    cross, own_x, own_y = _hsic(xs, ys, debiased, dtype)
    return _ratio(cross, own_x, own_y)


class StreamingCKA:
    """Debiased linear CKA of every x with every y from minibatches (Nguyen et al. 2021).

    HSIC_1 is unbiased in every batch, so numerators and denominators are averaged, weighted by batch, and divided only
    at the end. The mean of the batches' CKAs would be biased.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype, self.seen, self.sums = dtype, 0, []

    def update(self, xs: Layers, ys: Layers) -> None:
        """Add a batch of 4 examples or more: {layer: [n, features]} twice, in the same order at every call."""
        parts, n = _hsic(xs, ys, True, self.dtype), next(iter(xs.values())).shape[-2]
        weighted = [n * part for part in parts]
        self.sums = weighted if not self.seen else [a + b for a, b in zip(self.sums, weighted, strict=True)]
        self.seen += n

    def compute(self) -> Float[Tensor, "xs ys"]:
        """CKA of all that was added. Raises DataError before the first batch."""
        if not self.seen:
            raise DataError("no batch was added yet: call update first.")
        return _ratio(*(total / self.seen for total in self.sums))


def _ratio(cross: Tensor, own_x: Tensor, own_y: Tensor) -> Tensor:
    if not ((own_x > 0).all() and (own_y > 0).all()):
        raise DataError("a representation says something of a single example only: nothing debiased can be told of it.")
    return cross / (own_x.unsqueeze(-1) * own_y.unsqueeze(-2)).sqrt()


def _hsic(xs: Layers, ys: Layers, debiased: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """HSIC of every x with every y [*batch, xs, ys], and of each with itself [*batch, xs], [*batch, ys].

    Up to a factor that cancels in CKA if biased.
    """
    x, y = _prepared(xs, debiased, dtype), _prepared(ys, debiased, dtype)
    xn, yn = ({name: part.shape[-2] for name, part in side.items()} for side in (x, y))
    if len({*xn.values(), *yn.values()}) != 1:
        raise ShapeError(f"CKA compares what is said of the same examples, got different numbers: {xn} and {yn}.")
    n = next(iter(xn.values()))
    cross, own_x, own_y = _products(list(x.values()), list(y.values()))
    if not debiased:
        return cross, own_x, own_y
    k, m = (torch.stack([_lengths(part) for part in side.values()], dim=-2) for side in (x, y))  # [*batch, xs, n]
    ends = [(own_x, (k * k).sum(-1), k.sum(-1) ** 2), (own_y, (m * m).sum(-1), m.sum(-1) ** 2)]
    pairs = (cross, k @ m.mT, k.sum(-1).unsqueeze(-1) * m.sum(-1).unsqueeze(-2))
    cross, *own = (_unbiased(*each, n) for each in (pairs, *ends))
    left = [part * n * (n - 3) / raw for part, raw in zip(own, (own_x, own_y), strict=True)]
    if min(each.min().item() for each in left) < 1e-3 and dtype != torch.float64:  # a difference of large numbers
        return _hsic(xs, ys, debiased, torch.float64)
    return cross, *(torch.where(share > 1e-9, part, 0.0) for share, part in zip(left, own, strict=True))


def _unbiased(product: Tensor, aligned: Tensor, apart: Tensor, n: int) -> Tensor:
    """HSIC_1 from centred features: [|XᵀY|² - n/(n-2) sum_i k_i l_i + (sum k)(sum l)/((n-1)(n-2))] / (n(n-3))."""
    return (product - n / (n - 2) * aligned + apart / ((n - 1) * (n - 2))) / (n * (n - 3))


def _prepared(layers: Layers, debiased: bool, dtype: torch.dtype) -> dict[Hashable, Tensor]:
    """Every layer centred and looked at: DataError, naming it, for what has no CKA."""
    least, done = 4 if debiased else 2, {}
    for name, layer in layers.items():
        if layer.ndim < 2 or layer.shape[-2] < least:
            raise DataError(
                f"{name!r} has shape {tuple(layer.shape)}: CKA needs {least} examples or more, [n, features]."
            )
        done[name] = _centred(layer, dtype)
        spread, size = (torch.linalg.vector_norm(part, dim=(-2, -1)) for part in (done[name], layer))
        if not (spread + size).isfinite().all():
            raise DataError(f"{name!r} holds values that are NaN or infinite.")
        if (spread <= 3e-7 * size).any():
            raise DataError(f"{name!r} is constant: it says the same of every example, so nothing can resemble it.")
    return done


def _centred(layer: Tensor, dtype: torch.dtype) -> Tensor:
    """As exact as in float64: what one pass in float32 leaves of a large mean would drown small differences.

    In float32 a second pass takes away what the first has left, which no longer has a large mean; each difference is
    then rounded once, as it would be on its way from float64 to float32, at a fifth of the time.
    """
    if layer.dtype == dtype == torch.float32:
        once = layer - layer.mean(dim=-2, keepdim=True)
        return once.sub_(once.mean(dim=-2, keepdim=True))
    mean = layer.mean(dim=-2, keepdim=True, dtype=torch.float64)
    return torch.cat([(part - mean).to(dtype) for part in layer.split(1024, dim=-2)], dim=-2)


def _lengths(x: Tensor) -> Tensor:
    """The squared length of every example's representation, float64."""
    return torch.linalg.vector_norm(x, dim=-1).double() ** 2


def _products(xs: list[Tensor], ys: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """|X_iᵀY_j|² = <X_iX_iᵀ, Y_jY_jᵀ> for all i and j [*batch, xs, ys], and of each with itself; summed in float64.

    By features n sum p_i sum q_j operations, by Gram matrices n² (sum p_i + sum q_j): whichever is less. Where the
    result is symmetric, the half that mirrors the other is not formed.
    """
    n, p, q = xs[0].shape[-2], [x.shape[-1] for x in xs], [y.shape[-1] for y in ys]
    by_features = sum(p) * sum(q) + 0.6 * sum(width**2 for width in (*p, *q))
    by_grams = 0.6 * n * (sum(p) + sum(q)) + n * len(p) * len(q)
    if by_grams < by_features:
        return _by_grams(xs, ys)
    own_x, own_y = (torch.stack([_own_product(x) for x in side], dim=-1) for side in (xs, ys))
    together, rows = torch.cat(ys, dim=-1), []
    for x in xs:
        squares = (x.mT @ together).square_().sum(dim=-2).double()  # one per feature of a y
        rows.append(torch.stack([part.sum(dim=-1) for part in squares.split(q, dim=-1)], dim=-1))
    return torch.stack(rows, dim=-2), own_x, own_y


def _own_product(x: Tensor) -> Tensor:
    """|XᵀX|², block of columns by block of columns."""
    total = 0.0
    for start, size in _blocks(x.shape[-1]):
        product = x[..., start : start + size].mT @ x[..., start:]
        for part, times in ((product[..., :size], 1), (product[..., size:], 2)):
            total = total + times * torch.linalg.vector_norm(part, dim=(-2, -1), dtype=torch.float64) ** 2
    return total


def _by_grams(xs: list[Tensor], ys: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of all Gram matrices at a time, from the diagonal on: [*batch, rows, layers, columns]."""
    cross, own = 0.0, [0.0, 0.0]
    for start, size in _blocks(xs[0].shape[-2]):
        rows = [_gram_rows(side, start, size) for side in (xs, ys)]
        for columns, times in ((slice(size), 1), (slice(size, None), 2)):
            k, m = (part[..., columns] for part in rows)
            cross = cross + times * (k @ m.mT).sum(dim=-3, dtype=torch.float64)
            for at, part in enumerate((k, m)):
                lengths = torch.linalg.vector_norm(part, dim=-1).double()
                own[at] = own[at] + times * (lengths**2).sum(dim=-2)
    return cross, *own


def _gram_rows(layers: list[Tensor], start: int, size: int) -> Tensor:
    """Written where they are to stand: to stack them afterwards would take longer than the sums over them."""
    *batch, n, _ = layers[0].shape
    rows = layers[0].new_empty(*batch, size, len(layers), n - start)
    for k, z in enumerate(layers):
        torch.matmul(z[..., start : start + size, :], z[..., start:, :].mT, out=rows[..., k, :])
    return rows


def _blocks(length: int) -> list[tuple[int, int]]:
    """(start, size) of what a symmetric product is cut into: more parts save more, but small products are slow."""
    size = -(-length // (8 if length >= 1024 else 4)) if length >= 256 else length
    return [(start, min(size, length - start)) for start in range(0, length, size)]


def rbf_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "_ q"], sigma: float = 1.0, debiased: bool = False) -> float:
    """CKA with Gaussian kernels K_ij = exp(-|x_i - x_j|² / (2 s²)), s² = sigma² times the median squared distance.

    Formed in float64. Large sigma tends to linear CKA; with small sigma every example resembles only itself, and biased
    CKA is 1 for any data. Errors as for `linear_cka`.
    """
    if not sigma > 0:
        raise ParameterError(f"sigma = {sigma}, expected a number above 0.")
    both = {
        name: part for side in ({"x": x}, {"y": y}) for name, part in _prepared(side, debiased, torch.float64).items()
    }
    if len(x) != len(y):
        raise ShapeError(f"CKA compares what is said of the same examples, got {len(x)} and {len(y)} of them.")
    k, m = (_kernel(part, sigma, debiased) for part in both.values())
    return ((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()).item()


def _kernel(x: Tensor, sigma: float, debiased: bool) -> Tensor:
    """The Gaussian kernel, centred on both sides; debiased: U-centred (Székely and Rizzo 2014), its diagonal 0."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    k = torch.exp(-distances / (2 * sigma**2 * float(np.median(distances.cpu().numpy()))))
    if not debiased:
        return k - k.mean(dim=0) - k.mean(dim=1, keepdim=True) + k.mean()
    n = len(k)
    k.fill_diagonal_(0)
    means = k.sum(dim=1) / (n - 2)
    means -= means.sum() / (2 * (n - 1))
    return (k - means - means[:, None]).fill_diagonal_(0)
