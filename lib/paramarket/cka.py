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

from paramarket.base import DataError, ParameterError, ShapeError

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
    cross = _all_products(list(x.values()), list(y.values()))
    own_x, own_y = (torch.stack([_product(part, part) for part in side.values()], dim=-1) for side in (x, y))
    if not debiased:
        return cross, own_x, own_y
    k, m = (torch.stack([_lengths(part) for part in side.values()], dim=-2) for side in (x, y))  # [*batch, xs, n]
    ends = [(own_x, (k * k).sum(-1), k.sum(-1) ** 2), (own_y, (m * m).sum(-1), m.sum(-1) ** 2)]
    pairs = (cross, k @ m.mT, k.sum(-1).unsqueeze(-1) * m.sum(-1).unsqueeze(-2))
    return tuple(_unbiased(*each, n) for each in (pairs, *ends))


def _unbiased(product: Tensor, aligned: Tensor, apart: Tensor, n: int) -> Tensor:
    """HSIC_1 from centred features: [|XᵀY|² - n/(n-2) sum_i k_i l_i + (sum k)(sum l)/((n-1)(n-2))] / (n(n-3))."""
    return (product - n / (n - 2) * aligned + apart / ((n - 1) * (n - 2))) / (n * (n - 3))


def _prepared(layers: Layers, debiased: bool, dtype: torch.dtype) -> dict[Hashable, Tensor]:
    """Centred in float64: what large means leave of small differences in float32 is nothing."""
    least, done = 4 if debiased else 2, {}
    for name, layer in layers.items():
        if layer.ndim < 2 or layer.shape[-2] < least:
            raise DataError(
                f"{name!r} has shape {tuple(layer.shape)}: CKA needs {least} examples or more, [n, features]."
            )
        mean = layer.mean(dim=-2, keepdim=True, dtype=torch.float64)
        parts = [(part - mean).to(dtype) for part in layer.split(1024, dim=-2)]  # in float64, without a copy of it all
        done[name] = torch.cat(parts, dim=-2)
        spread, size = (torch.linalg.vector_norm(part, dim=(-2, -1)) for part in (done[name], layer))
        if not (spread + size).isfinite().all():
            raise DataError(f"{name!r} holds values that are NaN or infinite.")
        if (spread <= 3e-7 * size).any():
            raise DataError(f"{name!r} is constant: it says the same of every example, so nothing can resemble it.")
    return done


def _lengths(x: Tensor) -> Tensor:
    """The squared length of every example's representation, float64."""
    return torch.linalg.vector_norm(x, dim=-1).double() ** 2


def _product(x: Tensor, y: Tensor) -> Tensor:
    """|XᵀY|² = <XXᵀ, YYᵀ>, by features or by Gram matrices, whichever is smaller; summed in float64."""
    if x.shape[-2] < max(x.shape[-1], y.shape[-1]):
        return ((x @ x.mT) * (y @ y.mT)).sum(dim=(-2, -1), dtype=torch.float64)
    return torch.linalg.vector_norm(x.mT @ y, dim=(-2, -1), dtype=torch.float64) ** 2


def _all_products(xs: list[Tensor], ys: list[Tensor]) -> Float[Tensor, "*batch xs ys"]:
    """|X_iᵀY_j|² for all i and j: each x meets all y in one product; where features outnumber examples, by Grams."""
    widths, n = [y.shape[-1] for y in ys], xs[0].shape[-2]
    if n < max(widths + [x.shape[-1] for x in xs]):
        left, right = (torch.stack([(z @ z.mT).flatten(-2) for z in side], dim=-2).double() for side in (xs, ys))
        return left @ right.mT
    together, rows = torch.cat(ys, dim=-1), []
    for x in xs:
        squares = (x.mT @ together).square_().sum(dim=-2).double()  # one per feature of a y
        rows.append(torch.stack([part.sum(dim=-1) for part in squares.split(widths, dim=-1)], dim=-1))
    return torch.stack(rows, dim=-2)


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
