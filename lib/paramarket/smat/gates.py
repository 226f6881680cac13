"""Hard-concrete gates: random switches between 0 and 1, often exactly 0 or 1, that can be trained (Louizos 2018).

A gate is one number, log alpha: far below 0 it is off, far above it is on. Here each gates a single weight.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paramarket.errors import ParameterError


class HardConcrete(NamedTuple):
    """The law of a gate: z = clip(s (high - low) + low, 0, 1), s = sigmoid((logit u + log alpha) / temperature).

    u is uniform on [0, 1], the numbers are the usual ones (Louizos, Welling, Kingma 2018, eq. 10-12). The authors of
    SMAT draw no u, but take 1/2: see `median`.

    >>> import torch
    >>> from paramarket import smat
    >>> law, log_alpha = smat.HardConcrete(), torch.tensor([-4.0, 0.0, 4.0])
    >>> law.nonzero(log_alpha)  # the chance that a gate is not closed
    tensor([0.0831, 0.8318, 0.9963])
    >>> law.median(log_alpha)
    tensor([0.0000, 0.5000, 1.0000])
    """

    temperature: float = 2 / 3
    low: float = -0.1
    high: float = 1.1

    def median(self, log_alpha: Float[Tensor, "*gates"], temperature: float | None = None) -> Float[Tensor, "*gates"]:
        """Gates at u = 1/2, without noise: exactly 0 up to log alpha = -temperature log 11, where none can come back.

        temperature: another than the law's own; the authors train at 2/3 and evaluate at 1
        """
        return self._stretched(log_alpha / (self.temperature if temperature is None else temperature))

    def slope(self, gates: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
        """d z / d log alpha at these medians z: s (1 - s) (high - low) / temperature, and 0 where z is 0 or 1.

        s = (z - low) / (high - low) is the sigmoid of log alpha / temperature.
        """
        s = (gates - self.low).div_(self.high - self.low)
        inside = (gates - gates * gates).sign_()  # 1 between 0 and 1, 0 at either: many times as fast as a mask
        return (s - s * s).mul_((self.high - self.low) / self.temperature).mul_(inside)

    def _stretched(self, logits: Tensor) -> Tensor:
        return (logits.sigmoid() * (self.high - self.low)).add_(self.low).clamp(0, 1)

    def nonzero(self, log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
        """P(z ≠ 0) = sigmoid(log alpha - temperature log(-low / high)); the sum is the expected number of open ones."""
        return (log_alpha - self.temperature * np.log(-self.low / self.high)).sigmoid()

    def mean(self, log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
        """E[z], the integral of P(z > t) over t from 0 to 1, by Gauss-Legendre on 32 nodes (error below 1e-6)."""
        nodes, weights = np.polynomial.legendre.leggauss(32)  # on [-1, 1]
        t = torch.as_tensor(nodes).to(log_alpha) / 2 + 0.5
        share = torch.as_tensor(weights).to(log_alpha) / 2
        odds = ((t - self.low) / (self.high - t)).log()
        return (log_alpha.unsqueeze(-1) - self.temperature * odds).sigmoid() @ share


def dual_ascent_step(
    multiplier: Float[Tensor, "*experts"],
    sparsity: Float[Tensor, "*experts"],
    target: Float[Tensor, ""] | Float[Tensor, " K"],
    rate: float,
) -> Float[Tensor, "*experts"]:
    """Lagrange multipliers (lambda) after a step of dual ascent on sparsity ≥ target: up by the violation, 0 once met.

    Restarting at 0 keeps a constraint that is met from going on to push (Gallego-Posada et al. 2022, section 4.1).
    target: tau, one for all, or one for each row of multipliers. Raises ParameterError for one outside [0, 1).
    """
    check_sparsity("target", target)
    target = target.to(multiplier)
    if target.ndim == 1:
        target = target.view(-1, *[1] * (multiplier.ndim - 1))
    return torch.where(sparsity >= target, 0.0, multiplier + rate * (target - sparsity))


def check_sparsity(name: str, target: Tensor) -> None:
    """Raises ParameterError unless all numbers are a share of gates that can be closed."""
    if not ((target >= 0) & (target < 1)).all():
        raise ParameterError(f"{name} = {target.tolist()}: expected numbers in [0, 1).")
