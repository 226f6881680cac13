"""Who of several sellers brought how much: Shapley values by exact sums."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from paramarket.errors import ParameterError, ShapeError

MOST_SELLERS = 6


def shapley_shares(worth: Float[Tensor, "*batch coalitions"]) -> Float[Tensor, "*batch sellers"]:
    """What each of up to six sellers brings, on average over all orders in which they could come (Shapley 1953).

    worth: of every coalition, in any unit: worth[..., c] is that of the sellers whose bits are set in c (seller k is
    bit k: of two sellers 0 is nobody, 1 the first, 2 the second, 3 both)

    Seller k gets the sum over all coalitions of s others of s! (S - 1 - s)! / S! times what k adds to them. The shares
    are in the unit of worth, may be negative, and add up to worth[..., -1] - worth[..., 0].
    Raises ShapeError unless there are 2 to 64 coalitions, a power of two, and ParameterError for more than six sellers,
    and for what is not finite.

    >>> import torch
    >>> from paramarket import price
    >>> price.shapley_shares(torch.tensor([0.0, 4.0, 2.0, 10.0]))
    tensor([6., 4.])
    """
    sellers = _count_sellers(worth)
    if not worth.isfinite().all():
        raise ParameterError("worth holds numbers that are not finite: expected a finite worth of every coalition.")
    weights = _coalition_weights(sellers).to(worth.device)
    return (worth.double() @ weights).to(worth.dtype).cpu()


def _count_sellers(worth: Tensor) -> int:
    coalitions = worth.shape[-1] if worth.ndim else 0
    sellers = coalitions.bit_length() - 1
    if sellers < 1 or coalitions != 2**sellers:
        raise ShapeError(
            f"worth has shape {tuple(worth.shape)}: expected one number for each coalition along the last axis, "
            "2 for one seller, 4 for two, 8 for three, and so on."
        )
    if sellers > MOST_SELLERS:
        raise ParameterError(
            f"{coalitions} coalitions of {sellers} sellers: expected {MOST_SELLERS} sellers or fewer, since every "
            "further seller doubles the mixtures that have to be made and scored. Let some sellers act as one."
        )
    return sellers


def _coalition_weights(sellers: int) -> Float[Tensor, "coalitions sellers"]:
    """How the worth of each coalition enters the share of each seller: added where it belongs, else subtracted."""
    orders = [math.factorial(s) * math.factorial(sellers - 1 - s) for s in range(sellers)]
    weight = torch.tensor(orders, dtype=torch.float64) / math.factorial(sellers)
    bits = 2 ** torch.arange(sellers)
    belongs = (torch.arange(2**sellers).unsqueeze(1) & bits) > 0
    others = belongs.sum(dim=1, keepdim=True) - belongs.long()
    return torch.where(belongs, weight[others], -weight[others])
