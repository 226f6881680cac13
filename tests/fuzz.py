"""Mutated files, a hundred thousand of each kind: `python tests/fuzz.py [COUNT]`. Minutes, so no part of `make test`.

Only our own errors may come out, nothing may be written, and memory stays bounded.
"""

import io
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from paramarket import data, market, stack
from paramarket.data import sources
from paramarket.errors import ParamarketError

torch.set_num_threads(1)


def mutated(content, rng):
    """Some bytes changed, cut out, doubled or put in the place of others."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(content))) if content else 0
        length = int(rng.integers(1, 9))
        kind = rng.integers(5)
        if kind == 0:
            content[place : place + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = content[place : place + length]
        elif kind == 3:
            content[place : place + length] = rng.choice([b"\xff" * length, b"\0" * length, b"9" * length])
        else:
            content = content[:place]
    return bytes(content)


def archive():
    file = io.BytesIO()
    np.savez_compressed(file, x=np.random.default_rng(0).random((30, 3)), y=np.repeat(["a", "b"], 15))
    return file.getvalue()


def picture(ending):
    file = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(file, ending)
    return file.getvalue()


def targets(folder):
    """name -> (the file, what it holds when it is whole, how it is read)."""
    digits = data.load("digits")
    net = stack.mlp(64, [2], 10)
    card, models = stack.card(net, digits), stack.init(net, 3, seed=0)
    for k, name in enumerate("abc"):
        market.hand_in(folder / "class" / name, stack.take(models, k), card, student=k + 1)
    entry = folder / "class" / "b" / market.ENTRY_FILE
    seen = digits.test.x[:2]
    table = b"width,label\n" + b"".join(b"%d,%d\n" % (k, k % 2) for k in range(30))
    found = {
        "stack.load": (folder / "w.safetensors", entry.read_bytes(), lambda path: stack.load(path, card)),
        "market.read_entries": (
            entry,
            entry.read_bytes(),
            lambda path: market.read_entries(folder / "class", net, card, seen, models),
        ),
        "from_files: npz": (folder / "a.npz", archive(), data.from_files),
        "from_files: csv": (folder / "a.csv", table, data.from_files),
    }
    for ending in ("png", "jpeg", "gif", "tiff", "bmp", "webp"):
        place = folder / ending / "a" / f"0.{ending}"
        place.parent.mkdir(parents=True)
        found[f"from_files: {ending}"] = (place, picture(ending), lambda path: sources.files(path.parents[1]))
    return found


def run(name, path, content, read, count):
    rng, outcomes, since = np.random.default_rng(0), Counter(), time.monotonic()
    for _ in range(count):
        path.write_bytes(mutated(content, rng))
        try:
            read(path)
            outcomes["read"] += 1
        except ParamarketError:
            outcomes["refused"] += 1
        except BaseException:
            print(f"{name}: {path.read_bytes()!r}", file=sys.stderr)
            raise
    path.write_bytes(content)
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name}: {dict(outcomes)}, {time.monotonic() - since:.0f} s, {mebibytes} MiB at most", flush=True)


def main(count):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = targets(folder)
        before = {path for path, *_ in every.values()}
        for target, (path, content, read) in every.items():
            run(target, path, content, read, count)
        there = {Path(at) / file for at, _, files in os.walk(folder) for file in files}
        left = there - before - {folder / "class" / each / market.ENTRY_FILE for each in "ac"}
        assert not left, f"something was written: {left}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
