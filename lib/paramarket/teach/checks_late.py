"""How a learner's code is checked, and the checks of notebooks 04 to 07. `teach` passes them on."""

import math
from collections.abc import Callable

import torch

from paramarket.smat import HardConcrete, route


def fresh() -> torch.Generator:
    """Another generator at every call: an answer cannot be fitted to the check."""
    generator = torch.Generator()
    generator.seed()
    return generator


def tell(name: str, test: Callable[[], str]) -> None:
    """Run a test that says what is wrong, or nothing, and tell the learner; an unwritten exercise is no error."""
    try:
        wrong = test()
    except NotImplementedError:
        print(f"… {name} is not written yet.")
        return
    except Exception as error:  # the learner's own code may raise anything: say it, do not end the notebook
        wrong = f"it raised {type(error).__name__}: {error}"
    print(f"✗ {name}: {wrong}" if wrong else f"✓ {name} holds on fresh random input.")


def check_best_share(answer: Callable[[float, float], tuple[float, float]]) -> None:
    """Notebook 06: the seller's share with the least squared error, estimates being independent; and that error."""

    def test() -> str:
        low, gap, turn = torch.rand(3, generator=fresh()).tolist()
        v_b, v_s = (low + 0.1, low + gap + 0.2)[:: 1 if turn < 0.5 else -1]  # never alike: one would do for the other
        share, error = map(float, answer(v_b, v_s))
        grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
        bowl = (1 - grid) ** 2 * v_b + grid**2 * v_s
        if abs(share - grid[bowl.argmin()].item()) > 1e-3:
            hint = " That is the buyer's own share." if abs(1 - share - grid[bowl.argmin()].item()) < 1e-3 else ""
            return (
                f"for V_b = {v_b:.3f}, V_s = {v_s:.3f} it says w = {share:.3f}, but the bowl is lowest elsewhere.{hint}"
            )
        return "" if abs(error - bowl.min().item()) < 1e-5 else f"the share is right; the error is not {error:.4f}."

    tell("best_share", test)


def check_better_bid(answer: Callable[[float], float]) -> None:
    """Notebook 06: a bid that beats the truth where the price is the mean of bid and ask, asks true and uniform."""

    def test() -> str:
        asks = torch.linspace(0, 1, 100_001, dtype=torch.float64)
        for value in (0.1 + 0.9 * torch.rand(5, generator=fresh())).tolist():
            bid = float(answer(value))
            won, honest = ((value - (b + asks) / 2)[asks <= b].sum().item() / len(asks) for b in (bid, value))
            if not won > honest + 1e-6:
                return f"with a value of {value:.2f}, a bid of {bid:.2f} wins {won:.4f}; the truth wins {honest:.4f}."
        return ""

    tell("better_bid", test)


def check_split_cents(answer: Callable[[int, list[float]], list[int]]) -> None:
    """Notebook 07: a sum in whole cents shared out among sellers; not a cent more or less."""

    def test() -> str:
        drawn = fresh()
        for sellers in (1, 2, 3, 7):
            cents, shares = int(torch.randint(0, 10_000, (1,), generator=drawn)), torch.rand(sellers, generator=drawn)
            shares = (shares / shares.sum()).tolist()
            parts = list(answer(cents, list(shares)))
            if len(parts) != sellers or any(part != int(part) or part < 0 for part in parts):
                return f"{cents} cents for {sellers} sellers: expected as many whole numbers from 0, got {parts}."
            if sum(parts) != cents:
                return f"{cents} cents became {sum(parts)}: {parts}."
            far = max(abs(part - share * cents) for part, share in zip(parts, shares, strict=True))
            if far > sellers:
                return f"one of {parts} is {far:.0f} cents away from its share of {cents}."
        return ""

    tell("split_cents", test)


def check_rounds_to(answer: Callable[[torch.Tensor, float], int | None]) -> None:
    """Notebook 07: the first round, from 1 on, whose accuracy reaches a goal; None if none does."""

    def test() -> str:
        curve = torch.rand(12, generator=fresh()).cummax(dim=0).values * 0.9
        for goal in (curve[0].item() / 2, curve[5].item(), 0.95):
            reached = [k + 1 for k, accuracy in enumerate(curve.tolist()) if accuracy >= goal]
            found, expected = answer(curve, goal), reached[0] if reached else None
            if found != expected:
                return f"for the goal {goal:.2f} it says {found}, expected {expected}."
        return ""

    tell("rounds_to", test)


def check_open_chance(answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Notebook 04: the chance that a hard-concrete gate is not 0, from its log alpha [n]."""

    def test() -> str:
        x = 8 * torch.rand(50, generator=fresh()) - 4
        found, expected = torch.as_tensor(answer(x)), HardConcrete().nonzero(x)
        if found.shape != x.shape:
            return f"expected one chance a gate, shape {tuple(x.shape)}, got {tuple(found.shape)}."
        if torch.allclose(found, HardConcrete().one(x), atol=1e-4):
            return "that is the chance of z = 1: mind the sign of the last term."
        far = (found - expected).abs().max().item()
        return f"it is off by up to {far:.3f}." if far > 1e-4 else ""

    tell("open_chance", test)


def check_mixed_alpha(answer: Callable[..., torch.Tensor]) -> None:
    """Notebook 04: alpha for a support of which a share comes from one domain, the rest from another."""

    def test() -> str:
        own = fresh()
        for share, length in ((0.2, 0.3), (0.5, 1.0), (0.9, 3.0)):  # of one length alone, its scaling might not be seen
            keys, a, b = (torch.randn(*shape, generator=own) for shape in ((4, 8), (8,), (8,)))
            a, b = length * a, length * b
            many = torch.cat([a.expand(round(10 * share), 8), b.expand(10 - round(10 * share), 8)])
            found, expected = torch.as_tensor(answer(keys, a, b, share)), route(keys[None], many[None, None])[0, 0]
            if found.shape != (4,) or abs(found.sum().item() - 1) > 1e-3:
                return (
                    f"expected 4 numbers that sum to 1, got shape {tuple(found.shape)}, sum {found.sum().item():.2f}."
                )
            if (found - expected).abs().max() > 1e-3:
                return f"expected {expected.tolist()}, got {found.tolist()}."
        return ""

    tell("mixed_alpha", test)


def check_specialist(answer: Callable[..., dict[str, torch.Tensor]]) -> None:
    """Notebook 05: S + sum_i alpha_i E_i, from a base, experts [n, ...] and alpha [n]."""

    def test() -> str:
        own, shapes = fresh(), {"1.weight": (4, 3), "1.bias": (4,)}
        base = {name: torch.randn(shape, generator=own) for name, shape in shapes.items()}
        experts = {name: torch.randn(5, *shape, generator=own) for name, shape in shapes.items()}
        for alpha in (torch.eye(5)[2], torch.randn(5, generator=own)):
            found, asked = answer(base, experts, alpha), [round(a, 2) for a in alpha.tolist()]
            for name, tensor in base.items():
                if name not in found or found[name].shape != tensor.shape:
                    return f"expected {name!r} of shape {tuple(tensor.shape)} among its tensors, as in the base."
                summed = sum(a * expert for a, expert in zip(alpha, experts[name], strict=True))
                if torch.allclose(found[name], summed, atol=1e-4):
                    return f"with alpha = {asked}, {name!r} is the sum of the experts without S."
                if not torch.allclose(found[name], tensor + summed, atol=1e-4):
                    return f"with alpha = {asked}, {name!r} is not S + sum alpha E."
        return ""

    tell("specialist", test)


def check_pays_after(answer: Callable[[float, float, float], float]) -> None:
    """Notebook 05: the smallest number of customers at which paying once is no dearer than paying for each."""

    def test() -> str:
        cases = (torch.randint(1, 50, (20, 3), generator=fresh()).double() * 10).tolist()
        for once, each, saved in [*cases, (100.0, 10.0, 50.0)]:
            found, asked = answer(once, each, each + saved), f"once {once:g}, then {each:g} each, not {each + saved:g}"
            if not 0 <= found < math.inf or found != int(found):
                return f"{asked}: expected a whole number of customers, got {found:g}."
            if once > found * saved:
                return f"{asked}: with {found:g} customers it does not pay yet."
            if once <= (found - 1) * saved:
                return f"{asked}: it pays before customer {found:g}."
        never = all(answer(1.0, each, 2.0) == math.inf for each in (3.0, 2.0))
        return "" if never else "if each one costs as much as before, or more, it never pays: math.inf."

    tell("pays_after", test)
