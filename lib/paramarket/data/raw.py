"""Examples as they come, before they are cut into splits and standardised."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Raw:
    """`x` float [n, channels, height, width] or [n, features], `y` [n], and what the labels mean.

    `tested` of them, the last ones, are the source's own test set; None if it has none. x is float64 where the numbers
    of a table may need it: a clock counts 10^9 seconds, and float32 tells no second from the next.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    tested: int | None = None
