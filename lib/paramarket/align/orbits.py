"""Which units may change places: the permutations that keep all relations between them.

A relation is a set of pairs of units, and holds after a reordering if it holds for the reordered pairs. One to one, it
ties: both sides move as one. Many to one, it makes blocks, as the units of an attention head: whole blocks move, and
units within a block. From all relations follow kinds of units that can be told apart (colour refinement), and for each
kind whether its units move freely, in blocks, or as the places of a table whose rows and columns move.
"""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from paramarket.errors import ShapeError

NOWHERE = -1
Pairs = tuple[np.ndarray, np.ndarray]


def is_function(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether equal entries of a [n] always stand beside equal entries of b [n]."""
    names, codes = _codes(a)
    beside = np.empty(len(names), dtype=b.dtype)
    beside[codes] = b
    return bool((beside[codes] == b).all())


def unique_pairs(a: np.ndarray, b: np.ndarray) -> Pairs:
    """Every pair (a[i], b[i]) once."""
    names_a, a = _codes(a)
    names_b, b = _codes(b)
    both, _ = _codes(a * max(len(names_b), 1) + b)
    return names_a[both // max(len(names_b), 1)], names_b[both % max(len(names_b), 1)]


def _codes(a: np.ndarray) -> Pairs:
    """The different numbers in a [n], sorted, and the place of each entry's among them; by a table if that is small."""
    low, high = a.min(initial=0), a.max(initial=0)
    if high - low > 32 * len(a):
        names, codes = np.unique(a, return_inverse=True)
        return names, codes.reshape(-1)
    present = np.zeros(high - low + 1, dtype=bool)
    present[a - low] = True
    return np.flatnonzero(present) + low, (present.cumsum() - 1)[a - low]


def _mixed(numbers: np.ndarray, salt: int) -> np.ndarray:
    """A 64-bit hash of every number: sums of them tell multisets apart (splitmix64)."""
    x = numbers.astype(np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15 + 0x1234567) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


class Units:
    """All units of a net, by number, and what is known of them. A number below 0 is a place that stays, or NOWHERE."""

    def __init__(self) -> None:
        self.parent = np.zeros(0, dtype=np.int64)  # the lowest unit that each is tied to
        self.tag = np.zeros(0, dtype=np.uint64)  # what tells it from others, hashed and summed
        self.fixed = np.zeros(0, dtype=bool)
        self.met = np.zeros(0, dtype=bool)  # whether anything was done with it
        self.relations: list[Pairs] = []
        self.events = 0

    def new(self, count: int) -> int:
        """The number of the first of `count` new units, that nothing tells apart so far."""
        start = len(self.parent)
        self.parent = np.concatenate([self.parent, np.arange(start, start + count)])
        self.tag = np.concatenate([self.tag, np.zeros(count, dtype=np.uint64)])
        self.fixed = np.concatenate([self.fixed, np.zeros(count, dtype=bool)])
        self.met = np.concatenate([self.met, np.zeros(count, dtype=bool)])
        self._tell_apart(np.arange(start, start + count), np.zeros(count, dtype=np.int64))
        return start

    def root(self, numbers: np.ndarray) -> np.ndarray:
        """The units that these are tied to; places that stay are their own."""
        if not len(self.parent):
            return numbers
        return np.where(numbers < 0, numbers, self.parent[np.maximum(numbers, 0)])

    def fix(self, numbers: Tensor) -> None:
        """These units stay where they are."""
        numbers = numbers.reshape(-1).numpy()
        self.fixed[numbers[numbers >= 0]] = True

    def mark(self, numbers: Tensor) -> None:
        """These units are told from all others."""
        numbers = np.unique(numbers.reshape(-1).numpy())
        numbers = numbers[numbers >= 0]
        self.met[numbers] = True
        self._tell_apart(numbers, np.zeros(len(numbers), dtype=np.int64))

    def _tell_apart(self, numbers: np.ndarray, by: np.ndarray) -> None:
        self.events += 1
        np.add.at(self.tag, numbers, _mixed(by, self.events))

    def relate(self, a: np.ndarray, b: np.ndarray) -> None:
        """From now on a[i] and b[i] [n] stay together."""
        known = (a != NOWHERE) & (b != NOWHERE)
        a, b = a[known], b[known]
        self.met[a[a >= 0]] = self.met[b[b >= 0]] = True
        a, b = self.root(a), self.root(b)
        if np.array_equal(a, b):
            return
        a, b = unique_pairs(a, b)
        for one, other in ((a, b), (b, a)):
            held = (one >= 0) & (other < 0)
            self._hold(one[held], other[held])
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        if len(a) and not self.tie(a, b):
            self.relations.append((a, b))

    def _hold(self, units: np.ndarray, places: np.ndarray) -> None:
        """Units beside places that stay may change with those beside the same places."""
        if not len(units):
            return
        if len(np.unique(places)) == len(places):
            self.fixed[units] = True
        else:
            self._tell_apart(units, places)

    def tie(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Make a[i] and b[i] one unit, if that makes no two units of a [n], or of b, one. Whether it was done."""
        a, b = self.parent[a], self.parent[b]
        if not len(_codes(a)[0]) == len(a) == len(b) == len(_codes(b)[0]) or np.intersect1d(a, b).size:
            return False
        lowest = np.arange(len(self.parent))
        lowest[np.maximum(a, b)] = np.minimum(a, b)
        self.parent = lowest[self.parent]
        return True


class Names(Units):
    """Units of which nothing is learnt: they only say what belongs to which."""

    def relate(self, a: np.ndarray, b: np.ndarray) -> None:
        pass

    def mark(self, numbers: Tensor) -> None:
        pass


@dataclass
class Kind:
    """Units that may change places. outer: the kind whose order their blocks take, and each unit's block [n].

    table: for units that are places of a table, the kinds of its rows and columns, and each unit's row and column.
    """

    members: np.ndarray
    outer: tuple[int, np.ndarray] | None = None
    table: list[tuple[int, np.ndarray]] = field(default_factory=list)


class Orbits:
    """What follows from all relations. colour [units]: the kind of every unit's root; own: what tells units apart that
    have become one, as the many places of an axis that belong to one unit.
    """

    def __init__(self, units: Units) -> None:
        self.units = units
        units.fixed |= ~units.met
        self.own = units.tag.copy()
        self.linked: set = set()  # tables whose rows and columns are known to lie in common blocks
        while not self.settle():
            pass

    def settle(self) -> bool:
        """One round of conclusions; True when none is left to draw."""
        units = self.units
        self.refine()
        links = self.links()
        for one, other in links["ties"]:
            if self.colour[one[0]] == self.colour[other[0]]:
                units.fixed[one] = True  # an order would have to commute with a shift: only rest is certain
            else:
                units.tie(one, other)
        if links["ties"]:
            return False
        units.relations = links["blocks"] + links["others"]
        for one, other in links["others"]:
            self.split_into_blocks(one, other)
        return not links["others"] and self.nest(links["blocks"])

    def refine(self) -> None:
        """Tell units apart by what they are related to, until nothing new comes of it (colour refinement)."""
        units = self.units
        total = len(units.parent)
        hashed = np.zeros(total, dtype=np.uint64)
        np.add.at(hashed, units.parent, units.tag)
        rests = np.zeros(total, dtype=bool)
        np.logical_or.at(rests, units.parent, units.fixed)
        hashed[rests] = _mixed(np.arange(total)[rests], -1)
        links = [self._roots(*pair) for pair in units.relations]
        nothing = np.zeros(0, dtype=np.int64)
        a = np.concatenate([nothing, *(link[0] for link in links)])
        b = np.concatenate([nothing, *(link[1] for link in links)])
        salt = np.repeat(np.arange(len(links), dtype=np.uint64), [len(link[0]) for link in links])
        roots = np.flatnonzero(units.parent == np.arange(total))
        colour, count = np.full(total, NOWHERE), -1
        while True:
            names, numbers = np.unique(hashed[roots], return_inverse=True)
            colour[roots] = numbers.reshape(-1)
            if len(names) == count:
                break
            count = len(names)
            own = _mixed(colour, 1)
            hashed = _mixed(colour, 2)
            np.add.at(hashed, a, _mixed(own[b] + salt, 3))
            np.add.at(hashed, b, _mixed(own[a] + salt, 4))
        self.colour, self.count = colour, np.bincount(colour[roots], minlength=count)
        units.tag = np.zeros(total, dtype=np.uint64)
        units.tag[roots] = _mixed(colour[roots], 5)  # so that what was learnt outlives the relations it came from
        self.own = np.concatenate([self.own, np.zeros(total - len(self.own), dtype=np.uint64)])
        self.own = _mixed(self.own, 6) + _mixed(colour[units.parent], 7)

    def _roots(self, a: np.ndarray, b: np.ndarray) -> Pairs:
        a, b = unique_pairs(self.units.parent[a], self.units.parent[b])
        return a[a != b], b[a != b]

    def links(self) -> dict[str, list]:
        """All relations, cut by the colours they link: one to one, many to one (the many first), or neither."""
        found: dict[str, list] = {"ties": [], "blocks": [], "others": []}
        seen: set = set()
        for a, b in self.units.relations:
            a, b = self._roots(a, b)
            free = (self.count[self.colour[a]] > 1) & (self.count[self.colour[b]] > 1)
            a, b = a[free], b[free]
            colours = self.colour[a] * len(self.count) + self.colour[b]
            order = np.argsort(colours, kind="stable")
            for part in np.split(order, np.flatnonzero(np.diff(colours[order])) + 1):
                if not len(part):
                    continue
                one, other = a[part], b[part]
                if (one.tobytes(), other.tobytes()) in seen:
                    continue
                seen.add((one.tobytes(), other.tobytes()))
                here, there = self.count[self.colour[one[0]]], self.count[self.colour[other[0]]]
                if len(part) == here == there:
                    found["ties"].append((one, other))
                elif len(part) == here:
                    found["blocks"].append((one, other))
                elif len(part) == there:
                    found["blocks"].append((other, one))
                elif len(part) < here * there:
                    found["others"].append((one, other))
        return found

    def nest(self, blocks: list[Pairs]) -> bool:
        """All blocks that units of one kind form, brought into one another; False if that led to something new."""
        self.blocks: dict[int, list[Pairs]] = {}
        for child, block in blocks:
            order = np.argsort(child)
            self.blocks.setdefault(int(self.colour[child[0]]), []).append((child[order], block[order]))
        self.units.relations = []
        settled = True
        for systems in self.blocks.values():
            pairs = [(k, j) for j in range(len(systems)) for k in range(j)]
            new = next((found for k, j in pairs if (found := self.combine(systems[k], systems[j])) is not None), None)
            if new is None:
                self.units.relations += systems
                continue
            one, other, added = new
            self.units.relations += [pair for pair in systems if pair is not one and pair is not other] + added
            settled = False
        return settled

    def combine(self, one: Pairs, other: Pairs) -> tuple[Pairs, Pairs, list[Pairs]] | None:
        """Two ways in which the units of one kind form blocks, and what stands for them: None if they may stay."""
        (members, p), (_, q) = one, other
        finer, coarser = is_function(p, q), is_function(q, p)
        if finer and coarser:
            if not self.units.tie(*unique_pairs(p, q)):
                return one, other, [one, unique_pairs(p, q)]
            return one, other, [one]
        if finer:
            return one, other, [one, unique_pairs(p, q)]
        if coarser:
            return one, other, [other, unique_pairs(q, p)]
        a, b = unique_pairs(p, q)  # across: every unit is the place of a table, in one row and one column
        number = _components(a, b)
        if len(a) != len(members) or not _is_complete(a, b, number):
            sizes = " and of ".join(str(len(members) // len(np.unique(side))) for side in (p, q))
            raise ShapeError(f"blocks of {sizes} units cross in a way that no order can keep")
        key = (a.tobytes(), b.tobytes())
        if number.max() == 0 or key in self.linked:
            return None
        self.linked.add(key)
        return one, other, [one, other, *self.linked_by_component(a, b, number)]

    def split_into_blocks(self, a: np.ndarray, b: np.ndarray) -> None:
        """Units that belong together many to many: in blocks, within which every one is beside every other."""
        number = _components(a, b)
        if not _is_complete(a, b, number):
            raise ShapeError(f"{len(np.unique(a))} and {len(np.unique(b))} units meet in a way that no order can keep")
        self.units.relations = [pair for pair in self.units.relations if pair[0] is not a]
        self.units.relations += self.linked_by_component(a, b, number)

    def linked_by_component(self, a: np.ndarray, b: np.ndarray, number: np.ndarray) -> list[Pairs]:
        """A new unit for every connected piece, as the block of all that are in it."""
        if not number.max():
            return []
        names = self.units.new(int(number.max()) + 1) + number
        self.units.met[names] = True
        return [unique_pairs(a, names), unique_pairs(b, names)]

    def kinds(self) -> dict[int, Kind]:
        """{colour: its units that may change places}, in the order of their lowest units."""
        parent = self.units.parent
        roots = np.flatnonzero(parent == np.arange(len(parent)))
        found: dict[int, Kind] = {}
        order = np.argsort(self.colour[roots], kind="stable")
        for part in np.split(roots[order], np.flatnonzero(np.diff(self.colour[roots][order])) + 1):
            if len(part) > 1:
                found[int(self.colour[part[0]])] = Kind(part)
        for colour, systems in self.blocks.items():
            sides = [(int(self.colour[block[0]]), block) for _, block in systems]
            if len(sides) == 1:
                found[colour].outer = sides[0]
            elif len(sides) == 2:
                found[colour].table = sides
            else:
                raise ShapeError(f"{len(sides)} kinds of blocks cross in the same units")
        return dict(sorted(found.items(), key=lambda item: item[1].members[0]))


def _is_complete(a: np.ndarray, b: np.ndarray, number: np.ndarray) -> bool:
    """Whether, within every connected piece, every a stands beside every b; the pairs (a[i], b[i]) are unique."""
    own, its = (np.bincount(number[np.unique(side, return_index=True)[1]]) for side in (a, b))
    return bool((np.bincount(number) == own * its).all())


def _components(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number of the connected piece that every pair (a[i], b[i]) belongs to, from 0."""
    number = np.arange(len(a))
    while True:
        before = number
        for side in (a, b):
            _, inverse = np.unique(side, return_inverse=True)
            lowest = np.full(inverse.max() + 1, len(a))
            np.minimum.at(lowest, inverse.reshape(-1), number)
            number = lowest[inverse.reshape(-1)]
        if np.array_equal(before, number):
            return np.unique(number, return_inverse=True)[1].reshape(-1)
