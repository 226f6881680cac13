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
        for _ in range(30):
            gains, spread, change = torch.rand(3, 6, generator=generator, dtype=torch.float64).mul(6).sub(2).tolist()
            table = pd.DataFrame({"way": ["nothing", *"abcde"], "gain_points": gains, "own_class_change": change})
            table["gain_points_low"] = table.gain_points - pd.Series(spread).abs()
            table.loc[0, ["gain_points", "gain_points_low", "own_class_change"]] = 0.0
            allowed = float(torch.rand(1, generator=generator))
            is_fine = (table.gain_points_low > 0) & (table.own_class_change >= -allowed)
            offered = table[is_fine]
            best = offered.loc[offered.gain_points.idxmax(), "way"] if len(offered) else "nothing"
            chosen = answer(table.copy(), allowed)
            if chosen == best:
                continue
            if chosen not in set(table.way):
                return f"expected one of {', '.join(table.way)}, got {chosen!r}."
            told = f"it takes {chosen!r}, expected {best!r}."
            if chosen == table.loc[table.gain_points.idxmax(), "way"]:
                return f"{told} Its gain is the largest, but it may be chance, or it harms the buyer's own classes."
            return told
        return ""

    tell_learner("choose_way", find_fault)


def check_examples_needed(answer: Callable[[float, float, float], int]) -> None:
    """How many labelled examples tell a gain to ± a precision, from how often only one of the two models is right."""

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(20):
            better, worse, precision = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            better, worse, precision = 0.01 + 0.3 * better, 0.3 * worse, 0.01 + 0.05 * precision
            expected = decide.pilot_examples(better, worse, precision)
            found = answer(better, worse, precision)
            if abs(found - expected) > 1 + 0.001 * expected:  # 1.96 is as good as its further digits
                given = f"better = {better:.3f}, worse = {worse:.3f}, precision = {precision:.3f}"
                return f"for {given} it says {found}, expected {expected}."
        return ""

    tell_learner("examples_needed", find_fault)


def check_break_even(answer: Callable[[float, float, float], float]) -> None:
    """The gain (points) from which on a purchase pays, beside what could be had alone."""

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(20):
            shares = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            costs, worth_of_a_point, alone = 1e5 * shares[0], 1e3 + 5e4 * shares[1], 3 * shares[2]
            gain = float(answer(costs, worth_of_a_point, alone))
            left = (gain - alone) * worth_of_a_point - costs
            if abs(left) > 1e-6 * costs + 1e-6:
                given = f"costs = {costs:.0f}, worth_of_a_point = {worth_of_a_point:.0f}, alone = {alone:.2f}"
                return f"for {given} it says {gain:.3f} points; with so many, {left:,.0f} is left, not 0."
        return ""

    tell_learner("break_even", find_fault)
