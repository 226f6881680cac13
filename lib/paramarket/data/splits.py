"""Four disjoint splits of every set, and what one plant, or one student of thirty, holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from paramarket.base import stream
from paramarket.data import sources
from paramarket.data.raw import Raw
from paramarket.errors import DataError, ParameterError, unknown

ROOT = Path(__file__).parents[3] / "data"
NAMES = (*sources.BUNDLED, *sources.DOWNLOADED)
SHARES = {"train": 0.6, "quote": 0.1, "audit": 0.1, "test": 0.2}
ENOUGH = 9  # examples of a class: so many or more, cut by SHARES and rounded, always leave every split one; 8 do not


@dataclass(frozen=True, eq=False)
class Split:
    """Examples `x` [n, channels, height, width] or [n, features], float32, normalised; labels `y` [n], int64.

    To distil, `y` may be another model's probabilities [n, classes] instead. Real numbers of any other type become
    float32, whole ones int64, so that the same numbers give the same results. Raises DataError for what is no such
    number, for labels below 0, and for what does not fit together.
    """

    x: Shaped[Tensor, "examples ..."]
    y: Shaped[Tensor, "labels ..."]

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            if not isinstance(getattr(self, name), Tensor):
                kind = type(getattr(self, name)).__name__
                raise DataError(f"{name} of a split is of type {kind}, expected a tensor: see torch.as_tensor.")
        object.__setattr__(self, "x", _examples(self.x))
        object.__setattr__(self, "y", _labels(self.y))
        if len(self.x) != len(self.y):
            raise DataError(
                f"a split needs one label per example, got {len(self.x)} examples and {len(self.y)} labels."
            )
        if len(self.y) == 0:
            raise DataError("an empty split: there is no example in it. Keep more classes or a larger share of them.")

    def __len__(self) -> int:
        return len(self.y)


def _examples(x: Tensor) -> Float[Tensor, "examples ..."]:
    """x as float32. What is float32 already is looked at no further: splits are made at every turn."""
    if x.is_complex():
        raise DataError(f"x of a split holds {x.dtype}, expected real numbers.")
    single = x.to(torch.float32)
    if x.dtype == torch.float64 and not single.isfinite().equal(x.isfinite()):
        raise DataError("x of a split holds numbers beyond those of float32: standardise it first.")
    return single


def _labels(y: Tensor) -> Int[Tensor, " labels"] | Float[Tensor, "labels classes"]:
    """Labels as int64, or probabilities as float32."""
    if y.is_floating_point() and y.ndim == 2:
        return y.to(torch.float32)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        raise DataError(
            f"y of a split is {y.dtype} of shape {tuple(y.shape)}: expected whole numbers [n], or probabilities "
            "[n, classes] in floating point."
        )
    whole = y.to(torch.int64)
    if len(whole) and whole.min() < 0:  # a loss would leave -100 out, an index count from the end
        raise DataError(f"label {int(whole.min())} in a split: expected classes from 0 on.")
    return whole


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

    Bundled: "mnist-5k" (5,000 images [1, 28, 28], split 3,000 / 500 / 500 / 1,000) and "digits" (1,797 of [1, 8, 8]).
    Downloaded into `root` on first use: "mnist", "fashion-mnist", "kmnist", "cifar10"; their own test set is `test`.
    Raises DataError for an unknown name, a missing or damaged file, a failed download.

    >>> from paramarket import data
    >>> digits = data.load("digits")
    >>> tuple(digits.train.x.shape), len(digits.quote), len(digits.audit), len(digits.test)
    ((1078, 1, 8, 8), 180, 180, 359)
    """
    if name not in NAMES:
        raise DataError(unknown("dataset", name, NAMES))
    reader = sources.bundled if name in sources.BUNDLED else sources.downloaded
    return _dataset(name, reader(name, Path(root)), f"the set {name!r}")


def from_files(path: Path | str) -> Dataset:
    """Your own data, in the same four splits: a folder with a folder of images per class, an .npz, or a .csv.

    An .npz holds `x`, `y` and, if you like, `classes`; a .csv a column `label` beside numbers. Raises DataError that
    names the file for what cannot be read, ragged sizes, missing values and unknown labels, and a class so rare that
    one of the splits would have no example of it; nine of each class are enough.
    """
    return _dataset(Path(path).stem, sources.files(Path(path)), str(path))


def _dataset(name: str, raw: Raw, where: str) -> Dataset:
    """Raises DataError, naming `where` the examples are from, for a class too rare to give every split an example."""
    parts = _stratified(raw.y, raw.tested, stream(0, "split", name))
    _check_every_class(raw, parts, where)
    mean, std = _mean_and_std(raw.x[parts["train"]].transpose(0, 1).flatten(1))
    if not (mean.float() + std.float()).isfinite().all():
        raise DataError(f"{where} holds numbers that are too large: divide them by a million, or take their logarithm.")
    x = torch.empty(raw.x.shape, dtype=torch.float32)
    shape = (-1, *[1] * (raw.x.ndim - 2))
    for at in torch.arange(len(x)).split(1024):  # a copy of all in float64 would take twice the memory of the set
        x[at] = ((raw.x[at].double() - mean.view(shape)) / std.view(shape)).float()
    splits = {part: Split(x[index], raw.y[index]) for part, index in parts.items()}
    return Dataset(name, **splits, classes=raw.classes, mean=mean.float(), std=std.float())


def _mean_and_std(values: Float[Tensor, "channels numbers"]) -> tuple[Tensor, Tensor]:
    """[channels] each, float64; the std of what is constant is 1."""
    moments = torch.tensor([_moments(channel) for channel in values.numpy()], dtype=torch.float64)
    return moments[:, 0], moments[:, 1]


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, the latter 1 if all are equal.

    In float32, and on several threads, the last digits of a sum hang on the number of threads, and numbers that lie
    close together far from 0 differ in these digits alone. numpy adds in float64, in one order on any machine.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low, 1.0
    size = high - low  # squares of 1e-200 would be 0, of 1e200 infinite
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and refused as that
        shifted = values.astype(np.float64) - low  # far from 0 a sum would lose digits that a difference keeps
        mean = float(np.mean(shifted))
        variance = float(np.sum(np.square((shifted - mean) / size))) / (len(values) - 1)
    return low + mean, size * variance**0.5


def _check_every_class(raw: Raw, parts: dict[str, Tensor], where: str) -> None:
    if len(raw.y) == 0:
        raise DataError(f"{where} has no examples. Give {ENOUGH} or more of each class.")
    counts = {part: raw.y[index].bincount(minlength=len(raw.classes)) for part, index in parts.items()}
    for label, name in enumerate(raw.classes):
        without = [part for part, count in counts.items() if count[label] == 0]
        if without:
            total = int((raw.y == label).sum())
            raise DataError(
                f"{where} has {len(raw.y)} examples of {len(raw.classes)} classes, {total} of class {name!r}: too few "
                f"for four splits, {' and '.join(without)} would have none. Give {ENOUGH} or more of each class."
            )


def _stratified(y: Tensor, tested: int | None, generator: torch.Generator) -> dict[str, Tensor]:
    """Disjoint index sets that cover every example, each class cut in the proportions of SHARES.

    If the last `tested` examples are a test set already, they stay it, and the others are cut 6 : 1 : 1.
    """
    shares = SHARES if tested is None else {part: SHARES[part] for part in ("train", "quote", "audit")}
    cuts = torch.tensor(list(shares.values())).double().cumsum(0) / sum(shares.values())
    parts = {part: [] for part in shares}
    for label in y.unique():
        members = torch.nonzero(y[: len(y) - (tested or 0)] == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        ends = [round(cut * len(members)) for cut in cuts[:-1].tolist()]
        for part, chosen in zip(shares, members.tensor_split(ends), strict=True):
            parts[part].append(chosen)
    own = {} if tested is None else {"test": torch.arange(len(y) - tested, len(y))}
    none = torch.empty(0, dtype=torch.long)  # a set without examples has no label to cut by
    return {part: torch.cat([none, *chosen]) for part, chosen in parts.items()} | own


def for_network(
    images: Dataset,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    classes: Sequence[str],
) -> Dataset:
    """The same images as a network expects them: normalised as it learnt, labels in its order of classes.

    mean, std: what was subtracted from the raw numbers of each channel, and what they were divided by · classes: the
    names of the network's answers
    Raises DataError for another number of channels, a std that is not above 0, and other classes.
    """
    if mean.shape != images.mean.shape or std.shape != images.std.shape:
        raise DataError(
            f"{images.name} has {len(images.mean)} channels; the network was trained with {len(mean)} means and "
            f"{len(std)} standard deviations. Expected one of each for every channel."
        )
    if not (std > 0).all() or not (mean.isfinite() & std.isfinite()).all():
        raise DataError("the network's mean and std: expected finite numbers, and a std above 0.")
    if sorted(classes) != sorted(images.classes):
        raise DataError(
            f"{images.name} has the classes {', '.join(images.classes)}; the network answers with "
            f"{', '.join(classes)}. Expected the same names."
        )
    number = torch.tensor([list(classes).index(name) for name in images.classes])
    shape = (-1, *[1] * (images.train.x.ndim - 2))
    factor = images.std.double() / std.double()
    shift = (images.mean.double() - mean.double()) / std.double()

    def convert(split: Split) -> Split:
        scaled = split.x.double() * factor.view(shape) + shift.view(shape)
        return Split(scaled.float(), number[split.y])

    splits = {part: convert(getattr(images, part)) for part in SHARES}
    return replace(images, **splits, classes=tuple(classes), mean=mean.float(), std=std.float())


def holding(
    split: Split,
    classes: list[int],
    keep: float,
    generator: torch.Generator,
    *,
    student: int | None = None,
    students: int = 30,
) -> Split:
    """What a plant holds that rarely sees some kinds: a random share `keep` of each of `classes`, all of the others.

    With `student`, the split is first dealt to a class of `students`, and the holding is that of number `student`, from
    1 on; given equal generators, the shares are disjoint. Raises ParameterError for a number outside its range, and if
    one of `classes` does not occur.

    >>> from paramarket import base, data
    >>> digits = data.load("digits")
    >>> held = data.holding(digits.train, [8, 9], 0.1, base.stream(0, "holding"))
    >>> held.y.bincount().tolist()  # of the digits 0 to 9
    [107, 109, 106, 110, 109, 109, 109, 107, 10, 11]
    """
    first, every = (0, 1) if student is None else (student - 1, students)
    _check_share("keep", keep)
    if not 0 <= first < every:
        raise ParameterError(f"student = {student}, expected a number from 1 to {students}.")
    kept = torch.zeros(len(split), dtype=torch.bool)
    for label in split.y.unique().tolist():
        members = torch.nonzero(split.y == label).flatten()
        own = members[torch.randperm(len(members), generator=generator)][first::every]
        kept[own[: round(keep * len(own))] if label in classes else own] = True
    missing = set(classes) - set(split.y.unique().tolist())
    if missing:
        raise ParameterError(f"classes = {classes}: the split holds no example of class {min(missing)}.")
    return Split(split.x[kept], split.y[kept])


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ParameterError(f"{name} = {value}, expected a share between 0 and 1.")


def flip_labels(split: Split, share: float, classes: int, generator: torch.Generator) -> Split:
    """Label noise: a random `share` of the examples gets another of the `classes` labels, each equally likely."""
    _check_share("share", share)
    chosen = torch.randperm(len(split), generator=generator)[: round(share * len(split))]
    y = split.y.clone()
    y[chosen] = (y[chosen] + torch.randint(1, classes, (len(chosen),), generator=generator)) % classes
    return Split(split.x, y)


def concat(*splits: Split) -> Split:
    """The examples of all, one split after another."""
    return Split(torch.cat([split.x for split in splits]), torch.cat([split.y for split in splits]))
