"""Permutation symmetry as data: which axes of which parameters can be reordered together, and the reordering itself.

Hidden units have no order: W_l' = P_l W_l P_{l-1}ᵀ, b_l' = P_l b_l computes the same function (Git Re-Basin, Ainsworth
et al. 2023, section 2).
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from paramarket.errors import ShapeError
from paramarket.stack import Params

Permutations = dict[str, Tensor]  # permutation name -> int64 tensor: place i takes what stood at p[i]
Labels = tuple[str | None, ...]  # for every axis, the permutation that reorders it, or None

_ELEMENTWISE = "relu relu6 gelu silu elu leakyrelu tanh sigmoid hardswish softplus identity dropout dropout2d"
_POOLS = "maxpool1d maxpool2d avgpool1d avgpool2d adaptiveavgpool1d adaptiveavgpool2d adaptivemaxpool2d"
_KEEPS_AXES = {*_ELEMENTWISE.split(), *_POOLS.split(), "contiguous", "clone"}
_JOINS_AXES = {"add", "iadd", "sub", "mul", "imul", "truediv"}


@dataclass(frozen=True)
class PermutationSpec:
    """The symmetry of a net: parameter name -> permutation per axis; None is an axis that stays as it is.

    An axis may be a multiple of its permutation's length: then blocks of equal length move (flattened convolutions).
    groups: permutations that must keep that many equal, neighbouring groups together (GroupNorm).
    """

    axes: dict[str, Labels]
    groups: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join(f"{name}  [{', '.join(label or '·' for label in axes)}]" for name, axes in self.axes.items())


def permutation_spec(net: nn.Module, example: Tensor) -> PermutationSpec:
    """Find a net's permutation symmetries by tracing it; inputs and outputs stay as they are.

    example: one batch [n, ...] as the net takes it; only its shape counts. A permutation bears the name of the first
    layer whose outputs it reorders. Raises ShapeError naming the operation that cannot be traced.

    >>> import torch
    >>> from paramarket import align, stack
    >>> print(align.permutation_spec(stack.mlp(4, [3], 2), torch.zeros(1, 4)))
    1.weight  [1, ·]
    1.bias  [1]
    3.weight  [·, 1]
    3.bias  [·]
    """
    try:
        trace = _Trace(copy.deepcopy(net).to("meta").eval(), _first_names(net))
    except Exception as error:  # whatever a forward method does that torch.fx cannot follow
        raise ShapeError(f"cannot trace {type(net).__name__}: {error}") from error
    try:
        trace.run(example.to("meta"))
    except ShapeError:
        raise
    except Exception as error:  # each layer has an error of its own for what it cannot read
        raise ShapeError(f"an example of shape {tuple(example.shape)} does not run through the net: {error}") from error
    axes: dict[str, Labels] = {}
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point():
            labels = trace.axes.get(name, (None,) * tensor.ndim)
            axes[name] = tuple(trace.root(label) for label in labels)
    as_used = {name: axes[name] for name in trace.axes if name in axes}
    return PermutationSpec(as_used | axes, trace.group_counts())


def _first_names(net: nn.Module) -> dict[str, str]:
    """{name: the name it goes by}: two layers with the same weights hold one parameter, under its first name."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in net.named_parameters(remove_duplicate=False)}


class _Trace(fx.Interpreter):
    """Runs a net on shapes alone and carries along which permutation may reorder each axis of each tensor."""

    def __init__(self, net: nn.Module, shared: dict[str, str]) -> None:
        super().__init__(fx.symbolic_trace(net))
        self.shared = shared
        self.extra_traceback = False
        self.parent: dict[str, str | None] = {}  # permutations that turned out to be another one, or fixed
        self.rank: dict[str, int] = {}
        self.axes: dict[str, Labels] = {}
        self.groups: list[tuple[str | None, int]] = []
        self.labels: dict[fx.Node, Labels] = {}

    def root(self, label: str | None) -> str | None:
        while label in self.parent:
            label = self.parent[label]
        return label

    def tie(self, *labels: str | None) -> None:
        """These axes are added, or otherwise meet, entry by entry: one permutation for all of them."""
        roots = {self.root(label) for label in labels}
        first = None if None in roots else min(roots, key=self.rank.get)
        self.parent |= {root: first for root in roots if root != first}

    def new_permutation(self, path: str) -> str:
        self.rank.setdefault(path, len(self.rank))
        return path

    def label_parameters(self, path: str, **axes: Labels) -> None:
        """A module's parameters; one that is used twice ties both uses."""
        module = self.fetch_attr(path)
        for name, labels in axes.items():
            if isinstance(getattr(module, name, None), Tensor):
                key = self.shared.get(f"{path}.{name}", f"{path}.{name}")
                for pair in zip(labels, self.axes.setdefault(key, labels), strict=True):
                    self.tie(*pair)

    def group_counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for norm_label, groups in self.groups:
            label = self.root(norm_label)
            if label is not None and found.setdefault(label, groups) != groups:
                raise ShapeError(f"GroupNorms of {found[label]} and of {groups} groups meet in the units of {label!r}.")
        return found

    def run_node(self, node: fx.Node) -> Any:
        if node.op == "output":
            self.tie(None, *(label for source in node.all_input_nodes for label in self.labels[source]))
            return super().run_node(node)
        out = super().run_node(node)
        if isinstance(out, Tensor):
            self.labels[node] = self.output_labels(node, out)
        return out

    def output_labels(self, node: fx.Node, out: Tensor) -> Labels:
        if node.op in ("placeholder", "get_attr"):
            return (None,) * out.ndim
        module = self.fetch_attr(node.target) if node.op == "call_module" else None
        target = type(module).__name__ if module else getattr(node.target, "__name__", node.target)
        kind = target.lower().replace("_", "")
        inputs = [source for source in node.all_input_nodes if isinstance(self.env[source], Tensor)]
        labels = self.labels[inputs[0]] if inputs else ()
        shape = tuple(self.env[inputs[0]].shape) if inputs else ()
        reshaped = kind in ("flatten", "view", "reshape")
        if kind in _KEEPS_AXES or (reshaped and tuple(out.shape) == shape):
            return labels
        if kind in _JOINS_AXES:
            return self.broadcast(inputs, out)
        if reshaped and tuple(out.shape) == (shape[0], math.prod(shape[1:])):
            self.tie(None, *labels[2:])  # the channels lead, so that each one's pixels move as a block
            return (labels[0], labels[1])
        if kind == "mean":
            return self.mean(node, labels)
        if module is None or not hasattr(self, f"_{kind}"):
            raise ShapeError(f"cannot trace the operation {target!r} ({node.name}): write the spec by hand.")
        return getattr(self, f"_{kind}")(module, node.target, labels)

    def broadcast(self, inputs: list[fx.Node], out: Tensor) -> Labels:
        """Axes meet from the last one on, an axis of length one meets nothing."""
        met: list[list[str | None]] = [[] for _ in range(out.ndim)]
        for source in inputs:
            shape = self.env[source].shape
            for back in range(1, len(shape) + 1):
                if shape[-back] == out.shape[-back]:
                    met[-back].append(self.labels[source][-back])
        for labels in met:
            self.tie(*labels)
        return tuple(labels[0] for labels in met)

    def mean(self, node: fx.Node, labels: Labels) -> Labels:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", range(len(labels)))
        gone = {dim % len(labels) for dim in ([dims] if isinstance(dims, int) else dims)}
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        return tuple(None if k in gone else label for k, label in enumerate(labels) if keep or k not in gone)

    def _linear(self, module: nn.Linear, path: str, labels: Labels) -> Labels:
        label = self.new_permutation(path)
        self.label_parameters(path, weight=(label, labels[-1]), bias=(label,))
        return (*labels[:-1], label)

    def _conv2d(self, module: nn.Conv1d | nn.Conv2d, path: str, labels: Labels) -> Labels:
        depthwise = module.groups == module.in_channels == module.out_channels
        if module.groups > 1 and not depthwise:
            raise ShapeError(f"cannot trace {path!r}, a convolution in {module.groups} groups: write the spec by hand.")
        label = labels[1] if depthwise else self.new_permutation(path)
        rest = (None,) * len(module.kernel_size)
        self.label_parameters(path, weight=(label, None if depthwise else labels[1], *rest), bias=(label,))
        return (labels[0], label, *labels[2:])

    def _batchnorm2d(self, module: nn.Module, path: str, labels: Labels) -> Labels:
        names = ("weight", "bias", "running_mean", "running_var")
        self.label_parameters(path, **dict.fromkeys(names, (labels[1],)))
        return labels

    def _groupnorm(self, module: nn.GroupNorm, path: str, labels: Labels) -> Labels:
        if 1 < module.num_groups < module.num_channels:
            self.groups.append((labels[1], module.num_groups))
        self.label_parameters(path, weight=(labels[1],), bias=(labels[1],))
        return labels

    def _layernorm(self, module: nn.LayerNorm, path: str, labels: Labels) -> Labels:
        own = labels[-len(module.normalized_shape) :]
        self.label_parameters(path, weight=own, bias=own)
        return labels

    _conv1d, _batchnorm1d = _conv2d, _batchnorm2d


def sizes(spec: PermutationSpec, params: Params) -> dict[str, int]:
    """The length of every permutation, in the spec's order. Raises ShapeError naming what does not fit the spec."""
    found: dict[str, int] = {}
    for name, axes in spec.axes.items():
        if name not in params or params[name].ndim != len(axes):
            given = tuple(params[name].shape) if name in params else "nothing"
            raise ShapeError(f"the spec has {name!r} with {len(axes)} axes, the model has {given} there.")
        for label, size in zip(axes, params[name].shape, strict=True):
            if label is not None:
                found[label] = min(found.get(label, size), size)
    for name, axes in spec.axes.items():
        for label, size in zip(axes, params[name].shape, strict=True):
            if label is not None and size % found[label]:
                raise ShapeError(f"{name!r} has {size} places for the {found[label]} units of {label!r}.")
    return found


def permute(spec: PermutationSpec, p: Permutations, params: Params) -> Params:
    """The same function with its hidden units reordered: place i of an axis takes what stood at p[i].

    >>> import torch
    >>> from paramarket import align, stack
    >>> net = stack.mlp(4, [3], 2)
    >>> spec, model = align.permutation_spec(net, torch.zeros(1, 4)), stack.take(stack.init(net, 1, seed=0), 0)
    >>> moved = align.permute(spec, {"1": torch.tensor([2, 0, 1])}, model)
    >>> bool((moved["1.bias"] == model["1.bias"][[2, 0, 1]]).all()), tuple(moved["3.weight"].shape)
    (True, (2, 3))
    """
    for label, size in sizes(spec, params).items():
        if label not in p or len(p[label]) != size:
            given = f"one of {len(p[label])}" if label in p else "none"
            raise ShapeError(f"expected an order of the {size} units of {label!r}, got {given}.")
    return {name: reorder_axes(tensor, spec.axes.get(name, ()), p) for name, tensor in params.items()}


def reorder_axes(tensor: Tensor, labels: Labels, p: Permutations) -> Tensor:
    """One tensor [...] with every labelled axis reordered; an axis that is a multiple of its order moves in blocks."""
    for axis, label in enumerate(labels):
        if label is not None:
            order = p[label].to(tensor.device)
            blocks = tensor.unflatten(axis, (len(order), -1))
            tensor = blocks.index_select(axis, order).flatten(axis, axis + 1)
    return tensor


def identity(spec: PermutationSpec, params: Params) -> Permutations:
    """The permutations that leave everything where it is."""
    return {label: torch.arange(size) for label, size in sizes(spec, params).items()}


def compose(p: Permutations, q: Permutations) -> Permutations:
    """First q, then p: permute(spec, compose(p, q), x) == permute(spec, p, permute(spec, q, x))."""
    return {label: q[label][p[label]] for label in p}


def inverse(p: Permutations) -> Permutations:
    """What undoes p: compose(inverse(p), p) is the identity."""
    return {label: order.argsort() for label, order in p.items()}
