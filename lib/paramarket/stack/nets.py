"""The nets of the notebooks, and how K of them run at once: one batched product a layer.

Any other module runs through torch.func. This is the one home of the dense forward: whoever must stop between two
layers, or mix what they say, takes `linear`, `split_first` or `dense_plan`.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paramarket.errors import ShapeError

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU between its layers. Only its structure is used, never its own tensors.

    >>> from paramarket import stack
    >>> stack.mlp(784, [128], 10)
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=784, out_features=128, bias=True)
      (2): ReLU()
      (3): Linear(in_features=128, out_features=10, bias=True)
    )
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([inputs, *hidden, classes]):
        layers += [_blank_linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _blank_linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A linear layer whose weights are not drawn. `nn.utils.skip_init` does so, too, but imports sympy: a second."""
    layer = nn.Linear(fan_in, fan_out, device="meta")
    layer.weight = nn.Parameter(torch.empty(fan_out, fan_in))
    layer.bias = nn.Parameter(torch.empty(fan_out))
    return layer


class Residual(nn.Module):
    """A block that adds to what it reads: h + relu(W h + b), h [n, units]. All blocks of a net share one stream."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.linear = _blank_linear(units, units)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(h).relu()


def residual_mlp(inputs: int, width: int, blocks: int, classes: int) -> nn.Sequential:
    """An MLP whose hidden layers, after the first, are residual blocks: what each says is added to one stream."""
    first, last = _blank_linear(inputs, width), _blank_linear(width, classes)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), *(Residual(width) for _ in range(blocks)), last)


class Tokens(nn.Module):
    """An image [n, channels, side, side] as tokens [n, patches, units]: a linear map of each patch, plus its place."""

    def __init__(self, channels: int, side: int, patch: int, units: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, units, patch, stride=patch)
        self.places = nn.Parameter(torch.empty((side // patch) ** 2, units))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.places, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).mT + self.places


class Attention(nn.Module):
    """Attention of all tokens [n, tokens, units] to one another, in several heads."""

    def __init__(self, units: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values, self.out = nn.Linear(units, 3 * units), nn.Linear(units, units)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # each [n, heads, tokens, units]
        likeness = queries @ keys.mT / queries.shape[-1] ** 0.5  # by hand: torch.func cannot batch torch's own
        said = likeness.softmax(dim=-1) @ values
        return self.out(said.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """A transformer's block, norms first: attention, then two layers for each token, both added to the stream."""

    def __init__(self, units: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(units), Attention(units, heads)
        self.layers_norm = nn.LayerNorm(units)
        self.layers = nn.Sequential(nn.Linear(units, hidden), nn.GELU(), nn.Linear(hidden, units))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.layers(self.layers_norm(x))


class TokenMean(nn.Module):
    """The mean over all tokens, [n, tokens, units] -> [n, units]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def vit(
    channels: int, side: int, classes: int, *, patch: int = 2, units: int = 32, heads: int = 4, blocks: int = 2
) -> nn.Sequential:
    """A small vision transformer (Dosovitskiy et al. 2021) for images [n, channels, side, side], norms first.

    The layers between have 2 · units units; the answer is a linear map of the mean over all tokens.
    """
    middle = [AttentionBlock(units, heads, 2 * units) for _ in range(blocks)]
    first, last = Tokens(channels, side, patch, units), nn.Linear(units, classes)
    return nn.Sequential(first, *middle, nn.LayerNorm(units), TokenMean(), last)


def is_dense(net: nn.Module) -> bool:
    """Whether `dense_outputs` computes exactly what the net does; a subclass may do something else."""
    return type(net) is nn.Sequential and all(
        type(m) in (nn.Linear, Residual)
        or (type(m) is nn.Flatten and (m.start_dim, m.end_dim) == (1, -1))
        or (type(m) in _ELEMENTWISE and not getattr(m, "inplace", False))
        for m in net
    )


def dense_outputs(
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
            x = linear(net, stack, name, x)
        elif isinstance(layer, Residual):
            added = linear(net, stack, f"{name}.linear", x)
            x = x + (added.relu_() if overwrite else added.relu())
        else:
            x = x.relu_() if said and type(layer) is nn.ReLU else layer(x)
        said = overwrite and isinstance(layer, nn.Linear)
        yield name, x


def linear(
    net: nn.Module, stack: Mapping[str, Tensor], layer: str, x: Float[Tensor, "... n units"]
) -> Float[Tensor, "K n outputs"]:
    """What the linear layer `layer` of K models says of x [n, in], shared, or [K, n, in], before any activation."""
    module, weight = net.get_submodule(layer), stack[f"{layer}.weight"]
    if x.shape[-1] != module.in_features:
        raise ShapeError(
            f"x brings {x.shape[-1]} values per example to layer {layer!r}, expected {module.in_features}."
        )
    x = x.expand(len(weight), *x.shape) if x.ndim == 2 else x
    bias = weight.new_zeros(1, 1) if module.bias is None else stack[f"{layer}.bias"]
    return _Linear.apply(x, weight, bias)


class FirstLayer(NamedTuple):
    """The name of a net's first layer, and what follows it as a net of its own."""

    name: str
    rest: nn.Sequential


def split_first(net: nn.Module) -> FirstLayer | None:
    """The first layer of a dense net that begins with a linear one, and what follows it as a net of its own.

    None for any other net. Parameters keep their names, so a stack of the net runs in what follows as well.
    """
    if not is_dense(net):
        return None
    parts = list(net._modules.items())
    first = next((k for k, (_, part) in enumerate(parts) if not isinstance(part, nn.Flatten)), len(parts))
    rest = parts[first + 1 :]
    if not rest or type(parts[first][1]) is not nn.Linear:
        return None
    return FirstLayer(parts[first][0], nn.Sequential(OrderedDict(rest)))


class DenseLayer(NamedTuple):
    """One layer of an MLP with ReLUs: its linear part's name, whether a ReLU follows, whether it adds to what it reads.

    The linear part is the submodule `name` of the net.
    """

    name: str
    relu: bool
    residual: bool

    def output(self, h: Float[Tensor, "... inputs"], linear: Float[Tensor, "... outputs"]) -> Tensor:
        """What the layer passes on [..., outputs], having read h, when its linear part says `linear`."""
        said = linear.relu() if self.relu else linear
        return h + said if self.residual else said


def dense_plan(net: nn.Module) -> list[DenseLayer]:
    """The layers of an MLP as `mlp` or `residual_mlp` makes it; ShapeError for any other net.

    Every linear layer has a bias, and every one but the last a ReLU behind it.
    """
    parts = [(name, part) for name, part in net._modules.items() if not isinstance(part, nn.Flatten)]
    linears = [part for _, part in parts if isinstance(part, nn.Linear)]
    plan = []
    for k, (name, part) in enumerate(parts):
        if isinstance(part, Residual):
            plan.append(DenseLayer(f"{name}.linear", relu=True, residual=True))
        elif isinstance(part, nn.Linear):
            followed = k + 1 < len(parts) and type(parts[k + 1][1]) is nn.ReLU
            plan.append(DenseLayer(name, relu=followed, residual=False))
    relus = sum(type(part) is nn.ReLU for _, part in parts)
    known = {type(part) for _, part in parts} <= {nn.Linear, nn.ReLU, Residual}
    fits = known and is_dense(net) and relus == len(linears) - 1 and not plan[-1].relu and not plan[-1].residual
    if not fits or not all(layer.relu for layer in plan[:-1]) or any(part.bias is None for part in linears):
        raise ShapeError(f"expected an MLP as `stack.mlp` or `stack.residual_mlp` makes it, got {net}.")
    return plan


def mlp_of(models: Mapping[str, Tensor]) -> nn.Sequential:
    """The plain MLP whose models a stack [K] holds, read off the shapes of their weights [K, out, in]."""
    shapes = [tensor.shape for name, tensor in models.items() if name.endswith("weight")]
    *hidden, last = [shape[1] for shape in shapes]
    return mlp(shapes[0][2], hidden, last)


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
