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
_ALONG = "cumsum cumprod cummax cummin logcumsumexp"
_CHOICES = "max min argmax argmin sort topk kthvalue median nanmedian mode"
_TRANSFORMS = "_fft_c2c _fft_r2c _fft_c2r"
_ASSEMBLED = "gather scatter scatter_add scatter_reduce index_add index_copy index_fill"
_POOLS = re.compile(r"(max_pool|avg_pool|upsample|reflection_pad|replication_pad).*([123])d")
_POINTWISE = "complex polar hardswish hardswish_ hardtanh hardtanh_ elu celu masked_fill masked_fill_ where"
_PRODUCTS = re.compile(r"::(mm|addmm|bmm|baddbmm|mv|convolution|_scaled_dot_product\w*)$")
_BRANCHES = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")
_LEAVES = ("tolist", "numpy", "__array__")
_DROPOUTS = "dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d"
_APART = 2**40  # between places that were always ones, and units that have become one
_ELSEWHERE = NOWHERE - 2 * _APART  # a place of its own


class Trace(TorchDispatchMode):
    """Follows a net while it runs: `with Trace(units) as trace: trace.name(tensor, …); net(x)`."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        self.units = units
        self.calls = _Calls(self)
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
        for tensor in given:
            if hasattr(tensor, "chosen_from"):  # places that something looks at
                self.freeze(*tensor.chosen_from)
        self.used |= {tensor.parameter: None for tensor in given if hasattr(tensor, "parameter")}
        rule = self.rule(func, kind)
        if rule is None and not func._schema.is_mutable:
            return self.in_smaller_steps(func, kind, args, kwargs)
        if rule is None or "out" in kwargs:
            self.refuse(kind)
        wholes = self.wholes(kind, given[0]) if func._schema.is_mutable else []
        if func._schema.is_mutable and not _is_followed(given[0]):
            given[0].coordinates = self.of(given[0])  # now: as a constant it is known by its numbers
        out = func(*args, **kwargs)
        said = rule(out, *args, **kwargs)
        moved = kind in _RESHAPES or kind in _MOVES.split()
        if func._schema.is_mutable:
            given[0].source = object()
            given[0].coordinates = said[0]
            for whole, before in wholes:
                whole.coordinates = self.put(whole, before, _offsets(given[0]), said[0])
                whole.source = object()
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
        why = ": the net branches on data" if kind in _BRANCHES else why or ": there is no rule for it"
        raise ShapeError(f"cannot trace the operation {name}{why}; {REMEDY}.")

    def wholes(self, kind: str, target: Tensor) -> list[tuple[Tensor, Coordinates]]:
        """The tensors that a target is a part or a view of, as they were before it is written to."""
        found = {id(whole): whole for whole in (self.calls.target, target._base) if _is_view(target, whole)}
        if not found and not _is_followed(target) and target.untyped_storage().nbytes() > target.nbytes:
            self.refuse(kind, ": it writes into a part of a constant that goes by another name")
        return [(whole, self.of(whole)) for whole in found.values()]

    def put(self, whole: Tensor, before: Coordinates, written: Tensor, inside: Coordinates) -> Coordinates:
        """What a tensor holds after a part of it was written to: as if the part and the rest were put together anew.

        written [part]: where in memory the part's entries stand.
        """
        outside = [_padded(one, whole.ndim).expand(whole.shape) for one in before]
        where = _offsets(whole)
        touched = torch.isin(where, written)
        places = [touched.movedim(axis, 0).flatten(1).any(1).nonzero().flatten() for axis in range(whole.ndim)]
        box = [len(own) for own in places]
        if math.prod(box) != written.numel() or int(touched.sum()) != written.numel():
            self.refuse(self.calls.name, ": it writes into a part that is no box of places")
        stands, order = written.flatten().sort()
        entries = order[torch.searchsorted(stands, _taken(where, places).flatten())]
        middle = [_padded(one, written.ndim).expand(written.shape).flatten() for one in inside]
        middle = [_compact(one[entries].view(box)) for one in middle]
        for axis in reversed(range(whole.ndim)):
            if box[axis] == whole.shape[axis]:
                continue
            others = torch.ones(whole.shape[axis], dtype=torch.bool)
            others[places[axis]] = False
            rest = others.nonzero().flatten()
            around = [_compact(_taken(one, [*places[:axis], rest])) for one in outside]
            sizes = [*box[:axis], -1, *whole.shape[axis + 1 :]]
            pieces = [_blank(sizes, axis, len(places[axis]), middle), _blank(sizes, axis, len(rest), around)]
            (joined,) = self.on_cat(_blank(sizes, axis, len(others), []), pieces, axis)
            order = torch.cat([places[axis], rest]).argsort()
            middle = [one.index_select(axis, order) if one.shape[axis] > 1 else one for one in joined]
        return middle

    def on_index_put(
        self, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
    ) -> list[Coordinates]:
        mask = indices[0]
        if len(indices) == 1 and mask is not None and mask.dtype == torch.bool and values.numel() == 1:
            at = [_padded(one, mask.ndim) for one in self.of(mask)]
            return [self.meet(self.of(x), [one.view(*one.shape, *[1] * (x.ndim - mask.ndim)) for one in at])]
        if accumulate or any(_is_followed(index) for index in indices if index is not None):
            self.refuse("index_put")
        return [self.put(x, self.of(x), _offsets(x)[_as_index(indices)], self.of(values))]

    on_index_put_ = on_index_put

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
        if kind in _CHOICES.split():
            return lambda out, *args, **kwargs: self.choice(_dims(func, args, kwargs), out, args[0])
        if kind in _TRANSFORMS.split():
            return lambda out, *args, **kwargs: self.over_places(_dims(func, args, kwargs), out, args[0])
        if kind in _ASSEMBLED.split():
            return lambda out, *args, **kwargs: self.assembled(_dims(func, args, kwargs), out, *args, **kwargs)
        if _POOLS.search(kind):
            count = int(_POOLS.search(kind)[2])
            return lambda out, x, *args, **kwargs: self.over_places(range(x.ndim - count, x.ndim), out, x)
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
        """Units along these axes must stay where they are; those of several rows may move row by row."""
        fixed: Coordinates = []
        for one in coordinates:
            own = [axis for axis in _axes(one) if axis in axes]
            if own and len(own) == len(_axes(one)) and (one >= 0).any():
                self.units.fix(one)
                one = torch.where(one < 0, one, NOWHERE - 1 - _APART - one)
            elif own and (one >= 0).any():
                self.rows(one, own)
                for axis in own:
                    self.units.relate(*_joint(one, _places(one.ndim, axis, one.shape[axis])))
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
        if not any(_is_followed(index) for index in indices if index is not None):
            return [self.closed([_compact(one.expand(x.shape)[_as_index(indices)]) for one in self.of(x)])]
        axes = [axis for axis, index in enumerate(indices) if index is not None]
        if any(index is not None and index.dtype == torch.bool for index in indices):
            self.refuse("index", ": how many entries it takes depends on the data")
        new = max(index.ndim for index in indices if index is not None)
        start = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
        kept = self.reduce(self.freeze([_padded(one, x.ndim) for one in self.of(x)], axes), axes)
        left = [list(_squeezed(one, axes).shape) for one in kept]
        read = [one.reshape([*rest[:start], *[1] * new, *rest[start:]]) for one, rest in zip(kept, left, strict=True)]
        behind = [1] * (out.ndim - start - new)
        asked = [[_padded(one, new) for one in self.of(index)] for index in indices if index is not None]
        return [self.meet(read, *([one.view(*one.shape, *behind) for one in own] for own in asked))]

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

    def on__conj(self, out: Tensor, x: Tensor) -> list[Coordinates]:
        return [self.of(x)]

    on__neg_view = on__conj

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
        """Running sums: they say something of the places along their axis."""
        return [self.freeze([_padded(one, x.ndim) for one in self.of(x)], axes)] * len(tree_leaves(out))

    def choice(self, axes: list[int], out: Any, x: Tensor) -> list[Coordinates]:
        """Extremes, or all values in order. The values do not say where they stood; their indices do, when asked."""
        results = tree_leaves(out)
        given = [_padded(one, x.ndim) for one in self.of(x)]
        found = self.reduce(given, axes)
        if results[0].ndim == x.ndim:
            found = self.spread(found, results[0].shape, axes)
        else:
            found = [_squeezed(one, axes) for one in found]
        for result in results:
            if not result.is_floating_point():
                result.chosen_from = (given, axes)
        return [found] * len(results)

    def on__softmax(self, out: Tensor, x: Tensor, axis: int, *args: Any) -> list[Coordinates]:
        return [self.normalised(self.of(x), [axis % x.ndim])]

    on__log_softmax = on__safe_softmax = on__softmax

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

    def over_places(self, axes: Sequence[int], out: Any, x: Tensor) -> list[Coordinates]:
        """Whatever is done along some axes, to all rows alike: pooling, resizing, a Fourier transform."""
        kept = self.reduce(self.freeze([_padded(one, x.ndim) for one in self.of(x)], axes), axes)
        results = tree_leaves(out)
        return [self.spread(kept, results[0].shape, axes)] * len(results)

    def on_max_unpool2d(self, out: Tensor, x: Tensor, index: Tensor, *args: Any) -> list[Coordinates]:
        axes = range(x.ndim - 2, x.ndim)
        return [self.meet(*(self.over_places(axes, out, tensor)[0] for tensor in (x, index)))]

    def assembled(self, axes: list[int], out: Tensor, *args: Any, **kwargs: Any) -> list[Coordinates]:
        """Entries taken from or put to numbered places along one axis: these places stay, and all else meets."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim == out.ndim]
        for tensor in given:
            if any(tensor.shape[axis] != n for axis, n in enumerate(out.shape) if axis not in axes):
                self.refuse("gather or scatter", ": it leaves out some places of the other axes")
        return [self.meet(*(self.over_places(axes, out, tensor)[0] for tensor in given))]

    def on__trilinear(
        self, out: Tensor, a: Tensor, b: Tensor, c: Tensor, new_a: Sequence[int], new_b: Sequence[int],
        new_c: Sequence[int], summed: Sequence[int], *_: Any,
    ) -> list[Coordinates]:  # fmt: skip
        wide = [self.with_axes(tensor, new) for tensor, new in ((a, new_a), (b, new_b), (c, new_c))]
        return [[_squeezed(one, summed) for one in self.reduce(self.meet(*wide), summed)]]

    def with_axes(self, tensor: Tensor, new: Sequence[int]) -> Coordinates:
        """Coordinates with new axes of length 1."""
        found = [_padded(one, tensor.ndim) for one in self.of(tensor)]
        for axis in new:
            found = [one.unsqueeze(axis) for one in found]
        return found

    def on__cdist_forward(self, out: Tensor, a: Tensor, b: Tensor, *args: Any) -> list[Coordinates]:
        return [self.product(self.of(a), [_padded(one, 2).mT for one in self.of(b)])]

    def on_im2col(self, out: Tensor, x: Tensor, *args: Any) -> list[Coordinates]:
        """Windows of an image: [..., channels × places in a window, windows]."""
        spatial = (x.ndim - 2, x.ndim - 1)
        wide = [*x.shape[:-2], out.shape[-2] // x.shape[-3], out.shape[-1]]
        kept = self.reduce(self.freeze([_padded(one, x.ndim) for one in self.of(x)], spatial), spatial)
        found = self.spread(kept, wide, spatial)
        return [[_compact(one.expand(wide).reshape(out.shape)) for one in found]]

    def on_col2im(self, out: Tensor, x: Tensor, *args: Any) -> list[Coordinates]:
        wide = [*out.shape[:-2], x.shape[-2] // out.shape[-3], x.shape[-1]]
        split = [_compact(_padded(one, x.ndim).expand(x.shape).reshape(wide)) for one in self.of(x)]
        spatial = (out.ndim - 2, out.ndim - 1)
        return [self.spread(self.reduce(self.freeze(split, spatial), spatial), out.shape, spatial)]

    def on_affine_grid_generator(self, out: Tensor, theta: Tensor, *args: Any) -> list[Coordinates]:
        kept = self.reduce(self.freeze([_padded(one, 3) for one in self.of(theta)], (1, 2)), (1, 2))
        examples = [one.view(-1, *[1] * (out.ndim - 1)) for one in kept]
        return [self.spread(examples, out.shape, range(1, out.ndim))]

    def on_grid_sampler_2d(self, out: Tensor, x: Tensor, grid: Tensor, *args: Any) -> list[Coordinates]:
        """An image [n, channels, ...] at the places that a grid [n, ..., coordinates] names."""
        spatial, last = range(2, x.ndim), [x.ndim - 1]
        read = self.reduce(self.freeze([_padded(one, x.ndim) for one in self.of(x)], spatial), spatial)
        asked = self.reduce(self.freeze([_padded(one, x.ndim) for one in self.of(grid)], last), last)
        return [self.spread(self.meet(read, [one.movedim(-1, 1) for one in asked]), out.shape, spatial)]

    on_grid_sampler_3d = on_grid_sampler_2d

    def on_view_as_complex(self, out: Tensor, x: Tensor) -> list[Coordinates]:
        last = [x.ndim - 1]
        return [[_squeezed(one, last) for one in self.over_places(last, out.unsqueeze(-1), x)[0]]]

    def on_view_as_real(self, out: Tensor, x: Tensor) -> list[Coordinates]:
        pairs = [_padded(one, x.ndim).unsqueeze(-1) for one in self.of(x)]
        return [self.spread(pairs, out.shape, [x.ndim])]


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


class NoDropout(TorchFunctionMode):
    """Dropout that a net never turns off is off, as it is in eval mode elsewhere."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name.removesuffix("_") in _DROPOUTS.split():
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            args, kwargs = (*args[:4], *([0.0] if len(args) > 4 else []), *args[5:]), {**kwargs}
            kwargs |= {"dropout_p": 0.0} if "dropout_p" in kwargs else {}
        return func(*args, **kwargs)


def in_float64(kwargs: dict | None) -> dict:
    """The settings of an operation, with float64 for any smaller type."""
    kwargs = kwargs or {}
    if kwargs.get("dtype") in (torch.float32, torch.float16, torch.bfloat16):
        return {**kwargs, "dtype": torch.float64}
    return {**kwargs, "dtype": torch.complex128} if kwargs.get("dtype") == torch.complex64 else kwargs


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
    """Knows the name of the function that is at work, as the net calls it, and what is assigned to."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.name = "?"
        self.target: Tensor | None = None
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.name = getattr(func, "__name__", str(func))
        self.target = args[0] if self.name == "__setitem__" else None
        if self.name in _LEAVES and _is_followed(args[0]):
            self.trace.refuse(self.name, ": numbers that leave the net are followed no further")
        if func is F.one_hot and len(args) > 1 and _is_followed(args[0]):  # its check of the range would be a branch
            return (args[0].unsqueeze(-1) == torch.arange(args[1])).long()
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


def _is_view(part: Tensor, whole: Tensor | None) -> bool:
    """Whether a tensor is another one's memory, or a piece of it."""
    if whole is None or whole is part:
        return False
    return whole.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()


def _offsets(tensor: Tensor) -> Tensor:
    """Where in memory every entry stands."""
    found = torch.tensor(tensor.storage_offset())
    for length, step in zip(tensor.shape, tensor.stride(), strict=True):
        found = found.unsqueeze(-1) + step * torch.arange(length)
    return found


def _blank(sizes: list[int], axis: int, length: int, coordinates: Coordinates) -> Tensor:
    """A tensor without numbers, of which only the shape and the coordinates count."""
    return follow(torch.zeros(()).expand([*sizes[:axis], length, *sizes[axis + 1 :]]), coordinates)


def _taken(one: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Some places of the first axes."""
    for axis, own in enumerate(places):
        one = one.index_select(axis, own)
    return one


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
    known = {argument.name: argument.default_value for argument in func._schema.arguments}
    dim = {**known, **dict(zip(known, args, strict=False)), **kwargs}.get("dim")
    axes = args[0].ndim
    if dim is None or dim == []:
        return list(range(axes))
    return [axis % axes for axis in ([dim] if isinstance(dim, int) else dim)]
