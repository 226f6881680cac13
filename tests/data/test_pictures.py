"""Folders of pictures as people have them: every kind of pixel, every orientation, and what else lies about."""

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paramarket import data
from paramarket.data import sources
from paramarket.errors import DataError

RAMP = np.arange(48).reshape(6, 8)
SCENE = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
TURN = Image.Transpose
LYING = {  # how a scene lies in the file, by its tag
    1: None,
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_270,
}


def folder_of(folder, write, ending, each=1):
    """Two classes; `write` makes a picture at a path."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(each):
            write(folder / name / f"{k}.{ending}")
    return folder


def read(folder, image, ending, **settings):
    return sources.files(folder_of(folder, lambda path: image.save(path, **settings), ending)).x[0]


def write_tiff(path, pixels, *, bits, photometric=1, sample_format=1):
    """Grey, uncompressed, of any kind of pixel: TIFF 6.0, sections 2 to 4."""
    height, width = pixels.shape
    if bits == 12:  # two pixels in three bytes
        pairs = pixels.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        content = b"".join(int(pair).to_bytes(3, "big") for pair in packed)
    else:
        content = pixels.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(content), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory)


# Pixels


SCALED = {
    "8 bits, png": (Image.fromarray((RAMP * 5).astype(np.uint8)), "png", RAMP * 5 / 255),
    "8 bits, tif": (Image.fromarray((RAMP * 5).astype(np.uint8)), "tif", RAMP * 5 / 255),
    "8 bits, bmp": (Image.fromarray((RAMP * 5).astype(np.uint8)), "bmp", RAMP * 5 / 255),
    "16 bits, png": (Image.fromarray((RAMP * 1394).astype(np.uint16)), "png", RAMP * 1394 / 65535),
    "16 bits, tif": (Image.fromarray((RAMP * 1394).astype(np.uint16)), "tif", RAMP * 1394 / 65535),
    "16 bits, the large byte first": (
        Image.frombytes("I;16B", (8, 6), (RAMP * 1394).astype(">u2").tobytes()),
        "tif",
        RAMP * 1394 / 65535,
    ),
    "1 bit, png": (Image.fromarray(RAMP % 3 == 0), "png", RAMP % 3 == 0),
    "a palette of greys": (Image.fromarray((RAMP * 5).astype(np.uint8)).convert("P"), "png", RAMP * 5 / 255),
    "in a gif": (Image.fromarray((RAMP * 5).astype(np.uint8)), "gif", RAMP * 5 / 255),
}


@pytest.mark.parametrize("kind", SCALED)
def test_a_grey_ramp_comes_out_as_a_grey_ramp(tmp_path, kind):
    image, ending, expected = SCALED[kind]
    found = read(tmp_path, image, ending)
    for channel in found:
        assert torch.equal(channel, torch.from_numpy(np.asarray(expected)).float())


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_tiff_says_how_many_bits_it_uses_and_whether_zero_is_white(tmp_path, bits, photometric):
    if bits == 12 and photometric == 0:
        return  # there is no reader for it
    most = 2**bits - 1
    pixels = (RAMP * (most // 47)).astype(np.uint8 if bits == 8 else np.uint16)
    folder = folder_of(tmp_path, lambda path: write_tiff(path, pixels, bits=bits, photometric=photometric), "tif")
    shares = pixels / most
    expected = shares if photometric else 1 - shares
    assert torch.allclose(sources.files(folder).x[0, 0], torch.from_numpy(expected).float(), atol=1e-7)


NO_RANGE = {
    "32 bits": lambda path: Image.fromarray(RAMP.astype(np.int32)).save(path),
    "floating point": lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path),
    "8 bits and a sign": lambda path: write_tiff(path, RAMP.astype(np.int8), bits=8, sample_format=2),
    "16 bits and a sign": lambda path: write_tiff(path, RAMP.astype(np.int16), bits=16, sample_format=2),
}


@pytest.mark.parametrize("kind", NO_RANGE)
def test_pixels_that_have_no_white_are_refused_by_name(tmp_path, kind):
    with pytest.raises(DataError, match=r"a.0\.tif holds .*, and not what is white: save it with 8 or 16 bits"):
        sources.files(folder_of(tmp_path, NO_RANGE[kind], "tif"))


# How it lies


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("mode", ["L", "I;16", "P", "RGB", "RGBA"])
def test_a_scene_is_the_same_however_it_lay_on_the_chip(tmp_path, ending, mode):
    scene = Image.fromarray(SCENE[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(SCENE)
    scene = scene if mode == "I;16" else scene.convert(mode)
    for tag, how in LYING.items():
        lying = scene if how is None else scene.transpose(how)
        exif = Image.Exif()
        exif[0x0112] = tag
        settings = {"lossless": True} if ending == "webp" else {}
        (tmp_path / "ab"[tag % 2]).mkdir(exist_ok=True)
        lying.save(tmp_path / "ab"[tag % 2] / f"{tag}.{ending}", exif=exif, **settings)
    found = sources.files(tmp_path).x
    assert found.shape[2:] == (6, 9)
    assert torch.equal(found, found[:1].expand_as(found))


# What shines through


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_what_is_transparent_shows_white_and_what_lies_under_it_does_not_count(tmp_path, ending):
    settings = {"lossless": True, "exact": True} if ending == "webp" else {}
    found = read(tmp_path / "one", Image.fromarray(SCENE), ending, **settings)
    colours, opaque = SCENE[..., :3] / 255, SCENE[..., 3:] / 255
    expected = torch.from_numpy(colours * opaque + 1 - opaque).float().permute(2, 0, 1)
    assert torch.allclose(found, expected, atol=1e-6)
    hidden, other = SCENE.copy(), SCENE.copy()
    hidden[:3, :, 3] = other[:3, :, 3] = 0
    other[:3, :, :3] = 77
    one = read(tmp_path / "two", Image.fromarray(hidden), ending, **settings)
    assert torch.equal(one, read(tmp_path / "three", Image.fromarray(other), ending, **settings))
    solid = SCENE.copy()
    solid[..., 3] = 255
    plain = read(tmp_path / "four", Image.fromarray(SCENE[..., :3]), ending, **settings)
    assert torch.equal(read(tmp_path / "five", Image.fromarray(solid), ending, **settings), plain)


def ink(mode):
    """A black square on a transparent ground, as each mode says it; and its settings."""
    drawn = np.zeros((6, 6), dtype=bool)
    drawn[2:4, 2:4] = True
    if mode == "LA":
        grey_and_opaque = np.stack([np.zeros((6, 6)), 255 * drawn], axis=2).astype(np.uint8)
        return Image.fromarray(grey_and_opaque), {}, drawn
    if mode == "I;16":
        return Image.fromarray(np.where(drawn, 0, 777).astype(np.uint16)), {"transparency": 777}, drawn
    indices = Image.fromarray(np.where(drawn, 0, 1).astype(np.uint8))
    if mode == "P":
        indices = Image.fromarray(np.where(drawn, 0, 1).astype(np.uint8))
        indices.putpalette([0, 0, 0, 9, 9, 9])
    return indices, {"transparency": 1}, drawn


@pytest.mark.parametrize(("mode", "ending"), [("LA", "png"), ("I;16", "png"), ("L", "png"), ("P", "png"), ("P", "gif")])
def test_black_ink_on_nothing_is_black_ink_on_white(tmp_path, mode, ending):
    image, settings, drawn = ink(mode)
    found = read(tmp_path, image, ending, **settings)
    for channel in found:
        assert torch.equal(channel, torch.from_numpy(~drawn).float())


def test_white_ink_on_nothing_is_refused_because_it_would_vanish(tmp_path):
    square = np.full((6, 6, 4), 255, dtype=np.uint8)
    square[:2, :, 3] = 0
    with pytest.raises(DataError, match=r"a.0\.png is white on a transparent ground: nothing of it shows on white"):
        read(tmp_path, Image.fromarray(square), "png")


# What else lies about


def plain(path):
    Image.new("L", (5, 6), 9).save(path)


def claiming(side):
    """A PNG file that says how large it is, and holds next to nothing."""

    def write(path):
        size = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        parts = [b"\x89PNG\r\n\x1a\n"]
        for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
            parts += [struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(kind + body))]
        path.write_bytes(b"".join(parts))

    return write


def animated(path):
    frames = [Image.new("L", (5, 6), 9 * k) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def nested(path):
    path.parent.mkdir()
    plain(path)


ALSO_THERE = [
    ("c", lambda path: path.mkdir(), r"c holds no images: expected .*Fill it, or remove it"),
    ("a/deeper/0.png", nested, r"a.deeper is a folder within a class"),
    ("a/.hidden.png", plain, r"a..hidden\.png is hidden"),
    ("a/notes.txt", lambda path: path.write_text("x"), r"a.notes\.txt is of no kind that is read: expected \.bmp"),
    ("a/0.ppm", plain, r"a.0\.ppm is of no kind that is read"),
    ("a/no_ending", lambda path: path.write_bytes(b"x"), r"a.no_ending is of no kind"),
    ("labels.csv", lambda path: path.write_text("x"), r"labels\.csv lies beside the folders of the classes"),
    ("loose.png", plain, r"loose\.png lies beside the folders"),
    ("a/gone.png", lambda path: path.symlink_to("nowhere.png"), r"a.gone\.png is no file"),
    ("a/film.gif", animated, r"a.film\.gif holds 3 pictures: expected one"),
    ("a/pages.tif", animated, r"a.pages\.tif holds 3 pictures"),
    ("a/film.png", animated, r"a.film\.png holds 3 pictures"),
    ("a/film.webp", animated, r"a.film\.webp holds 3 pictures"),
    ("a/huge.png", claiming(31_623), r"a.huge\.png is no readable image .*1000014129 pixels"),
    ("a/large.png", claiming(8_300), r"a.large\.png is 8300×8300: more than 67,108,864 pixels"),
    ("a/nothing.png", lambda path: path.write_bytes(b""), r"a.nothing\.png is no readable image"),
    (
        "a/wide.png",
        lambda path: Image.new("L", (6, 5)).save(path),
        r"ragged images: .*wide\.png is 6×5 .*0\.png is 5×6",
    ),
    ("a/colour.png", lambda path: Image.new("RGB", (5, 6)).save(path), r"ragged images: .*with 3 channel"),
]


@pytest.mark.parametrize(("place", "put", "says"), ALSO_THERE, ids=[place for place, *_ in ALSO_THERE])
def test_whatever_is_not_used_is_named(tmp_path, place, put, says):
    folder = folder_of(tmp_path / "pets", plain, "png", each=10)
    put(folder / place)
    with pytest.raises(DataError, match=says):
        data.from_files(folder)


@pytest.mark.parametrize("place", ["__MACOSX/a", ".DS_Store", "a/Thumbs.db", "a/._0.png", "b/desktop.ini"])
def test_what_systems_leave_behind_is_no_class_and_no_picture(tmp_path, place):
    folder = folder_of(tmp_path / "pets", plain, "png", each=10)
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_bytes(b"left behind")
    found = data.from_files(folder)
    assert found.classes == ("a", "b")
    assert sum(len(getattr(found, part)) for part in ("train", "quote", "audit", "test")) == 20


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match=r"a\.png holds no images"):
        data.from_files(tmp_path / "a.png")


@given(st.sampled_from(["png", "jpg", "gif", "tif", "bmp", "webp"]), st.data())
def test_a_damaged_picture_is_refused_by_name_or_read(tmp_path_factory, ending, draw):
    folder = folder_of(tmp_path_factory.mktemp("pets"), plain, ending)
    path = folder / "b" / f"0.{ending}"
    content = bytearray(path.read_bytes())
    place = draw.draw(st.integers(0, len(content) - 1))
    if draw.draw(st.booleans()):
        path.write_bytes(content[:place])
    else:
        content[place] = draw.draw(st.integers(0, 255))
        path.write_bytes(content)
    try:
        assert sources.files(folder).x.isfinite().all()
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017
