"""Data on disk as their makers lay it out: written here, read by the real readers."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from paramarket import data
from paramarket.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (440, 28, 28), dtype=np.uint8)
LABELS = np.tile(np.arange(10, dtype=np.uint8), 44)


def write_idx(folder, prefix, images, labels):
    """MNIST's own format, big-endian sizes before the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, *images.shape) + images.tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, len(labels)) + labels.tobytes())


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_torchvisions_sets_are_read_from_its_own_layout(tmp_path, name, folder):
    write_idx(tmp_path / folder / "raw", "train", PIXELS[:400], LABELS[:400])
    write_idx(tmp_path / folder / "raw", "t10k", PIXELS[400:], LABELS[400:])
    found = data.load(name, root=tmp_path)
    assert sum(len(getattr(found, part)) for part in ("train", "quote", "audit")) == 400
    assert torch.equal(found.test.y, torch.from_numpy(LABELS[400:]).long())  # its own test set stays the test set
    raw = found.test.x * found.std + found.mean
    assert torch.allclose(raw[:, 0], torch.from_numpy(PIXELS[400:]).float() / 255, atol=1e-5)
    assert len(found.classes) == 10


def test_cifar10_is_read_with_its_colours(tmp_path, monkeypatch):
    kind = data.torchvision().datasets.CIFAR10
    colours, folder = (
        np.random.default_rng(1).integers(0, 256, (120, 3072), dtype=np.uint8),
        tmp_path / kind.base_folder,
    )
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    labels = np.tile(np.arange(10), 10).tolist()
    train = [["data_batch_1", write("data_batch_1", {"data": colours[:100], "labels": labels})]]
    test = [["test_batch", write("test_batch", {"data": colours[100:], "labels": labels[:20]})]]
    meta = {"label_names": [f"kind {k}" for k in range(10)]}
    names = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", meta)}
    for attribute, value in {"train_list": train, "test_list": test, "meta": names}.items():
        monkeypatch.setattr(kind, attribute, value)
    found = data.load("cifar10", root=tmp_path)
    assert found.train.x.shape[1:] == (3, 32, 32)
    assert found.mean.shape == (3,)
    assert found.classes[3] == "kind 3"
    raw = found.test.x * found.std[:, None, None] + found.mean[:, None, None]
    assert torch.allclose(raw.flatten(1), torch.from_numpy(colours[100:]).float() / 255, atol=1e-5)


def test_a_download_that_fails_names_set_folder_and_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(data.torchvision().datasets.KMNIST, "mirrors", ["http://127.0.0.1:9/nothing/"])
    with pytest.raises(
        DataError, match=r"kmnist is not in .* and could not be downloaded .*copy the files of torchvision's KMNIST"
    ):
        data.load("kmnist", root=tmp_path)


def write_images(folder, mode="L", size=(6, 5), each=10):
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for k in range(each):
            Image.new(mode, size, k if mode == "L" else (k, 0, 255)).save(folder / name / f"{k}.png")
    return folder


def test_a_folder_of_images_by_class(tmp_path):
    found = data.from_files(write_images(tmp_path / "pets"))
    assert (found.name, found.classes) == ("pets", ("cat", "dog"))
    assert found.train.x.shape == (12, 1, 5, 6)
    assert sum(len(getattr(found, part)) for part in ("train", "quote", "audit", "test")) == 20
    colour = data.from_files(write_images(tmp_path / "colour", "RGB"))
    assert colour.train.x.shape == (12, 3, 5, 6)
    assert torch.allclose(colour.mean[1:], torch.tensor([0.0, 1.0]))  # every pixel is (k, 0, 255), in shares of 255


def test_ragged_images_name_the_file_and_both_sizes(tmp_path):
    folder = write_images(tmp_path / "pets")
    Image.new("L", (9, 5)).save(folder / "dog" / "x.png")
    with pytest.raises(DataError, match=r"ragged images: .*dog.x\.png is 9×5 with 1 channel.*cat.0\.png is 6×5"):
        data.from_files(folder)


def test_unreadable_images_and_empty_folders_are_named(tmp_path):
    folder = write_images(tmp_path / "pets")
    (folder / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat.3\.png is no readable image"):
        data.from_files(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images: expected one folder per class"):
        data.from_files(tmp_path / "empty")


@pytest.mark.parametrize("shape", [(40, 8, 8), (40, 3, 8, 8), (40, 7)])
def test_an_npz_of_images_or_rows(tmp_path, shape):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random(shape), y=np.repeat(["no", "yes"], 20))
    found = data.from_files(tmp_path / "a.npz")
    assert found.classes == ("no", "yes")
    assert found.train.x.shape == (24, 1, 8, 8) if len(shape) == 3 else found.train.x.shape[1:] == shape[1:]
    assert abs(found.train.x.mean()) < 1e-5


def test_a_table(tmp_path):
    rows = "".join(f"{k % 7},{k},{k % 2}\n" for k in range(50))
    (tmp_path / "a.csv").write_text(f"width,weight,label\n{rows}")
    found = data.from_files(tmp_path / "a.csv")
    assert found.train.x.shape == (30, 2)
    assert found.mean.shape == (2,)
    assert found.classes == ("0", "1")


BAD_ARRAYS = [
    ({"x": np.zeros((9, 2)), "y": np.zeros(8)}, r"x has shape \(9, 2\) and y \(8,\)"),
    ({"x": np.zeros((9, 2))}, r"holds \['x'\], expected the arrays x and y"),
    ({"x": np.full((9, 2), np.nan), "y": np.zeros(9)}, "example 0 holds a value that is missing"),
    ({"x": np.zeros((9, 2)), "y": np.full(9, 5), "classes": np.array(["a", "b"])}, "unknown label 5, expected 0 … 1"),
    ({"x": np.zeros((2, 2)), "y": np.array([{}, {}], dtype=object)}, "no readable .npz .*allow_pickle=False"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS)
def test_a_bad_npz_is_explained(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.from_files(tmp_path / "a.npz")


BAD_TABLES = [
    ("a,b\n1,2\n", r"has the columns a, b: expected one called label"),
    ("a,label\nx,1\n", r"column 'a' holds text"),
    ("a,label\n1,0\n,1\n", r"example 1 holds a value that is missing"),
    ("a,label\n1,no\n2,\n", r"example 1 has no label"),
    ("", r"no readable \.csv"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TABLES)
def test_a_bad_table_is_explained(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        data.from_files(tmp_path / "a.csv")


def test_other_files_and_missing_ones_are_refused(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        data.from_files(tmp_path / "a.npz")
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"expected a folder of images by class, an \.npz or a \.csv"):
        data.from_files(tmp_path / "a.gz")
    (tmp_path / "b.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"no readable \.npz"):
        data.from_files(tmp_path / "b.npz")


def test_torchvision_stands_beside_a_torch_without_cuda():
    assert data.torchvision() is data.torchvision()
    from torchvision.transforms import v2

    assert v2.functional.rotate(torch.ones(1, 1, 4, 4), 90.0).shape == (1, 1, 4, 4)


def shorter(path):
    """Labels of fewer images than there are."""
    path.write_bytes(struct.pack(">ii", 2049, 100) + LABELS[:100].tobytes())


DAMAGED = {
    "empty images": ("train-images-idx3-ubyte", lambda path: path.write_bytes(b"")),
    "empty labels": ("t10k-labels-idx1-ubyte", lambda path: path.write_bytes(b"")),
    "a header alone": ("train-images-idx3-ubyte", lambda path: path.write_bytes(path.read_bytes()[:16])),
    "cut": ("t10k-images-idx3-ubyte", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "a web page": ("train-images-idx3-ubyte", lambda path: path.write_bytes(b"<html>please log in</html>")),
    "fewer labels": ("train-labels-idx1-ubyte", shorter),
    "a label of no class": ("train-labels-idx1-ubyte", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x0b")),
    "images of 27 rows": (
        "t10k-images-idx3-ubyte",
        lambda path: path.write_bytes(struct.pack(">iiii", 2051, 40, 27, 28) + PIXELS[:40, :27].tobytes()),
    ),
    "no images": (
        "t10k-images-idx3-ubyte",
        lambda path: path.write_bytes(struct.pack(">iiii", 2051, 0, 28, 28)),
    ),
    "numbers in four bytes": (
        "t10k-images-idx3-ubyte",
        lambda path: path.write_bytes(struct.pack(">iiii", 0x0C03, 40, 28, 28) + bytes(4 * 40 * 28 * 28)),
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_of_torchvisions_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(data.torchvision().datasets.MNIST, "mirrors", ["http://127.0.0.1:9/nothing/"])
    write_idx(tmp_path / "MNIST" / "raw", "train", PIXELS[:400], LABELS[:400])
    write_idx(tmp_path / "MNIST" / "raw", "t10k", PIXELS[400:], LABELS[400:])
    name, harm = DAMAGED[kind]
    harm(tmp_path / "MNIST" / "raw" / name)
    with pytest.raises(DataError, match=r"mnist is not in .* and could not be downloaded or read \(.+\)\. Remove what"):
        data.load("mnist", root=tmp_path)
