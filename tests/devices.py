"""A second device for machines that have none: its tensors hold real numbers, and never meet the CPU's unasked.

What a GPU refuses, this device refuses: an operation on tensors of two devices, a CPU generator that draws for it,
`numpy()` of what is not on the CPU. So a function that runs here, and gives the CPU's numbers, moves what it has to:

    with second_device() as device:
        away = stack.map(lambda tensor: tensor.to(device), models)
        score = train.evaluate(net, away, split)  # the split stays on the CPU
    assert torch.equal(score.loss, train.evaluate(net, models, split).loss)

torch.func (any net that is no MLP) is not served.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"  # torch lets one device be brought along, under any name
_setup_privateuseone_for_python_backend(NAME)
OTHER = torch.device(NAME, 0)
TAKES_CPU_INDICES = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
MOVES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


@contextmanager
def second_device():
    """Inside, tensors may be made on, and moved to, the device that it gives."""
    with _Everywhere():
        yield OTHER


class Away(torch.Tensor):
    """A tensor on the other device, around one on the CPU that holds its numbers."""

    @staticmethod
    def __new__(cls, held):
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device=OTHER, **shape)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """So that what makes a tensor out of nothing (`torch.zeros(…, device=…)`) is seen, too."""

    @classmethod
    def _should_skip_dynamo(cls):
        """Nothing is compiled here; asking the compiler to stay away would import it, two seconds."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    """One operation, on the CPU's numbers; its result is away if a device says so, or else if what it is made of is."""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    any_away = any(isinstance(each, Away) for each in tensors)
    if not any_away and kwargs.get("device") is None:
        return func(*args, **kwargs)
    result_away = any_away
    if kwargs.get("device") is not None:
        result_away = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    name = func.overloadpacket.__name__
    if result_away and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{name}: a generator of the CPU cannot draw on {NAME!r}.")
    if any_away and func not in MOVES:
        _refuse_two_devices(name, args, tensors)
    out = func(*_held(args), **_held(kwargs))
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if not result_away:
        return out
    wrapped = tree_map(lambda each: Away(each) if isinstance(each, torch.Tensor) else each, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if any_away else wrapped


def _refuse_two_devices(name, args, tensors):
    """A tensor away may be indexed by the CPU's numbers, and meet a single number of the CPU; nothing else."""
    if name in TAKES_CPU_INDICES and isinstance(args[0], Away):
        tensors = [args[0], *args[2:3]]
    if any(not isinstance(each, Away) and each.ndim for each in tensors if isinstance(each, torch.Tensor)):
        raise RuntimeError(f"{name}: expected all tensors on one device, got {NAME!r} and the CPU.")


def _held(values):
    return tree_map(lambda each: each.held if isinstance(each, Away) else each, values)
