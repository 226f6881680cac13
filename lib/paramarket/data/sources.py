"""Where raw images and tables come from: bundled files, torchvision's downloads, and a user's own."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from paramarket.errors import DataError

# name -> (SHA-256 of the file in data/, largest pixel value, what each label means)
BUNDLED = {
    "mnist-5k": ("f814240cf7e0d3cbaacc1a898905819a40ab46fb317a600d2a4b91a5c184c810", 255, tuple("0123456789")),
    "digits": ("6f801551877abf69fbf3711373bb642a18dc933430a3385cd6febc235225ea6f", 16, tuple("0123456789")),
}
DOWNLOADED = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "cifar10": "CIFAR10"}
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, eq=False)
class Raw:
    """Examples as they come: `x` float [n, channels, height, width] or [n, features], `y` [n], what the labels mean.

    `tested` of them, the last ones, are the source's own test set; None if it has none.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    tested: int | None = None


def bundled(name: str, root: Path) -> Raw:
    """A set that comes with the project; DataError if the file is missing or its SHA-256 is not the recorded one."""
    digest, largest, classes = BUNDLED[name]
    path = root / f"{name}.npz"
    remedy = f"Restore it with `git checkout -- data/{path.name}` or rebuild it with `make data`."
    if not path.is_file():
        raise DataError(f"{path} is missing. {remedy}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise DataError(f"{path} is damaged: its SHA-256 is {found}, expected {digest}. {remedy}")
    with np.load(path) as arrays:
        x = torch.from_numpy(arrays["x"]).float().div(largest).unsqueeze(1)
        return Raw(x, torch.from_numpy(arrays["y"]).long(), classes)


def downloaded(name: str, root: Path) -> Raw:
    """A set of torchvision's, downloaded into `root` on first use; DataError if that fails."""
    kind = getattr(torchvision().datasets, DOWNLOADED[name])
    try:
        parts = [kind(root, train=train, download=True) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"{name} is not in {root} and could not be downloaded ({why}). Go online once, or copy the files of "
            f"torchvision's {DOWNLOADED[name]} there; {', '.join(BUNDLED)} need no network."
        ) from error
    x = torch.cat([torch.as_tensor(part.data) for part in parts]).float() / 255
    y = torch.cat([torch.as_tensor(part.targets) for part in parts]).long()
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return Raw(x, y, tuple(parts[0].classes), len(parts[1]))


def torchvision() -> ModuleType:
    """torchvision, also beside a torch built for CPUs only.

    Its Linux wheel is built against CUDA; without it the compiled operators cannot load and the import stops because
    `torchvision::nms` does not exist. Datasets, transforms and models are pure Python: on exactly that failure the two
    operators are declared, without code behind them, and the import goes through.
    """
    try:
        import torchvision.datasets
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in ("torchvision::nms", "torchvision::qnms"):
            torch.library.define(name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision.datasets
    return torchvision


def files(path: Path) -> Raw:
    """A user's own data, by what `path` is: a folder with one folder of images per class, an .npz, or a .csv."""
    readers = {".npz": _arrays, ".csv": _table}
    if not path.exists():
        raise DataError(f"{path} is missing.")
    if not path.is_dir() and path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected a folder of images by class, an .npz or a .csv.")
    return _folder(path) if path.is_dir() else readers[path.suffix.lower()](path)


def _folder(path: Path) -> Raw:
    """One folder per class, its name the class; images all of one size, grey or in colour."""
    classes = tuple(sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith(".")))
    found = [(file, k) for k, name in enumerate(classes) for file in sorted((path / name).iterdir())]
    found = [(file, k) for file, k in found if file.suffix.lower() in IMAGES]
    if not found:
        raise DataError(
            f"{path} holds no images: expected one folder per class with {', '.join(sorted(IMAGES))} in it."
        )
    images = [_image(file) for file, _ in found]
    for (file, _), image in zip(found, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(f"ragged images: {file} is {_size(image)}, but {found[0][0]} is {_size(images[0])}.")
    return Raw(torch.stack(images), torch.tensor([k for _, k in found]), classes)


def _image(file: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"), dtype=np.float32)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{file} is no readable image ({error}).") from error
    scaled = torch.from_numpy(pixels / 255)
    return scaled.unsqueeze(0) if scaled.ndim == 2 else scaled.permute(2, 0, 1)


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}×{image.shape[1]} with {image.shape[0]} channel(s)"


def _arrays(path: Path) -> Raw:
    """`x` [n, height, width], [n, channels, height, width] or [n, features]; `y` [n]; `classes` if `y` are numbers."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no readable .npz ({error}).") from error
    if not {"x", "y"} <= content.keys():
        raise DataError(f"{path} holds {sorted(content)}, expected the arrays x and y.")
    x, y = content["x"], content["y"]
    if x.ndim not in (2, 3, 4) or y.shape != x.shape[:1]:
        raise DataError(f"{path}: x has shape {x.shape} and y {y.shape}, expected one label per example.")
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
    return _labelled(path, x[:, None] if x.ndim == 3 else x, y, content.get("classes"))


def _table(path: Path) -> Raw:
    """A column `label`; every other column is a number."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable .csv ({error}).") from error
    if "label" not in table:
        raise DataError(f"{path} has the columns {', '.join(table.columns[:8])}: expected one called label.")
    if table.empty:
        raise DataError(f"{path} has no examples: expected rows beneath its line of names.")
    x = table.drop(columns="label")
    text = [name for name in x if not pd.api.types.is_numeric_dtype(x[name])]
    if text:
        raise DataError(f"{path}: column {text[0]!r} holds text, expected numbers in all but label.")
    return _labelled(path, x.to_numpy(np.float32), table["label"].to_numpy(), None)


def _labelled(path: Path, x: np.ndarray, y: np.ndarray, classes: np.ndarray | None) -> Raw:
    """Labels as numbers from 0 on; with `classes`, `y` must already number them."""
    if not np.isfinite(x).all():
        raise DataError(
            f"{path}: example {np.argwhere(~np.isfinite(x))[0][0]} holds a value that is missing or not finite."
        )
    if pd.isna(y).any():
        raise DataError(f"{path}: example {np.argmax(pd.isna(y))} has no label.")
    names, index = (classes, y) if classes is not None else np.unique(y, return_inverse=True)
    if classes is not None and not np.isin(y, np.arange(len(classes))).all():
        bad = y[~np.isin(y, np.arange(len(classes)))][0]
        raise DataError(f"{path}: unknown label {bad}, expected 0 … {len(classes) - 1}, one for each of its classes.")
    return Raw(torch.tensor(x), torch.from_numpy(np.asarray(index, dtype=np.int64)), tuple(map(str, names)))
