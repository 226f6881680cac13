"""The nets of torchvision, the smallest of each family: which are traced, and what was found in them."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from paramarket.align.specs import permutation_spec
from paramarket.align.symmetry import sizes
from paramarket.data import torchvision
from paramarket.errors import ParameterError, ShapeError, unknown

FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn",
    "vit_b_16", "wide_resnet50_2",
]  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One net. found: "traced", or why not · orders: permutations, `in_blocks` of them moving with another's blocks."""

    name: str
    found: str
    parameters: int
    orders: int
    in_blocks: int
    seconds: float

    def __str__(self) -> str:
        share = f"{self.orders} permutations, {self.in_blocks} in blocks"
        return f"{self.name}: {self.found}, {share}, {self.seconds:.1f} s"


def families(names: Iterable[str] = FAMILIES) -> Iterator[Family]:
    """One torchvision model after another, on one image of its size. Raises ParameterError for an unknown name."""
    models = torchvision().models
    for name in names:
        if name not in models.list_models(module=models):
            raise ParameterError(unknown("model", name, models.list_models(module=models)))
        settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        net = models.get_model(name, weights=None, **settings)
        side = 299 if name == "inception_v3" else 224
        count = sum(parameter.numel() for parameter in net.parameters())
        start = time.perf_counter()
        try:
            spec = permutation_spec(net, torch.zeros(1, 3, side, side))
        except ShapeError as error:
            yield Family(name, f"refused: {error}", count, 0, 0, time.perf_counter() - start)
            continue
        seconds = time.perf_counter() - start
        tensors = {**dict(net.named_parameters()), **{n: b for n, b in net.named_buffers() if b.is_floating_point()}}
        yield Family(name, "traced", count, len(sizes(spec, tensors)), len(spec.outer), seconds)


def families_page(rows: Sequence[Family]) -> str:
    """A page in Markdown: a table, one row a net."""
    lines = []
    for row in rows:
        numbers = f"{row.parameters / 1e6:.1f} | {row.orders} | {row.in_blocks} | {row.seconds:.1f}"
        lines.append(f"| {row.name} | {row.found} | {numbers} |")
    traced = sum(row.found == "traced" for row in rows)
    head = f"""# The symmetries of torchvision's models

Made by `python -m paramarket symmetries`, with torch {torch.__version__.partition("+")[0]} on a CPU. The smallest
model of each family, traced by `align.permutation_spec` on one image: {traced} of {len(rows)}. Of every one that is
traced, a model with random weights answers as before, to 1e-10 in float64, when all its units are reordered at random.
A permutation in blocks moves with those of another: the units of a head with the head. Seconds are those of one run,
verification included.

| model | outcome | parameters (millions) | permutations | of them in blocks | seconds |
|---|---|---|---|---|---|
"""
    return head + "\n".join(lines) + "\n"
