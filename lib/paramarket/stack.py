"""Models as values. A model is its parameters; a stack is K models side by side on one more leading axis.

Two verbs live here: `forward` runs all K models at once, `mix` makes new models as weighted sums.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from paramarket.base import ShapeError, lent, stream, unknown
from paramarket.weights import Params, card, content_hash, load, save

__all__ = ["Params", "Stack", "card", "check", "compare", "content_hash", "features", "forward", "init", "join"]
__all__ += ["load", "mix", "mlp", "probe", "run", "save", "take"]

Stack = dict[str, Tensor]  # K models: the same names, one more leading axis
Look = Callable[[str, Tensor, Tensor], Tensor | None]  # see `probe`

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU between its layers. Only its structure is used, never its own tensors."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([inputs, *hidden, classes]):
        layers += [nn.utils.skip_init(nn.Linear, fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def init(net: nn.Module, copies: int, seed: int, device: torch.device | str = "cpu") -> Stack:
    """`copies` models with different random starts, each by PyTorch's own rule for its layers.

    The k-th model depends on `seed` and k alone, not on how many there are.
    """
    blank = copy.deepcopy(net)
    models = [_initial(blank, stream(seed, "init", k)) for k in range(copies)]
    return {name: tensor.to(device) for name, tensor in join(models).items()}


def _initial(net: nn.Module, generator: torch.Generator) -> Params:
    with lent(generator):
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
    """Models side by side: K times `Params` -> `Stack`. Raises ShapeError naming the first key that differs."""
    if not models:
        raise ShapeError("nothing to join: expected one or more models, got none.")
    for model in models[1:]:
        compare(model, models[0], "the models to join")
    return {name: torch.stack([model[name] for model in models]) for name in models[0]}


def compare(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, skip: int = 0) -> None:
    """ShapeError naming the first key that differs and both shapes, `given` being read from its axis `skip` on."""
    for name in [*expected, *given]:
        if name not in given or name not in expected:
            side, other = ("given", expected) if name in given else ("expected", given)
            raise ShapeError(f"{what} do not fit: {side} has {name!r} alone; {unknown('parameter', name, other)}")
        shape, wanted = tuple(given[name].shape[skip:]), tuple(expected[name].shape)
        if shape != wanted:
            raise ShapeError(f"{what} do not fit: {name!r} has shape {shape}, expected {wanted}.")


def take(stack: Stack, index: Any) -> Stack | Params:
    """Some of the models, like tensor indexing: a slice, list or mask keeps the axis, an int drops it."""
    return {name: tensor[index] for name, tensor in stack.items()}


def mix(weights: Float[Tensor, "*batch J K"], stack: Stack) -> Stack:
    """J new models, each a weighted sum of K: [..., J, K] with a stack [..., K] gives a stack [..., J].

    An average is a row of 1/K, a purchase (1 - w, w), a path a matrix whose rows walk from one to the other.
    """
    batch = weights.shape[:-2]
    for name, tensor in stack.items():
        if tensor.shape[: len(batch) + 1] != (*batch, weights.shape[-1]):
            shapes = f"weights {tuple(weights.shape)} and {name!r} {tuple(tensor.shape)}"
            raise ShapeError(f"mix needs weights [..., J, K] and a stack [..., K]: got {shapes}.")
    return {name: _weighted(weights.to(tensor), tensor) for name, tensor in stack.items()}


def _weighted(weights: Tensor, tensor: Tensor) -> Tensor:
    flat = tensor.reshape(*tensor.shape[: weights.ndim - 1], -1)
    return (weights @ flat).reshape(*weights.shape[:-1], *tensor.shape[weights.ndim - 1 :])


def forward(net: nn.Module, stack: Stack, x: Tensor) -> Float[Tensor, "K n classes"]:
    """All K models at once, in eval mode: `x` is shared, [n, ...], or holds one batch per model, [K, n, ...].

    An example is a row of features or an image [channels, height, width], so x has 2 or 4 axes if shared, else 3 or 5.
    """
    return run(net, stack, *_placed(net, stack, x), training=False)


def run(net: nn.Module, stack: Stack, x: Tensor, shared: bool, *, training: bool) -> Tensor:
    """`forward` without its checks, for a caller at every step: x [K, n, ...], or [n, ...] if shared.

    In training mode batch statistics are used, and the running ones in the stack are updated.
    """
    if _is_dense(net):
        *_, (_, out) = _layers(net, stack, x, shared, overwrite=not torch.is_grad_enabled())
        return out
    counters = _counters(net)

    def call(params: Params, x: Tensor) -> Tensor:
        return functional_call(net, {**params, **counters}, (x,))

    with _mode(net, training):
        return vmap(call, in_dims=(0, None if shared else 0), randomness="different")(stack, x)


def _counters(net: nn.Module) -> Params:
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

    What `look` gives back, if anything, is what the module says from then on.
    """
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _, read, said, name=name: look(name, read[0], said))
        for name in modules
    ]
    try:
        with _mode(net, training=False):
            functional_call(net, {**params, **_counters(net)}, (x.to(next(iter(params.values()))),))
    finally:
        for hook in hooks:
            hook.remove()


def features(net: nn.Sequential, stack: Stack, x: Tensor) -> dict[str, Tensor]:
    """What every layer of an MLP says: {layer name: [K, n, units]}, in order, the last being the logits."""
    if not _is_dense(net):
        raise ShapeError(f"features needs a Sequential of Flatten, Linear and activations, got {type(net).__name__}.")
    return dict(_layers(net, stack, *_placed(net, stack, x)))


def _is_dense(net: nn.Module) -> bool:
    """Exactly what `_layers` computes, and no subclass that may do something else."""
    return type(net) is nn.Sequential and all(
        type(m) is nn.Linear
        or (type(m) is nn.Flatten and (m.start_dim, m.end_dim) == (1, -1))
        or (type(m) in _ELEMENTWISE and not getattr(m, "inplace", False))
        for m in net
    )


def check(net: nn.Module, stack: Stack) -> int:
    """The number of models in a stack; ShapeError, naming the key, if it is no stack of this net's models."""
    compare(stack, dict(_named(net)), "the stack and the net", skip=1)
    copies = {len(tensor) for tensor in stack.values()}
    if len(copies) != 1:
        raise ShapeError(f"a stack holds the same number of models under every name, got {sorted(copies)}.")
    return copies.pop()


def _placed(net: nn.Module, stack: Stack, x: Tensor) -> tuple[Tensor, bool]:
    """Check that net, stack and examples fit; x on the stack's device, and whether all models share it."""
    copies = {check(net, stack)}
    shape, shared = tuple(x.shape), x.ndim in (2, 4)
    if not 2 <= x.ndim <= 5:
        raise ShapeError(
            f"x has shape {shape}, expected [n, features], [n, channels, height, width] or those per model."
        )
    if not shared and len(x) not in copies:
        raise ShapeError(f"x has shape {shape}: one batch per model needs a first axis of {copies.pop()} models.")
    return x.to(next(iter(stack.values()))), shared


def _layers(
    net: nn.Sequential, stack: Stack, x: Tensor, shared: bool, overwrite: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Layer by layer with one batched product each; with `overwrite` a ReLU writes over what a linear layer said."""
    said = False  # fresh memory would cost more than the ReLU itself
    for name, layer in net._modules.items():  # named_children would leave out a module that is used twice
        if isinstance(layer, nn.Flatten):
            x = x.flatten(1 if shared else 2)
            continue
        if isinstance(layer, nn.Linear):
            x = _linear(stack, name, layer, x)
        else:
            x = x.relu_() if said and type(layer) is nn.ReLU else layer(x)
        said = overwrite and isinstance(layer, nn.Linear)
        yield name, x


def _linear(stack: Stack, name: str, layer: nn.Linear, x: Tensor) -> Tensor:
    weight = stack[f"{name}.weight"]
    if x.shape[-1] != layer.in_features:
        raise ShapeError(f"x brings {x.shape[-1]} values per example to layer {name!r}, expected {layer.in_features}.")
    x = x.expand(len(weight), *x.shape) if x.ndim == 2 else x
    bias = weight.new_zeros(1, 1) if layer.bias is None else stack[f"{name}.bias"]
    return _Linear.apply(x, weight, bias)


class _Linear(torch.autograd.Function):
    """K linear layers at once: x [K, n, in], weight [K, out, in], bias [K, out] -> [K, n, out].

    Autograd would form the transposed gradient of the weights and copy it; written out, no tensor is ever transposed in
    memory, which for narrow layers is most of the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if needs_x else None,
            torch.bmm(grad.mT, x) if needs_weight else None,
            grad.sum(dim=1) if needs_bias else None,
        )
