"""Checks of a learner's own code on fresh random input, and student copies of the notebooks."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment

from paramarket import align, cka, merge, stack, train
from paramarket.base import atomic
from paramarket.data import Split
from paramarket.errors import DataError
from paramarket.teach import checks_late
from paramarket.teach.checks_late import (
    check_best_share,
    check_better_bid,
    check_mixed_alpha,
    check_open_chance,
    check_pays_after,
    check_rounds_to,
    check_specialist,
    check_split_cents,
)

__all__ = ["check_average", "check_best_share", "check_better_bid", "check_cka", "check_copy_barriers", "check_fool"]
__all__ += ["check_match_layer", "check_merge_method", "check_rounds_to", "check_same_mistake", "check_split_cents"]
__all__ += ["check_mixed_alpha", "check_open_chance", "check_pays_after", "check_specialist", "check_swap_units"]
__all__ += ["student_copy"]

_SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION", re.S | re.M)


def check_same_mistake(answer: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], float]) -> None:
    """Notebook 01: how often two networks give the same answer among the images that both get wrong."""

    def test() -> str:
        a, b, truth = torch.randint(0, 4, (3, 400), generator=checks_late.fresh())
        found, wrong = float(answer(a, b, truth)), [k for k in range(400) if a[k] != truth[k] and b[k] != truth[k]]
        expected = sum(bool(a[k] == b[k]) for k in wrong) / len(wrong)
        if abs(found - expected) < 1e-6:
            return ""
        return (
            f"it says {found:.3f}, expected {expected:.3f}: look only at the {len(wrong)} images that both get wrong."
        )

    checks_late.tell("same_mistake", test)


def check_average(answer: Callable[[stack.Params, stack.Params], stack.Params]) -> None:
    """Notebook 01: the model half-way between two models."""

    def test() -> str:
        fresh = checks_late.fresh()
        a, b = (
            {"0.weight": torch.randn(3, 2, generator=fresh), "0.bias": torch.randn(3, generator=fresh)}
            for _ in range(2)
        )
        kept = {name: tensor.clone() for name, tensor in a.items()}
        found = answer(a, b)
        if any(not torch.equal(a[name], kept[name]) for name in kept):
            return "it changes the first model: make new tensors instead of writing into the old ones."
        if sorted(found) != sorted(a):
            return f"the result has the names {sorted(found)}, expected {sorted(a)}."
        bad = [name for name in a if not torch.allclose(found[name], (a[name] + b[name]) / 2)]
        return f"{bad[0]!r} is not half-way between the two." if bad else ""

    checks_late.tell("average", test)


def check_swap_units(answer: Callable[[stack.Params, int, int], stack.Params]) -> None:
    """Notebook 01: swap two units of the first hidden layer without changing what the network computes."""

    def test() -> str:
        fresh, net = checks_late.fresh(), stack.mlp(5, [7, 4], 3)
        x, (i, j) = torch.randn(300, 5, generator=fresh), torch.randperm(7, generator=fresh)[:2].tolist()
        params = stack.take(stack.init(net, 1, seed=fresh.initial_seed() % 2**31), 0)
        found = answer({name: tensor.clone() for name, tensor in params.items()}, i, j)
        if torch.equal(found["1.weight"], params["1.weight"]):
            return "the first layer's rows are where they were: nothing was swapped."
        order = torch.arange(7)
        order[[i, j]] = order[[j, i]]
        if not torch.equal(found["1.weight"], params["1.weight"][order]):
            return f"asked to swap units {i} and {j}, it moved other rows of 1.weight too, or others."
        before, after = stack.forward(net, stack.join([params, found]), x)
        if torch.allclose(before, after, atol=1e-5):
            return ""
        return (
            "the network computes something else now. "
            "A unit owns a row of 1.weight, an entry of 1.bias and a column of 3.weight."
        )

    checks_late.tell("swap_units", test)


def check_match_layer(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Notebook 02: the order of B's units that fits A's best, judged by what they read."""

    def test() -> str:
        fresh = checks_late.fresh()
        a, b = torch.randn(2, 12, 6, generator=fresh)
        found = torch.as_tensor(answer(a.clone(), b.clone()))
        if sorted(found.tolist()) != list(range(12)):
            return f"{found.tolist()} is no order of 12 units: every number from 0 to 11 must stand in it once."
        alike = a @ b.T
        best = alike[linear_sum_assignment(alike, maximize=True)].sum().item()
        reached = alike[torch.arange(12), found].sum().item()
        if reached > best - 1e-4:
            return ""
        mixed_up = alike[found, torch.arange(12)].sum().item() > best - 1e-4
        hint = " You have it the wrong way round: place i takes B's unit order[i]." if mixed_up else ""
        return f"the units in your order are alike by {reached:.2f} in sum, {best:.2f} is possible.{hint}"

    checks_late.tell("match_layer", test)


def check_copy_barriers(answer: Callable[..., tuple[float, float]]) -> None:
    """Notebook 02: the barrier between a network and its own reordered copy, before and after matching."""

    def test() -> str:
        fresh, net = checks_late.fresh(), stack.mlp(8, [32, 32], 4)
        spec, x = align.permutation_spec(net, torch.zeros(1, 8)), torch.randn(200, 8, generator=fresh)
        start = stack.init(net, 1, seed=fresh.initial_seed() % 2**31)
        params = {name: 3 * tensor for name, tensor in stack.take(start, 0).items()}
        split = Split(x, stack.forward(net, stack.join([params]), x)[0].argmax(dim=-1))  # it is right on all of them
        p = {name: torch.randperm(32, generator=fresh) for name in align.identity(spec, params)}
        copy = align.permute(spec, p, params)
        expected = merge.barrier(train.evaluate(net, merge.path(params, copy, 11), split).loss).item()
        before, after = map(float, answer(net, spec, params, p, split))
        if abs(before - expected) > 1e-3:
            return f"the barrier before matching is {before:.3f}, expected {expected:.3f} on a path of 11 points."
        return f"the barrier after matching is {after:.3f}, expected 0." if abs(after) > 1e-4 else ""

    checks_late.tell("copy_barriers", test)


def check_merge_method(answer: Callable[..., stack.Params]) -> None:
    """Notebook 02: a way to merge of the learner's own, under the signature that all ways share."""

    def test() -> str:
        fresh, net = checks_late.fresh(), stack.mlp(6, [5, 4], 3)
        spec, split = align.permutation_spec(net, torch.zeros(1, 6)), _labelled(torch.randn(40, 6, generator=fresh))
        models = stack.init(net, 2, seed=fresh.initial_seed() % 2**31)
        kept = {name: tensor.clone() for name, tensor in models.items()}
        found = answer(net, spec, models, split, fresh)
        if any(not torch.equal(models[name], kept[name]) for name in kept):
            return "it changes the models it is given: make new tensors instead of writing into the old ones."
        for name, tensor in kept.items():
            if name not in found or found[name].shape != tensor.shape[1:] or not found[name].isfinite().all():
                return f"{name!r} should be one finite tensor of shape {tuple(tensor.shape[1:])}."
        if all(torch.equal(found[name], tensor[0]) for name, tensor in kept.items()):
            return "it gives back the first model: the others should count, too."
        twins = stack.take(models, [0, 0])
        same = answer(net, spec, twins, split, fresh)
        bad = [name for name in same if not torch.allclose(same[name], twins[name][0], atol=1e-4)]
        return f"two equal models should merge into that model, but {bad[0]!r} differs." if bad else ""

    checks_late.tell("merge_method", test)


def check_cka(answer: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
    """Notebook 03: linear CKA, biased, of two tensors [n, p] and [n, q]."""

    def test() -> str:
        fresh = checks_late.fresh()
        x, noise = torch.randn(200, 6, generator=fresh) + 3, torch.randn(200, 9, generator=fresh)
        turn = torch.linalg.qr(torch.randn(6, 6, generator=fresh))[0]
        moved = float(answer(x.clone(), 2 * x @ turn - 5))
        if abs(moved - 1) > 1e-3:
            hint = " Did you centre every feature?" if abs(float(answer(x, 2 * x @ turn)) - 1) < 1e-3 else ""
            return f"turned, doubled and shifted, x should be like itself: 1, not {moved:.3f}.{hint}"
        y = torch.cat([x, noise[:, :3]], dim=1) @ torch.randn(9, 9, generator=fresh) + noise
        found, expected = float(answer(x, y)), cka.linear_cka(x, y)
        return (
            f"for a random pair it says {found:.3f}, expected {expected:.3f}." if abs(found - expected) > 1e-3 else ""
        )

    checks_late.tell("my_cka", test)


def check_fool(answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Notebook 03: a copy of x [n, p] that differs in one example and whose CKA with x is below .1."""

    def test() -> str:
        x = torch.randn(1000, 10, generator=checks_late.fresh())
        kept, found = x.clone(), answer(x)
        if not torch.equal(x, kept):
            return "it changes x itself: make a copy with x.clone()."
        if found.shape != x.shape or not found.isfinite().all():
            return f"expected finite numbers of shape {tuple(x.shape)}, got shape {tuple(found.shape)}."
        changed, value = int((found != x).any(dim=1).sum()), cka.linear_cka(x, found)
        if changed != 1:
            return f"{changed} examples differ, expected one."
        return f"the CKA is still {value:.3f}: move the one example further away." if value >= 0.1 else ""

    checks_late.tell("fool", test)


def _labelled(x: torch.Tensor) -> Split:
    return Split(x, torch.arange(len(x)) % 3)


def student_copy(notebook: Path | str, output: Path | str) -> None:
    """Write the notebook without its solutions and outputs: what stands between the solution marks becomes a stub.

    Only cells with nbgrader's solution metadata are touched. A copy that exists already, perhaps with a learner's own
    work in it, is never overwritten.
    """
    if Path(output).exists():
        raise DataError(
            f"{output} exists already, perhaps with a learner's work in it: move it, or name another folder."
        )
    import nbformat  # not above: it takes as long to import as all the rest a notebook needs

    copy = nbformat.read(notebook, as_version=4)
    solutions = [cell for cell in copy.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    for cell in solutions:
        cell.source, found = _SOLUTION.subn(r"\1raise NotImplementedError", cell.source)
        if not found:
            raise DataError(f"{notebook}: the solution cell {cell.id!r} has no ### BEGIN SOLUTION … ### END SOLUTION.")
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with atomic(output) as beside:
        nbformat.write(copy, beside)
