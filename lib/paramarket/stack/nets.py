"""The nets of the notebooks, and how K of them run at once: one batched product a layer.

`stack` passes the builders on: write `stack.mlp`, `stack.residual_mlp`. Any other module runs through torch.func.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from paramarket.errors import ShapeError

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU between its layers. Only its structure is used, never its own tensors."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([inputs, *hidden, classes]):
        layers += [nn.utils.skip_init(nn.Linear, fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """A block that adds to what it reads: h + relu(W h + b), h [n, units]. All blocks of a net share one stream."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, units, units)

    def forward(self, h: Tensor | fx.Proxy) -> Tensor | fx.Proxy:  # a Proxy when its symmetries are traced
        return h + self.linear(h).relu()


def residual_mlp(inputs: int, width: int, blocks: int, classes: int) -> nn.Sequential:
    """An MLP whose hidden layers, after the first, are residual blocks: what each says is added to one stream."""
    first, last = nn.utils.skip_init(nn.Linear, inputs, width), nn.utils.skip_init(nn.Linear, width, classes)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), *(Residual(width) for _ in range(blocks)), last)


def is_dense(net: nn.Module) -> bool:
    """Whether `layers` computes exactly what the net does; a subclass may do something else."""
    return type(net) is nn.Sequential and all(
        type(m) in (nn.Linear, Residual)
        or (type(m) is nn.Flatten and (m.start_dim, m.end_dim) == (1, -1))
        or (type(m) in _ELEMENTWISE and not getattr(m, "inplace", False))
        for m in net
    )


def layers(
    net: nn.Sequential, stack: Mapping[str, Tensor], x: Tensor, shared: bool, overwrite: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """What every layer of K dense nets says [K, n, units], one batched product each; x is [n, ...] if shared.

    With `overwrite` a ReLU writes over what a linear layer said.
    """
    said = False  # fresh memory would cost more than the ReLU itself
    for name, layer in net._modules.items():  # named_children would leave out a module that is used twice
        if isinstance(layer, nn.Flatten):
            x = x.flatten(1 if shared else 2)
            continue
        if isinstance(layer, nn.Linear):
            x = _linear(stack, name, layer, x)
        elif isinstance(layer, Residual):
            added = _linear(stack, f"{name}.linear", layer.linear, x)
            x = x + (added.relu_() if overwrite else added.relu())
        else:
            x = x.relu_() if said and type(layer) is nn.ReLU else layer(x)
        said = overwrite and isinstance(layer, nn.Linear)
        yield name, x


def _linear(stack: Mapping[str, Tensor], name: str, layer: nn.Linear, x: Tensor) -> Tensor:
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
