"""Two specialists from one base: trained side by side, held back in various ways, judged where they live.

A couple is a model of stack `a` and the model of stack `b` at the same place, grown from the same base.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from paramarket import cka
from paramarket.data import Split, turned
from paramarket.errors import ParameterError, ShapeError
from paramarket.merge import halfway
from paramarket.stack import Stack, chain, check, features, flat, take
from paramarket.train import evaluate, fit


def specialise(
    net: nn.Module,
    base: Stack,
    left: Sequence[Split],
    right: Sequence[Split],
    *,
    keep: Sequence[int],
    seed: int = 0,
    pull: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> tuple[Stack, Stack]:
    """Two copies of each of K base models go on, one on its split of `left`, one on that of `right`, all in one stack.

    Gives a and b, each of len(keep) * K models: all K as they were at the first step of `keep`, then at the next, and
    so on; training ends at the largest. pull: of `train.fit`, for K models, on both copies · settings: of `train.fit`
    """
    copies = check(net, base)
    if len(left) != copies or len(right) != copies:
        raise ShapeError(
            f"{len(left)} splits on the left, {len(right)} on the right, for {copies} models: one for each."
        )
    if not keep:
        raise ParameterError("keep is empty: name one or more steps at which to look at the specialists.")
    orders = [20_000 * seed + 2 * k + side for side in (0, 1) for k in range(copies)]
    pull = {name: share.expand(copies, *share.shape[1:]) for name, share in (pull or {}).items()}
    both = {name: torch.cat([share, share]) for name, share in pull.items()}
    how = {"steps": max(keep), "seed": orders, "keep": keep, "pull": both} | settings
    kept = fit(net, chain([base, base]), [*left, *right], **how).kept
    a, b = (chain(take(kept[step], side) for step in keep) for side in (slice(copies), slice(copies, None)))
    return a, b


def judge(
    net: nn.Module, a: Stack, b: Stack, split: Split, angles: Sequence[float]
) -> tuple[Float[Tensor, " couples"], Float[Tensor, " couples"]]:
    """Loss at home and loss of the averaged weights on the target, nats, for every couple.

    The split is the target; at home it is turned, by -angle for a, by +angle for b (the mean of the two is given).
    angles: one for each couple
    """
    home, of = torch.empty(2, len(angles)), torch.tensor(angles)
    for angle in of.unique():
        for row, (side, sign) in enumerate([(a, -1), (b, 1)]):
            there = turned(split, sign * angle.item())
            home[row, of == angle] = evaluate(net, take(side, of == angle), there).loss.cpu()
    return home.mean(dim=0), evaluate(net, halfway(a, b), split).loss.cpu()


def said(net: nn.Sequential, models: Stack, x: Float[Tensor, "n ..."]) -> dict[str, Float[Tensor, "K n units"]]:
    """What the layers of a residual MLP say of x: the first behind its ReLU, every block, the last."""
    return dict(list(features(net, models, x).items())[1:])


def likeness(net: nn.Sequential, a: Stack, b: Stack, x: Float[Tensor, "n ..."]) -> Float[Tensor, "layers couples"]:
    """Debiased linear CKA of the two of each couple, layer by layer (see `said`)."""
    of_a, of_b = said(net, a, x), said(net, b, x)
    return torch.stack([cka.linear_cka(of_a[layer], of_b[layer], debiased=True) for layer in of_a]).float().cpu()


def kinship(
    net: nn.Sequential, models: Stack, x: Float[Tensor, "n ..."]
) -> tuple[Float[Tensor, "K J J"], Float[Tensor, "K J J"]]:
    """Of each of K families of J models, a stack [K, J]: linear CKA of every two on x, by their last hidden layer; and
    how far their weights lie apart, over the mean length of the family's."""
    families, size = next(iter(models.values())).shape[:2]
    told = list(features(net, flat(models), x).values())
    hidden = told[-2].unflatten(0, (families, size))
    layers = {j: hidden[:, j] for j in range(size)}
    rows = torch.cat([tensor.flatten(2) for tensor in models.values()], dim=2)
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # products would cost digits
    length = rows.norm(dim=2).mean(dim=1)
    return cka.cka_matrix(layers, layers).float().cpu(), (apart / length.view(-1, 1, 1)).cpu()


def free(models: Stack, strength: float, generator: Generator) -> Stack:
    """Nothing is held back."""
    return {name: torch.zeros_like(tensor) for name, tensor in models.items()}


def pulled(models: Stack, share: float, generator: Generator) -> Stack:
    """Every weight goes that share of its way back to the base after each step."""
    return {name: torch.full_like(tensor, share) for name, tensor in models.items()}


def frozen(models: Stack, layers: float, generator: Generator) -> Stack:
    """The first `layers` layers, counted from the input, stay as the base has them."""
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in models))
    held = {name: float(owners.index(name.rpartition(".")[0]) < layers) for name in models}
    return {name: torch.full_like(tensor, held[name]) for name, tensor in models.items()}


def sparse(models: Stack, density: float, generator: Generator) -> Stack:
    """Only a random share `density` of the weights may change, drawn for each model by itself."""
    chance = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in models.items()}
    return {name: (chance[name] >= density).to(tensor) for name, tensor in models.items()}


# ways to hold specialists back: (models, strength, generator) -> the `pull` of train.fit
HOLDS: dict[str, Callable[[Stack, float, Generator], Stack]] = {
    "pulled to the base": pulled,
    "first layers frozen": frozen,
    "few weights free": sparse,
}
