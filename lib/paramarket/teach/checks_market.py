"""Act three, what it is worth: the checks of notebooks 06, 07 and 08."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from paramarket import contract
from paramarket.teach.checking import fresh_generator, tell_learner


def check_best_share(answer: Callable[[float, float], tuple[float, float]]) -> None:
    """Notebook 06: the seller's share with the least squared error, estimates being independent; and that error."""

    def find_fault() -> str:
        low, gap, coin = torch.rand(3, generator=fresh_generator()).tolist()
        v_b, v_s = low + 0.1, low + gap + 0.2  # never alike: one would do for the other
        if coin >= 0.5:
            v_b, v_s = v_s, v_b
        shares = torch.linspace(0, 1, 10_001, dtype=torch.float64)
        errors = (1 - shares) ** 2 * v_b + shares**2 * v_s
        best = shares[errors.argmin()].item()
        share, error = map(float, answer(v_b, v_s))
        if abs(share - best) > 1e-3:
            hint = " That is the buyer's own share." if abs(1 - share - best) < 1e-3 else ""
            return (
                f"for V_b = {v_b:.3f}, V_s = {v_s:.3f} it says w = {share:.3f}, but the bowl is lowest elsewhere.{hint}"
            )
        return "" if abs(error - errors.min().item()) < 1e-5 else f"the share is right; the error is not {error:.4f}."

    tell_learner("best_share", find_fault)


def check_better_bid(answer: Callable[[float], float]) -> None:
    """Notebook 06: a bid that beats the truth where the price is the mean of bid and ask, asks true and uniform."""
    asks = torch.linspace(0, 1, 100_001, dtype=torch.float64)

    def expected_surplus(value: float, bid: float) -> float:
        surplus = value - (bid + asks) / 2
        return surplus[asks <= bid].sum().item() / len(asks)

    def find_fault() -> str:
        values = 0.1 + 0.9 * torch.rand(5, generator=fresh_generator())
        for value in values.tolist():
            bid = float(answer(value))
            won = expected_surplus(value, bid)
            honest = expected_surplus(value, value)
            if not won > honest + 1e-6:
                return f"with a value of {value:.2f}, a bid of {bid:.2f} wins {won:.4f}; the truth wins {honest:.4f}."
        return ""

    tell_learner("better_bid", find_fault)


def check_split_cents(answer: Callable[[int, list[float]], list[int]]) -> None:
    """Notebook 07: a sum in whole cents shared out among sellers; not a cent more or less, and nobody a cent off."""

    def find_fault() -> str:
        generator = fresh_generator()
        for sellers in (1, 2, 3, 7):
            cents = 301 + int(torch.randint(0, 10_000, (1,), generator=generator))
            sizes = torch.rand(sellers, generator=generator) + 0.01
            if sellers > 1:
                sizes[0] = 0  # one who was asked, and sold nothing
            shares = (sizes.double() / sizes.double().sum()).tolist()
            parts = list(answer(cents, list(shares)))
            if len(parts) != sellers or any(part != int(part) or part < 0 for part in parts):
                return f"{cents} cents for {sellers} sellers: expected as many whole numbers from 0, got {parts}."
            if sum(parts) != cents:
                return f"{cents} cents became {sum(parts)}: {parts}."
            for part, share in zip(parts, shares, strict=True):
                if share == 0 and part:
                    return f"a seller with no share got {part} of {cents} cents: {parts}."
                if abs(part - share * cents) >= 1:
                    return f"one of {parts} is a cent or more away from its share of {cents}, {share * cents:.2f}."
        return ""

    tell_learner("split_cents", find_fault)


def check_rounds_to(answer: Callable[[Tensor, float], int | None]) -> None:
    """Notebook 07: the first round, from 1 on, whose accuracy reaches a goal; None if none does."""

    def find_fault() -> str:
        curve = torch.rand(12, generator=fresh_generator()).cummax(dim=0).values * 0.9
        for goal in (curve[0].item() / 2, curve[5].item(), 0.95):
            reached = [k + 1 for k, accuracy in enumerate(curve.tolist()) if accuracy >= goal]
            expected = reached[0] if reached else None
            found = answer(curve, goal)
            if found != expected:
                return f"for the goal {goal:.2f} it says {found}, expected {expected}."
        return ""

    tell_learner("rounds_to", find_fault)


def check_best_answer(answer: Callable[[np.ndarray, tuple[int, int]], tuple[int, int]]) -> None:
    """Notebook 08: the plan that earns most against a rival's plan, by what taking an order alone earns."""
    plans = [(0, 0), (0, 1), (1, 0), (1, 1)]

    def earned(score: np.ndarray, own: tuple[int, int], rival: tuple[int, int]) -> float:
        sums = [own[a] * score[a, b] / (1 + rival[b]) for a in (0, 1) for b in (0, 1)]
        return float(sum(sums))

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(20):
            score = torch.randn(2, 2, generator=generator, dtype=torch.float64).numpy()
            for rival in plans:
                best = max(plans, key=lambda own, score=score, rival=rival: earned(score, own, rival))
                plan = tuple(int(action) for action in answer(score.copy(), rival))
                if plan not in plans:
                    return f"expected two actions, each 0 or 1, got {plan}."
                if plan != best:
                    alone = max(plans, key=lambda own, score=score: earned(score, own, (0, 0)))
                    hint = " It forgets that the rival takes half." if plan == alone else ""
                    return (
                        f"for score = {score.round(2).tolist()} and a rival who plays {rival}, {plan} earns "
                        f"{earned(score, plan, rival):.3f}; {best} earns {earned(score, best, rival):.3f}.{hint}"
                    )
        return ""

    tell_learner("best_answer", find_fault)


def check_only_training(answer: Callable[[float], tuple[float, float]]) -> None:
    """Notebook 08: where two firms share their training and nothing else, for a better firm as good as alpha."""

    def find_fault() -> str:
        for luck in torch.rand(3, generator=fresh_generator()).tolist():
            alpha = round(0.65 + 0.25 * luck, 3)
            beta, cost = map(float, answer(alpha))
            if not 0.5 <= beta <= alpha:
                return f"for alpha = {alpha} it says beta = {beta:g}, expected .5 to alpha."
            world = contract.correlation_world(alpha, beta, [alpha * beta, beta], prior=(0.5, 0.5), cost=cost)
            label = contract.judge(world).label.item()
            if label != "train":
                return f"for alpha = {alpha} and its beta = {beta:.3f}, cost = {cost:.3f} they sign: {label}."
        return ""

    tell_learner("only_training", find_fault)


def check_payment_both_sign(answer: Callable[[float, float], float | None]) -> None:
    """Notebook 08: what plant B pays plant A so that both gain alike by a contract; None where none makes both gain."""

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(20):
            first, second = (torch.rand(2, generator=generator, dtype=torch.float64) - 0.5).tolist()
            paid = answer(first, second)
            if first + second <= 0:
                if paid is not None:
                    return f"with {first:.3f} and {second:.3f} there is nothing to share, and it says {paid}, not None."
                continue
            if paid is None:
                return f"with {first:.3f} and {second:.3f} together they gain, and it says None."
            if abs((first + paid) - (second - paid)) > 1e-9:
                return f"with {first:.3f} and {second:.3f} A ends with {first + paid:.3f}, B with {second - paid:.3f}."
        return ""

    tell_learner("payment_both_sign", find_fault)
