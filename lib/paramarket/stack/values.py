"""Models as values: what can be done with K of them at once, whatever their net."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from paramarket.base import lend_generator, stream
from paramarket.errors import ParameterError, ShapeError, unknown
from paramarket.stack.files import Params
from paramarket.stack.nets import dense_outputs, is_dense

Stack = dict[str, Tensor]  # K models: the same names, one more leading axis
HALF = (torch.float16, torch.bfloat16)
Look = Callable[[str, Tensor, Tensor], Tensor | None]  # see `probe`


def init(net: nn.Module, copies: int, seed: int, device: torch.device | str = "cpu", *, purpose: str = "init") -> Stack:
    """`copies` models with different random starts, each by PyTorch's own rule for its layers.

    The k-th model depends on `seed`, `purpose` and k alone, not on how many there are. purpose: another name for what
    is started beside other models of the same seed, lest both draw the same numbers

    >>> from paramarket import stack
    >>> models = stack.init(stack.mlp(4, [3], 2), copies=5, seed=0)
    >>> {name: tuple(tensor.shape) for name, tensor in models.items()}
    {'1.weight': (5, 3, 4), '1.bias': (5, 3), '3.weight': (5, 2, 3), '3.bias': (5, 2)}
    """
    blank = deepcopy(net)
    models = [_initial(blank, stream(seed, purpose, k)) for k in range(copies)]
    return map(lambda tensor: tensor.to(device), join(models))


def _initial(net: nn.Module, generator: torch.Generator) -> Params:
    with lend_generator(generator):
        for path, module in net.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif any(True for _ in module.parameters(recurse=False)):
                kind = type(module).__name__
                raise ShapeError(f"cannot initialise {path or 'the net'} ({kind}): it has no reset_parameters().")
    return {name: tensor.detach().clone() for name, tensor in _named(net)}


def _named(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a model is: its parameters and floating buffers. Integer buffers only count, they cannot be mixed."""
    yield from net.named_parameters()
    yield from ((name, buffer) for name, buffer in net.named_buffers() if buffer.is_floating_point())


def join(models: Sequence[Params]) -> Stack:
    """Models side by side: K times `Params` -> `Stack`. Raises ShapeError naming the first key that differs.

    >>> import torch
    >>> from paramarket import stack
    >>> stack.join([{"1.bias": torch.tensor([0.0])}, {"1.bias": torch.tensor([4.0])}])
    {'1.bias': tensor([[0.],
            [4.]])}
    """
    if not models:
        raise ShapeError("nothing to join: expected one or more models, got none.")
    for model in models[1:]:
        compare(model, models[0], "the models to join")
    return map(lambda *tensors: torch.stack(tensors), *models)


def chain(stacks: Iterable[Stack]) -> Stack:
    """All models of all stacks in one stack, one stack behind the other."""
    stacks = list(stacks)
    for stack in stacks[1:]:
        compare(stack, take(stacks[0], 0), "the stacks to chain", skip=1)
    return map(lambda *tensors: torch.cat(tensors), *stacks)


def compare(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, skip: int = 0) -> None:
    """ShapeError naming the first key that differs and both shapes, `given` being read from its axis `skip` on."""
    for name in [*expected, *given]:
        if name not in given or name not in expected:
            side, other = ("given", expected) if name in given else ("expected", given)
            raise ShapeError(f"{what} do not fit: {side} has {name!r} alone; {unknown('parameter', name, other)}")
        shape, wanted = tuple(given[name].shape[skip:]), tuple(expected[name].shape)
        if shape != wanted:
            raise ShapeError(f"{what} do not fit: {name!r} has shape {shape}, expected {wanted}.")


def map(fn: Callable[..., Tensor], *stacks: Mapping[str, Tensor]) -> Stack:
    """The stack that holds, under every name, `fn` of what the given stacks (or models) hold there.

    Raises ShapeError naming a parameter that one of them lacks.

    >>> from paramarket import stack
    >>> models = stack.init(stack.mlp(4, [3], 2), copies=5, seed=0)
    >>> doubled = stack.map(lambda tensor: 2 * tensor, models)
    >>> bool((doubled["1.bias"] == 2 * models["1.bias"]).all())
    True
    """
    first, *others = stacks
    for other in others:
        for name in first.keys() ^ other.keys():
            raise ShapeError(f"one of the stacks alone has {name!r}: {unknown('parameter', name, first)}")
    return {name: fn(*(stack[name] for stack in stacks)) for name in first}


def count(models: Stack) -> int:
    """How many models a stack holds.

    >>> from paramarket import stack
    >>> stack.count(stack.init(stack.mlp(4, [3], 2), copies=5, seed=0))
    5
    """
    return leading(models, 1)[0]


def leading(models: Stack, axes: int) -> tuple[int, ...]:
    """The lengths of the first axes: (K,) of a stack [K], (K, J) of a stack of stacks [K, J]."""
    return tuple(_any(models).shape[:axes])


def device(models: Stack | Params) -> torch.device:
    """Where the models are."""
    return _any(models).device


def single(models: Stack | Params) -> Stack | Params:
    """Models of half precision in float32, to compute with; all others as they are.

    float16 ends at 65504, and bfloat16 has two digits: what is stored so is not computed so.
    """
    return map(lambda tensor: tensor.float() if tensor.dtype in HALF else tensor, models)


def place(x: Tensor, models: Stack | Params) -> Tensor:
    """x [...] on the models' device and in their floating type."""
    return x.to(_any(models))


def _any(models: Stack | Params) -> Tensor:
    """Any one of the tensors: all share their leading axes, device and type."""
    return next(iter(models.values()))


def copy(models: Stack) -> Stack:
    """The same numbers in memory of their own, in the order of their axes, without a gradient."""
    return map(lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format), models)


def take(stack: Stack, index: Any) -> Stack | Params:
    """Some of the models, like tensor indexing: a slice, list or mask keeps the axis, an int drops it.

    The index of some rows of a grid takes their models: `take(models, rows.query("network == 'A'").index)`. Raises
    ParameterError for the index of a table that does not number its rows.

    >>> from paramarket import stack
    >>> models = stack.init(stack.mlp(4, [3], 2), copies=5, seed=0)
    >>> stack.count(stack.take(models, slice(2))), tuple(stack.take(models, 0)["1.weight"].shape)
    (2, (3, 4))
    """
    if isinstance(index, pd.Index):
        if not pd.api.types.is_integer_dtype(index):
            raise ParameterError(f"an index of {index.dtype}, expected whole numbers: those of a grid's rows.")
        index = torch.tensor(index.to_numpy())
    return map(lambda tensor: tensor[index], stack)


def flat(stack: Stack) -> Stack:
    """A stack of stacks in one row: [K, J, ...] -> [K · J, ...], those of the first k first."""
    return map(lambda tensor: tensor.flatten(0, 1), stack)


def unflat(stack: Stack, shape: Sequence[int]) -> Stack:
    """One row as a stack of stacks, [K · J, ...] -> [K, J, ...]: what `flat` undoes. One number may be -1."""
    return map(lambda tensor: tensor.unflatten(0, tuple(shape)), stack)


def vectors(models: Stack, axes: int = 1) -> Float[Tensor, "*models weights"]:
    """Every model as one vector of all its weights, in the order of the names; `axes` leading axes stay."""
    return torch.cat([tensor.flatten(axes) for tensor in models.values()], dim=axes)


def from_vectors(rows: Float[Tensor, "*models weights"], like: Params) -> Stack:
    """Vectors of weights as models again, with the names and shapes of the one model `like`; views into `rows`."""
    parts = rows.split([tensor.numel() for tensor in like.values()], dim=-1)
    named = zip(like.items(), parts, strict=True)
    return {name: part.unflatten(-1, tensor.shape) for (name, tensor), part in named}


class Packed(NamedTuple):
    """A stack in one piece of memory: `numbers` [all], for what treats them alike, and `models`, views by name."""

    numbers: Float[Tensor, " numbers"]
    models: Stack


def pack(models: Stack) -> Packed:
    """A copy of a stack in one piece of memory, without a gradient; each parameter's models lie side by side."""
    numbers = torch.cat([tensor.detach().flatten() for tensor in models.values()])
    parts = numbers.split([tensor.numel() for tensor in models.values()])
    views = {name: part.view(tensor.shape) for (name, tensor), part in zip(models.items(), parts, strict=True)}
    return Packed(numbers, views)


def layer_of(name: str) -> str:
    """The layer that owns a parameter: "1.weight" belongs to layer "1"."""
    return name.rpartition(".")[0]


def layers(models: Stack | Params) -> list[str]:
    """The layers with parameters of their own, from the input to the output."""
    return list(dict.fromkeys(layer_of(name) for name in models))


def mix(weights: Float[Tensor, "*batch J K"], stack: Stack) -> Stack:
    """J new models, each a weighted sum of K: [..., J, K] with a stack [..., K] gives a stack [..., J].

    An average is a row of 1/K, a purchase (1 - w, w), a path a matrix whose rows walk from one to the other. Sums of
    half precision are formed in float32. Raises ShapeError for what does not fit, and for whole numbers.

    >>> import torch
    >>> from paramarket import stack
    >>> stack.mix(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), {"1.bias": torch.tensor([[0.0], [4.0]])})
    {'1.bias': tensor([[2.],
            [3.]])}
    """
    batch = weights.shape[:-2]
    for name, tensor in stack.items():
        if tensor.shape[: len(batch) + 1] != (*batch, weights.shape[-1]):
            shapes = f"weights {tuple(weights.shape)} and {name!r} {tuple(tensor.shape)}"
            raise ShapeError(f"mix needs weights [..., J, K] and a stack [..., K]: got {shapes}.")
        if not tensor.is_floating_point():
            raise ShapeError(f"{name!r} holds {tensor.dtype}: a weighted sum of whole numbers is none.")
    return map(lambda tensor: _weighted(weights, tensor), stack)


def _weighted(weights: Tensor, tensor: Tensor) -> Tensor:
    exact = tensor.float() if tensor.dtype in HALF else tensor
    flat = exact.reshape(*tensor.shape[: weights.ndim - 1], -1)
    summed = weights.to(exact) @ flat
    return summed.reshape(*weights.shape[:-1], *tensor.shape[weights.ndim - 1 :]).to(tensor)


def forward(net: nn.Module, stack: Stack, x: Tensor) -> Float[Tensor, "K n classes"]:
    """All K models at once, in eval mode: `x` is shared, [n, ...], or holds one batch per model, [K, n, ...].

    An example is a row of features or an image [channels, height, width], so x has 2 or 4 axes if shared, else 3 or 5.
    Models of half precision are run in float32.

    >>> import torch
    >>> from paramarket import stack
    >>> net = stack.mlp(4, [3], 2)
    >>> tuple(stack.forward(net, stack.init(net, copies=5, seed=0), torch.zeros(7, 4)).shape)
    (5, 7, 2)
    """
    stack = single(stack)
    return apply(net, stack, *_placed(net, stack, x), training=False)


def apply(
    net: nn.Module, stack: Stack, x: Tensor, shared: bool, *, training: bool, counting: Params | None = None
) -> Tensor:
    """`forward` without its checks, for a caller at every step: x [K, n, ...], or [n, ...] if shared.

    In training mode batch statistics are used, and the running ones in the stack are updated; and so is `counting`, the
    net's `counters`, for whoever takes more steps than one.
    """
    if is_dense(net):
        *_, (_, out) = dense_outputs(net, stack, x, shared, overwrite=not torch.is_grad_enabled())
        return out
    counting = {} if counting is None else counting
    own = {name: buffer for name, buffer in counters(net).items() if name not in counting}
    kept = [name for name, buffer in net.named_buffers() if buffer.is_floating_point()] if training else []

    def call(params: Params, x: Tensor) -> tuple[Tensor, Params, Params]:
        held = {**params, **own, **counting}  # a layer that assigns its buffers anew leaves them here
        out = functional_call(net, held, (x,))
        return out, {name: held[name] for name in kept}, {name: held[name] for name in counting}

    with _mode(net, training):
        in_dims, out_dims = (0, None if shared else 0), (0, 0, None)
        out, buffers, counted = vmap(call, in_dims=in_dims, out_dims=out_dims, randomness="different")(stack, x)
    for name, buffer in buffers.items():
        if buffer.data_ptr() != stack[name].data_ptr():
            stack[name].copy_(buffer.detach())
    counting.update(counted)
    return out


def counters(net: nn.Module) -> Params:
    """A copy of a net's whole numbers, as BatchNorm's number of batches: what a layer counts is the same in K models.

    They are no part of a stack, for they cannot be mixed; whoever trains keeps them from step to step.
    """
    return {name: buffer.clone() for name, buffer in net.named_buffers() if not buffer.is_floating_point()}


@contextmanager
def _mode(net: nn.Module, training: bool) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    try:
        net.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def probe(net: nn.Module, params: Params, x: Tensor, modules: Iterable[str], look: Look) -> None:
    """Run one model on x [n, ...] in eval mode, and call look(module name, what it reads, what it says) on the way.

    What `look` gives back, if anything, is what the module says from then on. Half precision is run in float32.
    """
    params = single(params)
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _, read, said, name=name: look(name, read[0], said))
        for name in modules
    ]
    try:
        with _mode(net, training=False):
            functional_call(net, {**params, **counters(net)}, (place(x, params),))
    finally:
        for hook in hooks:
            hook.remove()


def features(net: nn.Sequential, stack: Stack, x: Tensor) -> dict[str, Tensor]:
    """What every layer of an MLP says of x, [n, ...] or [K, n, ...]: {layer name: [K, n, units]}, the logits last."""
    if not is_dense(net):
        raise ShapeError(
            f"features needs a Sequential of Flatten, Linear, Residual and activations, got {type(net).__name__}."
        )
    stack = single(stack)
    return dict(dense_outputs(net, stack, *_placed(net, stack, x)))


def check(net: nn.Module, stack: Stack, what: str = "the stack and the net") -> int:
    """The number of models in a stack; ShapeError, naming the key, if it is no stack of this net's models.

    what: what the error calls the two
    """
    compare(stack, dict(_named(net)), what, skip=1)
    copies = {len(tensor) for tensor in stack.values()}
    if len(copies) != 1:
        raise ShapeError(f"a stack holds the same number of models under every name, got {sorted(copies)}.")
    return copies.pop()


def _placed(net: nn.Module, stack: Stack, x: Tensor) -> tuple[Tensor, bool]:
    """Check that net, stack and examples fit; x on the stack's device, and whether all models share it."""
    copies = {check(net, stack)}
    shape = tuple(x.shape)
    shared = x.ndim in (2, 4)
    if not 2 <= x.ndim <= 5:
        raise ShapeError(
            f"x has shape {shape}, expected [n, features], [n, channels, height, width] or those per model."
        )
    if not shared and len(x) not in copies:
        raise ShapeError(f"x has shape {shape}: one batch per model needs a first axis of {copies.pop()} models.")
    return place(x, stack), shared
