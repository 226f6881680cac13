"""Real images, checked and split, and what one plant holds of them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from paramarket.base import DataError, ParameterError, stream, unknown

ROOT = Path(__file__).parents[2] / "data"

# name -> (SHA-256 of the file in data/, largest pixel value, what each label means)
BUNDLED = {
    "mnist-5k": ("f814240cf7e0d3cbaacc1a898905819a40ab46fb317a600d2a4b91a5c184c810", 255, tuple("0123456789")),
    "digits": ("6f801551877abf69fbf3711373bb642a18dc933430a3385cd6febc235225ea6f", 16, tuple("0123456789")),
}
SHARES = {"train": 0.6, "quote": 0.1, "audit": 0.1, "test": 0.2}


@dataclass(frozen=True, eq=False)
class Split:
    """Examples `x` [n, channels, height, width] or [n, features], float32, normalised; labels `y` [n], int64."""

    x: Float[Tensor, "examples ..."]
    y: Int[Tensor, " labels"]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise DataError(
                f"a split needs one label per example, got {len(self.x)} examples and {len(self.y)} labels."
            )
        if len(self.y) == 0:
            raise DataError("an empty split: there is no example in it. Keep more classes or a larger share of them.")

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One set in four disjoint splits, each with a single use, because money hangs on keeping them apart.

    train: private to those who train · quote: where a merge is tuned · audit: where the gain that sets a price is
    measured · test: only ever reported. `mean` and `std` [channels] were measured on train and are already applied.
    """

    name: str
    train: Split
    quote: Split
    audit: Split
    test: Split
    classes: tuple[str, ...]
    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]


def load(name: str, root: Path | str = ROOT) -> Dataset:
    """The set called `name`, the same four stratified splits every time.

    "mnist-5k": 5,000 images [1, 28, 28], split 3,000 / 500 / 500 / 1,000. "digits": 1,797 images [1, 8, 8].
    Raises DataError for an unknown name, and for a file that is missing or whose SHA-256 is not the recorded one.
    """
    if name not in BUNDLED:
        raise DataError(unknown("dataset", name, BUNDLED))
    digest, largest, classes = BUNDLED[name]
    with np.load(_checked(Path(root) / f"{name}.npz", digest)) as arrays:
        x = torch.from_numpy(arrays["x"]).float().div(largest).unsqueeze(1)
        y = torch.from_numpy(arrays["y"]).long()
    return _dataset(name, x, y, classes)


def _checked(path: Path, expected: str) -> Path:
    remedy = f"Restore it with `git checkout -- data/{path.name}` or rebuild it with `make data`."
    if not path.is_file():
        raise DataError(f"{path} is missing. {remedy}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise DataError(f"{path} is damaged: its SHA-256 is {found}, expected {expected}. {remedy}")
    return path


def _dataset(name: str, x: Tensor, y: Tensor, classes: tuple[str, ...]) -> Dataset:
    parts = _stratified(y, stream(0, "split", name))
    train = x[parts["train"]]
    mean, std = train.mean(dim=(0, 2, 3)), train.std(dim=(0, 2, 3))
    x = (x - mean[:, None, None]) / std[:, None, None]
    return Dataset(name, **{part: Split(x[i], y[i]) for part, i in parts.items()}, classes=classes, mean=mean, std=std)


def _stratified(y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Disjoint index sets that cover every example, each class cut in the proportions of SHARES."""
    parts = {part: [] for part in SHARES}
    cuts = np.cumsum(list(SHARES.values()))[:-1]
    for label in y.unique():
        members = torch.nonzero(y == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        ends = [round(float(cut) * len(members)) for cut in cuts]
        for part, chosen in zip(SHARES, members.tensor_split(ends), strict=True):
            parts[part].append(chosen)
    return {part: torch.cat(chosen) for part, chosen in parts.items()}


def holding(split: Split, classes: list[int], keep: float, generator: torch.Generator) -> Split:
    """What a plant holds that rarely sees some kinds: a random share `keep` of each of `classes`, all of the others.

    Raises ParameterError if keep lies outside [0, 1] or a class does not occur in the split.
    """
    if not 0 <= keep <= 1:
        raise ParameterError(f"keep = {keep}, expected a share between 0 and 1.")
    kept = torch.ones(len(split), dtype=torch.bool)
    for label in classes:
        members = torch.nonzero(split.y == label).flatten()
        if len(members) == 0:
            raise ParameterError(f"classes = {classes}: the split holds no example of class {label}.")
        order = torch.randperm(len(members), generator=generator)
        kept[members[order[round(keep * len(members)) :]]] = False
    return Split(split.x[kept], split.y[kept])
