"""Checks of notebook 09: choosing a way, how many labels a trial needs, where a purchase breaks even."""

from collections.abc import Callable

import pandas as pd
import torch

from paramarket import decide
from paramarket.teach.checking import fresh_generator, tell_learner


def check_choose_way(answer: Callable[[pd.DataFrame, float], str]) -> None:
    """The way with the largest gain on quote, of those that surely help and do no harm; the first row if there is none.

    Columns: `way`, `gain_points`, `gain_points_low`, `own_class_change`; the first row is "nothing".
    """

    def find_fault() -> str:
        generator = fresh_generator()
        for fine in ("harms a little", "does good", "harms a little", "", ""):
            table, allowed, best = _draw_ways(fine, generator)
            chosen = answer(table.copy(), allowed)
            if not isinstance(chosen, str) or chosen not in set(table.way):
                return f"expected one of {', '.join(table.way)}, got {chosen!r}."
            if chosen != best:
                row = table.set_index("way").loc[chosen]
                return f"it takes {chosen!r}, expected {best!r}.{_what_speaks_against(row, allowed)}"
        return ""

    tell_learner("choose_way", find_fault)


def _draw_ways(fine: str, generator: torch.Generator) -> tuple[pd.DataFrame, float, str]:
    """A table of ways in a random order, what the buyer's own classes may lose, and the way to choose.

    No table is solved by luck: the two largest gains do harm or may be chance, and of those that are fine the best has
    not the largest lower end. fine: what the best does to the own classes, in words; nothing where none is fine
    """
    allowed, worst, second, first, more, most, *luck = torch.rand(12, generator=generator, dtype=torch.float64).tolist()
    allowed = 0.2 + allowed
    worst, second = 0.5 + worst / 4, 1.0 + second / 4
    first = 1.5 + first / 4
    lure, gamble = (2.0 + more / 4, 2.5 + most / 4) if luck[0] < 0.5 else (2.5 + most / 4, 2.0 + more / 4)
    ways = [  # gain, its lower end, change on the buyer's own classes
        (lure, lure - 0.3, -allowed - 0.1 - luck[1]),  # gains much, and harms
        (gamble, -0.1 - luck[2], -allowed / 2),  # seems to gain much: it may be chance
        (worst, -0.1 - luck[3], -allowed - 0.1 - luck[3]),  # neither
    ]
    if fine:
        ways.append((second, second - 0.1, allowed + 1 + luck[4]))  # the surest of those that are fine, and the kindest
        ways.append((first, 0.1 + luck[5] / 2, allowed + luck[4] if fine == "does good" else -allowed / 2))  # the best
    letters = [["a", "b", "c", "d", "e"][k] for k in torch.randperm(len(ways), generator=generator).tolist()]
    rows = [("nothing", 0.0, 0.0, 0.0)]
    rows += sorted((letter, *way) for letter, way in zip(letters, ways, strict=True))
    table = pd.DataFrame(rows, columns=["way", "gain_points", "gain_points_low", "own_class_change"])
    return table, allowed, letters[-1] if fine else "nothing"


def _what_speaks_against(row: pd.Series, allowed: float) -> str:
    """Why a way must not be chosen; nothing if it may be, and another one gains more."""
    if row.name == "nothing":
        return " Some way surely helps, and does no harm that is not allowed."
    if row.gain_points_low <= 0:
        return f" Its gain may be chance: the lower end is {row.gain_points_low:.2f} points."
    if row.own_class_change < -allowed:
        return f" It harms the buyer's own classes by {-row.own_class_change:.2f} points; {allowed:.2f} are allowed."
    return " Both are fine, but the other one gains more."


def check_examples_needed(answer: Callable[[float, float, float], int]) -> None:
    """How many labelled examples tell a gain to ± a precision, from how often only one of the two models is right.

    The smallest number that reaches it, or one more; with 1.96 or with its further digits.
    """

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(20):
            better, worse, precision = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            better, worse, precision = 0.05 + 0.3 * better, 0.02 + 0.3 * worse, 0.03 + 0.05 * precision
            found = float(answer(better, worse, precision))
            variance = better + worse - (better - worse) ** 2
            fewest, most = (variance * (digits / precision) ** 2 for digits in (1.9599, 1.96))
            given = f"for better = {better:.3f}, worse = {worse:.3f}, precision = {precision:.3f}"
            if found % 1 != 0:
                return f"{given} it says {found:g}: expected a whole number."
            if fewest <= found <= most + 1.001:
                continue
            expected = decide.pilot_examples(better, worse, precision)
            hint = " Fewer do not reach the precision: round up." if found == expected - 1 else ""
            return f"{given} it says {found:.0f}, expected {expected}.{hint}"
        return ""

    tell_learner("examples_needed", find_fault)


def check_break_even(answer: Callable[[float, float, float], float]) -> None:
    """The gain (points) from which on a purchase pays, beside what could be had alone."""

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(20):
            shares = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            costs, worth_of_a_point, alone = 1e3 + 1e5 * shares[0], 1e3 + 5e4 * shares[1], 0.2 + 3 * shares[2]
            gain = float(answer(costs, worth_of_a_point, alone))
            left = (gain - alone) * worth_of_a_point - costs
            if not abs(left) <= 1e-5 * (costs + alone * worth_of_a_point):
                given = f"costs = {costs:.0f}, worth_of_a_point = {worth_of_a_point:.0f}, alone = {alone:.2f}"
                return f"for {given} it says {gain:.3f} points; with so many, {left:,.0f} is left, not 0."
        return ""

    tell_learner("break_even", find_fault)
