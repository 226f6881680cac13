"""Losses and gradients of a whole stack on cross-entropy: what every step of training begins with.

Those of an MLP are written out below, layer by layer, in memory that is kept from step to step: for small networks,
autograd's own work and fresh memory take as long as the matrix products. Any other net goes through autograd.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paramarket.errors import ShapeError
from paramarket.stack import DenseLayer, Params, Stack, apply, counters, dense_plan

Backward = Callable[[Float[Tensor, "K n ..."], Float[Tensor, "K n classes"]], Float[Tensor, " K"]]


def make_backward(
    net: nn.Module, models: Stack, gradients: Stack, batch: int, *, counting: Params | None = None
) -> Backward:
    """A function that puts the gradient of every model's loss into `gradients`, and gives the losses [K], nats.

    It takes a batch for each model, x [K, batch, ...], and what to answer as probabilities [K, batch, classes] that
    sum to 1 (a label is 1 for its class). A model's loss is its mean cross-entropy, its gradient is its own.
    models: read anew at each call · gradients: of the net's parameters, written anew at each call
    counting: what the net's layers have counted so far (`stack.counters`), and go on with; from the net's own, if None
    """
    try:
        plan = dense_plan(net)
    except ShapeError:
        return _autograd_backward(net, models, gradients, counting)
    return partial(_backpropagate, [_layer(planned, models, gradients, batch) for planned in plan])


def _autograd_backward(net: nn.Module, models: Stack, gradients: Stack, counting: Params | None = None) -> Backward:
    counting = counters(net) if counting is None else counting
    leaves = {name: models[name].detach().requires_grad_() for name, _ in net.named_parameters()}

    @torch.enable_grad()
    def backward(x: Tensor, targets: Tensor) -> Tensor:
        logits = apply(net, models | leaves, x, shared=False, training=True, counting=counting)
        losses = cross_entropy(logits.mT, targets.mT, reduction="none").mean(dim=1)
        slopes = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        for name, slope in zip(leaves, slopes, strict=True):
            gradients[name].copy_(slope)
        return losses.detach()

    return backward


class _Layer(NamedTuple):
    """A layer of K MLPs, and memory for what passes through it, each [K, n, units] but for `below` [K, n, inputs].

    said: W h + b, behind its ReLU if it has one · output: h + said, in a residual block
    error: the gradient of the losses with respect to W h + b, in a residual block · below: with respect to h
    """

    planned: DenseLayer
    weight: Float[Tensor, "K units inputs"]
    bias: Float[Tensor, "K 1 units"]
    weight_gradient: Float[Tensor, "K units inputs"]
    bias_gradient: Float[Tensor, "K units"]
    said: Tensor
    output: Tensor
    error: Tensor
    below: Tensor


def _layer(planned: DenseLayer, models: Stack, gradients: Stack, batch: int) -> _Layer:
    weight = models[f"{planned.name}.weight"]
    copies, units, inputs = weight.shape
    said, output, error = weight.new_empty(3, copies, batch, units)
    return _Layer(
        planned,
        weight,
        models[f"{planned.name}.bias"].unsqueeze(1),
        gradients[f"{planned.name}.weight"],
        gradients[f"{planned.name}.bias"],
        said,
        output,
        error,
        below=weight.new_empty(copies, batch, inputs),
    )


@torch.no_grad()
def _backpropagate(
    layers: list[_Layer], x: Float[Tensor, "K n ..."], targets: Float[Tensor, "K n classes"]
) -> Float[Tensor, " K"]:
    """Backpropagation through K MLPs (Rumelhart, Hinton and Williams 1986); see `make_backward`."""
    h = x.flatten(2)
    read = []  # by each layer
    for layer in layers:
        read.append(h)
        h = _forward(layer, h)
    examples = h.shape[1]
    log_p = torch.log_softmax(h, dim=-1, out=layers[-1].output)
    losses = torch.linalg.vecdot(log_p.flatten(1), targets.flatten(1)) / -examples
    of_output = log_p.exp_().sub_(targets).div_(examples)  # dL/dz = (p - t) / n
    for layer, h in zip(reversed(layers), reversed(read), strict=True):
        error = _error(layer, of_output)
        torch.bmm(error.mT, h, out=layer.weight_gradient)
        torch.sum(error, dim=1, out=layer.bias_gradient)
        if layer is not layers[0]:  # nobody asks for the gradient with respect to the examples
            of_output = _pass_on(layer, of_output, error)
    return losses


def _forward(layer: _Layer, h: Float[Tensor, "K n inputs"]) -> Float[Tensor, "K n units"]:
    """What the layer passes on, having read h."""
    said = torch.baddbmm(layer.bias, h, layer.weight.mT, out=layer.said)
    if layer.planned.relu:
        said.relu_()
    return torch.add(h, said, out=layer.output) if layer.planned.residual else said


def _error(layer: _Layer, of_output: Float[Tensor, "K n units"]) -> Float[Tensor, "K n units"]:
    """The gradient with respect to W h + b, given that with respect to the output: 0 for a unit that said 0."""
    if not layer.planned.relu:
        return of_output
    error = layer.error if layer.planned.residual else of_output  # a residual block needs `of_output` once more
    return torch.ops.aten.threshold_backward.grad_input(of_output, layer.said, 0, grad_input=error)


def _pass_on(
    layer: _Layer, of_output: Float[Tensor, "K n units"], error: Float[Tensor, "K n units"]
) -> Float[Tensor, "K n inputs"]:
    """The gradient with respect to h, what the layer read."""
    if layer.planned.residual:
        return torch.baddbmm(of_output, error, layer.weight, out=layer.below)
    return torch.bmm(error, layer.weight, out=layer.below)
