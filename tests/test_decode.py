"""Records to the cache: order, processes, damaged pictures, the disk."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_folder import fill, photo
from test_pictures import DAMAGED, encoded

from ssl_jax.data import cache, decode
from ssl_jax.data.pictures import read_pixels
from ssl_jax.data.records import Options, Records, join, part
from ssl_jax.data.sources import load_dataset
from ssl_jax.errors import UserError

PLACE = "set", "train", "0123"
DEFAULTS = Options()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))


class Encoded:
    """read(i) of a list, that can be pickled."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __call__(self, row):
        if isinstance(self.pictures[row], Exception):
            raise self.pictures[row]
        return self.pictures[row]


def records_of(pictures, labels=None) -> Records:
    names = [f"{n}.png" for n in range(len(pictures))]
    return Records(names, Encoded(pictures), labels)


def decoded(records, tmp_path, shape=(8, 8, 3), options=DEFAULTS):
    return decode.decode_records(records, shape, options, [tmp_path / "cache"], PLACE)


@pytest.mark.parametrize("alone", [0.0, 1e9])
def test_the_order_is_that_of_the_records(tmp_path, monkeypatch, alone):
    """In this process, or in others from the second record on."""
    monkeypatch.setattr(decode, "ALONE", alone)
    monkeypatch.setattr(decode, "PART", 3)
    monkeypatch.setattr(decode, "AHEAD", 2)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    if alone:
        monkeypatch.setattr(decode, "_on_all_cores", None)
    pictures = [encoded(photo(n), "PNG") for n in range(40)]
    found = decoded(records_of(pictures, np.arange(40)), tmp_path)
    expected = [read_pixels(picture, 3, 8) for picture in pictures]
    np.testing.assert_array_equal(found.image, expected)
    assert found.label.tolist() == list(range(40)) and found.label.dtype == np.int32


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="looks at /dev/shm")
def test_the_processes_end_with_the_reading():
    assert list(decode._on_all_cores(abs, 0, 1000, 2, [])) == list(range(1000))
    assert not list(Path("/dev/shm").glob(f"sem.loky-{os.getpid()}-*"))
    children = [" ".join(process.cmdline()) for process in psutil.Process().children()]
    assert not [line for line in children if "loky" in line and "resource_tracker" not in line]


def test_other_processes_start_without_jax_and_without_the_main_module(tmp_path):
    """A script without `if __name__ == "__main__"` may read a set while JAX's threads run."""
    base = fill(tmp_path / "set", [f"{n}.png" for n in range(40)])
    (tmp_path / "where.py").write_text(
        "import os, sys\ndef where(row):\n    return os.getpid(), 'jax' in sys.modules\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import os, jax, where\n"
        "jax.numpy.ones(3).block_until_ready()\n"
        "from ssl_jax.data import decode\n"
        "from ssl_jax.data.sources import load_dataset\n"
        "print('started')\n"
        "decode.ALONE, decode.PART = 0.0, 4\n"
        "import joblib; joblib.cpu_count = lambda: 2\n"
        f"image = load_dataset('folder', {str(base)!r}).train.image\n"
        "seen = set(decode.in_order(where.where, 40, []))\n"
        "assert {jax for pid, jax in seen if pid != os.getpid()} == {False}, seen\n"
        "print(image.shape)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started") == 1 and "(40, 40, 40, 3)" in done.stdout


# --- Damaged pictures -----------------------------------------------------------------------------

PICTURES = [encoded(photo(n), "PNG") for n in range(4)]
MIXED = [
    PICTURES[0],
    b"",
    PICTURES[1],
    PermissionError(13, "Permission denied"),
    *(data for data, _ in DAMAGED.values()),
    PICTURES[2],
    PICTURES[3],
]


def test_damaged_pictures_are_left_out_and_listed(tmp_path):
    labels = np.arange(len(MIXED))
    for _ in range(2):  # decoded, and from the cache
        found = decoded(records_of(MIXED, labels), tmp_path)
        np.testing.assert_array_equal(found.image, [read_pixels(p, 3, 8) for p in PICTURES])
        sound = [0, 2, len(MIXED) - 2, len(MIXED) - 1]
        assert found.label.tolist() == sound
        assert [entry.row for entry in found.damaged] == [n for n in labels if n not in sound]
        assert found.damaged[0][1:] == ("1.png", "an empty file")
        assert found.damaged[1][1:] == ("3.png", "Permission denied")


def test_a_split_whose_list_is_gone_is_decoded_again(tmp_path):
    records = records_of(MIXED)
    first = decoded(records, tmp_path)
    (card,) = (tmp_path / "cache").rglob("*.damaged.json")
    for content in (None, b"", b"[]", json.dumps({"source": "other", "damaged": []}).encode()):
        card.unlink() if content is None else card.write_bytes(content)
        again = decoded(records, tmp_path)
        np.testing.assert_array_equal(again.image, first.image)
        assert again.damaged == first.damaged and json.loads(card.read_bytes())["damaged"]


def damage(base, names):
    for name in names:
        (base / name).write_bytes(b"<!DOCTYPE html>")


def test_all_damaged_pictures_are_told_before_training(tmp_path):
    names = [f"{s}/{c}/{n}.png" for s in ("train", "test") for c in "ab" for n in range(5)]
    base = fill(tmp_path / "set", names)
    damage(base, ["train/a/0.png", "train/b/3.png", "train/b/4.png", "test/a/1.png"])
    with pytest.raises(UserError) as caught:
        load_dataset("folder", str(base))
    line = str(caught.value)
    assert "data.damaged: 4 of 20 pictures cannot be decoded (train/a/0.png: an HTML page" in line
    assert "; and 1 more)" in line and "data.damaged=skip" in line
    (kept,) = (tmp_path / "cache" / "damaged").iterdir()
    assert str(kept) in line
    listed = [row.split(":")[0] for row in kept.read_text().splitlines()]
    assert listed == ["train/a/0.png", "train/b/3.png", "train/b/4.png", "test/a/1.png"]
    data = load_dataset("folder", str(base), options=Options(damaged="skip"))
    assert [row.split(":")[0] for row in data.damaged] == listed
    assert data.description[1:4] == (7, 9, 7)
    assert np.bincount(data.train.label).tolist() == [4, 3]
    left = [n for n, name in enumerate(names) if name not in listed]
    images = np.concatenate([data.train.image, data.test.image])
    np.testing.assert_array_equal(images, [photo(n) for n in left])


def test_a_set_of_damaged_pictures_alone_is_one_line(tmp_path):
    base = fill(tmp_path / "set", ["a.png", "b.png"])
    damage(base, ["a.png", "b.png"])
    with pytest.raises(UserError, match="none of the 2 pictures can be read, the first is a.png"):
        load_dataset("folder", str(base))
    with pytest.raises(UserError, match="none of the 1 pictures can be decoded"):
        decoded(records_of([b""]), tmp_path)


# --- The cache ------------------------------------------------------------------------------------


def test_what_decides_pixels_or_labels_is_another_cache(tmp_path):
    transparent = encoded(np.zeros((4, 8, 4), np.uint8), "PNG")
    records = records_of([transparent, PICTURES[0]], np.array([0, 1], np.int32))
    first = decoded(records, tmp_path).image.copy()
    for options in (Options(fit="pad"), Options(background=(9, 9, 9)), Options(fit="squash")):
        found = decoded(records, tmp_path, options=options).image
        expected = [
            read_pixels(p, 3, 8, options.fit, options.background)
            for p in (transparent, PICTURES[0])
        ]
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(decoded(records, tmp_path).image, first)
    assert decoded(records, tmp_path, shape=(4, 4, 1)).image.shape == (2, 4, 4, 1)
    other = records._replace(labels=np.array([1, 0], np.int32))
    assert decoded(other, tmp_path).label.tolist() == [1, 0]
    assert decoded(part(records, np.array([1])), tmp_path).image.shape[0] == 1


def test_free_space_is_asked_for_before_decoding(tmp_path, monkeypatch):
    def read(row):
        raise AssertionError("decoding began")

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(UserError, match="no space left: .* bytes needed, 1,000 free"):
        decoded(Records(["a"], read, None), tmp_path)


def test_fewer_examples_than_declared_are_an_error_elsewhere(tmp_path):
    examples = [(np.zeros((2, 2, 1), np.uint8), 0)]
    with pytest.raises(UserError, match="has 1 images, 2 are declared"):
        cache.write(tmp_path / "split", "source", (2, 2, 2, 1), iter(examples))
    assert cache.write(tmp_path / "s", "x", (2, 2, 2, 1), iter(examples), fewer=True)[0] == 1
    assert len(np.load(tmp_path / "s.image.npy")) == 1


# --- Headers --------------------------------------------------------------------------------------


def test_another_test_split_is_looked_at_anew(tmp_path):
    """The digest is of all three files, and each choice has the same number of pictures."""
    grey, colour = photo(0, 8)[..., 0], photo(1, 8)
    for split, pixels in (("train", grey), ("test", grey), ("val", colour)):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            content = encoded(pixels, "PNG")
            member = tarfile.TarInfo("a.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert load_dataset("tar", str(tmp_path)).test.image.shape == (1, 8, 8, 1)
    test = load_dataset("tar", str(tmp_path), options=Options(test_split="val")).test
    np.testing.assert_array_equal(test.image, [colour])


# --- Records --------------------------------------------------------------------------------------


def test_records_are_taken_and_joined():
    labelled = records_of([b"0", b"1", b"2"], np.array([5, 6, 7], np.int32))
    bare = records_of([b"3", b"4"])
    whole = join(labelled, join(records_of([]), bare))
    assert [whole.read(n) for n in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert whole.labels.tolist() == [5, 6, 7, -1, -1]
    some = part(whole, np.array([4, 0]))
    assert [some.read(0), some.read(1)] == [b"4", b"0"]
    assert list(some.names) == ["1.png", "0.png"] and some.labels.tolist() == [-1, 5]
