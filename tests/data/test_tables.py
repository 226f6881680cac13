"""Tables and arrays as people save them: what stands in the file is what is read, and all else is refused."""

import io
import os
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramarket import data
from paramarket.base import stream
from paramarket.data import sources, splits
from paramarket.errors import DataError


def table(folder, text, name="a.csv"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def arrays(folder, **content):
    np.savez(folder / "a.npz", **content)
    return folder / "a.npz"


def column(values, labels):
    return "width,label\n" + "".join(f"{value},{label}\n" for value, label in zip(values, labels, strict=True))


# Labels are text


PAIRS = [("None", "scratch"), ("EU", "NA"), ("null", "one"), ("007", "7"), ("1", "1.0"), ("nan", "x"), ("True", "true")]
PAIRS += [("-", "?"), (" cat", "cat"), ("1_0", "10"), ("1e3", "1000"), ("N/A", "n/a"), ("#N/A", "0x1"), ("é", "日本")]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_label_is_what_stands_in_the_file(tmp_path, pair):
    found = data.from_files(table(tmp_path, column(range(60), pair * 30)))
    assert sorted(found.classes) == sorted(pair)
    both = sources.files(tmp_path / "a.csv")
    assert [both.classes[k] for k in both.y.tolist()] == list(pair * 30)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=2, max_size=5, unique=True)
)
def test_any_text_is_a_label_and_none_is_lost(tmp_path_factory, labels):
    quoted = ['"' + label.replace('"', '""') + '"' for label in labels]
    found = sources.files(table(tmp_path_factory.mktemp("a"), column(range(len(labels)), quoted)))
    assert [found.classes[k] for k in found.y.tolist()] == labels


def test_classes_that_are_numbers_stand_in_the_order_of_numbers(tmp_path):
    labels = [str(k) for k in (10, 9, 2, -1, 0.5, 1)] + ["blank"]
    assert sources.files(table(tmp_path, column(range(7), labels))).classes == (
        "-1",
        "0.5",
        "1",
        "2",
        "9",
        "10",
        "blank",
    )


def test_what_a_label_is_does_not_hang_on_the_rows_before_it(tmp_path):
    """A reader that guesses types from a thousand rows at a time makes two labels of 3 and "3"."""
    labels = [str(k % 10) for k in range(1200)] + ["blank"] * 60
    wide = "\n".join(["label," + ",".join(f"p{k}" for k in range(784))] + [f"{each}" + ",0" * 784 for each in labels])
    assert sources.files(table(tmp_path, wide)).classes == (*"0123456789", "blank")


@pytest.mark.parametrize("y", [["no", "yes"], [b"no", b"yes"], [False, True], [3, 7], [0.5, 1.0]])
def test_labels_of_an_npz_are_read_in_any_type(tmp_path, y):
    found = sources.files(arrays(tmp_path, x=np.zeros((4, 2)), y=np.array(y * 2)))
    assert found.classes == tuple(each.decode() if isinstance(each, bytes) else str(each) for each in y)
    assert found.y.tolist() == [0, 1, 0, 1]


# Numbers, exactly


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_a_number_is_the_one_that_stands_in_the_file(tmp_path_factory, numbers):
    path = table(tmp_path_factory.mktemp("a"), column(map(repr, numbers), "a" * len(numbers)))
    assert sources.files(path).x.flatten().tolist() == numbers


@pytest.mark.parametrize("cell", ["TRUE", "True", "true", "1", "1.0", " 1", "1e0", "+1"])
def test_a_cell_may_spell_one_in_many_ways(tmp_path, cell):
    assert sources.files(table(tmp_path, column([cell], ["a"]))).x.item() == 1.0


@pytest.mark.parametrize("cell", ["x", "1_0", "1,5", "0x10", "NA", "1 2", "--"])
def test_a_cell_that_is_no_number_is_named(tmp_path, cell):
    with pytest.raises(DataError, match=r"a\.csv: column 'width' holds text"):
        sources.files(table(tmp_path, column(["1", f'"{cell}"'], "ab")))


@pytest.mark.parametrize("cell", ["", "nan", "inf", "-Infinity", "1e999"])
def test_a_cell_without_a_finite_number_is_named(tmp_path, cell):
    with pytest.raises(DataError, match=r"a\.csv: example 1 holds a value that is missing or not finite"):
        sources.files(table(tmp_path, column(["1", cell], "ab")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,label\n1,x,3\n", r"line 2 has 3 cells, expected 2"),
        ("a,label\n1,x,\n2,y,\n", r"line 2 has 3 cells"),
        ("a,b,label\n1,2,x\n1,x\n", r"line 3 has 2 cells, expected 3"),
        ("a,label\n1,x\n2\n", r"line 3 has 1 cells"),
        ("label,a,label\nx,1,y\n", r"has 2 columns called 'label'"),
        ("a,a,label\n1,1,y\n", r"has 2 columns called 'a'"),
        (",a,label\n0,1,y\n", r"column 1 has no name"),
        ("label\nx\n", r"has the column label alone"),
        ("a;label\n1;x\n", r"has the columns a;label: expected one called label"),
        ("a,Label\n1,x\n", r"has the columns a, Label"),
        ('a,label\n1,"x\n', r"is no readable \.csv"),
        ("a,label\n", r"has no examples"),
        ("\n\n", r"is no readable \.csv \(it is empty\)"),
        (b"a,label\n1,\xe9\n", r"is no readable \.csv"),
        (b"\xff\xfea\0", r"is no readable \.csv"),
        (b"PK\x03\x04\0\0", r"expected one called label|no readable"),
        ("a,label\n" + "1" * 200_000 + ",x\n", r"is no readable \.csv .*field"),
    ],
)
def test_a_table_that_does_not_line_up_is_refused(tmp_path, text, says):
    with pytest.raises(DataError, match=rf"a\.csv.*{says}"):
        sources.files(table(tmp_path, text))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path, start, end):
    found = sources.files(table(tmp_path, start + end.join(["label,a", "x,1", "y,2", ""])))
    assert (found.classes, found.x.tolist()) == (("x", "y"), [[1.0], [2.0]])


# Standardised in float64


COLUMNS = {
    "far from 0": 1e7 + np.random.default_rng(0).standard_normal(2000),
    "seconds of a clock": 1.7e9 + np.arange(2000.0),
    "tiny": 1e-200 * np.arange(2000.0),
    "whole numbers of 40 bits": 2.0**40 - np.arange(2000.0),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_is_standardised_as_in_float64(tmp_path, kind):
    values = COLUMNS[kind]
    found = data.from_files(table(tmp_path, column(map(repr, values.tolist()), [k % 2 for k in range(2000)])))
    parts = splits._stratified(torch.arange(2000) % 2, None, stream(0, "split", "a"))
    train = values[parts["train"].numpy()].astype(np.longdouble)
    for part, index in parts.items():
        expected = (values[index.numpy()] - train.mean()) / train.std(ddof=1)
        x = getattr(found, part).x.flatten().numpy()
        assert np.allclose(x, expected.astype(np.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1.7e9, 1e-300, 1 / 3, -7e30])
@pytest.mark.parametrize("rows", [20, 2000])
def test_a_constant_column_is_0_whatever_its_value(tmp_path, value, rows):
    found = data.from_files(table(tmp_path, column([repr(value)] * rows, [k % 2 for k in range(rows)])))
    for part in ("train", "quote", "audit", "test"):
        assert (getattr(found, part).x == 0).all()


@pytest.mark.parametrize("values", [[1e300, -1e300], [1e39, 0.0], [1.7e308, -1.7e308]])
def test_numbers_beyond_float32_are_refused_by_file(tmp_path, values):
    with pytest.raises(DataError, match=r"a\.csv holds numbers that are too large"):
        data.from_files(table(tmp_path, column(values * 20, [0] * 20 + [1] * 20)))


def test_means_are_the_same_on_any_number_of_threads():
    found = []
    for threads in (1, 8):
        torch.set_num_threads(threads)
        try:
            found.append(data.load("mnist-5k"))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(found[0].mean, found[1].mean)
    assert torch.equal(found[0].std, found[1].std)
    assert torch.equal(found[0].test.x, found[1].test.x)


# Archives


GOOD = {"x": np.random.default_rng(0).random((40, 7)), "y": np.repeat([0, 1], 20)}


def saved(**content):
    file = io.BytesIO()
    np.savez_compressed(file, **content)
    return file.getvalue()


def with_header(header, body=b"", member="x.npy"):
    """An archive in which one array claims what it likes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        text = (header + "\n").encode()
        archive.writestr(member, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
        other = io.BytesIO()
        np.save(other, GOOD["y"])
        archive.writestr("y.npy" if member == "x.npy" else "x.npy", other.getvalue())
    return file.getvalue()


def bomb():
    """A gigabyte of zeros in a megabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(2**20))
        archive.writestr("y.npy", b"")
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, GOOD["x"])
    return file.getvalue()


def encrypted():
    content = bytearray(saved(**GOOD))
    content[6] |= 1  # the flag, in the member and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


BROKEN = {
    "cut in half": lambda: saved(**GOOD)[: len(saved(**GOOD)) // 2],
    "empty": lambda: b"",
    "an npy": npy,
    "a web page": lambda: b"<html>please log in</html>",
    "a billion numbers": lambda: with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1)}"),
    "more than numpy can count": lambda: with_header(
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1000000000000)}"
    ),
    "texts of no length": lambda: with_header("{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,)}"),
    "a header that is no header": lambda: with_header("[" * 3000),
    "less than it claims": lambda: with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (40, 2)}", bytes(16)),
    "encrypted": encrypted,
    "a bomb": bomb,
    "texts": lambda: saved(x=np.array([["a", "b"]] * 40), y=GOOD["y"]),
    "dates": lambda: saved(x=np.zeros((40, 2), dtype="datetime64[s]"), y=GOOD["y"]),
    "complex": lambda: saved(x=np.zeros((40, 2), dtype=complex), y=GOOD["y"]),
    "a record": lambda: saved(x=np.zeros((40, 2), dtype=[("a", "f8")]), y=GOOD["y"]),
    "one axis": lambda: saved(x=np.zeros(40), y=GOOD["y"]),
    "nothing in an example": lambda: saved(x=np.zeros((40, 0)), y=GOOD["y"]),
    "no examples": lambda: saved(x=np.zeros((0, 3)), y=np.zeros(0, int)),
    "channels last": lambda: saved(x=np.zeros((40, 28, 28, 3)), y=GOOD["y"]),
    "classes is one word": lambda: saved(**GOOD, classes=np.array("ab")),
    "classes twice": lambda: saved(**GOOD, classes=np.array(["a", "a"])),
    "classes are pairs": lambda: saved(**GOOD, classes=np.array([["a", "b"]])),
    "labels between classes": lambda: saved(x=GOOD["x"], y=GOOD["y"] + 0.5, classes=np.array(["a", "b"])),
    "labels are texts and classes, too": lambda: saved(
        x=GOOD["x"], y=np.array(["a", "b"] * 20), classes=np.array(["a", "b"])
    ),
    "a label is missing": lambda: saved(x=GOOD["x"], y=np.array(["", "b"] * 20)),
    "a label is not a number": lambda: saved(x=GOOD["x"], y=np.full(40, np.nan)),
    "labels are dates": lambda: saved(x=GOOD["x"], y=np.zeros(40, dtype="datetime64[s]")),
    "labels are bytes": lambda: saved(x=GOOD["x"], y=np.array([b"\xff", b"b"] * 20)),
    "labels by class": lambda: saved(x=GOOD["x"], y=np.zeros((40, 2))),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_whatever_a_damaged_archive_raises_is_ours_and_names_the_file(tmp_path, kind):
    path = tmp_path / "mine.npz"
    path.write_bytes(BROKEN[kind]())
    with pytest.raises(DataError, match=r"mine\.npz"):
        data.from_files(path)
    assert os.listdir(tmp_path) == ["mine.npz"]


@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_an_archive_with_any_byte_changed_is_read_as_it_was_or_refused(tmp_path_factory, place, value, cut):
    content = bytearray(saved(**GOOD))
    place %= len(content)
    content[place] = value
    path = tmp_path_factory.mktemp("a") / "mine.npz"
    path.write_bytes(content[:place] if cut else content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = sources.files(path)
    except DataError as error:
        assert "mine.npz" in str(error)  # noqa: PT017
        return
    assert torch.equal(found.x, torch.from_numpy(GOOD["x"]))


KINDS = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
    "longdouble",
    ">f4",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_in_any_type_are_the_same_examples(tmp_path, kind):
    values = np.random.default_rng(0).integers(0, 2, (40, 5, 5))
    found = data.from_files(arrays(tmp_path, x=values.astype(kind), y=GOOD["y"]))
    expected = data.from_files(arrays(tmp_path, x=values, y=GOOD["y"]))
    assert torch.allclose(found.train.x, expected.train.x, atol=1e-6)
    assert found.train.x.dtype == torch.float32
