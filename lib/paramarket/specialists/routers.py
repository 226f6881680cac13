"""Routers over frozen specialists: small gates that decide, for every input, how much of which expert to use.

`Router` mixes what the experts' layers say, inside the networks; `OutputRouter` weighs whole models by their answers
alone (Pari et al. 2024, arXiv 2411.02207). Both are modules whose parameters are the gates and whose buffers are the
experts: `fit_router` trains the gates of K routers at once; `train.evaluate`, `stack.forward` take them like any net.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from paramarket import stack
from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.stack import Stack
from paramarket.train import Fit, fit


class _Experts(nn.Module):
    """Frozen MLPs of one shape, side by side: layer l's are the buffers weight{l} [experts, out, in] and bias{l}."""

    def __init__(self, net: nn.Sequential, experts: int) -> None:
        super().__init__()
        self.plan = stack.dense_plan(net)
        if experts < 1:
            raise ParameterError(f"experts = {experts}, expected one or more.")
        self.net = [net]  # in a list: its own tensors are no part of this module
        self.experts = experts
        for depth, layer in enumerate(self.plan):
            module = net.get_submodule(layer.name)
            self.register_buffer(f"weight{depth}", torch.empty(experts, *module.weight.shape))
            self.register_buffer(f"bias{depth}", torch.empty(experts, *module.bias.shape))

    def reset_parameters(self) -> None:
        for gate in self.parameters():
            nn.init.zeros_(gate)

    def weights(self, depth: int) -> Float[Tensor, "experts out in"]:
        """The experts' weights in layer `depth`."""
        return getattr(self, f"weight{depth}")

    def biases(self, depth: int) -> Float[Tensor, "experts out"]:
        """The experts' biases in layer `depth`."""
        return getattr(self, f"bias{depth}")


class Router(_Experts):
    """An MLP every layer of which is a mixture of its experts' layers: sum_e p_e(h) relu(W_e h + b_e).

    p = softmax(G LN(h)) with one linear gate G a layer, no bias, LN without parameters. As in the authors' code, but
    gates start at 0, so that the experts' features are averaged at first, equally for every input.

    net: the experts' `stack.mlp` or `stack.residual_mlp` · experts: how many
    reach: with c, layer i may also use the experts' layers i+1, …, i+c-1 of its own shape (near the top i-1, …)
    top: only the largest `top` of p count; they are not scaled up to 1 again, so that a layer then says less. None: all
    single: the first layer's gate decides for all layers (needs reach = 1)
    """

    def __init__(
        self, net: nn.Sequential, experts: int, *, reach: int = 1, top: int | None = None, single: bool = False
    ) -> None:
        super().__init__(net, experts)
        if reach < 1 or (single and reach > 1) or not (top is None or 1 <= top <= experts):
            given = f"experts = {experts}, reach = {reach}, top = {top}, single = {single}"
            raise ParameterError(f"{given}: expected reach ≥ 1, 1 ≤ top ≤ experts, and reach = 1 with a single gate.")
        shapes = [tuple(self.weights(depth).shape) for depth in range(len(self.plan))]
        self.offered = [_offered(shapes, depth, reach) for depth in range(len(shapes))]
        self.top = top
        self.single = single
        gated = shapes[:1] if single else shapes
        for depth, (_, _, inputs) in enumerate(gated):
            gate = torch.empty(experts * len(self.offered[depth]), inputs)
            self.register_parameter(f"gate{depth}", nn.Parameter(gate))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        h = x.flatten(1)
        for depth, layer in enumerate(self.plan):
            if depth == 0 or not self.single:
                shares = self._shares(getattr(self, f"gate{depth}"), h)
            outputs = self._outputs(depth, h)
            if layer.relu:
                outputs = outputs.relu()
            mixed = (shares.unsqueeze(-1) * outputs).sum(dim=-2)
            h = h + mixed if layer.residual else mixed
        return h

    def _shares(self, gate: Tensor, h: Float[Tensor, "n in"]) -> Float[Tensor, "n experts"]:
        """How much of every expert's layer to use."""
        shares = linear(layer_norm(h, h.shape[-1:]), gate).softmax(dim=-1)
        if self.top is None:
            return shares
        largest = shares.topk(self.top, dim=-1)  # one of equal ones too: else all would pass
        return torch.zeros_like(shares).scatter(-1, largest.indices, largest.values)

    def _outputs(self, depth: int, h: Float[Tensor, "n in"]) -> Float[Tensor, "n experts out"]:
        """What the linear parts of all layers on offer to layer `depth` say: one layer's experts behind another's."""
        weights = [self.weights(k) for k in self.offered[depth]]
        biases = [self.biases(k) for k in self.offered[depth]]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)  # a copy of a single one would cost time
        bias = biases[0] if len(biases) == 1 else torch.cat(biases)
        return linear(h, weight.flatten(0, 1), bias.flatten()).unflatten(-1, (len(weight), -1))


def _offered(shapes: Sequence[tuple[int, ...]], depth: int, reach: int) -> list[int]:
    """The layers whose work layer `depth` may use: itself, those above it, then those below, of its own shape."""
    order = [*range(depth, len(shapes)), *range(depth - 1, -1, -1)]
    return [k for k in order if shapes[k] == shapes[depth]][:reach]


class OutputRouter(_Experts):
    """A gate that weighs whole models by their answers: log sum_e p_e softmax(z_e), p = softmax(G LN(log softmax z)).

    It reads answers, never a feature. It starts at 0: the experts' probabilities are averaged at first.
    """

    def __init__(self, net: nn.Sequential, experts: int) -> None:
        super().__init__(net, experts)
        classes = self.biases(len(self.plan) - 1).shape[1]
        self.gate = nn.Parameter(torch.empty(experts, experts * classes))
        self.bias = nn.Parameter(torch.empty(experts))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        h = x.flatten(1).expand(self.experts, -1, -1)
        for depth, layer in enumerate(self.plan):
            h = layer.output(h, torch.baddbmm(self.biases(depth).unsqueeze(1), h, self.weights(depth).mT))
        logs = h.log_softmax(dim=-1).movedim(0, -2)  # [n, experts, classes]
        answers = logs.flatten(-2)
        shares = linear(layer_norm(answers, answers.shape[-1:]), self.gate, self.bias).log_softmax(dim=-1)
        return (shares.unsqueeze(-1) + logs).logsumexp(dim=-2)


def init_router(router: Router | OutputRouter, experts: Sequence[Stack]) -> Stack:
    """K routers before they learn: averaged features, or averaged probabilities; to be evaluated, or fitted.

    experts: for each of them a stack of K models: router k stands over the k-th of each. Raises ShapeError if they are
    not as many as the router has places for, or do not fit its net or each other.
    """
    copies = {stack.check(router.net[0], each) for each in experts}
    if len(experts) != router.experts or len(copies) != 1:
        raise ShapeError(
            f"a router over {router.experts} experts got {len(experts)} stacks of {sorted(copies)} models."
        )
    number = copies.pop()
    models = {}
    for name, gate in router.named_parameters():
        models[name] = stack.place(torch.zeros(number, *gate.shape), experts[0])
    for depth, layer in enumerate(router.plan):
        for part in ("weight", "bias"):
            models[f"{part}{depth}"] = torch.stack([each[f"{layer.name}.{part}"] for each in experts], dim=1)
    return models


def fit_router(
    router: Router | OutputRouter, experts: Sequence[Stack], split: Split, *, steps: int, **settings: Any
) -> Fit:
    """Train the gates of K routers on a split; the experts stay as they are. The stack it leaves is one of `router`s.

    settings: of `train.fit`; the defaults are the authors' AdamW with learning rate 5e-3 and weight decay .1.
    """
    settings = {"lr": 5e-3, "weight_decay": 0.1, "schedule": "constant"} | settings
    return fit(router, init_router(router, experts), split, steps=steps, **settings)
