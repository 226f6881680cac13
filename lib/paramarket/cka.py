"""Representation similarity: centred kernel alignment (CKA; Kornblith et al. 2019), biased and debiased.

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = XXᵀ and L = YYᵀ for the linear kernel

Biased: HSIC_0 = tr(KHLH) / (n - 1)² with H = I - 11ᵀ/n. Two clouds of pure noise then score about
sqrt(pq / ((n + p)(n + q))): .857 at n = 128, p = q = 768. Debiased: the unbiased HSIC_1 (Song et al. 2012), near 0 for
noise; a ratio of estimates, it may come out a little below 0 or above 1, and is never clipped.
"""

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from paramarket.errors import DataError, ParameterError, ShapeError, unknown

Layers = Mapping[Hashable, Tensor]  # {layer or step: representation [*batch, n, features]}, as `stack.features` gives


def linear_cka(
    x: Shaped[Tensor, "*batch n p"],
    y: Shaped[Tensor, "*batch _ q"],
    debiased: bool = False,
    dtype: torch.dtype = torch.float32,
) -> float | Float[Tensor, "*batch"]:
    """CKA of two representations of the same n examples: 1 if they are equal up to rotation, scale and shift.

    A float for one pair; with batch axes one float64 number each, on the CPU. Inputs, of half precision or whole
    numbers, too, are centred in float64, products formed in `dtype`, float32 or float64, sums taken in float64; the
    size of the numbers does not matter. Raises DataError for constant features, values that are not finite and too few
    examples (2; debiased 4), ShapeError where n or the batch axes differ.

    >>> import torch
    >>> from paramarket import cka
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> round(cka.linear_cka(x, x[:, :1]), 3), round(cka.linear_cka(x, 2 * x.flip(1) + 5), 3)
    (0.791, 1.0)
    """
    value = cka_matrix({"x": x}, {"y": y}, debiased, dtype)[..., 0, 0]
    return value.item() if value.ndim == 0 else value


def cka_matrix(
    xs: Layers, ys: Layers, debiased: bool = False, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch xs ys"]:
    """Linear CKA of every x with every y, layers with layers or checkpoints with checkpoints; see `linear_cka`.

    Each may have its own number of features. All products of one x with all y are formed at once. On the CPU.

    >>> import torch
    >>> from paramarket import cka
    >>> layers = {"1": torch.eye(4)[:, :2], "3": torch.eye(4)[:, 1:]}
    >>> cka.cka_matrix(layers, {"3": layers["3"]}).shape
    torch.Size([2, 1])
    """
    return _ratio(_hsic(xs, ys, debiased, dtype))


class StreamingCKA:
    """Debiased linear CKA of every x with every y from minibatches (Nguyen et al. 2021).

    HSIC_1 is unbiased in every batch, so numerators and denominators are averaged, weighted by batch, and divided only
    at the end. The mean of the batches' CKAs would be biased.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.seen = 0  # examples so far
        self.sums: _Hsic | None = None
        self.shapes: dict[str, dict[Hashable, tuple[int, ...]]] = {}

    def update(self, xs: Layers, ys: Layers) -> None:
        """Add a batch of 4 examples or more: {layer: [*batch, n, features]} twice.

        Every batch brings the same layers, in the same order and with as many features as the first one. Raises
        ShapeError, naming the layer, for any other, and leaves what was added before as it is.
        """
        shapes = {"xs": _shapes_but_examples(xs), "ys": _shapes_but_examples(ys)}
        if self.seen:
            for side in ("xs", "ys"):
                _same_layers(side, shapes[side], self.shapes[side])
        hsic = _hsic(xs, ys, True, self.dtype)
        n = _examples(xs, ys)
        if self.sums is None:
            self.sums = hsic._replace(cross=n * hsic.cross, own_x=n * hsic.own_x, own_y=n * hsic.own_y)
        else:
            hsic = _in_units_of(self.sums, hsic)
            self.sums = self.sums._replace(
                cross=self.sums.cross + n * hsic.cross,
                own_x=self.sums.own_x + n * hsic.own_x,
                own_y=self.sums.own_y + n * hsic.own_y,
            )
        self.shapes = shapes
        self.seen += n

    def compute(self) -> Float[Tensor, "*batch xs ys"]:
        """CKA of all that was added, on the CPU. Raises DataError before the first batch."""
        if self.sums is None:
            raise DataError("no batch was added yet: call update first.")
        return _ratio(self.sums)


def _shapes_but_examples(layers: Layers) -> dict[Hashable, tuple[int, ...]]:
    """{layer: (*batch, features)}: what every batch of a stream has in common."""
    return {name: (*layer.shape[:-2], *layer.shape[-1:]) for name, layer in layers.items()}


def _same_layers(side: str, given: dict[Hashable, tuple], expected: dict[Hashable, tuple]) -> None:
    """ShapeError naming the first layer of a batch that is not what it was in the batches before."""
    for name in given:
        if name not in expected:
            raise ShapeError(f"{side}: {unknown('layer', str(name), map(str, expected))} No earlier batch had it.")
    for name, shape in expected.items():
        if name not in given:
            raise ShapeError(
                f"{side}: layer {name!r} is missing; every batch needs {list(expected)}, got {list(given)}."
            )
        if given[name] != shape:
            raise ShapeError(f"{side}: layer {name!r} has (*batch, features) = {given[name]}, before it had {shape}.")
    for position, (name, before) in enumerate(zip(given, expected, strict=True)):
        if name != before:
            raise ShapeError(f"{side}: layer {name!r} stands at place {position}, where {before!r} stood before.")


_ONE_ALONE = "a representation says something of a single example only: nothing debiased can be told of it."


class _Hsic(NamedTuple):
    """HSIC of every x with every y [*batch, xs, ys], and of each with itself [*batch, xs], [*batch, ys].

    unit_x, unit_y: 2 to this power is what each x [*batch, xs], each y was divided by. CKA does not see it, but sums of
    several must share it.
    """

    cross: Tensor
    own_x: Tensor
    own_y: Tensor
    unit_x: Tensor
    unit_y: Tensor


def _in_units_of(other: _Hsic, hsic: _Hsic) -> _Hsic:
    """The same in the units of another one: HSIC goes with the square of x and of y."""
    x, y = hsic.unit_x - other.unit_x, hsic.unit_y - other.unit_y
    return _Hsic(
        cross=hsic.cross * torch.exp2(2.0 * (x.unsqueeze(-1) + y.unsqueeze(-2))),
        own_x=hsic.own_x * torch.exp2(4.0 * x),
        own_y=hsic.own_y * torch.exp2(4.0 * y),
        unit_x=other.unit_x,
        unit_y=other.unit_y,
    )


def _ratio(hsic: _Hsic) -> Tensor:
    """CKA from HSIC [*batch, xs, ys], on the CPU."""
    if not ((hsic.own_x > 0).all() and (hsic.own_y > 0).all()):
        raise DataError(_ONE_ALONE)
    return (hsic.cross / (hsic.own_x.unsqueeze(-1) * hsic.own_y.unsqueeze(-2)).sqrt()).cpu()


def _hsic(xs: Layers, ys: Layers, debiased: bool, dtype: torch.dtype) -> _Hsic:
    """All HSICs of two sides; up to a factor that cancels in CKA if biased."""
    x, y = _prepared(xs, debiased, dtype), _prepared(ys, debiased, dtype)
    n = _examples(xs, ys)
    x_features, y_features = ([part.features for part in side.values()] for side in (x, y))
    units = [torch.stack([part.unit for part in side.values()], dim=-1).double() for side in (x, y)]
    raw = _Hsic(*_products(x_features, y_features), *units)
    if not debiased:
        return raw
    k = torch.stack([_lengths(part) for part in x_features], dim=-2)  # [*batch, xs, n]
    m = torch.stack([_lengths(part) for part in y_features], dim=-2)
    sum_k, sum_m = k.sum(-1), m.sum(-1)
    cross = _unbiased(raw.cross, k @ m.mT, sum_k.unsqueeze(-1) * sum_m.unsqueeze(-2), n)
    own_x = _unbiased(raw.own_x, (k * k).sum(-1), sum_k**2, n)
    own_y = _unbiased(raw.own_y, (m * m).sum(-1), sum_m**2, n)
    left_x, left_y = own_x * n * (n - 3) / raw.own_x, own_y * n * (n - 3) / raw.own_y
    if min(left_x.min().item(), left_y.min().item()) < 1e-3 and dtype != torch.float64:
        return _hsic(xs, ys, debiased, torch.float64)  # too few digits are left of a difference
    return _Hsic(cross, torch.where(left_x > 1e-9, own_x, 0.0), torch.where(left_y > 1e-9, own_y, 0.0), *units)


def _examples(xs: Layers, ys: Layers) -> int:
    """The number of examples that every layer of both sides speaks of; ShapeError if they differ."""
    of_x, of_y = ({name: layer.shape[-2] for name, layer in side.items()} for side in (xs, ys))
    counts = {*of_x.values(), *of_y.values()}
    if not of_x or not of_y:
        raise DataError(f"CKA compares layers with layers, got {len(of_x)} and {len(of_y)} of them.")
    if len(counts) > 1:
        raise ShapeError(f"CKA compares what is said of the same examples, got different numbers: {of_x} and {of_y}.")
    batches = {tuple(layer.shape[:-2]) for layer in (*xs.values(), *ys.values())}
    if len(batches) > 1:
        raise ShapeError(f"CKA compares layers with the same batch axes, got {sorted(batches)}.")
    return counts.pop()


def _unbiased(product: Tensor, aligned: Tensor, apart: Tensor, n: int) -> Tensor:
    """HSIC_1 from centred features: [|XᵀY|² - n/(n-2) sum_i k_i l_i + (sum k)(sum l)/((n-1)(n-2))] / (n(n-3))."""
    return (product - n / (n - 2) * aligned + apart / ((n - 1) * (n - 2))) / (n * (n - 3))


class _Prepared(NamedTuple):
    """A layer's features [*batch, n, features], centred, in a unit in which products neither overflow nor vanish.

    unit [*batch]: 2 to this power
    """

    features: Tensor
    unit: Tensor


def _prepared(layers: Layers, debiased: bool, dtype: torch.dtype) -> dict[Hashable, _Prepared]:
    """Every layer centred and looked at: DataError, naming it, for what has no CKA."""
    if dtype not in (torch.float32, torch.float64):
        raise ParameterError(f"dtype = {dtype}, expected torch.float32 or torch.float64.")
    least = 4 if debiased else 2
    done = {}
    for name, layer in layers.items():
        if layer.ndim < 2 or layer.shape[-2] < least:
            raise DataError(
                f"{name!r} has shape {tuple(layer.shape)}: CKA needs {least} examples or more, [n, features]."
            )
        layer, unit = _in_range(_real(name, layer))
        if not layer.isfinite().all():
            raise DataError(f"{name!r} holds values that are NaN or infinite.")
        centred = _centred(layer, dtype)
        spread = torch.linalg.vector_norm(centred, dim=(-2, -1))
        size = torch.linalg.vector_norm(layer, dim=(-2, -1))
        if (spread <= 3e-7 * size).any():
            raise DataError(f"{name!r} is constant: it says the same of every example, so nothing can resemble it.")
        features, smaller = _in_range(centred)
        done[name] = _Prepared(features, unit + smaller)
    return done


def _real(name: Hashable, layer: Tensor) -> Tensor:
    """In float32 if that holds the numbers exactly, or else in float64."""
    if layer.is_complex():
        raise DataError(f"{name!r} holds {layer.dtype}, expected real numbers.")
    if layer.dtype in (torch.float32, torch.float64):
        return layer
    return layer.float() if layer.is_floating_point() else layer.double()


def _in_range(layer: Tensor) -> tuple[Tensor, Tensor]:
    """A layer divided by a power of two, [*batch], that brings its largest number near 1, and that power.

    No digit changes: float32 has room for products of products if numbers lie near 1, and not for those of 1e20, or of
    1e-12. Whatever lies near 1 already stays as it is.
    """
    _, power = torch.frexp(layer.abs().amax(dim=(-2, -1)))
    power = torch.where(power.abs() > 10, power, 0)
    if not power.any():
        return layer, power
    half = torch.div(power, 2, rounding_mode="floor")  # in two steps: 2^140 is beyond float32 itself
    for step in (half, power - half):
        layer = layer * torch.exp2(-step.to(layer.dtype)).unsqueeze(-1).unsqueeze(-1)
    return layer, power


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
    """The squared length of every row, float64."""
    return torch.linalg.vector_norm(x, dim=-1).double() ** 2


def _products(xs: list[Tensor], ys: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """|X_iᵀY_j|² = <X_iX_iᵀ, Y_jY_jᵀ> for all i and j [*batch, xs, ys], and of each with itself; summed in float64.

    By features n sum p_i sum q_j operations, by Gram matrices n² (sum p_i + sum q_j): whichever is less. Where the
    result is symmetric, the half that mirrors the other is not formed.
    """
    n = xs[0].shape[-2]
    p, q = [x.shape[-1] for x in xs], [y.shape[-1] for y in ys]
    by_features = sum(p) * sum(q) + 0.6 * sum(width**2 for width in (*p, *q))
    by_grams = 0.6 * n * (sum(p) + sum(q)) + n * len(p) * len(q)
    if by_grams < by_features:
        return _by_grams(xs, ys)
    own_x = torch.stack([_own_product(x) for x in xs], dim=-1)
    own_y = torch.stack([_own_product(y) for y in ys], dim=-1)
    together = torch.cat(ys, dim=-1)
    rows = []
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
    cross = own_x = own_y = 0.0
    for start, size in _blocks(xs[0].shape[-2]):
        rows_x, rows_y = _gram_rows(xs, start, size), _gram_rows(ys, start, size)
        for columns, times in ((slice(size), 1), (slice(size, None), 2)):  # what lies off the diagonal counts twice
            k, m = rows_x[..., columns], rows_y[..., columns]
            cross = cross + times * (k @ m.mT).sum(dim=-3, dtype=torch.float64)
            own_x = own_x + times * _lengths(k).sum(dim=-2)
            own_y = own_y + times * _lengths(m).sum(dim=-2)
    return cross, own_x, own_y


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


def rbf_cka(x: Shaped[Tensor, "n p"], y: Shaped[Tensor, "_ q"], sigma: float = 1.0, debiased: bool = False) -> float:
    """CKA with Gaussian kernels K_ij = exp(-|x_i - x_j|² / (2 s²)), s² = sigma² times the median squared distance.

    Formed in float64. Where most examples are alike, and the median is 0, it is that of the distances above 0. Large
    sigma tends to linear CKA; with small sigma every example resembles only itself, and biased CKA is 1 for any data.
    Errors as for `linear_cka`.
    """
    if not sigma > 0:
        raise ParameterError(f"sigma = {sigma}, expected a number above 0.")
    layers = _prepared({"x": x}, debiased, torch.float64) | _prepared({"y": y}, debiased, torch.float64)
    _examples({"x": x}, {"y": y})
    k, m = (_kernel(layer.features, sigma, debiased) for layer in layers.values())
    return ((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()).item()


def _kernel(x: Tensor, sigma: float, debiased: bool) -> Tensor:
    """The Gaussian kernel, centred on both sides; debiased: U-centred (Székely and Rizzo 2014), its diagonal 0.

    Up to a factor, and less 1, which centring takes away: of a wide kernel exp would leave nothing but that 1.
    """
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    distances = distances / distances.max()
    values = distances.cpu().numpy()
    median = np.median(values) or np.median(values[values > 0])
    width = 2 * float(sigma) * float(sigma) * float(median)
    k = -distances  # so wide that it is a line
    if width < 1e10:
        k = torch.expm1(-distances / max(width, torch.finfo(torch.float64).tiny))
    if not debiased:
        return k - k.mean(dim=0) - k.mean(dim=1, keepdim=True) + k.mean()
    n = len(k)
    before = k.square().sum()
    means = k.sum(dim=1) / (n - 2)
    means -= means.sum() / (2 * (n - 1))
    k = (k - means - means[:, None]).fill_diagonal_(0)
    if not k.square().sum() > 1e-20 * before:
        raise DataError(_ONE_ALONE)
    return k
