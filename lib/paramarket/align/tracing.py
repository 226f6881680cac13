"""What a net does with its units, operation by operation: the relations that any reordering of them must keep.

A net runs once, on real numbers. Beside every tensor goes a list of coordinates: integer arrays [...], as long as the
tensor along some axes and of length 1 along the others, that say to which unit each entry belongs. They mean: if the
units of the net are reordered, the entry goes where its coordinates go. Whatever only moves entries about (view,
permute, cat, slice, …) is run on the coordinates themselves. All else is made of two steps: entries *meet* (sums,
products, any function of two entries), so that their units must stay together, or are *reduced* along axes (sums,
maxima), so that the units along these axes may be exchanged, block by block. No symmetry is assumed, only excluded.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paramarket.align.orbits import Units, is_function
from paramarket.errors import ShapeError

Coordinates = list[Tensor]  # int64: a unit; NOWHERE: no unit at all; less: a place that stays
NOWHERE = -1
REMEDY = "write the spec by hand: align.PermutationSpec({parameter: a permutation's name or None for each axis})"

_MOVES = """alias as_strided clone contiguous detach diagonal flip lift_fresh movedim permute pixel_shuffle repeat roll
    select slice split split_with_sizes squeeze t transpose unbind unfold unsafe_split unsafe_split_with_sizes unsqueeze
    view_as _to_copy"""
_RESHAPES = ("view", "_unsafe_view", "reshape", "_reshape_alias")
_REDUCES = "mean sum prod amax amin var std norm linalg_vector_norm logsumexp all any var_mean std_mean"
_ALONG = "cumsum cumprod cummax logcumsumexp argmax argmin max min"
_POOLS = re.compile(r"(max_pool|avg_pool|upsample|reflection_pad|replication_pad).*([123])d")
_POINTWISE = "hardswish hardswish_ hardtanh hardtanh_ elu celu masked_fill masked_fill_ where"
_PRODUCTS = re.compile(r"::(mm|addmm|bmm|baddbmm|mv|convolution|_scaled_dot_product\w*)$")
_BRANCHES = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")
_APART = 2**40  # between places that were always ones, and units that have become one
_ELSEWHERE = NOWHERE - 2 * _APART  # a place of its own


class Trace(TorchDispatchMode):
    """Follows a net while it runs: `with Trace(units) as trace: trace.name(tensor, …); net(x)`."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        self.units = units
        self.calls = _Calls()
        self.blocks: dict[tuple, Tensor] = {}
        self.used: dict[str, None] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; asking the compiler to stay away would import it, two seconds."""
        return False

    def __enter__(self) -> "Trace":
        self.calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.calls.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        kind = func._schema.name.removeprefix("aten::")
        if torch.Tag.nondeterministic_seeded in func.tags and self.rule(func, kind) is None:
            self.refuse(kind, ": the net draws at random")
        if not any(_is_followed(tensor) for tensor in given):
            return func(*args, **kwargs)
        self.used |= {tensor.parameter: None for tensor in given if hasattr(tensor, "parameter")}
        rule = self.rule(func, kind)
        if rule is None and not func._schema.is_mutable:
            return self.in_smaller_steps(func, kind, args, kwargs)
        if rule is None or "out" in kwargs:
            self.refuse(kind)
        followed = _is_followed(given[0])
        before = self.of(given[0]) if func._schema.is_mutable else []
        out = func(*args, **kwargs)
        said = rule(out, *args, **kwargs)
        moved = kind in _RESHAPES or kind in _MOVES.split()
        if func._schema.is_mutable:
            given[0].source = object()
            given[0].coordinates = self.written(kind, given[0], followed, before, said[0])
        else:
            for result, coordinates in zip(tree_leaves(out), said, strict=False):
                if isinstance(result, Tensor):
                    result.coordinates = coordinates
                    result.source = given[0].source if moved and _is_followed(given[0]) else object()
        return out

    def in_smaller_steps(self, func: Any, kind: str, args: tuple, kwargs: dict) -> Any:
        """An operation without a rule, made of others as PyTorch itself knows how; else it is refused."""
        from torch._decomp import decomposition_table  # not above: it takes a second, and few nets ask for it

        call = self.calls.name
        try:
            with self:
                return decomposition_table[func](*args, **kwargs)
        except (KeyError, NotImplementedError, ShapeError):
            self.calls.name = call
            self.refuse(kind)

    def refuse(self, kind: str, why: str = "") -> None:
        call = self.calls.name
        name = repr(call) if call.strip("_") == kind.strip("_") else f"{call!r} (aten.{kind})"
        why = ": the net branches on data" if kind in _BRANCHES else why
        raise ShapeError(f"cannot trace the operation {name}{why}; {REMEDY}.")

    def written(
        self, kind: str, target: Tensor, followed: bool, before: Coordinates, after: Coordinates
    ) -> Coordinates:
        """What an operation in place leaves. A part of a constant, once written to, is known under no other name."""
        if target.untyped_storage().nbytes() > target.numel() * target.element_size():
            if not followed:
                self.refuse(kind)
            for one in before:
                self.units.mark(one)
        return after

    def on_new_zeros(self, *args: Any, **kwargs: Any) -> list[None]:
        """A new constant, of the shape of something else."""
        return []

    on_new_ones = on_new_full = on_new_empty = on_new_zeros
    on_zeros_like = on_ones_like = on_full_like = on_empty_like = on_new_zeros

    def rule(self, func: Any, kind: str) -> Callable | None:
        """What gives the coordinates of every output: rule(out, *args, **kwargs)."""
        own = getattr(self, f"on_{kind}", None)
        if own is not None:
            return own
        if kind in _RESHAPES:
            return self.reshape
        if kind in _MOVES.split():
            return lambda out, x, *args, **kwargs: self.move(func, out, x, *args, **kwargs)
        if kind in _REDUCES.split():
            return lambda out, *args, **kwargs: self.reduction(_dims(func, args, kwargs), out, args[0])
        if kind in _ALONG.split():
            return lambda out, *args, **kwargs: self.along(_dims(func, args, kwargs), out, args[0])
        if _POOLS.search(kind):
            count = int(_POOLS.search(kind)[2])
            return lambda out, x, *args, **kwargs: self.pool(count, out, x)
        if torch.Tag.pointwise in func.tags or kind in _POINTWISE.split():
            return self.pointwise
        return None

    # -- what entries belong to --

    def of(self, tensor: Tensor | None) -> Coordinates:
        if tensor is None:
            return []
        return tensor.coordinates if _is_followed(tensor) else _of_constant(tensor)

    def meet(self, *operands: Coordinates) -> Coordinates:
        """Entry by entry: what each belongs to must move with what the others belong to. All are broadcast."""
        met: Coordinates = []
        for coordinates in operands:
            axes = max((one.ndim for one in met + coordinates), default=0)
            met = [_padded(one, axes) for one in met]
            for new in coordinates:
                new = _padded(new, axes)
                for old in met:
                    if set(_axes(old)) & set(_axes(new)):
                        self.units.relate(*_joint(old, new))
                met = self.without_repeats([*met, new])
        return met

    def without_repeats(self, coordinates: Coordinates) -> Coordinates:
        """Leave out what follows from the others: the newest one, or one that the newest makes needless."""
        *old, new = coordinates
        mine, new_stays = set(_axes(new)), _stays(new)
        for k, one in enumerate(old):
            its, stays = set(_axes(one)), _stays(one)
            if not mine & its or not (mine <= its or its <= mine):
                continue
            rest = old[:k] + old[k + 1 :]
            if mine == its and stays and new_stays:
                return [*rest, self.both_places(one, new)]
            a, b = (self.units.root(flat) for flat in _joint(one, new))
            if is_function(a, b) and not (new_stays and mine < its):
                replaced = mine < its and self.replaces(new, one, rest)
                replaced = replaced or (new_stays and is_function(b, a))
                return self.without_repeats([*rest, new]) if replaced else old
            if is_function(b, a) and not (stays and its < mine):
                return old if its < mine and self.replaces(one, new, rest) else self.without_repeats([*rest, new])
        return coordinates

    def both_places(self, one: Tensor, other: Tensor) -> Tensor:
        """Two coordinates of places that stay, along the same axes, as one."""
        a, b = _joint(one, other)
        if is_function(a, b):
            return one
        number = np.unique(np.stack([a, b]), axis=1, return_inverse=True)[1].reshape(-1)
        return torch.from_numpy(NOWHERE - 1 - number).view(torch.broadcast_shapes(one.shape, other.shape))

    def replaces(self, small: Tensor, large: Tensor, others: Coordinates) -> bool:
        """Whether an entry is known by `small` as well: places that stay, and `small`, say which unit of `large`."""
        missing = set(_axes(large)) - set(_axes(small))
        fixed = {_axes(one)[0] for one in others if len(_axes(one)) == 1 and _stays(one)}
        return missing <= fixed and _is_injective(small)

    def reduce(self, coordinates: Coordinates, axes: Sequence[int]) -> Coordinates:
        """One entry in place of all along some axes, which stay with length 1: a block of units in place of a unit."""
        kept: Coordinates = []
        for one in coordinates:
            gone = [axis for axis in _axes(one) if axis in axes]
            if not gone:
                kept.append(one)
            elif len(gone) == len(_axes(one)):
                self.units.mark(one)
            else:
                kept += self.rows(one, gone)
        return kept

    def rows(self, one: Tensor, gone: list[int]) -> Coordinates:
        """A coordinate's rows along the axes that go, each as a block."""
        left = [axis for axis in _axes(one) if axis not in gone]
        order = [*left, *(axis for axis in range(one.ndim) if axis not in left)]
        lengths = [one.shape[axis] for axis in left]
        rows = self.units.root(one.permute(order).reshape(math.prod(lengths), -1).numpy().copy())
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        if len(first) == 1:
            self.units.mark(one)
            return []
        names = np.empty(len(first), dtype=np.int64)
        names[np.argsort(first)] = np.arange(len(first))
        number = names[inverse.reshape(-1)]
        if (rows < 0).all():
            blocks = torch.from_numpy(NOWHERE - 1 - number)
        else:
            key = (rows.shape, rows.tobytes())
            if key not in self.blocks:
                self.blocks[key] = torch.from_numpy(number) + self.units.new(len(first))
            blocks = self.blocks[key]
        shape = [one.shape[axis] if axis in left else 1 for axis in range(one.ndim)]
        blocks = blocks.view(shape)
        self.units.relate(*_joint(one, blocks))
        return [blocks]

    def freeze(self, coordinates: Coordinates, axes: Sequence[int]) -> Coordinates:
        """Units along these axes must stay where they are."""
        fixed: Coordinates = []
        for one in coordinates:
            if set(_axes(one)) & set(axes) and (one >= 0).any():
                self.units.fix(one)
                one = torch.where(one < 0, one, NOWHERE - 1 - _APART - one)
            fixed.append(one)
        return fixed

    def spread(self, coordinates: Coordinates, shape: Sequence[int], axes: Sequence[int]) -> Coordinates:
        """Coordinates of entries that have a place along new axes, where they had none."""
        return coordinates + [_places(len(shape), axis, shape[axis]) for axis in axes if shape[axis] > 1]

    # -- what only moves entries --

    def reshape(self, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> list[Coordinates]:
        return [[_compact(one.expand(x.shape).reshape(out.shape)) for one in self.of(x)]]

    def move(self, func: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> list[Coordinates]:
        count = len(out) if isinstance(out, (list, tuple)) else 1
        found: list[Coordinates] = [[] for _ in range(count)]
        kwargs = {name: value for name, value in kwargs.items() if name not in ("dtype", "memory_format")}
        for one in self.of(x):
            moved = func(one.expand(x.shape), *args, **kwargs)
            for k, each in enumerate(moved if isinstance(moved, (list, tuple)) else [moved]):
                found[k].append(_compact(each))
        return [self.closed(coordinates) for coordinates in found]

    def closed(self, coordinates: Coordinates) -> Coordinates:
        """Of a part of a tensor: where units and places share an axis, some pairs may be gone; what is left stays.

        A unit that was picked alone keeps its place.
        """
        kept: Coordinates = []
        for one in coordinates:
            if one.numel() == 1:
                self.units.fix(one)
                continue
            for other in kept:
                if set(_axes(one)) & set(_axes(other)):
                    self.units.relate(*_joint(one, other))
            kept = self.without_repeats([*kept, one])
        return kept

    def on_expand(self, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> list[Coordinates]:
        return [[_padded(one, out.ndim) for one in self.of(x)]]

    def on_constant_pad_nd(self, out: Tensor, x: Tensor, pad: Sequence[int], *args: Any) -> list[Coordinates]:
        """What is added has places of its own, that stay."""
        padded = [x.ndim - 1 - k for k in range(len(pad) // 2) if pad[2 * k] or pad[2 * k + 1]]
        found: Coordinates = []
        for one in self.of(x):
            own = [axis for axis in padded if axis in _axes(one)]
            sides = [pad[k] if x.ndim - 1 - k // 2 in own else 0 for k in range(len(pad))]
            wide = F.pad(one, sides, value=_ELSEWHERE)
            found.append(
                torch.where(wide == _ELSEWHERE, _ELSEWHERE - torch.arange(wide.numel()).view(wide.shape), wide)
            )
        bare = [axis for axis in padded if not any(axis in _axes(one) for one in found)]
        return [self.spread(found, out.shape, bare)]

    def on_cat(self, out: Tensor, pieces: Sequence[Tensor], axis: int = 0) -> list[Coordinates]:
        axis = axis % out.ndim
        pieces = [piece for piece in pieces if piece.numel()]
        columns: dict[tuple, dict[int, Tensor]] = {}
        for k, piece in enumerate(pieces):
            for one in self.of(piece):
                one = _padded(one, out.ndim)
                key = (*(other for other in _axes(one) if other != axis), bool((one < 0).all()))
                while k in columns.setdefault(key, {}):
                    key = (*key, "one more")
                columns[key][k] = one
        lengths = [piece.shape[axis] for piece in pieces]
        found = [self.joined(ones, lengths, axis, out.ndim) for ones in columns.values()]
        same = len({piece.source for piece in pieces if _is_followed(piece)}) == 1 and all(map(_is_followed, pieces))
        told = same and any(axis in _axes(one) and bool((one >= 0).all()) and _is_injective(one) for one in found)
        if len(pieces) > 1 and not told:  # pieces may be different functions of their units
            place = [torch.full([piece.shape[axis]], NOWHERE - 1 - k) for k, piece in enumerate(pieces)]
            found.insert(0, torch.cat(place).view(_length_at(out.ndim, axis)))
        return [self.closed(found)]

    def joined(self, ones: dict[int, Tensor], lengths: list[int], axis: int, axes: int) -> Tensor:
        """The coordinates of some pieces behind one another; the other pieces have none."""
        stays = all(_stays(one) for one in ones.values())
        nothing = torch.full([1] * axes, _ELSEWHERE if stays else NOWHERE)
        parts = [ones.get(k, nothing) for k in range(len(lengths))]
        shape = torch.tensor([part.shape for part in parts]).amax(dim=0).tolist()
        wide = [
            part.expand([*shape[:axis], length, *shape[axis + 1 :]])
            for part, length in zip(parts, lengths, strict=True)
        ]
        return _compact(torch.cat(wide, axis))

    def on_stack(self, out: Tensor, pieces: Sequence[Tensor], axis: int = 0) -> list[Coordinates]:
        axis = axis % out.ndim
        wide = []
        for piece in pieces:
            coordinates = [_padded(one, piece.ndim).unsqueeze(axis) for one in self.of(piece)]
            wide.append(follow(piece.unsqueeze(axis), coordinates))
        return self.on_cat(out, wide, axis)

    def on_index(self, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> list[Coordinates]:
        if any(_is_followed(index) for index in indices if index is not None):
            self.refuse("index")
        return [self.closed([_compact(one.expand(x.shape)[_as_index(indices)]) for one in self.of(x)])]

    def on_index_select(self, out: Tensor, x: Tensor, axis: int, index: Tensor) -> list[Coordinates]:
        return self.on_index(out, x, [*[None] * (axis % x.ndim), index])

    def on_embedding(self, out: Tensor, weight: Tensor, index: Tensor, *args: Any, **kwargs: Any) -> list[Coordinates]:
        rows = self.freeze(self.of(weight), [0])
        units = [one.view([1] * index.ndim + [-1]) for one in self.reduce(rows, [0])]
        return [self.meet(units, [_padded(one, index.ndim).unsqueeze(-1) for one in self.of(index)])]

    # -- what meets, and what is summed --

    def pointwise(self, out: Any, *args: Any, **kwargs: Any) -> list[Coordinates]:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return [self.meet(*(self.of(tensor) for tensor in given))]

    def on_glu(self, out: Tensor, x: Tensor, axis: int = -1) -> list[Coordinates]:
        halves = [one.expand(x.shape).chunk(2, axis) for one in self.of(x)]
        return [self.meet(*(self.closed([_compact(pair[k]) for pair in halves]) for k in (0, 1)))]

    def on_copy_(self, out: Tensor, target: Tensor, source: Tensor, *args: Any) -> list[Coordinates]:
        return [self.of(source)]

    def on_as_strided_(self, out: Tensor, x: Tensor, shape: Sequence[int], *args: Any) -> list[Coordinates]:
        if list(shape) != list(x.shape):
            self.refuse("as_strided_")
        return [self.of(x)]

    def on_fill_(self, *args: Any) -> list[Coordinates]:
        return [[]]

    on_zero_ = on_fill_

    def reduction(self, axes: list[int], out: Any, x: Tensor) -> list[Coordinates]:
        results = tree_leaves(out)
        found = self.reduce([_padded(one, x.ndim) for one in self.of(x)], axes)
        return [found if results[0].ndim == x.ndim else [_squeezed(one, axes) for one in found]] * len(results)

    def along(self, axes: list[int], out: Any, x: Tensor) -> list[Coordinates]:
        """Running sums, and extremes with their indices: they say something of the places along their axis."""
        results = tree_leaves(out)
        found = self.freeze([_padded(one, x.ndim) for one in self.of(x)], axes)
        if results[0].shape != x.shape:
            found = self.reduce(found, axes)
        return [found if results[0].ndim == x.ndim else [_squeezed(one, axes) for one in found]] * len(results)

    def on__softmax(self, out: Tensor, x: Tensor, axis: int, *args: Any) -> list[Coordinates]:
        return [self.normalised(self.of(x), [axis % x.ndim])]

    on__log_softmax = on__softmax

    def normalised(self, coordinates: Coordinates, axes: Sequence[int]) -> Coordinates:
        return self.meet(coordinates, self.reduce(coordinates, axes))

    def on_native_layer_norm(
        self, out: tuple, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, *args: Any
    ) -> list[Coordinates]:
        axes = range(x.ndim - len(shape), x.ndim)
        coordinates = [_padded(one, x.ndim) for one in self.of(x)]
        mean = self.reduce(coordinates, axes)
        return [self.meet(self.normalised(coordinates, axes), self.of(weight), self.of(bias)), mean, mean]

    def on__fused_rms_norm(
        self, out: tuple, x: Tensor, shape: Sequence[int], weight: Tensor | None, *args: Any
    ) -> list[Coordinates]:
        return self.on_native_layer_norm(out, x, shape, weight, None)[:2]

    def on__weight_norm_interface(self, out: tuple, v: Tensor, g: Tensor, axis: int = 0) -> list[Coordinates]:
        others = [other for other in range(v.ndim) if other != axis % v.ndim]
        directions = self.of(v)
        return [self.meet(self.normalised(directions, others), self.of(g)), self.reduce(directions, others)]

    def on_native_batch_norm(self, out: tuple, x: Tensor, *args: Any) -> list[Coordinates]:
        """Arguments: weight, bias, running mean, running variance, whether the batch's own are used, …"""
        own = [self.channels(tensor, x.ndim) for tensor in args[:4] if isinstance(tensor, Tensor)]
        others = [axis for axis in range(x.ndim) if axis != 1]
        read = [_padded(one, x.ndim) for one in self.of(x)]
        return [self.meet(self.normalised(read, others) if args[4] else read, *own), [], []]

    def channels(self, vector: Tensor, axes: int) -> Coordinates:
        return [one.view([1, -1] + [1] * (axes - 2)) for one in self.of(vector)]

    def on_native_group_norm(
        self, out: tuple, x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, places: int,
        groups: int, *_: Any,
    ) -> list[Coordinates]:  # fmt: skip
        wide = [n, groups, c // groups, *x.shape[2:]]
        split = [_compact(one.expand(x.shape).reshape(wide)) for one in self.of(x)]
        normal = self.normalised(split, range(2, len(wide)))
        back = [_compact(one.expand(wide).reshape(x.shape)) for one in normal]
        own = [self.channels(tensor, x.ndim) for tensor in (weight, bias) if tensor is not None]
        return [self.meet(back, *own), [], []]

    def product(self, a: Coordinates, b: Coordinates) -> Coordinates:
        """A matrix product of [..., m, k] and [..., k, n]."""
        axes = max(one.ndim for one in [*a, *b, torch.zeros(1, 1)])
        left = [_padded(one, axes).unsqueeze(-1) for one in a]
        right = [_padded(one, axes).unsqueeze(-3) for one in b]
        return [one.squeeze(-2) for one in self.reduce(self.meet(left, right), [axes - 1])]

    def on_mm(self, out: Tensor, a: Tensor, b: Tensor) -> list[Coordinates]:
        return [[_padded(one, out.ndim) for one in self.product(self.of(a), self.of(b))]]

    on_bmm = on_mm

    def on_addmm(self, out: Tensor, c: Tensor, a: Tensor, b: Tensor, **_: Any) -> list[Coordinates]:
        return [self.meet(self.on_mm(out, a, b)[0], self.of(c))]

    on_baddbmm = on_addmm

    def on_mv(self, out: Tensor, a: Tensor, b: Tensor) -> list[Coordinates]:
        found = self.product(self.of(a), [one.unsqueeze(-1) for one in self.of(b)])
        return [[_padded(one, 2).squeeze(-1) for one in found]]

    def on_dot(self, out: Tensor, a: Tensor, b: Tensor) -> list[Coordinates]:
        return [[one.view([]) for one in self.reduce(self.meet(self.of(a), self.of(b)), [0])]]

    def on__scaled_dot_product_flash_attention_for_cpu(
        self, out: tuple, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, *,
        attn_mask: Tensor | None = None, **_: Any,
    ) -> list[Coordinates]:  # fmt: skip
        if dropout:
            self.refuse("dropout", ": the net draws at random")
        heads = q.shape[1]
        keys, values = (self.repeated(tensor, heads) for tensor in (k, v))
        scores = self.product(self.of(q), [one.mT for one in keys])
        if attn_mask is not None:
            scores = self.meet(scores, self.of(attn_mask))
        weights = self.normalised([_padded(one, 4) for one in scores], [3])
        return [self.product(weights, values), []]

    def repeated(self, tensor: Tensor, heads: int) -> Coordinates:
        """Keys or values [b, h, s, d], each for several queries' heads."""
        times = heads // tensor.shape[1]
        wide = [_padded(one, 4) for one in self.of(tensor)]
        return [one.repeat_interleave(times, 1) if one.shape[1] > 1 else one for one in wide]

    def on_convolution(
        self, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
        transposed: bool, output_padding: Any, groups: int,
    ) -> list[Coordinates]:  # fmt: skip
        spatial = range(2, x.ndim)
        said = self.at_every_place(self.of(x), x.ndim, spatial)
        kernel = self.at_every_place(self.of(weight), weight.ndim, spatial)
        sizes = [x.shape[0], groups, out.shape[1] // groups, x.shape[1] // groups]
        read = [_compact(one.expand(x.shape[:2]).reshape(sizes[0], groups, 1, sizes[3])) for one in said]
        wide = [groups, sizes[3], sizes[2]] if transposed else [groups, sizes[2], sizes[3]]
        held = [_compact(one.expand(weight.shape[:2]).reshape(wide)) for one in kernel]
        held = [one.mT if transposed else one for one in held]
        met = self.reduce(self.meet(read, [_padded(one, 4) for one in held]), [3])
        flat = [_compact(one.expand(*sizes[:3], 1).reshape(out.shape[:2])) for one in met]
        flat = self.meet(flat, self.of(bias))
        full = [_padded(one, 2).view(*_padded(one, 2).shape, *[1] * (x.ndim - 2)) for one in flat]
        return [self.spread(full, out.shape, spatial)]

    def at_every_place(self, coordinates: Coordinates, axes: int, spatial: Sequence[int]) -> Coordinates:
        fixed = self.freeze([_padded(one, axes) for one in coordinates], spatial)
        return [_squeezed(one, spatial) for one in self.reduce(fixed, spatial)]

    def pool(self, count: int, out: Any, x: Tensor) -> list[Coordinates]:
        """Whatever is done to the last `count` axes of every channel alike."""
        spatial = range(x.ndim - count, x.ndim)
        kept = self.reduce(self.freeze([_padded(one, x.ndim) for one in self.of(x)], spatial), spatial)
        results = tree_leaves(out)
        return [self.spread(kept, results[0].shape, spatial)] * len(results)


class Reads(Trace):
    """Follows a model on examples, and keeps what it multiplies: `reads`, pairs of a tensor and its coordinates."""

    def __init__(self, units: Units) -> None:
        super().__init__(units)
        self.reads: list[tuple[Tensor, Coordinates]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        spoken = [tensor for tensor in given if hasattr(tensor, "of_examples")]
        if _PRODUCTS.search(func._schema.name):
            self.reads += [(tensor.detach(), tensor.coordinates) for tensor in spoken]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for result in tree_leaves(out) if spoken else []:
            if isinstance(result, Tensor):
                result.of_examples = True
        return out


class Float64(TorchDispatchMode):
    """What a net computes in less than float64, it computes in float64."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*args, **in_float64(kwargs))


def in_float64(kwargs: dict | None) -> dict:
    """The settings of an operation, with float64 for any smaller type."""
    kwargs = kwargs or {}
    small = kwargs.get("dtype") in (torch.float32, torch.float16, torch.bfloat16)
    return {**kwargs, "dtype": torch.float64} if small else kwargs


def follow(tensor: Tensor, coordinates: Coordinates) -> Tensor:
    """The same tensor under a name of its own, from now on followed."""
    tensor = tensor.view_as(tensor)
    tensor.source, tensor.coordinates = object(), coordinates
    return tensor


def of_parameter(tensor: Tensor, name: str, numbers: Sequence[Tensor]) -> Tensor:
    """A parameter whose axes have these units; the trace notes its name when it is used."""
    tensor = follow(tensor, [one.view(_length_at(tensor.ndim, k)) for k, one in enumerate(numbers) if len(one) > 1])
    tensor.parameter = name
    return tensor


def of_examples(x: Tensor) -> Tensor:
    """A batch of examples: everything in it has its place."""
    x = follow(x, [_places(x.ndim, axis, length) for axis, length in enumerate(x.shape) if length > 1])
    x.of_examples = True
    return x


class _Calls(TorchFunctionMode):
    """Knows the name of the function that is at work, as the net calls it."""

    name = "?"

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.name = getattr(func, "__name__", str(func))
        return func(*args, **(kwargs or {}))


def _is_followed(tensor: Tensor) -> bool:
    return hasattr(tensor, "coordinates")


def _of_constant(tensor: Tensor) -> Coordinates:
    """A tensor that no parameter and no example has touched: what differs along an axis has its place there."""
    found = []
    for axis in range(tensor.ndim):
        first = tensor.narrow(axis, 0, 1) if tensor.numel() else tensor
        if tensor.shape[axis] > 1 and not torch.equal(first.expand_as(tensor), tensor):
            found.append(_places(tensor.ndim, axis, tensor.shape[axis]))
    return found


def _axes(one: Tensor) -> list[int]:
    """Along which axes a coordinate differs."""
    return [axis for axis, length in enumerate(one.shape) if length > 1]


def _padded(one: Tensor, axes: int) -> Tensor:
    """As of a tensor with more axes: new ones lead."""
    return one.view([1] * (axes - one.ndim) + list(one.shape)) if one.ndim < axes else one


def _squeezed(one: Tensor, axes: Sequence[int]) -> Tensor:
    return one.reshape([length for axis, length in enumerate(one.shape) if axis not in axes])


def _is_injective(one: Tensor) -> bool:
    return one.unique().numel() == one.numel()


def _stays(one: Tensor) -> bool:
    """Whether a coordinate says the places of all entries, and nothing of units."""
    return bool((one < NOWHERE).all())


def _places(axes: int, axis: int, length: int) -> Tensor:
    """The places along one axis, that stay."""
    return (NOWHERE - 1 - torch.arange(length)).view(_length_at(axes, axis))


def _length_at(axes: int, axis: int) -> list[int]:
    """The shape of a vector along one of so many axes."""
    return [-1 if other == axis else 1 for other in range(axes)]


def _compact(one: Tensor) -> Tensor:
    """Length 1 along every axis on which nothing differs."""
    for axis, length in enumerate(one.shape):
        first = one.narrow(axis, 0, min(length, 1))
        if length > 1 and (one.stride(axis) == 0 or torch.equal(first.expand_as(one), one)):
            one = first
    return one


def _joint(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates of one tensor, beside each other: flat, one pair for every entry."""
    a, b = torch.broadcast_tensors(a, b)
    return a.reshape(-1).numpy(), b.reshape(-1).numpy()


def _as_index(indices: Sequence[Tensor | None]) -> tuple:
    return tuple(slice(None) if index is None else index for index in indices)


def _dims(func: Any, args: tuple, kwargs: dict) -> list[int]:
    """The axes that an operation names as its dim, or all."""
    names = [argument.name for argument in func._schema.arguments]
    dim = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim")
    axes = args[0].ndim
    if dim is None or dim == []:
        return list(range(axes))
    return [axis % axes for axis in ([dim] if isinstance(dim, int) else dim)]
