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

from paramarket.data import Split
from paramarket.errors import ParameterError, ShapeError
from paramarket.stack import Residual, Stack, check, is_dense
from paramarket.train import Fit, fit


class _Experts(nn.Module):
    """Frozen MLPs of one shape, side by side: the weights of layer l as one buffer [experts, out, in]."""

    def __init__(self, net: nn.Sequential, experts: int) -> None:
        super().__init__()
        if not _is_plain(net):
            raise ShapeError(f"a router needs experts as `stack.mlp` or `residual_mlp` makes them, got {net}.")
        if experts < 1:
            raise ParameterError(f"experts = {experts}, expected one or more.")
        self.net, self.experts = [net], experts  # in a list: its own tensors are no part of this module
        self.layers = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
        self.residual = [isinstance(net.get_submodule(name.rpartition(".")[0]), Residual) for name in self.layers]
        for at, name in enumerate(self.layers):
            weight = net.get_submodule(name).weight
            self.register_buffer(f"weight{at}", torch.empty(experts, *weight.shape))
            self.register_buffer(f"bias{at}", torch.empty(experts, len(weight)))

    def reset_parameters(self) -> None:
        for gate in self.parameters():
            nn.init.zeros_(gate)

    def parts(self, at: int) -> tuple[Tensor, Tensor]:
        """Weights [experts, out, in] and biases [experts, out] of layer `at`."""
        return getattr(self, f"weight{at}"), getattr(self, f"bias{at}")

    def step(self, at: int, h: Tensor, said: Tensor) -> Tensor:
        """What follows h [..., in] when layer `at` says [..., out]: the sum of both in a residual block."""
        return h + said if self.residual[at] else said

    def activated(self, at: int, said: Tensor) -> Tensor:
        return said if at == len(self.layers) - 1 else said.relu()


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
        shapes = [tuple(self.parts(at)[0].shape) for at in range(len(self.layers))]
        self.offered = [_offered(shapes, at, reach) for at in range(len(shapes))]
        self.top, self.single = top, single
        for at, (_, _, inputs) in enumerate(shapes[:1] if single else shapes):
            gate = torch.empty(experts * len(self.offered[at]), inputs)
            self.register_parameter(f"gate{at}", nn.Parameter(gate))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        h, shares = x.flatten(1), None
        for at, offered in enumerate(self.offered):
            if shares is None or not self.single:
                shares = self._shares(getattr(self, f"gate{at}"), h)
            weight, bias = self.parts(at)
            if len(offered) > 1:
                weight, bias = (torch.cat(each) for each in zip(*map(self.parts, offered), strict=True))
            said = linear(h, weight.flatten(0, 1), bias.flatten()).unflatten(-1, (len(weight), -1))
            mixed = (shares.unsqueeze(-1) * self.activated(at, said)).sum(dim=-2)
            h = self.step(at, h, mixed)
        return h

    def _shares(self, gate: Tensor, h: Tensor) -> Tensor:
        shares = linear(layer_norm(h, h.shape[-1:]), gate).softmax(dim=-1)
        if self.top is None:
            return shares
        largest = shares.topk(self.top, dim=-1)  # one of equal ones too: else all would pass
        return torch.zeros_like(shares).scatter(-1, largest.indices, largest.values)


def _is_plain(net: nn.Module) -> bool:
    """A ReLU behind every linear layer but the last, biases everywhere: what the routers compute."""
    if not is_dense(net) or any(layer.bias is None for layer in net.modules() if isinstance(layer, nn.Linear)):
        return False
    kinds = [type(layer) for layer in net if not isinstance(layer, nn.Flatten)]
    relus = [k for k, kind in enumerate(kinds) if kind is nn.ReLU]
    linears = [k for k, kind in enumerate(kinds) if kind is nn.Linear]
    return (
        {*kinds} <= {nn.Linear, nn.ReLU, Residual} and relus == [k + 1 for k in linears[:-1]] and kinds[-1] is nn.Linear
    )


def _offered(shapes: Sequence[tuple[int, ...]], at: int, reach: int) -> list[int]:
    """The layers whose work layer `at` may use: itself, those above it, then those below, of its own shape."""
    order = [*range(at, len(shapes)), *range(at - 1, -1, -1)]
    return [k for k in order if shapes[k] == shapes[at]][:reach]


class OutputRouter(_Experts):
    """A gate that weighs whole models by their answers: log sum_e p_e softmax(z_e), p = softmax(G LN(log softmax z)).

    It reads answers, never a feature. It starts at 0: the experts' probabilities are averaged at first.
    """

    def __init__(self, net: nn.Sequential, experts: int) -> None:
        super().__init__(net, experts)
        classes = self.parts(len(self.layers) - 1)[1].shape[1]
        self.gate, self.bias = nn.Parameter(torch.empty(experts, experts * classes)), nn.Parameter(torch.empty(experts))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        h = x.flatten(1).expand(self.experts, -1, -1)
        for at in range(len(self.layers)):
            weight, bias = self.parts(at)
            h = self.step(at, h, self.activated(at, torch.baddbmm(bias.unsqueeze(1), h, weight.mT)))
        logs = h.log_softmax(dim=-1).movedim(0, -2)  # [n, experts, classes]
        read = layer_norm(logs.flatten(-2), (logs.shape[-2] * logs.shape[-1],))
        return (linear(read, self.gate, self.bias).log_softmax(dim=-1).unsqueeze(-1) + logs).logsumexp(dim=-2)


def routers(router: Router | OutputRouter, experts: Sequence[Stack]) -> Stack:
    """K routers before they learn: averaged features, or averaged probabilities; to be evaluated, or fitted.

    experts: for each of them a stack of K models: router k stands over the k-th of each. Raises ShapeError if they are
    not as many as the router has places for, or do not fit its net or each other.
    """
    copies = {check(router.net[0], each) for each in experts}
    if len(experts) != router.experts or len(copies) != 1:
        raise ShapeError(
            f"a router over {router.experts} experts got {len(experts)} stacks of {sorted(copies)} models."
        )
    like, number = next(iter(experts[0].values())), copies.pop()
    gates = {name: like.new_zeros(number, *gate.shape) for name, gate in router.named_parameters()}
    held = [(f"{part}{at}", f"{name}.{part}") for at, name in enumerate(router.layers) for part in ("weight", "bias")]
    return gates | {buffer: torch.stack([each[key] for each in experts], dim=1) for buffer, key in held}


def fit_router(
    router: Router | OutputRouter, experts: Sequence[Stack], split: Split, *, steps: int, **settings: Any
) -> Fit:
    """Train the gates of K routers on a split; the experts stay as they are. The stack it leaves is one of `router`s.

    settings: of `train.fit`; the defaults are the authors' AdamW with learning rate 5e-3 and weight decay .1.
    """
    how = {"lr": 5e-3, "weight_decay": 0.1, "schedule": "constant"} | settings
    return fit(router, routers(router, experts), split, steps=steps, **how)
