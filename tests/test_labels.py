"""Classes from folders and from tables."""

import csv

import numpy as np
import pytest

from ssl_jax.data.labels import classes_of_table, find_classes, read_table
from ssl_jax.errors import UserError

DEEP = ["dog/1.jpg", "cat/2.jpg", "horse/3.jpg", "cat/4.jpg"]


def test_folders_are_classes_where_every_picture_lies_one_deep():
    found = find_classes("auto", {"": DEEP})
    assert found.names == ("cat", "dog", "horse")
    assert found.found == "3 classes from folder names: cat, dog, horse"
    (labels,) = found.labels
    assert [found.names[y] for y in labels] == ["dog", "cat", "horse", "cat"]
    assert labels.dtype == np.int32


@pytest.mark.parametrize(
    "paths",
    [
        ["1.jpg", "2.jpg"],  # no folders
        ["cat/1.jpg", "cat/2.jpg"],  # one folder
        [*DEEP, "stray.jpg"],  # one picture beside the folders
        [*DEEP, "cat/old/5.jpg"],  # one picture deeper
        ["a/cat/1.jpg", "a/dog/1.jpg"],  # all deeper
    ],
)
def test_stray_folders_are_no_classes(paths):
    found = find_classes("auto", {"": paths})
    assert (found.labels, found.names) == (None, ()) and found.found.startswith("no labels: ")
    assert find_classes("none", {"": DEEP}).labels is None


def test_the_first_folder_is_the_class_where_folders_are_asked_for():
    found = find_classes("folders", {"": [*DEEP, "cat/old/5.jpg"]})
    assert found.labels[0].tolist() == [1, 0, 2, 0, 0]
    with pytest.raises(UserError, match=r"data.labels: got 'folders', but 1 picture \(x.jpg\) lie"):
        find_classes("folders", {"": [*DEEP, "x.jpg"]})
    with pytest.raises(UserError, match="one folder, cat; takes at least 2"):
        find_classes("folders", {"": ["cat/1.jpg"]})


def test_classes_are_those_of_the_training_folder():
    found = find_classes("auto", {"train": DEEP, "test": ["horse/9.jpg"]})
    assert [y.tolist() for y in found.labels] == [[1, 0, 2, 0], [2]]
    with pytest.raises(UserError, match=r"the folder test has 1 class \(cow\) that the training"):
        find_classes("auto", {"train": DEEP, "test": ["cow/9.jpg"]})
    with pytest.raises(UserError, match=r"1 picture \(9.jpg\) of the folder test lie in no class"):
        find_classes("auto", {"train": DEEP, "test": ["9.jpg"]})


def test_numbered_folders_are_classes_in_the_order_of_their_numbers():
    paths = [f"{name}/1.jpg" for name in (10, 9, 2)]
    found = find_classes("auto", {"": paths})
    assert found.names == ("2", "9", "10") and found.labels[0].tolist() == [2, 1, 0]


def test_many_classes_are_told_by_the_first():
    found = find_classes("auto", {"": [f"c{n}/1.jpg" for n in range(9)]})
    assert found.found == "9 classes from folder names: c0, c1, c2, c3, c4 and 4 more"


# --- Tables ---------------------------------------------------------------------------------------


def write_csv(path, rows, columns=("path", "label")) -> str:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


NASTY = ["a b.jpg", 'quo"te,d.jpg', "ümlaut.jpg", "new\nline.jpg", "by\udcfftes.jpg"]


def test_a_table_gives_the_labels(tmp_path):
    rows = [(name, f"class {n % 2}") for n, name in enumerate(NASTY)]
    table = read_table(write_csv(tmp_path / "labels.csv", rows))
    assert table == dict(rows)
    found = classes_of_table("labels.csv", table, {"": NASTY[::-1]})
    assert found.names == ("class 0", "class 1")
    assert found.labels[0].tolist() == [0, 1, 0, 1, 0]
    assert found.found == "2 classes from labels.csv: class 0, class 1"


def test_a_parquet_table_is_read_as_the_same_in_csv_is(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    paths, labels = ["b.jpg", "./a.jpg"], [7, 12]
    file = tmp_path / "labels.parquet"
    parquet.write_table(pyarrow.table({"label": labels, "path": paths, "more": [0, 0]}), file)
    table = read_table(str(file))
    assert table == read_table(
        write_csv(
            tmp_path / "l.csv", zip([0, 0], paths, labels, strict=True), ("more", "path", "label")
        )
    )
    assert classes_of_table("t", table, {"": ["a.jpg", "b.jpg"]}).names == ("7", "12")
    file.write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="is no Parquet file"):
        read_table(str(file))


def test_what_a_table_lacks_has_no_label_and_is_told():
    found = classes_of_table("t.csv", {"a": "x", "b": "y"}, {"train": ["a", "b", "c"], "test": []})
    assert found.labels[0].tolist() == [0, 1, -1]
    assert "1 picture (c) without a label there" in found.found


@pytest.mark.parametrize(
    "rows, columns, line",
    [
        ([("a", "x"), ("b", "y"), ("a", "x")], ("path", "label"), r"has 1 path \(a\) twice"),
        ([("a", "x")], ("file", "label"), "has the columns file, label, not path"),
        ([("a", "")], ("path", "label"), "row 2: takes a path and a label"),
        ([], ("path",), "not label"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, rows, columns, line):
    with pytest.raises(UserError, match=line):
        read_table(write_csv(tmp_path / "labels.csv", rows, columns))


def test_labels_that_do_not_fit_are_one_line(tmp_path):
    train = ["a", "b"]
    for table, line in (
        ({"a": "x", "z": "y"}, r"has 1 path \(z\) that are no pictures"),
        ({"a": "x", "c": "y"}, r"has 1 label \(y\) in the folder test"),
        ({"c": "y"}, "no label of a training picture"),
    ):
        with pytest.raises(UserError, match=line):
            classes_of_table("t.csv", table, {"train": train, "test": ["c"]})
    for value in ("foldres", str(tmp_path)):
        with pytest.raises(UserError, match="data.labels: got .*, which is no file"):
            read_table(value)
