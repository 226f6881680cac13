"""A folder of pictures by class. Whatever lies in it is used, or refused by its name: nothing is left out in silence.

A pixel is a share of its own range, an orientation in EXIF is carried out, and what is transparent shows white paper.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from paramarket.data.raw import Raw
from paramarket.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
MOST_PIXELS = 2**26  # of one picture: 8,192 by 8,192
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "__macosx"}  # systems leave it, nobody put it there
_GREY = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B"}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339  # tags, TIFF 6.0
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def read_folder(path: Path) -> Raw:
    """One folder per class, its name the class; pictures all of one size, grey or in colour."""
    folders = [each for each in _listed(path) if each.is_dir()]
    loose = [each for each in _listed(path) if not each.is_dir()]
    endings = ", ".join(sorted(ENDINGS))
    if not folders:
        raise DataError(f"{path} holds no images: expected one folder per class with {endings} in it.")
    if loose:
        raise DataError(f"{loose[0]} lies beside the folders of the classes: move it into one of them, or away.")
    images, labels = [], []
    first = None
    for label, folder in enumerate(folders):
        files = list(_pictures(folder))
        if not files:
            raise DataError(f"{folder} holds no images: expected {endings} in it. Fill it, or remove it.")
        for file in files:
            image = _read(file)
            first = first or file
            if images and image.shape != images[0].shape:
                raise DataError(f"ragged images: {file} is {_size(image)}, but {first} is {_size(images[0])}.")
            images.append(image)
            labels.append(label)
    return Raw(torch.stack(images), torch.tensor(labels), tuple(folder.name for folder in folders))


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, by name, but for what systems leave behind."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error}).") from error
    return [each for each in found if each.name.lower() not in _LITTER and not each.name.startswith("._")]


def _pictures(folder: Path) -> Iterator[Path]:
    for file in _listed(folder):
        if file.is_dir():
            raise DataError(f"{file} is a folder within a class: move its images up, or make it a class of its own.")
        if file.name.startswith("."):
            raise DataError(f"{file} is hidden: rename it if it is an image of the class, or remove it.")
        if file.suffix.lower() not in ENDINGS:
            raise DataError(f"{file} is of no kind that is read: expected {', '.join(sorted(ENDINGS))}. Move it away.")
        if not file.is_file():
            raise DataError(f"{file} is no file: it is a link to nothing, or a device.")
        yield file


def _read(file: Path) -> Tensor:
    """A picture as shares of white [channels, height, width], float32."""
    from PIL import Image, ImageOps

    try:
        # opened here: what Pillow opens itself it may map into memory, and TIFF files that lie on a side come out torn
        with warnings.catch_warnings(action="ignore"), file.open("rb") as opened, Image.open(opened) as stored:
            _check_kind(file, stored)
            most = _largest(stored)
            inverted = _is_inverted(stored)
            image = ImageOps.exif_transpose(stored)
            pixels = _shares(image, most)
    except DataError:
        raise
    except Exception as error:  # each of Pillow's readers has errors of its own for what is damaged
        raise DataError(f"{file} is no readable image ({error or type(error).__name__}).") from error
    if pixels is None:
        raise DataError(f"{file} is white on a transparent ground: nothing of it shows on white. Give it a ground.")
    pixels = 1 - pixels if inverted else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))


def _check_kind(file: Path, image: "Image") -> None:
    """DataError for a picture that is too large, moves, or whose pixels have no range of their own."""
    if image.width * image.height > MOST_PIXELS:
        raise DataError(f"{file} is {image.width}×{image.height}: more than {MOST_PIXELS:,} pixels. Make it smaller.")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's MPO: the picture, then its previews
        raise DataError(f"{file} holds {image.n_frames} pictures: expected one. Save them one by one.")
    signed = _tiff(image, _TIFF_SAMPLE_FORMAT, _UNSIGNED) != _UNSIGNED
    if image.mode in ("I", "F") or signed:
        kind = "floating-point numbers" if image.mode == "F" else "whole numbers with a sign, or of 32 bits"
        raise DataError(f"{file} holds {kind}, and not what is white: save it with 8 or 16 bits a pixel.")


def _tiff(image: "Image", tag: int, default: int) -> int:
    """What a TIFF file says under a tag, of the first channel."""
    found = getattr(image, "tag_v2", {}).get(tag, default)
    return found[0] if isinstance(found, tuple) else found


def _largest(image: "Image") -> int:
    """What a pixel of 16 bits is at most: a TIFF file may use 12 of them."""
    return 2 ** min(_tiff(image, _TIFF_BITS, 16), 16) - 1


def _is_inverted(image: "Image") -> bool:
    """Whether 0 is white; with 8 bits Pillow has seen to it."""
    return image.mode.startswith("I;16") and _tiff(image, _TIFF_PHOTOMETRIC, 1) == _WHITE_IS_ZERO


def _shares(image: "Image", most: int) -> np.ndarray | None:
    """Shares of white [height, width, channels], on white paper; None if that hides whatever was drawn."""
    channels = 1 if image.mode in _GREY else 3
    if image.mode.startswith("I;16"):
        values = np.array(image).astype(np.float64)
        ink = (values / most)[..., None]
        opaque = 1.0 * (values != image.info.get("transparency"))[..., None]
    else:
        if image.mode == "La":  # Pillow knows no shorter way
            image = image.convert("LA")
        if not _is_transparent(image):  # most pictures, the largest among them: one array of floats is enough
            return np.asarray(image.convert("RGB"), dtype=np.float32)[..., :channels] / 255
        values = np.array(image.convert("RGBA")).astype(np.float64) / 255
        ink, opaque = values[..., :channels], values[..., 3:]
    shown = ink * opaque + (1 - opaque)
    if np.ptp(opaque) > 0 and np.ptp(shown) == 0:
        return None
    return shown


def _is_transparent(image: "Image") -> bool:
    return image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}×{image.shape[1]} with {image.shape[0]} channel(s)"
