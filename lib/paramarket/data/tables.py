"""Tables and arrays of a user's own: numbers exactly as they stand in the file, labels as text.

Nothing is guessed: only an empty cell is missing, and a row that does not line up with the names above it is refused.
"""

import csv
import io
import re
import zipfile
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paramarket.data.raw import Raw
from paramarket.errors import DataError

LEAST_BOMB = 2**28  # bytes: an archive may hold as much, however small it is itself
MOST_TIMES = 100  # its own size, beyond that
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_TRUTH = {"true": "1", "false": "0"}


def read_table(path: Path) -> Raw:
    """A column `label`; every other column is a number, or true and false."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parsed(path, csv.reader(file, strict=True))
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is no readable .csv ({error}).") from error


def _parsed(path: Path, lines: Any) -> Raw:
    """lines: what csv.reader gives, which counts them."""
    names = next((row for row in lines if row), None)
    if names is None:
        raise DataError(f"{path} is no readable .csv (it is empty).")
    place = _label_column(path, names)
    others = names[:place] + names[place + 1 :]
    numbers, labels = array("d"), []
    for row in lines:
        if not row:  # an empty line
            continue
        if len(row) != len(names):
            raise DataError(
                f"{path}: line {lines.line_num} has {len(row)} cells, expected {len(names)}, one for each column."
            )
        label = row.pop(place)
        if not label:
            raise DataError(f"{path}: example {len(labels)} has no label.")
        numbers.extend(_numbers(path, row, others, example=len(labels)))
        labels.append(label)
    if not labels:
        raise DataError(f"{path} has no examples: expected rows beneath its line of names.")
    x = np.frombuffer(numbers, dtype=np.float64).reshape(len(labels), len(others))
    return _labelled(path, x, np.array(labels), None)


def _label_column(path: Path, names: Sequence[str]) -> int:
    if "label" not in names:
        raise DataError(f"{path} has the columns {', '.join(names[:8])}: expected one called label.")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{path} has {times} columns called {name!r}: rename or remove one.")
    if "" in names:
        raise DataError(f"{path}: column {names.index('') + 1} has no name (row numbers, perhaps): name or remove it.")
    if len(names) == 1:
        raise DataError(f"{path} has the column label alone: expected numbers beside it.")
    return names.index("label")


def _numbers(path: Path, cells: list[str], names: Sequence[str], example: int) -> list[float]:
    try:
        if not any("_" in cell for cell in cells):  # Python reads 1_000 as a number; in a table it is a name
            return [float(cell) for cell in cells]
    except ValueError:
        pass
    return [_number(path, cell, name, example) for cell, name in zip(cells, names, strict=True)]


def _number(path: Path, cell: str, name: str, example: int) -> float:
    if not cell:
        raise DataError(f"{path}: example {example} holds a value that is missing or not finite, in column {name!r}.")
    try:
        if "_" not in cell:
            return float(_TRUTH.get(cell.lower(), cell))
    except ValueError:
        pass
    raise DataError(f"{path}: column {name!r} holds text ({cell[:40]!r}), expected numbers in all but label.")


def read_arrays(path: Path) -> Raw:
    """`x` [n, height, width], [n, channels, height, width] or [n, features]; `y` [n]; `classes` if `y` are numbers."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, archive)
            held = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            if not {"x", "y"} <= held.keys():
                raise DataError(f"{path} holds {sorted(held)[:20]}, expected the arrays x and y.")
            content = {name: _array(archive, held[name]) for name in ("x", "y", "classes") if name in held}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have a dozen for what is damaged, or no archive at all
        raise DataError(f"{path} is no readable .npz ({error or type(error).__name__}).") from error
    x, y = _features(path, content["x"]), content["y"]
    if y.shape != x.shape[:1]:
        raise DataError(f"{path}: x has shape {x.shape} and y {y.shape}, expected one label per example.")
    return _labelled(path, x[:, None] if x.ndim == 3 else x, _texts(path, "y", y), _names(path, content))


def _check_size(path: Path, archive: zipfile.ZipFile) -> None:
    """DataError for an archive that claims to hold far more than its file could: it would fill the memory."""
    claimed, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if claimed > max(LEAST_BOMB, MOST_TIMES * size):
        raise DataError(
            f"{path} has {size:,} bytes and claims to hold {claimed:,}: refused. Save it anew, uncompressed."
        )


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an archive, once its header fits its size: numpy makes room for what a header claims unseen."""
    with archive.open(name) as file:
        shape, dtype = _header(file)
        claimed = dtype.itemsize
        for length in shape:
            claimed *= length  # Python's own numbers: numpy's would overflow
        if dtype.itemsize == 0:
            raise ValueError(f"{name} holds {dtype}, which is nothing")
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never read: allow_pickle=False")
        if file.tell() + claimed != archive.getinfo(name).file_size:
            raise ValueError(f"the header of {name} claims {claimed:,} bytes, and there are others")
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _features(path: Path, x: np.ndarray) -> np.ndarray:
    """x as float: shares of 255 if its pixels are bytes, else float64."""
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: x holds {x.dtype}, expected numbers.")
    if x.ndim not in (2, 3, 4):
        raise DataError(f"{path}: x has shape {x.shape}, expected [n, features], [n, height, width] or four axes.")
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise DataError(f"{path}: x has shape {x.shape}, its channels last: save x.transpose(0, 3, 1, 2).")
    if 0 in x.shape[1:]:
        raise DataError(f"{path}: x has shape {x.shape}: there is nothing in an example.")
    if x.dtype == np.uint8:
        return x.astype(np.float32) / 255
    with np.errstate(over="ignore"):  # a long double beyond float64 is infinite, and refused as that
        return x.astype(np.float64)


def _names(path: Path, content: dict[str, np.ndarray]) -> np.ndarray | None:
    if "classes" not in content:
        return None
    names = _texts(path, "classes", content["classes"])
    if names.ndim != 1 or len(set(names.tolist())) < len(names):
        raise DataError(f"{path}: classes is {names.tolist()!r}, expected a list of names that differ.")
    return names


def _texts(path: Path, name: str, labels: np.ndarray) -> np.ndarray:
    """Labels or names as they are; bytes as the text that they spell."""
    if labels.dtype.kind not in "biufSU":
        raise DataError(f"{path}: {name} holds {labels.dtype}, expected numbers or texts.")
    if labels.dtype.kind == "S":
        try:
            return np.char.decode(labels, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {name} holds bytes that are no text ({error}).") from error
    return labels


def _labelled(path: Path, x: np.ndarray, y: np.ndarray, classes: np.ndarray | None) -> Raw:
    """Labels as numbers from 0 on; with `classes`, `y` must already number them."""
    if not np.isfinite(x).all():
        raise DataError(
            f"{path}: example {np.argwhere(~np.isfinite(x))[0][0]} holds a value that is missing or not finite."
        )
    empty = y == "" if y.dtype.kind == "U" else y != y
    if empty.any():
        raise DataError(f"{path}: example {np.argmax(empty)} has no label.")
    if classes is not None:
        known = np.isin(y, np.arange(len(classes)))
        if not known.all():
            raise DataError(
                f"{path}: unknown label {y[~known][0]}, expected 0 … {len(classes) - 1}, one for each of its classes."
            )
        return Raw(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), tuple(map(str, classes.tolist())))
    kinds = np.unique(y)
    if y.dtype.kind == "U":
        kinds = np.array(sorted(kinds.tolist(), key=_rank))
    number = {kind: k for k, kind in enumerate(kinds.tolist())}
    index = torch.tensor([number[label] for label in y.tolist()], dtype=torch.int64)
    return Raw(torch.from_numpy(x), index, tuple(map(str, kinds.tolist())))


def _rank(label: str) -> tuple[bool, float, str]:
    """The order of classes: what spells a number by its value, before all else by its letters."""
    is_number = _NUMBER.fullmatch(label) is not None
    return not is_number, float(label) if is_number else 0.0, label
