"""Two specialists from one base: trained side by side, pulled back in various ways, compared layer by layer.

A couple is a model of stack `a` and the model of stack `b` at the same place, grown from the same base.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from paramarket import cka, stack
from paramarket.base import check_list, stream, whole_number
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.stack import Stack
from paramarket.train import fit


class Couples(NamedTuple):
    """Two stacks of as many models: the k-th of `a` and the k-th of `b` grew from the same base."""

    a: Stack
    b: Stack


def specialise(
    net: nn.Module,
    base: Stack,
    left: Sequence[Split],
    right: Sequence[Split],
    *,
    keep: Iterable[SupportsIndex],
    seed: int = 0,
    pull: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> Couples:
    """Two copies of each of K base models go on, one on its split of `left`, one on that of `right`, all in one stack.

    Gives a and b, each of len(keep) * K models: all K as they were at the first step of `keep`, then at the next, and
    so on; training ends at the largest, unless `steps` says later.
    seed: the k-th copy on the left takes its images in the order of the stream (seed, "specialise", "left", k)
    pull: of `train.fit`, for K models, on both copies · settings: of `train.fit`
    Raises ShapeError unless there is one split on either side for each model, ParameterError if `keep` is no list,
    is empty or names a step that training never reaches.

    >>> import torch
    >>> from paramarket import data, specialists, stack
    >>> net, images = stack.mlp(4, [3], 2), data.Split(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    >>> bases = stack.init(net, copies=5, seed=0)
    >>> a, b = specialists.specialise(net, bases, [images] * 5, [images] * 5, keep=[0, 10], batch=2)
    >>> stack.count(a), torch.equal(a["1.weight"][:5], bases["1.weight"])
    (10, True)
    """
    copies = stack.check(net, base)
    if len(left) != copies or len(right) != copies:
        raise ShapeError(
            f"{len(left)} splits on the left, {len(right)} on the right, for {copies} models: one for each."
        )
    check_list("keep", keep)
    keep = [whole_number("a step to keep", step, least=0) for step in keep]
    if not keep:
        raise ParameterError("keep is empty: name one or more steps at which to look at the specialists.")
    orders = [stream(seed, "specialise", side, k) for side in ("left", "right") for k in range(copies)]
    both_pulled = stack.map(lambda share: _on_both_copies(share, copies), pull or {})
    both = stack.chain([base, base])
    settings = {"steps": max(keep)} | settings
    kept = fit(net, both, [*left, *right], generators=orders, keep=keep, pull=both_pulled, **settings).kept
    a = stack.chain(stack.take(kept[step], slice(copies)) for step in keep)
    b = stack.chain(stack.take(kept[step], slice(copies, None)) for step in keep)
    return Couples(a, b)


def _on_both_copies(share: Tensor, copies: int) -> Tensor:
    """Shares for K models, for the 2 K that train; one that stretches to all K stretches to all of these."""
    return torch.cat([share, share]) if share.shape[:1] == (copies,) else share


def block_outputs(
    net: nn.Sequential, models: Stack, x: Float[Tensor, "n ..."]
) -> dict[str, Float[Tensor, "K n units"]]:
    """What the layers of a residual MLP say of x: the first behind its ReLU, every block, the last."""
    outputs = stack.features(net, models, x)
    _before_relu, *layers = outputs
    return {layer: outputs[layer] for layer in layers}


class Kinship(NamedTuple):
    """How near the J models of each of K families are to each other, on the CPU.

    cka: linear CKA of what their last hidden layers say
    distance: how far their weights lie apart, in units of the mean length of the family's
    """

    cka: Float[Tensor, "K J J"]
    distance: Float[Tensor, "K J J"]

    def table(self, rows: pd.DataFrame, members: Sequence[object]) -> pd.DataFrame:
        """One row a family and two of its members: the columns of a grid, `one`, `other`, `cka` (0 to 1), `distance`.

        members: names of the J models · distance: in units of the mean length of the family's weights
        Each two stand there twice, either way round, and each beside itself.
        """
        return stack.table(rows, {"one": members, "other": members}, cka=self.cka, distance=self.distance)


def kinship(net: nn.Sequential, models: Stack, x: Float[Tensor, "n ..."]) -> Kinship:
    """How alike every two models of a family are on x [n, ...], and how close; a stack [K, J] of K families."""
    families = stack.leading(models, 2)
    *_, hidden, _ = stack.features(net, stack.flat(models), x).values()
    by_member = dict(enumerate(hidden.unflatten(0, families).unbind(dim=1)))
    alike = cka.cka_matrix(by_member, by_member)
    weights = stack.vectors(models, axes=2)
    apart = torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist")  # products would cost digits
    length = weights.norm(dim=2).mean(dim=1)
    return Kinship(alike.float(), (apart / length.view(-1, 1, 1)).cpu())
