"""Act one, can weights be combined: the checks of notebooks 01 and 02."""

from collections.abc import Callable

import torch
from torch import Tensor

from paramarket import align, stack
from paramarket.data import Split
from paramarket.stack import Params
from paramarket.teach.checking import fresh_generator, tell_learner


def check_same_mistake(answer: Callable[[Tensor, Tensor, Tensor], float]) -> None:
    """Notebook 01: how often two networks give the same answer among the images that both get wrong."""

    def find_fault() -> str:
        generator = fresh_generator()
        for alike in (0.1, 0.5, 0.9):  # no share fits all three
            a, b, truth = torch.randint(0, 4, (3, 400), generator=generator)
            b = torch.where(torch.rand(400, generator=generator) < alike, a, b)
            found = float(answer(a.clone(), b.clone(), truth.clone()))
            wrong = [k for k in range(400) if a[k] != truth[k] and b[k] != truth[k]]
            expected = sum(bool(a[k] == b[k]) for k in wrong) / len(wrong)
            if not abs(found - expected) < 1e-5:
                return (
                    f"it says {found:.3f}, expected {expected:.3f}: "
                    f"look only at the {len(wrong)} of 400 images that both get wrong."
                )
        return ""

    tell_learner("same_mistake", find_fault)


def check_average(answer: Callable[[Params, Params], Params]) -> None:
    """Notebook 01: the model half-way between two models."""

    def find_fault() -> str:
        generator = fresh_generator()
        a = {"0.weight": torch.randn(3, 2, generator=generator), "0.bias": torch.randn(3, generator=generator)}
        b = {"0.weight": torch.randn(3, 2, generator=generator), "0.bias": torch.randn(3, generator=generator)}
        given = {"first": stack.copy(a), "second": stack.copy(b)}
        found = answer(*given.values())
        for (place, model), before in zip(given.items(), (a, b), strict=True):
            if sorted(model) != sorted(before) or any(not torch.equal(model[name], before[name]) for name in before):
                return f"it changes the {place} model: make new tensors instead of writing into the old ones."
        if sorted(found) != sorted(a):
            return f"the result has the names {sorted(found)}, expected {sorted(a)}."
        for name in a:
            if found[name].shape != a[name].shape:
                return f"{name!r} has the shape {tuple(found[name].shape)}, expected {tuple(a[name].shape)}."
            if not torch.allclose(found[name], (a[name] + b[name]) / 2, atol=1e-5):
                return f"{name!r} is not half-way between the two."
        return ""

    tell_learner("average", find_fault)


def check_swap_units(answer: Callable[[Params, int, int], Params]) -> None:
    """Notebook 01: swap two units of the first hidden layer without changing what the network computes."""

    def find_fault() -> str:
        generator = fresh_generator()
        net = stack.mlp(5, [7, 4], 3)
        places = torch.randperm(7, generator=generator).tolist()
        for i, j in (places[0:2], places[2:4], places[4:6]):  # of one pair alone, the units might be guessed
            x = torch.randn(300, 5, generator=generator)
            params = stack.take(_random_models(net, 1, generator), 0)
            fault = _swap_fault(answer(stack.copy(params), i, j), params, net, i, j, x)
            if fault:
                return fault
        return ""

    tell_learner("swap_units", find_fault)


def _swap_fault(found: Params, params: Params, net: torch.nn.Module, i: int, j: int, x: Tensor) -> str:
    """What is wrong with a network in which units i and j of the first hidden layer should have changed places."""
    if torch.equal(found["1.weight"], params["1.weight"]):
        return f"asked to swap units {i} and {j}, it left the rows of 1.weight where they were: nothing was swapped."
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


def check_match_layer(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Notebook 02: the order of B's units that fits A's best, judged by what they read."""

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(20):  # taking the nearest of those that are left is now and then the best
            a, b = torch.randn(2, 12, 6, generator=generator)
            fault = _order_fault(torch.as_tensor(answer(a.clone(), b.clone())), a @ b.T)
            if fault:
                return fault
        return ""

    tell_learner("match_layer", find_fault)


def _order_fault(found: Tensor, products: Tensor) -> str:
    """What is wrong with an order of the units that products [units of A, units of B] compare, or nothing."""
    places = torch.arange(len(products))
    if found.shape != places.shape or sorted(found.tolist()) != places.tolist():
        return f"{found.tolist()} is no order of 12 units: every number from 0 to 11 must stand in it once."
    best = products[_best_assignment(products)].sum().item()
    reached = products[places, found].sum().item()
    if reached > best - 1e-4:
        return ""
    other_way_round = products[found, places].sum().item()
    hint = ""
    if other_way_round > best - 1e-4:
        hint = " You have it the wrong way round: place i takes B's unit order[i]."
    return f"the units in your order are alike by {reached:.2f} in sum, {best:.2f} is possible.{hint}"


def check_match_two_layers(answer: Callable[[Params, Params], tuple[Tensor, Tensor]]) -> None:
    """Notebook 02: weight matching of two hidden layers, until neither can be improved (Git Re-Basin, section 3.2)."""

    net = stack.mlp(3, [16, 12], 4)  # with three inputs, what a unit reads does not tell which it is
    spec = align.permutation_spec(net, torch.zeros(1, 3))

    def find_fault() -> str:
        generator = fresh_generator()
        for _ in range(20):  # one pair in five is done after the first sweep
            a, b = (stack.take(_random_models(net, 1, generator), 0) for _ in range(2))
            first, second = (torch.as_tensor(order) for order in answer(stack.copy(a), stack.copy(b)))
            for layer, order, units in (("first", first, 16), ("second", second, 12)):
                if sorted(order.tolist()) != list(range(units)):
                    return f"the order of the {layer} layer is no order of {units} units: every number once."
            fault = _room_for_improvement(spec, a, b, {"1": first, "3": second})
            if fault:
                return fault
        return ""

    tell_learner("match_two_layers", find_fault)


def _room_for_improvement(spec: align.PermutationSpec, a: Params, b: Params, orders: align.Permutations) -> str:
    """What to say of a layer whose order could be better, those of the others held; nothing if there is none."""
    for number, label in enumerate(orders, start=1):
        products = align.weight_products(spec, label, a, b, orders)
        reached = products[torch.arange(len(products)), orders[label]].sum().item()
        best = products[_best_assignment(products)].sum().item()
        if reached < best - 1e-3:
            return (
                f"with the other order held, layer {number} can still be improved, from {reached:.2f} to {best:.2f}: "
                "what a unit reads, its bias and what reads it all count, and each layer's turn comes again until "
                "nothing moves."
            )
    return ""


def _best_assignment(products: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the assignment with the largest sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(products, maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)


def check_merge_method(answer: Callable[..., Params]) -> None:
    """Notebook 02: a way to merge of the learner's own, under the signature that all ways share."""

    def find_fault() -> str:
        generator = fresh_generator()
        net = stack.mlp(6, [5, 4], 3)
        spec = align.permutation_spec(net, torch.zeros(1, 6))
        split = Split(torch.randn(40, 6, generator=generator), torch.arange(40) % 3)
        models = _random_models(net, 2, generator)
        before = stack.copy(models)
        found = answer(net, spec, models, split, generator)
        if any(not torch.equal(models[name], before[name]) for name in before):
            return "it changes the models it is given: make new tensors instead of writing into the old ones."
        for name, tensor in before.items():
            if name not in found or found[name].shape != tensor.shape[1:] or not found[name].isfinite().all():
                return f"{name!r} should be one finite tensor of shape {tuple(tensor.shape[1:])}."
        for k, place in enumerate(("first", "second")):
            if all(torch.allclose(found[name], tensor[k], atol=1e-6) for name, tensor in before.items()):
                return f"it gives back the {place} model: the others should count, too."
        mean = stack.map(lambda tensor: tensor.mean(dim=0), models)
        if all(torch.allclose(found[name], mean[name], atol=1e-6) for name in mean):
            return "it is the plain mean, which the library has: change what the mean does to the models."
        twins = stack.take(models, [0, 0])
        merged = answer(net, spec, twins, split, generator)
        for name in merged:
            if not torch.allclose(merged[name], twins[name][0], atol=1e-4):
                return f"two equal models should merge into that model, but {name!r} differs."
        return ""

    tell_learner("merge_method", find_fault)


def _random_models(net: torch.nn.Module, copies: int, generator: torch.Generator) -> stack.Stack:
    seed = int(torch.randint(2**31, (), generator=generator))
    return stack.init(net, copies, seed=seed)
