"""Where raw images and tables come from: bundled files, torchvision's downloads, and a user's own."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramarket.data.pictures import read_folder
from paramarket.data.raw import Raw
from paramarket.data.tables import read_arrays, read_table
from paramarket.errors import DataError

# name -> (SHA-256 of the file in data/, largest pixel value, what each label means)
BUNDLED = {
    "mnist-5k": ("f814240cf7e0d3cbaacc1a898905819a40ab46fb317a600d2a4b91a5c184c810", 255, tuple("0123456789")),
    "digits": ("6f801551877abf69fbf3711373bb642a18dc933430a3385cd6febc235225ea6f", 16, tuple("0123456789")),
}
DOWNLOADED = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "cifar10": "CIFAR10"}


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
    """A set of torchvision's, downloaded into `root` on first use; DataError if that fails, or files are damaged."""
    kind = getattr(torchvision().datasets, DOWNLOADED[name])
    try:
        parts = [kind(root, train=train, download=True) for train in (True, False)]
        contents = [_checked(part) for part in parts]
        x = torch.cat([x for x, _ in contents]).float() / 255
        y = torch.cat([y for _, y in contents]).long()
    except Exception as error:  # torchvision trusts what is there: damaged files end in whatever its readers stumble on
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name} is not in {root} and could not be downloaded or read ({why}). Remove what is there and go online "
            f"once, or copy the files of torchvision's {DOWNLOADED[name]} there; {', '.join(BUNDLED)} need no network."
        ) from error
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return Raw(x, y, tuple(parts[0].classes), len(parts[1]))


def _checked(part: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of one part of a set of torchvision's; ValueError where they are not what it says they are."""
    x, y = torch.as_tensor(part.data), torch.as_tensor(part.targets)
    if x.dtype != torch.uint8 or x.ndim not in (3, 4) or len(x) == 0:
        raise ValueError(f"its images are {x.dtype} of shape {tuple(x.shape)}, expected bytes")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"{len(x)} images and labels of shape {tuple(y.shape)}")
    if y.min() < 0 or y.max() >= len(part.classes):
        raise ValueError(f"a label of {int(y.max())} for {len(part.classes)} classes")
    return x, y


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
    readers = {".npz": read_arrays, ".csv": read_table}
    if not path.exists():
        raise DataError(f"{path} is missing.")
    if path.is_dir():
        return read_folder(path)
    if not path.is_file() or path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected a folder of images by class, an .npz or a .csv.")
    return readers[path.suffix.lower()](path)
