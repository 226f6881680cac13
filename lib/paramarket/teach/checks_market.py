"""Act three, what it is worth: the checks of notebooks 06, 07 and 08."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from paramarket import align, base, contract, data, market, price, stack
from paramarket.align import PermutationSpec
from paramarket.stack import Params
from paramarket.teach.checking import fresh_generator, tell_learner


def check_price_from_sample(answer: Callable[[np.ndarray, float], float]) -> None:
    """Notebook 06: the price with the largest profit from the buyers seen, by their values and the seller's cost."""

    def earned(sample: np.ndarray, cost: float, asked: float) -> float:
        return float((asked - cost) * (sample >= asked).mean())

    def find_fault() -> str:
        generator = fresh_generator()
        for sample, cost in _draw_samples(generator):
            best = price.posted_price(sample, cost)
            asked = float(answer(sample.copy(), cost))
            profit = earned(sample, cost, asked)
            if profit >= best.profit - 1e-9:
                continue
            hint = ""
            if asked == price.posted_price(sample).price:
                hint = " It forgets the cost."
            elif abs(asked - sample.mean()) < 1e-9:
                hint = " That is the mean of the values."
            return (
                f"from {len(sample)} buyers, cost {cost:.1f}, a price of {asked:.2f} earns {profit:.2f} a buyer; "
                f"{best.profit:.2f} can be had.{hint}"
            )
        return ""

    tell_learner("price_from_sample", find_fault)


def _draw_samples(generator: torch.Generator) -> list[tuple[np.ndarray, float]]:
    """Values of buyers, and a cost below the largest of them.

    In the last sample one buyer is worth more than the two others: who forgets that he buys at his value misses him.
    """
    samples = []
    for buyers in (1, 2, 3, *range(10, 40)):
        values = 50 + 100 * torch.rand(buyers, generator=generator, dtype=torch.float64).numpy()
        samples.append((values, torch.rand(1, generator=generator).item() * values.max()))
    luck = torch.rand(3, generator=generator, dtype=torch.float64).numpy()
    samples.append((np.array([300.0, 50.0, 65.0]) + 10 * luck, 20 * luck[0]))
    return samples


def check_best_bid(answer: Callable[[float, float, float], float]) -> None:
    """Notebook 06: the bid that earns most where the price is the mean of bid and ask, by value and range of asks.

    answer: bid of a value, the lowest and the highest ask; asks are uniform between the two, and a bid below the ask
    buys nothing. Every bid counts that earns within 1e-6 of the most.
    """

    def find_fault() -> str:
        for value, lowest, highest in _draw_bidders(fresh_generator()):
            bid = float(answer(value, lowest, highest))
            earned = _bid_earns(bid, value, lowest, highest)
            honest = _bid_earns(value, value, lowest, highest)
            best = _bid_earns(_best_bid(value, lowest, highest), value, lowest, highest)
            if not earned >= best - 1e-6:
                return (
                    f"with a value of {value:.3f} and asks from {lowest:.3f} to {highest:.3f}, a bid of {bid:.3f} "
                    f"earns {earned:.5f}; the truth earns {honest:.5f}, the best bid {best:.5f}."
                )
        return ""

    tell_learner("best_bid", find_fault)


def _draw_bidders(generator: torch.Generator) -> list[tuple[float, float, float]]:
    """(value, lowest ask, highest ask): values within the asks, below all of them, and so far above that all accept.

    Asks on [0, 1] are honest sellers', on [1/4, 11/12] those of the linear equilibrium for costs on [0, 1].
    """
    luck = torch.rand(2, generator=generator).tolist()
    ranges = [(0.0, 1.0), (1 / 4, 11 / 12), (0.1 + luck[0], 0.5 + luck[0] + luck[1])]
    bidders = []
    for lowest, highest in ranges:
        for share in torch.rand(5, generator=generator).tolist():
            value = lowest + (0.1 + 0.9 * share) * (highest - lowest)
            bidders.append((value, lowest, highest))
        below, above = torch.rand(2, generator=generator).tolist()
        bidders.append((below * lowest, lowest, highest))
        bidders.append((1.6 * highest + above, lowest, highest))
    return bidders


def _bid_earns(bid: float, value: float, lowest: float, highest: float) -> float:
    """E[(value - (bid + ask) / 2) where ask ≤ bid]: who sells are those up to the bid, on average midway."""
    last = min(max(bid, lowest), highest)
    sold = (last - lowest) / (highest - lowest)
    mean_ask = (lowest + last) / 2
    return sold * (value - (bid + mean_ask) / 2)


def _best_bid(value: float, lowest: float, highest: float) -> float:
    """Where a bid's slope is 0, (2 value + lowest) / 3, held between the asks."""
    return min(max((2 * value + lowest) / 3, lowest), highest)


def check_quote_and_audit(answer: Callable[[Tensor, Tensor], tuple[int, float]]) -> None:
    """Notebook 06: the mixture with the lowest mean loss on quote, and its gain on audit over the first, in points.

    answer: choice and points, of losses [C, n] on quote and hits [C, m] on audit, 1 where right and 0 where wrong, for
    C mixtures, of which the first is no purchase
    """

    def find_fault() -> str:
        generator = fresh_generator()
        for chosen in (1, 2, 3, 0):
            losses, hits = _draw_quote_and_audit(chosen, generator)
            choice, points = answer(losses.clone(), hits.clone())
            fault = _fault_of_choice(float(choice), losses, hits)
            if not fault:
                fault = _fault_of_points(float(points), chosen, losses, hits)
            if fault:
                return fault
        return ""

    tell_learner("quote_and_audit", find_fault)


def _draw_quote_and_audit(chosen: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """losses [5, 30] and hits [5, 40]: the chosen mixture has the lowest mean loss, and another one most hits.

    No mistake looks like another: shares of hits differ, by less than .5, and the first one's loss falls by more.
    """
    losses = torch.rand(5, 30, generator=generator) + torch.rand(5, 1, generator=generator)
    lowest = losses.mean(dim=1).argmin().item()
    losses[[chosen, lowest]] = losses[[lowest, chosen]]
    if chosen:
        losses[0] += 0.6
    lure = chosen % 4 + 1  # mostly near 0, yet dear on average: neither the median nor the smallest loss may choose
    dear = (30 * losses[chosen].mean() + 9) / 6
    losses[lure] = torch.cat([losses[lure, :24] / 100, dear.expand(6)])[torch.randperm(30, generator=generator)]
    right = 21 + torch.randperm(19, generator=generator)[:5]
    if right.argmax().item() == chosen:
        right = right.roll(1)
    ranks = torch.rand(5, 40, generator=generator).argsort(dim=1)
    return losses, (ranks < right.unsqueeze(1)).float()


def _fault_of_choice(choice: float, losses: Tensor, hits: Tensor) -> str:
    means = losses.mean(dim=1)
    if choice not in range(len(means)):
        return f"expected a choice from 0 to {len(means) - 1}, got {choice:g}."
    mixture = int(choice)
    if mixture == means.argmin().item():
        return ""
    hint = ""
    if mixture == hits.mean(dim=1).argmax().item():
        hint = " It has most hits on audit: what sets the price must not choose the purchase."
    elif mixture == means.argmax().item():
        hint = " No other has a higher one."
    return (
        f"it chose mixture {mixture}, whose mean loss on quote is {means[mixture]:.3f}; another has "
        f"{means.min():.3f}.{hint}"
    )


def _fault_of_points(points: float, chosen: int, losses: Tensor, hits: Tensor) -> str:
    share = hits.mean(dim=1)
    mean_loss = losses.mean(dim=1)
    gain = (share[chosen] - share[0]).item()
    if abs(points - 100 * gain) < 1e-3:
        return ""
    lower_loss = (mean_loss[0] - mean_loss[chosen]).item()
    mistakes = {
        "That is a share, not points.": gain,
        "That is the mixture's own accuracy: what did the buyer have before?": 100 * share[chosen].item(),
        "The sign is wrong: better than before is more than 0.": -100 * gain,
        "That is by how much the loss on quote falls, not what accuracy gains on audit.": lower_loss,
    }
    hints = [f" {hint}" for hint, mistaken in mistakes.items() if abs(points - mistaken) < 1e-3]
    return f"the choice is right; the gain is not {points:.2f} points.{''.join(hints[:1])}"


def check_split_cents(answer: Callable[[int, list[float]], list[int]]) -> None:
    """Notebook 07: a sum in whole cents shared out among sellers; not a cent more or less, and nobody a cent off."""

    def find_fault() -> str:
        generator = fresh_generator()
        for cents, shares in _draw_shares(generator):
            sellers = len(shares)
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


def _draw_shares(generator: torch.Generator) -> list[tuple[int, list[float]]]:
    """Sums in cents and the shares of their sellers, among whom there mostly is one who was asked, and sold nothing.

    In the last two draws six sellers are alike and 2 or 4 cents are left over. So rounding loses two or makes two, and
    no one seller can take what is left.
    """
    draws = []
    for sellers in (1, 2, 3, *range(5, 15)):
        cents = 301 + int(torch.randint(0, 10_000, (1,), generator=generator))
        sizes = torch.rand(sellers, generator=generator) + 0.01
        if sellers > 1:
            sizes[int(torch.randint(sellers, (), generator=generator)) if sellers > 3 else 0] = 0
        draws.append((cents, (sizes.double() / sizes.double().sum()).tolist()))
    for left in (2, 4):
        whole = 50 + int(torch.randint(0, 1000, (1,), generator=generator))
        draws.append((6 * whole + left, [1 / 6] * 6))
    return draws


# (net, spec, buyer, seller, splits, bid, cost) -> (the buyer's weights afterwards, euros paid)
Purchase = Callable[[nn.Module, PermutationSpec, Params, Params, market.Splits, float, float], tuple[Params, float]]
CENTS = 0.02  # euros: the ledger rounds the value down to a cent, and the price to one
DAY = {"rounds": 1, "steps": 40, "lr": 1e-2, "money": 1e6}  # short, so that there is much to buy on every evening


class Shop(NamedTuple):
    """A market of two small plants, by name; euros that selling costs; the seed of all its luck."""

    net: nn.Module
    spec: PermutationSpec
    splits: market.Splits
    plants: dict[str, market.Agent]
    cost: float
    seed: int


class Evening(NamedTuple):
    """One plant may buy: both networks before, its own afterwards, and the ledger's row; by the library.

    unmatched: the row, had the seller's units stayed in their own order
    """

    buyer: Params
    seller: Params
    after: Params
    row: pd.Series
    unmatched: pd.Series


def check_purchase(answer: Purchase) -> None:
    """Notebook 07: one purchase, from the matching to the price, against the ledger of a market of two small plants.

    answer: takes net, spec, the buyer's and the seller's weights, `market.Splits`, the buyer's bid (euros a point) and
    the seller's cost (euros); gives the buyer's weights afterwards and the euros that it pays. Its terms are those of
    `market.Terms()` but for the cost: activations matched, shares of `market.GRID`, rule "audit", half of the surplus.
    """

    def find_fault() -> str:
        shop = _open_shop()
        purchases = 0
        for day in range(1, 10):
            evenings = _evenings(shop, day)
            for name, evening in evenings.items():
                fault = _purchase_fault(answer, shop, evening)
                if fault:
                    return f"on day {day}, where {name} may buy, {fault}"
                purchases += evening.row.traded
            if purchases >= 3:
                break
            plants = {name: plant._replace(weights=evenings[name].after) for name, plant in shop.plants.items()}
            shop = shop._replace(plants=plants)
        for fault in (_needless_fault(answer, shop), _narrow_fault(answer, shop)):
            if fault:
                return fault
        return ""

    tell_learner("purchase", find_fault)


def _open_shop() -> Shop:
    """Plants that hardly see half of the kinds, so that there is something to buy."""
    generator = fresh_generator()
    seed = int(torch.randint(2**31, (), generator=generator))
    bid = float(torch.randint(500, 2000, (), generator=generator))
    cost = float(torch.randint(100, 300, (), generator=generator))
    images = data.load("digits")
    net = stack.mlp(images.train.x[0].numel(), [16], len(images.classes))
    spec = align.permutation_spec(net, images.quote.x[:1])
    splits = market.Splits(images.quote, images.audit, images.test)
    plants = market.plants(images.train, len(images.classes), count=2, share=0.02, bid=bid, seed=seed)
    return Shop(net, spec, splits, {plant.name: plant for plant in plants}, cost, seed)


def _evenings(shop: Shop, day: int) -> dict[str, Evening]:
    """A day of training for both plants, and then the purchase of each from the other as it was before."""
    choices = stack.grid(buyer=["nobody", *shop.plants], match=["activations", "none"])
    luck = base.stream(shop.seed, "day", day).initial_seed() % 2**31
    markets = []
    for choice in choices.itertuples():
        present = [plant._replace(buys=name == choice.buyer) for name, plant in shop.plants.items()]
        markets.append(market.Market(present, market.Terms(match=choice.match, cost=shop.cost), luck))
    outcome = market.run(shop.net, markets, shop.splits, **DAY)
    models = stack.unflat(outcome.models, (3, 2, len(shop.plants)))  # who buys, how matched, whose network
    rows = outcome.ledger.rows.set_index(["buyer", "match"])
    evenings = {}
    for k, name in enumerate(shop.plants):
        evenings[name] = Evening(
            buyer=stack.take(models, (0, 0, k)),
            seller=stack.take(models, (0, 0, 1 - k)),
            after=stack.take(models, (1 + k, 0, k)),
            row=rows.loc[name, "activations"],
            unmatched=rows.loc[name, "none"],
        )
    return evenings


def _purchase_fault(answer: Purchase, shop: Shop, evening: Evening) -> str:
    """What a purchase by the learner has other than the ledger."""
    row = evening.row
    bid = shop.plants[row.name[0]].bid
    weights, paid = _answered(answer, shop, evening.buyer, evening.seller, bid)
    if not abs(paid - row.paid) <= CENTS:
        expected = f"{row.paid:.2f}"
        if not row.traded:
            expected = f"nothing ({row.why}; the lower end is {row.audited_low:.2f} points)"
        mistake = _likely_mistake(paid, evening, bid, shop.cost)
        return f"{paid:.2f} euros are paid; the ledger says {expected}.{mistake}"
    if not _apart(weights, evening.after):
        return ""
    if not _apart(weights, evening.buyer):
        return "the price is right, and the buyer's weights are still the old ones."
    return f"the price is right, the weights are not: in the ledger's {row.share:.0%} are the seller's."


def _needless_fault(answer: Purchase, shop: Shop) -> str:
    """What is paid for a network that the buyer has already, and what becomes of it."""
    plant = shop.plants["A"]
    own = stack.take(stack.init(shop.net, 1, shop.seed), 0)
    weights, paid = _answered(answer, shop, own, own, plant.bid)
    if paid != 0:
        return f"where the seller has the buyer's own network, nothing is gained, and {paid:.2f} euros are paid."
    return "with nothing to gain, the buyer's weights change." if _apart(weights, own) else ""


def _narrow_fault(answer: Purchase, shop: Shop) -> str:
    """What goes wrong where `quote` holds few kinds, so that the share which is best on it is best nowhere else."""
    quote = shop.splits.quote
    first_half = quote.y < len(quote.y.unique()) // 2
    for name, known in (("A", first_half), ("B", ~first_half)):
        narrow = shop.splits._replace(quote=data.Split(quote.x[known], quote.y[known]))
        of_name = shop._replace(splits=narrow)
        fault = _purchase_fault(answer, of_name, _evenings(of_name, 0)[name])
        if fault:
            return f"where `quote` holds only kinds that {name} knows, {fault}"
    return ""


def _answered(answer: Purchase, shop: Shop, buyer: Params, seller: Params, bid: float) -> tuple[Params, float]:
    """What a learner's purchase gives, whatever it does to what it is handed."""
    copies = (stack.copy(buyer), stack.copy(seller))
    weights, paid = answer(shop.net, shop.spec, *copies, shop.splits, bid, shop.cost)
    stack.compare(weights, buyer, "the buyer's weights afterwards and the net")
    return weights, float(paid)


def _likely_mistake(paid: float, evening: Evening, bid: float, cost: float) -> str:
    """The mistake that would lead to just that sum, in a sentence; nothing if none of the usual ones does."""
    row = evening.row
    half_of_all = row.promised * bid / 2
    sums = {
        "That is the price of the gain on `quote`, which chose the mixture.": _price(row.quoted * bid, cost),
        "That is the price of the mean gain on `audit`, not of the lower end.": _price(row.audited * bid, cost),
        "That is half of the value: the price lies half-way between the value and the cost.": half_of_all,
        "That is the price of the surplus alone: the seller gets its cost, too.": half_of_all - cost / 2,
        "So much it would be with the seller's units as they are: were they matched?": evening.unmatched.paid,
    }
    for sentence, amount in sums.items():
        if abs(paid - amount) <= CENTS:
            return f" {sentence}"
    return ""


def _price(value: float, cost: float) -> float:
    """Half-way between the two, 0 where the value does not cover the cost."""
    return (value + cost) / 2 if value >= cost else 0.0


def _apart(weights: Params, expected: Params) -> bool:
    """Whether two networks differ by more than rounding."""
    return any(not torch.allclose(weights[name], expected[name], atol=1e-4) for name in expected)


def check_best_answer(answer: Callable[[np.ndarray, tuple[int, int]], tuple[int, int]]) -> None:
    """Notebook 08: the plan that earns most against a rival's plan, by what taking an order alone earns."""
    plans = [(0, 0), (0, 1), (1, 0), (1, 1)]

    def earned(score: np.ndarray, own: tuple[int, int], rival: tuple[int, int]) -> float:
        sums = [own[a] * score[a, b] / (1 + rival[b]) for a in (0, 1) for b in (0, 1)]
        return float(sum(sums))

    def find_fault() -> str:
        generator = fresh_generator()
        for k in range(20):
            score = torch.randn(2, 2, generator=generator, dtype=torch.float64).numpy()
            if k % 2:  # gains and losses of a like size, so that the half which the rival takes decides
                signs = 1 - 2 * torch.randint(2, (2, 1), generator=generator)
                score = (signs * (1 + torch.rand(2, 2, generator=generator)) * torch.tensor([1, -1])).double().numpy()
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
        for k, luck in enumerate(torch.rand(3, generator=fresh_generator()).tolist()):
            alpha = round(0.65 + 0.1 * k + 0.05 * luck, 3)
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
        for first, second in _draw_gains(generator):
            paid = answer(first, second)
            if first + second <= 0:
                if paid is not None:
                    return f"with {first:.3f} and {second:.3f} there is nothing to share, and it says {paid}, not None."
                continue
            if paid is None:
                return f"with {first:.3f} and {second:.3f} together they gain, and it says None."
            if not abs((first + paid) - (second - paid)) <= 1e-6:
                return f"with {first:.3f} and {second:.3f} A ends with {first + paid:.3f}, B with {second - paid:.3f}."
        return ""

    tell_learner("payment_both_sign", find_fault)


def _draw_gains(generator: torch.Generator) -> list[tuple[float, float]]:
    """What A and B gain by a contract: only one of them, the one more than the other loses or less; both; neither."""
    small, large = torch.rand(2, 4, generator=generator, dtype=torch.float64).tolist()
    pairs = []
    for less, more in zip(small, large, strict=True):
        less, more = 0.1 + less / 4, 0.4 + more / 4
        pairs += [(-less, more), (more, -less), (less, more), (more, less)]
        pairs += [(-more, less), (less, -more), (-less, -more), (-more, -less)]
    return pairs
