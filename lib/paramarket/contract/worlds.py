"""The worlds in which two firms meet, and the game that each contract makes of one.

The model is that of *Prediction-sharing During Training and Inference* (Gafni, Gradwohl, Tennenholtz 2024,
arXiv 2403.17515). Nature draws a world w. Each firm trains: it makes an observation, z1 or z2, that may tell something
of w. Then one case arrives, with a label t that nobody sees yet, and each firm's model gives a signal of it, s1 or s2.
Each firm acts, 0 or 1. An action that turns out right earns its reward, one that turns out wrong costs its cost, and
two firms that do the same share both: each gets half.

Numbers are numpy arrays, with any axes of their own in front: many worlds at once. Where all that goes in is whole
numbers and Python's fractions, all that comes out is exact.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import comb
from numbers import Rational
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from paramarket.errors import ParameterError, ShapeError

# One number, or an array-like of them: floats, or fractions and whole numbers.
Numbers = Any
OWN_AXES = (1, 3, 4, 1, 1)  # of the parts of a world
CLOSE = 1e-9  # what a sum of float probabilities may lie beside 1


class World(NamedTuple):
    """What both firms know of the game before they train.

    prior: P(w) · training: P(z1, z2 | w) · inference: P(t, s1, s2 | w), independent of training once w is known ·
    reward, cost: of action 0 and of action 1, where it is right and where it is wrong; both ≥ 0
    """

    prior: Shaped[np.ndarray, "... W"]
    training: Shaped[np.ndarray, "... W Z1 Z2"]
    inference: Shaped[np.ndarray, "... W 2 2 2"]
    reward: Shaped[np.ndarray, "... 2"]
    cost: Shaped[np.ndarray, "... 2"]


def world(prior: Numbers, training: Numbers, inference: Numbers, *, reward: Numbers, cost: Numbers) -> World:
    """A world of one's own, checked: see `World` for what each part is, and for their shapes.

    reward, cost: a pair each. A loan (1: lend, 0: stay out) has (0, R) and (0, C); a recommendation that is worth 1
    where it is right has (1, 1) and (0, 0).
    Raises ParameterError for probabilities outside [0, 1] or that do not sum to 1, and for a negative reward or cost;
    ShapeError for parts that do not fit together.

    >>> from fractions import Fraction
    >>> from paramarket import contract
    >>> half = Fraction(1, 2)
    >>> told_apart = [[[half, 0], [0, 0]], [[0, 0], [0, half]]]  # both firms' signals are always the label
    >>> sure = contract.world([1], [[[1]]], [told_apart], reward=(0, 1), cost=(0, 1))
    >>> contract.judge(sure).label
    array('none = train = infer = full', dtype=object)
    """
    parts = _same_kind(prior, training, inference, reward, cost)
    made = World(*parts)
    if made.training.ndim < 3 or made.inference.ndim < 4:
        raise ShapeError("expected training [..., W, Z1, Z2] and inference [..., W, 2, 2, 2].")
    worlds = made.prior.shape[-1]
    if made.training.shape[-3] != worlds or made.inference.shape[-4:] != (worlds, 2, 2, 2):
        raise ShapeError(
            f"prior has {worlds} worlds: expected training [..., {worlds}, Z1, Z2], got {made.training.shape}, and "
            f"inference [..., {worlds}, 2, 2, 2], got {made.inference.shape}."
        )
    for name, pair in (("reward", made.reward), ("cost", made.cost)):
        if pair.shape[-1:] != (2,):
            raise ShapeError(f"{name} has shape {pair.shape}, expected a pair: of action 0 and of action 1.")
        _check_not_negative(name, pair)
    _check_distribution("prior", made.prior, axes=1)
    _check_distribution("training", made.training, axes=2)
    _check_distribution("inference", made.inference, axes=3)
    return made


def correlation_world(
    alpha: Numbers, beta: Numbers, both: Numbers, *, prior: Numbers = (1,), reward: Numbers = 1, cost: Numbers = 1
) -> World:
    """Two firms that know how good they are, and perhaps not how often they err together (the paper's section 3).

    alpha, beta: P(signal = label) of firm 1 and of firm 2, for either label; labels are balanced · both [..., W]: the
    probability that both are right, in each world; it fixes their correlation (see `both_right`) · prior [..., W] ·
    reward, cost: of action 1, such as a loan; action 0 is to stay out, and pays nothing
    Of several worlds, neither firm's training observation says anything; the pair of them tells the world: z1 is drawn
    evenly, and z2 = z1 + w, modulo W.
    Raises ParameterError for what is no probability, and for `both` outside its Fréchet bounds,
    max(0, alpha + beta - 1) ≤ both ≤ min(alpha, beta).

    >>> from fractions import Fraction
    >>> from paramarket import contract
    >>> tenth = Fraction(1, 10)
    >>> alike = contract.correlation_world(8 * tenth, 7 * tenth, [56 * tenth / 10])
    >>> alone = contract.equilibria(alike, "none")
    >>> [str(payoff) for payoff in alone.payoff[0]], str(alone.trade[0])
    (['7/40', '3/40'], '69/100')
    """
    alpha, beta, both, prior, reward, cost = _same_kind(alpha, beta, both, prior, reward, cost)
    if both.ndim == 0 or prior.ndim == 0:
        raise ShapeError("expected lists of both and of prior, one number a world: both=[.56].")
    if both.shape[-1] != prior.shape[-1]:
        raise ShapeError(f"both holds {both.shape[-1]} worlds, prior {prior.shape[-1]}: expected one number a world.")
    for name, chance in (("alpha", alpha), ("beta", beta)):
        _check_probability(name, chance)
    a, b = alpha[..., None], beta[..., None]
    a, b, rho = np.broadcast_arrays(a, b, both)
    low, high = _frechet_bounds(a, b)
    outside = _first_outside(rho, low, high)
    if outside is not None:
        raise ParameterError(
            f"both = {float(rho[outside]):g}: two firms that are right with {float(a[outside]):g} and "
            f"{float(b[outside]):g} are both right with {float(low[outside]):g} to {float(high[outside]):g} "
            "(the Fréchet bounds)."
        )
    right = [[1 - a - b + rho, b - rho], [a - rho, rho]]  # given label 1, by s1 and s2
    wrong = [row[::-1] for row in right[::-1]]  # given label 0 both signals are turned round
    table = np.stack([_stack_table(wrong), _stack_table(right)], axis=-3) / 2
    worlds = both.shape[-1]
    training = np.zeros((worlds, worlds, worlds), dtype=int)
    for w in range(worlds):
        for first in range(worlds):
            training[w, first, (first + w) % worlds] = 1
    training = training * _one(table) / worlds
    table = np.maximum(table, 0)  # a float bound may lie a hair below 0
    return world(prior, training, table, reward=_of_action_1(reward), cost=_of_action_1(cost))


def both_right(alpha: Numbers, beta: Numbers, correlation: Numbers) -> Float[np.ndarray, "..."] | float:
    """P(both are right) = alpha beta + correlation · sqrt(alpha (1 - alpha) beta (1 - beta)) (the paper's Lemma 3.1).

    Raises ParameterError for a correlation that two firms as good as these cannot have.

    >>> from paramarket import contract
    >>> print(f"{contract.both_right(0.8, 0.7, correlation=0.25):.4f}")
    0.6058
    """
    alpha, beta, correlation = (np.asarray(each, dtype=np.float64) for each in (alpha, beta, correlation))
    for name, chance in (("alpha", alpha), ("beta", beta)):
        _check_probability(name, chance)
    spread = np.sqrt(alpha * (1 - alpha) * beta * (1 - beta))
    alpha, beta, spread, correlation = np.broadcast_arrays(alpha, beta, spread, correlation)
    rho = alpha * beta + correlation * spread
    low, high = _frechet_bounds(alpha, beta)
    outside = _first_outside(rho, low, high)
    if outside is not None:
        least, most = ((end - alpha * beta)[outside] / spread[outside] for end in (low, high))
        raise ParameterError(
            f"correlation = {correlation[outside]:g}, and firms that are right with {alpha[outside]:g} and "
            f"{beta[outside]:g} can only have one from {least:.4f} to {most:.4f} (the Fréchet bounds)."
        )
    return np.clip(rho, low, high)[()]


def two_hypotheses_world(
    p: Numbers,
    kappa: Numbers,
    lam: Numbers,
    mu: Numbers,
    *,
    noise: Numbers = 0,
    sure: Numbers = 1,
    one_sample: bool = False,
) -> World:
    """Two hypotheses that only firm 1 can tell apart (the paper's section 5); a right recommendation is worth 1.

    Hypothesis I holds with probability p, else II. The label is 1 with probability kappa. Firm 1's signal is A (here 1)
    or B (0), firm 2's a (1) or b (0). Label 1: (A, a) under I, (B, a) under II. Label 0: (A, b) with probability lam;
    with probability mu (B, a) under I and (A, a) under II; else (B, b).
    noise: the probability that firm 1's signal is turned round (our extension) · sure: how likely firm 1 finds the
    right hypothesis in training; 1: it has learnt it from more data than it needs; 1/2: it has learnt nothing (between
    them our extension). Firm 2, by itself, learns nothing. · one_sample: instead, both have seen one old case, firm 1
    its signal and the label, firm 2 its own and the label (section 5.2)
    Raises ParameterError for what is no probability.
    """
    given = {"p": p, "kappa": kappa, "lam": lam, "mu": mu, "noise": noise, "sure": sure}
    arrays = dict(zip(given, _same_kind(*given.values()), strict=True))
    for name, chance in {**arrays, "lam + mu": arrays["lam"] + arrays["mu"]}.items():
        _check_probability(name, chance)
    p, kappa, lam, mu, noise, sure = np.broadcast_arrays(*arrays.values())
    nothing = 0 * p
    only_firm_1, only_firm_2, neither = (1 - kappa) * lam, (1 - kappa) * mu, (1 - kappa) * (1 - lam - mu)
    # By label, firm 1's signal, firm 2's signal.
    hypothesis_1 = [[[neither, only_firm_2], [only_firm_1, nothing]], [[nothing, nothing], [nothing, kappa]]]
    hypothesis_2 = [[[neither, nothing], [only_firm_1, only_firm_2]], [[nothing, kappa], [nothing, nothing]]]
    clear = np.stack([_stack_cube(hypothesis_1), _stack_cube(hypothesis_2)], axis=-4)
    turned = noise[..., None, None, None, None]
    inference = (1 - turned) * clear + turned * clear[..., ::-1, :]
    # Without a case z1 is what firm 1 believes, and z2 is nothing.
    believed = _stack_table([[sure, 1 - sure], [1 - sure, sure]])[..., None]
    training = _one_case(inference) if one_sample else believed
    return world(np.stack([p, 1 - p], axis=-1), training, inference, reward=(1, 1), cost=(0, 0))


def measured_world(
    labels: Bool[np.ndarray, " n"],
    first: Bool[np.ndarray, "... _"],
    second: Bool[np.ndarray, "... _"],
    groups: Int[np.ndarray, " _"],
    *,
    samples: int = 1,
    reward: Numbers = 1,
    cost: Numbers = 1,
    weights: Shaped[np.ndarray, "... _"] | None = None,
) -> World:
    """The world that two trained models live in, measured on n labelled examples that neither was trained on.

    labels: t · first, second: the two models' signals of t, [..., n] for as many worlds · groups: 0, 1, …, the worlds:
    which kind of times an example belongs to, as likely as it is frequent · samples: a firm's training observation is
    how often its model is right on so many labelled cases of the times to come (its calibration sample), drawn for each
    firm apart; 0: it has none · reward, cost: of action 1; action 0 pays nothing · weights [..., n]: how often each
    example counts, such as in a bootstrap; not given: each once
    Raises ParameterError for a group without an example, ShapeError for parts that are not of the same examples.
    """
    parts = {"labels": labels, "first": first, "second": second, "groups": groups}
    sizes = {name: part.shape[-1] for name, part in parts.items()}
    if len(set(sizes.values())) > 1:
        raise ShapeError(f"expected labels, signals and groups of the same examples, got {sizes}.")
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    count = int(groups.max()) + 1
    cell = 8 * groups + 4 * labels + 2 * first + second
    is_there = (cell[..., None] == np.arange(count * 8)).astype(np.float64)  # [..., n, cells]
    cells = (weights[..., None, :] @ is_there).squeeze(-2)
    cells = cells.reshape(*cells.shape[:-1], count, 2, 2, 2)
    totals = cells.sum(axis=(-3, -2, -1))
    if (totals <= 0).any():
        raise ParameterError("a group without an example: nothing was measured of one of the worlds.")
    inference = cells / totals[..., None, None, None]
    prior = totals / totals.sum(axis=-1, keepdims=True)
    chance = [_right_of(inference, firm, samples) for firm in (1, 2)]
    training = chance[0][..., :, None] * chance[1][..., None, :]
    reward, cost = np.asarray(reward, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    return world(prior, training, inference, reward=_of_action_1(reward), cost=_of_action_1(cost))


def _of_action_1(amount: np.ndarray) -> np.ndarray:
    """[..., 2]: nothing for action 0, the amount for action 1."""
    return np.stack([0 * amount, amount], axis=-1)


def _right_of(inference: np.ndarray, firm: int, samples: int) -> np.ndarray:
    """[..., W, samples + 1]: how probable each number of right signals is, in each world."""
    other = -1 if firm == 1 else -2
    own = inference.sum(axis=other)
    right = own[..., 0, 0] + own[..., 1, 1]
    counts = range(samples + 1)
    return np.stack([comb(samples, k) * right**k * (1 - right) ** (samples - k) for k in counts], axis=-1)


def _one_case(inference: np.ndarray) -> np.ndarray:
    """[..., W, 4, 4]: P(z1, z2 | w) where both observe one old case: z_i = 2 label + the own signal."""
    training = np.zeros((*inference.shape[:-3], 4, 4), dtype=int) * inference[..., :1, :1, 0]
    for label, first, second in np.ndindex(2, 2, 2):
        training[..., 2 * label + first, 2 * label + second] = inference[..., label, first, second]
    return training


def _same_kind(*parts: Numbers) -> list[np.ndarray]:
    """All as arrays of Fractions, if every number of every part is exact; else all as float64."""
    arrays = [np.asarray(part) for part in parts]
    if all(_is_exact(array) for array in arrays):
        return [np.vectorize(Fraction, otypes=[object])(array) for array in arrays]
    try:
        return [array.astype(np.float64) for array in arrays]
    except (TypeError, ValueError):
        raise ParameterError("expected numbers, or fractions, in shapes that are full.") from None


def _is_exact(array: np.ndarray) -> bool:
    if array.dtype.kind in "iu":
        return True
    return array.dtype == object and all(isinstance(each, Rational) for each in array.flat)


def _one(like: np.ndarray) -> Fraction | float:
    return Fraction(1) if like.dtype == object else 1.0


def _stack_table(rows: Sequence[Sequence[Numbers]]) -> np.ndarray:
    """[..., 2, 2] from two rows of two arrays [...]."""
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _stack_cube(tables: Sequence[Sequence[Sequence[Numbers]]]) -> np.ndarray:
    return np.stack([_stack_table(rows) for rows in tables], axis=-3)


def _check_probability(name: str, chance: Numbers) -> None:
    wrong = [each for each in np.ravel(chance) if not 0 <= each <= 1]
    if wrong:
        raise ParameterError(f"{name} = {float(wrong[0]):g}: expected a probability, from 0 to 1.")


def _check_not_negative(name: str, amounts: np.ndarray) -> None:
    wrong = [each for each in np.ravel(amounts) if not 0 <= each < np.inf]
    if wrong:
        raise ParameterError(f"{name} = {float(wrong[0]):g}: expected 0 or more.")


def _check_distribution(name: str, chances: np.ndarray, axes: int) -> None:
    """The last so many axes together hold one distribution."""
    _check_probability(f"a probability of {name}", chances)
    sums = chances.reshape(*chances.shape[:-axes], -1).sum(axis=-1)
    beside = abs(sums - 1) > (0 if chances.dtype == object else CLOSE)
    if np.any(beside):
        total = np.ravel(sums)[np.argmax(np.ravel(beside))]
        raise ParameterError(f"the probabilities of {name} sum to {float(total):.6g}, expected 1.")


def _frechet_bounds(alpha: Numbers, beta: Numbers) -> tuple[Numbers, Numbers]:
    """Between which numbers the probability lies that two are both right, who are right with alpha and with beta."""
    return np.maximum(0 * alpha, alpha + beta - 1), np.minimum(alpha, beta)


def _first_outside(values: Numbers, low: Numbers, high: Numbers) -> tuple[int, ...] | None:
    """The place of the first value that lies outside of its ends, or is no number; None if there is none."""
    slack = 0 if np.asarray(values).dtype == object else CLOSE
    outside = np.asarray((values < low - slack) | (values > high + slack) | (values != values), dtype=bool)
    return tuple(np.argwhere(outside)[0].tolist()) if outside.any() else None


def front_axes(world: World) -> tuple[int, ...]:
    """The axes in front of all parts, broadcast."""
    return np.broadcast_shapes(*(part.shape[: part.ndim - own] for part, own in zip(world, OWN_AXES, strict=True)))


def flatten(world: World) -> World:
    """The same worlds with one axis in front."""
    front = front_axes(world)
    parts = []
    for part, own in zip(world, OWN_AXES, strict=True):
        tail = part.shape[part.ndim - own :]
        parts.append(np.broadcast_to(part, (*front, *tail)).reshape(-1, *tail))
    return World(*parts)


def single(world: World) -> World:
    """One world with one axis in front; ParameterError for several."""
    batch = flatten(world)
    if len(batch.prior) != 1:
        raise ParameterError(f"{len(batch.prior)} worlds at once: expected one.")
    return batch
