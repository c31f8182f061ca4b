"""Folders of pictures: which are found, in which order, as which splits."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from test_pictures import encoded

from ssl_jax.data import cache, folder
from ssl_jax.data.records import Options
from ssl_jax.data.sources import describe, load_dataset
from ssl_jax.errors import UserError

PHOTOS = load_sample_images().images
DIGITS = (load_digits().images * (255 / 16)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))


def photo(number: int, side: int = 40) -> np.ndarray:
    """A part of a photograph, another one for each number."""
    y, x = number * 13 % (427 - side), number * 29 % (640 - side)
    return PHOTOS[number % 2][y : y + side, x : x + side]


def fill(base, names, kind="PNG", side=40):
    """Make a picture of each name; the same number, the same pixels. Return the folder."""
    for number, name in enumerate(names):
        path = os.path.join(base, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(encoded(photo(number, side), kind))
    return base


def found_in(base, **options) -> list[str]:
    return list(folder.open_folder(str(base), Options(**options), []).train.names)


# --- Which files ----------------------------------------------------------------------------------


def test_pictures_are_found_at_any_depth_in_the_order_of_their_bytes(tmp_path):
    names = ["b.png", "a/z.PNG", "a/b/c/d.JPeG", "Z.png", "a b.png", "é.png", "a-/1.png", "a.png"]
    fill(tmp_path / "set", names)
    assert found_in(tmp_path / "set") == sorted(names, key=os.fsencode)


def test_names_of_any_bytes_are_read(tmp_path):
    names = [b"a b.png", "ü.png".encode(), b"new\nline.png", b"\xff\xfe.png", b"%s.png", b"-rf.png"]
    fill(os.fsencode(tmp_path / "set"), names)
    records = folder.open_folder(str(tmp_path / "set"), Options(), []).train
    assert [os.fsencode(name) for name in records.names] == sorted(names)
    for row, name in enumerate(sorted(names)):
        assert records.read(row) == encoded(photo(names.index(name)), "PNG")
    data = load_dataset("folder", str(tmp_path / "set"))
    order = [names.index(name) for name in sorted(names)]
    np.testing.assert_array_equal(data.train.image, [photo(n) for n in order])


def test_what_is_no_picture_is_passed_over_and_counted(tmp_path):
    base = fill(tmp_path / "set", ["a.png", "b.png"])
    hidden = [".hidden.png", "._a.png", ".git/a.png", "__MACOSX/a.png", "Thumbs.db", ".DS_Store"]
    fill(base, [*hidden, "ssl_jax_cache/a.png"])
    (base / "notes.txt").write_text("no picture")
    (base / "c.heic").write_bytes(b"Pillow reads none of these")
    (base / "without").write_bytes(encoded(photo(0), "JPEG"))
    (base / "README").write_text("no picture either")
    os.mkfifo(base / "pipe.png")
    os.symlink(base / "nowhere", base / "broken.png")
    found = folder.open_folder(str(base), Options(), [])
    assert list(found.train.names) == ["a.png", "b.png", "without"]
    assert "passed over 5 files that are no pictures (2 .png, " in found.found
    assert "README, broken.png, c.heic, notes.txt, pipe.png" in found.found


def test_links_are_followed_once_and_loops_end(tmp_path):
    base, other = (
        fill(tmp_path / "set", ["a/1.png"]),
        fill(tmp_path / "other", ["2.png", "b/3.png"]),
    )
    for link, target in {
        "loop": base,
        "a/up": "..",
        "z": other,
        "x": other,
        "y": other / "b",
        "self": "self",
    }.items():
        os.symlink(target, base / link, target_is_directory=True)
    os.symlink(other / "2.png", base / "linked.png")
    assert found_in(base) == ["a/1.png", "linked.png", "x/2.png", "x/b/3.png"]


def test_the_order_is_that_of_no_file_system(tmp_path, monkeypatch):
    base = fill(tmp_path / "set", [f"{c}/{n}.png" for c in "cab" for n in (3, 1, 2)])
    for link in ("y", "x"):
        os.symlink(fill(tmp_path / "other", ["1.png"]), base / link)
    first, scandir = folder.walk(base)[:2], os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Backwards(list(scandir(path))[::-1]))
    assert folder.walk(base)[:2] == first


# --- Splits and labels ----------------------------------------------------------------------------


def test_a_folder_without_labels(tmp_path):
    base = fill(tmp_path / "set", ["1.png", "2.png", "deep/er/3.png"])
    data = load_dataset("folder", str(base))
    assert data.description == describe("folder", str(base))
    assert (data.num_classes, data.label_names) == (0, ())
    assert data.train.image.shape == data.pretrain.image.shape == (3, 40, 40, 3)
    assert data.test.image.shape == (0, 40, 40, 3)
    assert data.train.label.tolist() == [-1] * 3


def test_a_test_split_is_drawn_by_class(tmp_path):
    base = fill(tmp_path / "set", [f"{c}/{n}.png" for c in "ab" for n in range(10)])
    data = load_dataset("folder", str(base), options=Options(test_share=0.2))
    assert data.description == describe("folder", str(base), options=Options(test_share=0.2))
    assert np.bincount(data.train.label).tolist() == [8, 8]
    assert np.bincount(data.test.label).tolist() == [2, 2]
    pixels = np.concatenate([data.train.image, data.test.image])
    assert {x.tobytes() for x in pixels} == {photo(n).tobytes() for n in range(20)}
    unlabelled = load_dataset("folder", str(base), options=Options(labels="none"))
    assert unlabelled.train.image.shape[0] == 20 and not len(unlabelled.test.label)


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_folders_of_splits(tmp_path, test, capsys):
    names = [f"train/{c}/{n}.png" for c in "ab" for n in "12"]
    base = fill(tmp_path / "set", [*names, f"{test}/b/1.png", "unlabelled/9.png", "more/x.png"])
    data = load_dataset("folder", str(base))
    assert describe("folder", str(base)) == data.description
    assert data.train.label.tolist() == [0, 0, 1, 1] and data.test.label.tolist() == [1]
    assert data.pretrain.label.tolist() == [0, 0, 1, 1, -1]
    np.testing.assert_array_equal(data.pretrain.image[:4], data.train.image)
    np.testing.assert_array_equal(data.test.image[0], photo(4))
    np.testing.assert_array_equal(data.pretrain.image[4], photo(5))
    said = capsys.readouterr().out
    assert f"4 pictures in train/, 1 picture in {test}/, 1 picture for pretraining alone" in said
    assert "passed over 1 picture in other folders" in said
    other = load_dataset("folder", str(base), options=Options(labels="none", test_split="more"))
    np.testing.assert_array_equal(other.test.image[0], photo(6))
    assert other.test.label.tolist() == [-1] and len(other.train.label) == 5
    with pytest.raises(UserError, match="data.test_split: got 'tests'"):
        load_dataset("folder", str(base), options=Options(test_split="tests"))


def test_a_table_labels_a_folder(tmp_path):
    base = fill(tmp_path / "set", [f"{n}.png" for n in range(6)])
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(5)))
    options = Options(labels=str(table), test_share=0.25)
    data = load_dataset("folder", str(base), options=options)
    assert (len(data.train.label), len(data.test.label), data.label_names) == (4, 1, ("a", "b"))
    of = {photo(n).tobytes(): n % 2 for n in range(5)}
    for split in (data.train, data.test):
        assert [of[x.tobytes()] for x in split.image] == split.label.tolist()
    assert data.pretrain.label.tolist()[4:] == [-1]
    np.testing.assert_array_equal(data.pretrain.image[4], photo(5))
    table.write_text(table.read_text().replace(",a", ",z"))
    assert load_dataset("folder", str(base), options=options).label_names == ("b", "z")


# --- Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes, side",
    [
        ([(40, 40)] * 3, 40),
        ([(256, 256)] * 2, 256),
        ([(300, 300)] * 2, 256),
        ([(60, 40)] * 3, 32),
        ([(100, 70), (100, 65), (500, 64), (30, 900)], 64),
        ([(17, 19), (19, 23), (18, 21)], 18),
    ],
)
def test_the_side_is_the_sets_own_or_chosen(tmp_path, capsys, shapes, side):
    (tmp_path / "set").mkdir()
    for number, (height, width) in enumerate(shapes):
        image = np.zeros((height, width, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "set" / f"{number}.png")
    assert describe("folder", str(tmp_path / "set")).image == (side, side, 3)
    chosen = len(set(shapes)) > 1 or shapes[0][0] != shapes[0][1] or shapes[0][0] > 256
    assert (f"stored at {side}x{side} pixels" in capsys.readouterr().out) == chosen
    assert load_dataset("folder", str(tmp_path / "set")).side == side
    assert describe("folder", str(tmp_path / "set"), image_size=9).image == (9, 9, 3)


def test_grey_pictures_have_one_channel(tmp_path):
    (tmp_path / "set").mkdir()
    for number, digit in enumerate(DIGITS[:5]):
        Image.fromarray(digit).save(tmp_path / "set" / f"{number}.png")
    data = load_dataset("folder", str(tmp_path / "set"))
    np.testing.assert_array_equal(data.train.image[..., 0], DIGITS[:5])
    fill(tmp_path / "set", ["colour.png"], side=8)
    data = load_dataset("folder", str(tmp_path / "set"))
    np.testing.assert_array_equal(data.train.image[:5], np.stack([DIGITS[:5]] * 3, -1))


# --- The cached index, and identity ---------------------------------------------------------------


def test_the_index_is_kept_until_a_folder_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "RECENT", 0.0)
    base, roots = fill(tmp_path / "set", ["a/1.png", "b/2.png"]), [tmp_path / "cache"]
    walks, walk = [], folder.walk
    monkeypatch.setattr(folder, "walk", lambda base: walks.append(base) or walk(base))
    first = folder.read_index(base, roots)
    assert folder.read_index(base, roots) == first and len(walks) == 1
    fill(base, ["b/3.png"])
    assert folder.read_index(base, roots).pictures == ["a/1.png", "b/2.png", "b/3.png"]
    os.rename(base / "a/1.png", base / "a/0.png")
    assert folder.read_index(base, roots).pictures[0] == "a/0.png"
    (card,) = (tmp_path / "cache" / "folders").iterdir()
    walks.clear()
    for damage in (b"", b"[]", b"{", b"\xff", b'{"version": 1}', card.read_bytes()[:-9]):
        card.write_bytes(damage)
        assert folder.read_index(base, roots).pictures[0] == "a/0.png"
    assert len(walks) == 6
    monkeypatch.setattr(folder, "RECENT", 1e6)  # a folder may change again with the same time
    card.unlink()
    folder.read_index(base, roots)
    assert not card.exists()


def test_another_content_is_another_set(tmp_path):
    base = fill(tmp_path / "set", ["a.png", "b.png"])
    first = load_dataset("folder", str(base)).train.image.copy()
    status = (base / "a.png").stat()
    new = encoded(photo(7), "PNG")
    (base / "a.png").write_bytes(new)
    os.utime(base / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    second = load_dataset("folder", str(base)).train.image
    np.testing.assert_array_equal(second, [photo(7), first[1]])
    shutil.copytree(base, tmp_path / "copy")
    digests = {
        folder.open_folder(str(place), Options(), []).digest for place in (base, tmp_path / "copy")
    }
    assert len(digests) == 1


def test_a_file_is_read_once_for_its_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "RECENT", 0.0)
    base, roots = fill(tmp_path / "set", [f"{n}.png" for n in range(250)], side=4), [tmp_path / "c"]
    read, digest = [], cache._file_digest
    monkeypatch.setattr(cache, "_file_digest", lambda path: read.append(path) or digest(path))
    first = folder.open_folder(str(base), Options(), roots).digest
    assert len(read) == 250
    assert folder.open_folder(str(base), Options(), roots).digest == first and len(read) == 250
    os.utime(base / "17.png")
    assert folder.open_folder(str(base), Options(), roots).digest == first
    assert read[250:] == [str(base / "17.png")]


# --- Mistakes -------------------------------------------------------------------------------------


def refusals(**fields) -> str:
    lines = []
    for function in (describe, load_dataset):
        with pytest.raises(UserError) as caught:
            function("folder", **fields)
        lines.append(str(caught.value))
    assert lines[0] == lines[1] and "\n" not in lines[0]
    return lines[0]


def test_wrong_places_are_one_line(tmp_path, monkeypatch):
    fill(tmp_path / "set", ["a.png", "deep/b.png"])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no picture; takes a folder with .jpg" in refusals(data_dir=str(empty))
    (empty / "a.txt").write_text("")
    assert "but 1 file that is no picture (1 .txt): a.txt" in refusals(data_dir=str(empty))
    assert "is not a directory" in refusals(data_dir=str(tmp_path / "set" / "a.png"))
    assert "is not a directory" in refusals(data_dir=str(tmp_path / "none"))
    assert "data.data_dir: got none" in refusals(data_dir=None)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read what nobody else may
    line = refusals(data_dir=str(tmp_path / "set"))
    assert f"{tmp_path / 'set' / 'deep'} cannot be read (Permission denied)" in line


def test_one_picture_is_a_set(tmp_path):
    base = fill(tmp_path / "set", ["only.png"])
    np.testing.assert_array_equal(load_dataset("folder", str(base)).train.image, [photo(0)])


@pytest.mark.parametrize("name", ["digits"])
def test_labels_can_be_left_out_of_any_set(name):
    options = Options(labels="none")
    bare, whole = load_dataset(name, options=options), load_dataset(name)
    assert bare.description == describe(name, options=options)
    assert (bare.num_classes, bare.label_names) == (0, ())
    for one, other in zip(bare[1:4], whole[1:4], strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.label == -1).all() and one.label.dtype == np.int32
    for function in (describe, load_dataset):
        with pytest.raises(
            UserError, match="data.labels: got 'folders', it takes: auto, none for digits"
        ):
            function(name, options=Options(labels="folders"))
