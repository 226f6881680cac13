"""Two networks in, one decision out: every step of this room in its order, and the term sheet that follows from it."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from paramarket import base, stack, train
from paramarket.base import Interval, interval
from paramarket.data import Dataset, Split
from paramarket.decide.checks import Pair, enough_examples, known_answers
from paramarket.decide.compatibility import Compatibility, compatibility
from paramarket.decide.forecast import forecast, pair_measurements
from paramarket.decide.money import (
    Band,
    Business,
    Exchange,
    Roi,
    Safeguards,
    Signed,
    check_business,
    exchange,
    price_band,
    roi,
    safeguards,
    signed_contract,
    valuation,
)
from paramarket.decide.pilot import pilot_examples
from paramarket.decide.term_sheet import Party, Term, term_sheet
from paramarket.decide.ways import LABELS, NOTHING, Offers, measure_ways, recommend, tune_ways
from paramarket.errors import ParameterError

QUICK_WAYS = ("the other's network", "averaged, matched by weights", "output ensemble", "distilled ensemble", LABELS)
PILOT_PRECISION = 0.02  # a share: a trial tells the gain to ± 2 points
FALSE_ALARM = 0.05  # of the watch, for ever
REWARD, COST = 1.0, 2.0  # of taking a sound example, and another one, between rivals (notebook 08)
COMPUTE_MINUTES = 10.0  # to align, tune and audit, and to look on

Recommendation = Literal["trade weights", "share predictions", "label instead", "do not trade"]
LEAKS: dict[str, Recommendation] = {
    "weights": "trade weights",
    "probabilities": "share predictions",
    "nothing": "label instead",
}
ANSWERS = {
    "trade weights": "Yes: buy the weights",
    "share predictions": "Yes, but predictions only",
    "label instead": "No: label examples and train on them",
    "do not trade": "No: do not trade",
}


class Decision(NamedTuple):
    """What was found out about two networks, and what follows; A is the buyer, B the seller.

    recommendation: "trade weights", "share predictions", "label instead" or "do not trade" · reason: in a sentence
    best_way: that A should take · compatible: `compatibility`'s verdict and all behind it; None for two architectures
    forecast: points, before anything was merged · ways: one row a buyer ("A", "B") and way, as `Ways.table` gives them
    gain_points, gain_nats, own_class_change: of the best way, on audit · gain_to_come: points, if `prior` of the
    examples to come are of the buyer's own classes · gain_money: that, a year
    better, worse: shares of audit on which only the best way, only A's own network is right
    band: A's prices · roi: at that price · exchange: if B may learn from A as well · safeguards · signed: the contract
    on predictions between rivals · pilot_examples: for ± 2 points; 0 where nothing changes · audited: examples of audit
    """

    recommendation: Recommendation
    reason: str
    best_way: str
    compatible: Compatibility | None
    forecast: Interval
    ways: pd.DataFrame
    gain_points: Interval
    gain_nats: Interval
    own_class_change: Interval
    gain_to_come: Interval
    gain_money: Interval
    better: float
    worse: float
    band: Band
    roi: Roi
    exchange: Exchange
    safeguards: Safeguards
    signed: Signed
    pilot_examples: int
    audited: int


def examine(
    pair: Pair,
    images: Dataset,
    business: Business,
    *,
    seed: int,
    max_class_loss: float = 1.0,
    prior: float | None = None,
    contract_cost: float = 0.0,
    only: Sequence[str] | None = None,
) -> Decision:
    """Should A use B's network: how, at what price? Everything is tuned and chosen on quote, and measured on audit.

    All is compared with what A could do alone with these two files and examples: nothing, or train on the labels of
    quote. Who still has the examples that A's network learnt from should try them together with these labels first.

    pair: two networks as `load_pair` gives them · images: their quote and audit · max_class_loss: points that A's own
    classes may lose · prior: the share of A's own classes among the examples to come; None: as on audit
    contract_cost: of running a contract on predictions, per 100 examples, of which a right one earns 1 · only: names of
    ways, for less work (`QUICK_WAYS`); labels are always among them
    Raises what `known_answers`, `enough_examples`, `tune_ways` and `roi` raise, before the long work begins.
    """
    if prior is not None and not 0 < prior < 1:
        raise ParameterError(f"prior = {prior}, expected a share between 0 and 1.")
    check_business(business)
    quote, audit, classes = images.quote, images.audit, images.classes
    with tqdm(total=5, desc="examining", disable=not base.is_watched()) as bar:
        known_answers(pair.net_a, pair.a, quote, classes, "A's network")
        known_answers(pair.net_b, pair.b, quote, classes, "B's network")
        enough_examples(pair, quote, audit)
        bar.update()
        expected = _forecast(pair, quote)
        compatible = None
        if pair.spec is not None:
            compatible = compatibility(pair.net_a, pair.a, pair.b, quote)
        bar.update()
        settings = {"seed": seed, "max_class_loss": max_class_loss, "only": only}
        of_a = _ways(pair, quote, audit, **settings)
        bar.update()
        of_b = _ways(_turned_round(pair), quote, audit, **settings)
        bar.update()
        decision = _conclude(pair, quote, audit, business, expected, compatible, of_a, of_b, prior, contract_cost, seed)
        bar.update()
    return decision


class _Best(NamedTuple):
    """The recommended way of one buyer, and all ways as audit has measured them.

    table: one row a way, which is its index · own_classes: those the buyer does best · own: whether an example of audit
    is of these · differences, alone: of the recommended way, and of training on labels, for every example of audit
    """

    way: str
    offers: Offers
    table: pd.DataFrame
    own_classes: Bool[Tensor, " classes"]
    own: Bool[Tensor, " n"]
    differences: Int[Tensor, " n"]
    alone: Int[Tensor, " n"]


def _forecast(pair: Pair, quote: Split) -> Interval:
    own, other = stack.join([pair.a]), stack.join([pair.b])
    found = forecast(pair_measurements(pair.net_a, own, other, quote.x, other_net=pair.net_b))
    return Interval(*(float(end[0]) for end in found))


def _turned_round(pair: Pair) -> Pair:
    return pair._replace(net_a=pair.net_b, a=pair.b, net_b=pair.net_a, b=pair.a)


def _ways(pair: Pair, quote: Split, audit: Split, *, seed: int, max_class_loss: float, only: Any) -> _Best:
    own, other = stack.join([pair.a]), stack.join([pair.b])
    if only is not None:
        left_out = [] if pair.spec is not None else ["averaged, matched by weights"]
        only = [*dict.fromkeys(way for way in (*only, LABELS) if way not in left_out)]
    offers = tune_ways(
        pair.net_a,
        pair.spec,
        own,
        other,
        quote,
        seed=seed,
        max_class_loss=max_class_loss,
        other_net=pair.net_b if pair.spec is None else None,
        only=only,
    )
    measured = measure_ways(offers, audit)
    (way,) = recommend(offers, max_class_loss)
    own_classes = offers.own_classes[0]
    return _Best(
        way=way,
        offers=offers,
        table=measured.table(stack.grid(buyer=["A"])).drop(columns="buyer").set_index("way"),
        own_classes=own_classes,
        own=own_classes[audit.y],
        differences=measured.differences[0, offers.way.index(way)],
        alone=measured.differences[0, offers.way.index(LABELS)],
    )


def gain_to_come(differences: Int[Tensor, " n"], own: Bool[Tensor, " n"], prior: float | None) -> Interval:
    """The gain (points) if examples of the buyer's own classes are a share `prior` of those to come.

    differences: -1, 0 or 1 for every example · own: whether it is of these classes · prior: None: that share stays
    Every example counts as much as its kind will (importance weights); within a kind nothing changes.
    """
    share = own.double().mean().item()
    if prior is None or share in (0, 1) or abs(prior - share) < 1e-9:
        return Interval(*(100 * end for end in interval(differences, "differences")))
    weights = torch.where(own, prior / share, (1 - prior) / (1 - share))
    return interval(100 * differences * weights, "examples")


def _conclude(
    pair: Pair,
    quote: Split,
    audit: Split,
    business: Business,
    expected: Interval,
    compatible: Compatibility | None,
    of_a: _Best,
    of_b: _Best,
    prior: float | None,
    contract_cost: float,
    seed: int,
) -> Decision:
    to_come = gain_to_come(of_a.differences, of_a.own, prior)
    returns = {"alone_points": gain_to_come(of_a.alone, of_a.own, prior).mean, "audited": len(audit)}
    value_a = worth_of(of_a.table, of_a.way, to_come, business, **returns)
    value_b = _worth_to_seller(of_b, business, len(audit))
    cost = business.seller_hours * business.hour_rate
    band = price_band(value_a, cost, business.fee)
    price = band.price if band.deal else 0.0
    row = of_a.table.loc[of_a.way]
    better = (of_a.differences > 0).double().mean().item()
    worse = (of_a.differences < 0).double().mean().item()
    right_before, right_after = _right(of_a, audit)
    recommendation, reason = _recommend(of_a, to_come, band, business, pair)
    return Decision(
        recommendation=recommendation,
        reason=reason,
        best_way=of_a.way,
        compatible=compatible,
        forecast=expected,
        ways=pd.concat([_table(of_a, "A"), _table(of_b, "B")], ignore_index=True),
        gain_points=_interval_of(row, "gain_points"),
        gain_nats=_interval_of(row, "gain_nats"),
        own_class_change=_interval_of(row, "own_class_change"),
        gain_to_come=to_come,
        gain_money=valuation(to_come, business),
        better=better,
        worse=worse,
        band=band,
        roi=returns_of(of_a.table, of_a.way, to_come, business, price=price, **returns),
        exchange=exchange(value_a, value_b, cost, cost),
        safeguards=safeguards(right_before, right_after, size=len(audit), seed=seed),
        signed=_contract(pair, quote, of_a.own_classes, contract_cost, seed),
        pilot_examples=pilot_examples(better, worse, PILOT_PRECISION) if better + worse > 0 else 0,
        audited=len(audit),
    )


def returns_of(
    table: pd.DataFrame,
    way: str,
    gain: Interval,
    business: Business,
    *,
    alone_points: float,
    audited: int,
    price: float = 0.0,
) -> Roi:
    """What a way returns (`roi`), beside the labels of quote that the buyer could train on alone.

    table: one row a way, which is its index, as `Ways.table` gives them for one buyer · gain: of this way, for the
    examples to come (points) · alone_points: that these labels alone would gain · audited: labelled to measure both
    """
    row = table.loc[way]
    return roi(
        gain,
        business,
        price=price,
        labels=int(row.labels) + audited,
        alone_points=alone_points,
        alone_labels=int(table.labels[LABELS]),
        extra_networks=int(row.models) - 1,
        minutes=COMPUTE_MINUTES,
    )


def worth_of(
    table: pd.DataFrame, way: str, gain: Interval, business: Business, *, alone_points: float, audited: int
) -> float:
    """The most that a purchase may cost the buyer, fee included; 0 where nothing is bought, or the gain may be none."""
    if way in (NOTHING, LABELS) or gain.low <= 0:
        return 0.0
    return returns_of(table, way, gain, business, alone_points=alone_points, audited=audited).net.mean


def _worth_to_seller(best: _Best, business: Business, audited: int) -> float:
    """What B could gain from A, with a business like A's, for examples as audit has them."""
    gain = gain_to_come(best.differences, best.own, None)
    alone = gain_to_come(best.alone, best.own, None).mean
    return worth_of(best.table, best.way, gain, business, alone_points=alone, audited=audited)


def _recommend(best: _Best, gain: Interval, band: Band, business: Business, pair: Pair) -> tuple[Recommendation, str]:
    points = f"{gain.mean:.1f} [{gain.low:.1f}, {gain.high:.1f}] points"
    row = best.table.loc[best.way]
    if best.way == NOTHING:
        return "do not trade", "no way to use B's network surely helps A without harm to A's own classes."
    if best.way == LABELS:
        return "label instead", f"training on {int(row.labels)} labels gains {points}, and needs no partner."
    if gain.low <= 0:
        return "do not trade", f"{best.way}: {points} on audit, which may be nothing."
    if not band.deal:
        most, least = f"{band.high:,.0f}", f"{band.low:,.0f} {business.currency}"
        return "do not trade", f"{best.way}: {points} are worth {most} to A at most, and cost B {least}."
    reason = f"{best.way} gains {points}, at a price of {band.price:,.0f} {business.currency}"
    why = f" ({pair.reason})" if pair.reason else ""
    return LEAKS[row.leaks], reason + why + "."


def _right(best: _Best, audit: Split) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Whether A's own network, and the best way, are right on every example of audit."""
    before = best.offers.service(NOTHING).answers(audit.x)[0].argmax(dim=-1) == audit.y
    after = best.offers.service(best.way).answers(audit.x)[0].argmax(dim=-1) == audit.y
    return before, after


def _contract(pair: Pair, quote: Split, own_classes: Bool[Tensor, " classes"], cost: float, seed: int) -> Signed:
    """The game of notebook 08: an odd class is sound; there are times of A's own classes, and times of the others."""
    signals = []
    for net, params in ((pair.net_a, pair.a), (pair.net_b, pair.b)):
        chances = train.logits(net, stack.join([params]), quote.x)[0].softmax(dim=-1).cpu()
        signals.append((chances[:, 1::2].sum(dim=-1) > 0.5).numpy())
    return signed_contract(
        (quote.y % 2 == 1).numpy(),
        *signals,
        (~own_classes[quote.y]).long().numpy(),
        reward=REWARD,
        cost=COST,
        seed=seed,
        running_costs=dict.fromkeys(("infer", "full"), cost / 100),
    )


def _table(best: _Best, buyer: str) -> pd.DataFrame:
    return best.table.reset_index().assign(buyer=buyer)


def _interval_of(row: pd.Series, name: str) -> Interval:
    return Interval(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def ways_in_words(decision: Decision) -> str:
    """All ways of the buyer as lines of text, the one to take marked."""
    lines = [f"  {'way':34} {'points':>22} {'own classes':>12}  networks  leaves the seller"]
    for row in decision.ways.query("buyer == 'A'").itertuples():
        mark = "→" if row.way == decision.best_way else " "
        gain = f"{row.gain_points:+.1f} [{row.gain_points_low:+.1f}, {row.gain_points_high:+.1f}]"
        lines.append(f"{mark} {row.way:34} {gain:>22} {row.own_class_change:+12.1f}  {row.models:8}  {row.leaks}")
    return "\n".join(lines)


def draw_up(
    decision: Decision,
    business: Business,
    *,
    buyer: Party,
    seller: Party,
    go_points: float | None = None,
    no_go_points: float | None = None,
) -> dict[str, Any]:
    """The term sheet of a decision: every number with its interval, its unit, and the split or hand it comes from.

    go_points, no_go_points: the lines of the trial, as `pilot` takes them (there as shares); None: the gain at
    which the purchase breaks even
    """
    return term_sheet(
        buyer,
        seller,
        recommendation=ANSWERS[decision.recommendation],
        verdict=decision.reason[:1].upper() + decision.reason[1:],
        terms=_terms(decision, business, go_points, no_go_points),
        returns=decision.roi.table(),
        currency=business.currency,
    )


def _terms(
    decision: Decision, business: Business, go_points: float | None, no_go_points: float | None
) -> dict[str, Term]:
    even = decision.roi.break_even_points
    money = business.currency
    is_sold = decision.recommendation in ("trade weights", "share predictions")
    band = decision.band
    row = decision.ways.query("buyer == 'A'").set_index("way").loc[decision.best_way]
    lines = decision.safeguards
    payer, payment = _payment(decision, is_sold, money)
    flip = decision.roi.flip
    turned = "no single input"
    if flip is not None:
        turned = f"{flip.name.replace('_', ' ')}: {flip.now:,.4g} → {flip.at:,.4g}"
    chosen = "audit; the way was chosen on quote"
    returns = f"against {decision.roi.alternative} alone"
    return {
        "way": Term(decision.best_way, "", "quote"),
        "leaks": Term(str(row.leaks), "", "the way"),
        "gain_points": _term_of(decision.gain_points, "points", chosen),
        "gain_nats": _term_of(decision.gain_nats, "nats", chosen),
        "gain_money": _term_of(decision.gain_money, f"{money} a year", "gain for the parts to come × business"),
        "own_class_change": _term_of(decision.own_class_change, "points", chosen),
        "price": Term(band.price if is_sold else None, money, "Nash: half way in the band", band.low, band.high),
        "payer": Term(payer, "", "both directions"),
        "payment": Term(payment, money, "the price"),
        "contract": Term(decision.signed.label, "", "the game of rivals on quote"),
        "contract_stability": Term(decision.signed.stability, "share", "resamples of quote"),
        "net": _term_of(decision.roi.net, money, returns),
        "payback_months": Term(decision.roi.payback_months, "months", returns),
        "break_even_points": Term(decision.roi.break_even_points, "points", returns),
        "flip": Term(turned, "", "returns, one input at a time"),
        "pilot_examples": Term(decision.pilot_examples, "for ± 2 points", "audit"),
        "go_points": Term(even if go_points is None else go_points, "points", "the buyer; else break-even"),
        "no_go_points": Term(even if no_go_points is None else no_go_points, "points", "the buyer; else break-even"),
        "warranty_points": Term(lines.warranty_points, "points", "low end on audit"),
        "warranty_examples": Term(decision.audited, "", "as many as audit has"),
        "false_refund_rate": Term(lines.false_refund_rate, "share", "audit drawn anew"),
        "rollback_error_rate": Term(lines.rollback_error_rate, "share", "the old network on audit"),
        "false_alarm_rate": Term(FALSE_ALARM, "share", "the watch's promise"),
    }


def _term_of(found: Interval, unit: str, source: str) -> Term:
    return Term(found.mean, unit, source, found.low, found.high)


def _payment(decision: Decision, is_sold: bool, money: str) -> tuple[str, float | None]:
    """Who pays for the one-way sale, and how much; and what would balance two sales."""
    both = decision.exchange
    words = "A" if is_sold else "nobody"
    if both.a_learns and both.b_learns:
        balanced = f"{both.payer} pays {both.payment:,.0f} {money}" if both.payer else "nobody pays"
        words += f" (if B learns from A, too: {balanced})"
    return words, decision.band.price if is_sold else None
