"""What may happen to images: domains, the same images seen through another camera."""

from collections.abc import Callable, Mapping
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

from paramarket.base import stream
from paramarket.data import sources
from paramarket.data.splits import Split
from paramarket.errors import ShapeError

Domain = Callable[[Tensor, torch.Generator], Tensor]  # images [n, channels, height, width], as another camera sees them


def rotate(x: Float[Tensor, "n channels height width"], degrees: float) -> Float[Tensor, "n channels height width"]:
    """Images turned counter-clockwise about their centre, bilinear, on the background.

    Raises ShapeError for what is no images.
    """
    _check_images("rotate", x)
    return _turn(x, angle=-float(degrees), shear=0.0)


def rotate_split(split: Split, degrees: float) -> Split:
    """The same labels for the same images, turned (see `rotate`)."""
    return Split(rotate(split.x, degrees), split.y)


def _check_images(name: str, x: Tensor, least: int = 1) -> None:
    """ShapeError, naming the domain, unless x holds images of `least` pixels or more each way."""
    if x.ndim != 4 or 0 in x.shape or min(x.shape[2:]) < least:
        size = "" if least == 1 else f" of {least}×{least} pixels or more"
        raise ShapeError(f"{name} needs images [n, channels, height, width]{size}, got shape {tuple(x.shape)}.")


def _turn(x: Tensor, angle: float, shear: float) -> Tensor:
    """Turned and sheared with the background at 0 in between: torchvision fades to 0 at the border."""
    v2 = _transforms()
    low = x.min()
    turned = v2.functional.affine(
        x - low,
        angle=angle,
        translate=[0, 0],
        scale=1.0,
        shear=[shear, 0.0],
        interpolation=v2.InterpolationMode.BILINEAR,
    )
    return low + turned


def _transforms() -> ModuleType:
    """torchvision's, imported when first needed: it takes longer than all the rest."""
    sources.torchvision()
    from torchvision.transforms import v2

    return v2


def _occlude(x: Tensor, generator: torch.Generator) -> Tensor:
    """A square of a third of the shorter side is hidden, in each image elsewhere."""
    _check_images("occlude", x)
    n, _, height, width = x.shape
    side = max(1, min(height, width) // 3)
    top, left = (torch.randint(0, size - side + 1, (n, 1), generator=generator) for size in (height, width))
    rows = torch.arange(height)
    columns = torch.arange(width)
    hidden_rows = (rows >= top) & (rows < top + side)  # [n, height]
    hidden_columns = (columns >= left) & (columns < left + side)  # [n, width]
    hidden = hidden_rows[:, None, :, None] & hidden_columns[:, None, None, :]
    return torch.where(hidden, x.min(), x)


def _edges(x: Tensor, generator: torch.Generator) -> Tensor:
    """Strength of Sobel's gradient, stretched over the range of the images."""
    _check_images("edges", x)
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    kernels = torch.stack([sobel, sobel.T])[:, None].repeat(x.shape[1], 1, 1, 1)
    slopes = conv2d(pad(x, (1, 1, 1, 1), mode="replicate"), kernels, groups=x.shape[1])
    strength = slopes.unflatten(1, (x.shape[1], 2)).norm(dim=2)
    return x.min() + (x.max() - x.min()) * strength / strength.amax().clamp_min(1e-12)


def _permute_pixels(x: Tensor, generator: torch.Generator) -> Tensor:
    """One random order of the pixels for all images; equal generators, equal orders."""
    _check_images("permute-pixels", x)
    order = torch.randperm(x[0, 0].numel(), generator=generator)
    return x.flatten(2)[..., order].view_as(x)


def _half_a_quarter(x: Tensor, generator: torch.Generator) -> Tensor:
    _check_images("rotate", x)
    return rotate(x, 45.0)


def _shear(x: Tensor, generator: torch.Generator) -> Tensor:
    _check_images("shear", x)
    return _turn(x, angle=0.0, shear=30.0)


def _blur(x: Tensor, generator: torch.Generator) -> Tensor:
    _check_images("blur", x, least=3)  # its edges are mirrored, two pixels deep
    return _transforms().functional.gaussian_blur(x, kernel_size=[5, 5], sigma=[1.5, 1.5])


# name -> what it makes of images x [n, channels, height, width]; what is random comes from the generator alone. What
# looks at no neighbours takes any numbers [n, ...], too.
DOMAINS: dict[str, Domain] = {
    "upright": lambda x, generator: x,
    "rotate": _half_a_quarter,
    "invert": lambda x, generator: x.max() + x.min() - x,
    "noise": lambda x, generator: x + 0.7 * torch.randn(x.shape, generator=generator),
    "blur": _blur,
    "occlude": _occlude,
    "shear": _shear,
    "edges": _edges,
    "permute-pixels": _permute_pixels,
}


def in_domains(split: Split, domains: Mapping[str, Domain], *, seed: int) -> list[Split]:
    """One split in every domain (see `DOMAINS`), the same images and labels in each.

    seed: what is random in a domain comes from (seed, its name) alone, so a domain looks alike in all splits
    """
    return [Split(make(split.x, stream(seed, "domain", name)), split.y) for name, make in domains.items()]
