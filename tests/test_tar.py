"""Tar files as WebDataset lays them out: the bytes that were put in, and one line for the rest."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_jax.data import cache, tar
from ssl_jax.data.archives import SETS, open_archive
from ssl_jax.data.parquet import open_parquet
from ssl_jax.data.records import Options
from ssl_jax.data.tar import open_tar
from ssl_jax.errors import UserError


def write(path: Path, files: dict[str, bytes] | list, form: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar file of these members: (name, content), or a ready `TarInfo`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for item in files.items() if isinstance(files, dict) else files:
            if isinstance(item, tarfile.TarInfo):
                archive.addfile(item)
                continue
            name, content = item
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def read(data_dir, roots=(), **options):
    return open_tar(str(data_dir), Options(**options), roots)


def content(records):
    return [records.read(i) for i in range(len(records.names))]


def refusal(data_dir, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(data_dir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def blobs(count: int) -> list[bytes]:
    """Contents of all kinds of sizes, also of whole blocks of 512."""
    rng = np.random.default_rng(0)
    return [rng.bytes(size) for size in (512, 1, 0, 1000, 1024, 513, 511, *range(count))][:count]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_bytes_and_labels_come_back_in_any_order(tmp_path, form):
    found = blobs(20)
    shard = {}
    for i, blob in enumerate(found[:12]):
        shard[f"{i:03d}.jpg"] = blob
        shard[f"{i:03d}.cls"] = f"{i % 3}\n".encode()
    write(tmp_path / "train-000.tar", shard, form)
    long = "a" * 90 + "/" + "ü" * 60  # names that take members of their own
    write(tmp_path / "train-001.tar", {f"{long}{i}.PNG": b for i, b in enumerate(found[12:16])} | {
        f"{long}{i}.json": json.dumps({"label": i % 3}).encode() for i in range(4)
    }, tarfile.GNU_FORMAT if form == tarfile.USTAR_FORMAT else form)  # fmt: skip
    write(tmp_path / "val-000.tar", {f"{i}.webp": b for i, b in enumerate(found[16:])} | {
        f"{i}.cls": b"1" for i in range(4)
    })  # fmt: skip
    raw = read(tmp_path)
    assert content(raw.train) == found[:16] and content(raw.test) == found[16:]
    assert raw.train.labels.tolist() == [0, 1, 2] * 4 + [0, 1, 2, 0]
    assert raw.label_names == ("0", "1", "2") and raw.test.labels.tolist() == [1] * 4
    again = pickle.loads(pickle.dumps(raw.train.read))
    for i in np.random.default_rng(0).permutation(np.arange(16).repeat(2)):
        assert raw.train.read(int(i)) == again(int(i)) == found[i]
    assert raw.train.names[1] == "train-000.tar#001.jpg" and len(set(raw.train.names)) == 16
    assert raw.found.startswith("3 tar files: 16 training and 4 test images")
    assert "the split validation is the test" in raw.found
    without = read(tmp_path, labels="none")
    assert without.train.labels is None and without.label_names == ()


def test_the_index_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "RECENT", 0.0)
    found = blobs(9)
    write(tmp_path / "set/sub/a.tar", {f"{i}.jpg": b for i, b in enumerate(found)})
    shard, indexed = tar._shard, []
    monkeypatch.setattr(tar, "_shard", lambda path: indexed.append(path.name) or shard(path))
    roots = [tmp_path / "cache"]
    for place in ("set", "set", "set/sub", "set/sub/a.tar"):  # one content, one index
        assert content(read(tmp_path / place, roots).train) == found
    assert indexed == ["a.tar"]
    write(tmp_path / "set/sub/a.tar", {f"{i}.jpg": b for i, b in enumerate(found[::-1])})
    assert content(read(tmp_path / "set", roots).train) == found[::-1]
    (tmp_path / "set/sub/a.tar").rename(tmp_path / "set/sub/b.tar")
    assert read(tmp_path / "set", roots).train.names[0] == "sub/b.tar#0.jpg"


@pytest.mark.parametrize(
    "members, labels, classes",
    [
        ({"a.cls": b"5", "b.cls": b" 7\n"}, [0, 1], ("5", "7")),
        ({"a.cls": b"cat", "b.cls": "Käfer".encode()}, [1, 0], ("Käfer", "cat")),
        ({"a.json": b'{"label": 3}', "b.json": b'{"cls": 1}'}, [1, 0], ("1", "3")),
        ({"a.json": b'{"class": "x", "a": 1}', "b.json": b'{"class": "y"}'}, [0, 1], ("x", "y")),
        ({"a.cls": b"1", "a.json": b'{"cls": 9}', "b.json": b'{"label": "2"}'}, [0, 1], ("1", "2")),
        ({"a.json": b'{"text": "a cat"}', "b.txt": b"a dog"}, None, ()),
        ({"a.json": b'{"label": null}', "b.json": b"[1]"}, None, ()),
        ({"a.cls": b"-1", "b.cls": b"-1"}, None, ()),
        ({}, None, ()),
    ],
)  # fmt: skip
def test_labels_beside_the_pictures(tmp_path, members, labels, classes):
    write(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b"2"} | members)
    raw = read(tmp_path)
    assert content(raw.train) == [b"1", b"2"] and raw.label_names == classes
    assert (raw.train.labels is None) if labels is None else raw.train.labels.tolist() == labels


def test_some_without_a_label_are_for_pretraining(tmp_path):
    write(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3", "b.cls": b"4"})
    raw = read(tmp_path)
    assert content(raw.train) == [b"2"] and content(raw.unlabelled) == [b"1", b"3"]
    assert list(raw.train.names) == ["a.tar#b.jpg"] and "and 2 unlabelled images" in raw.found


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", b"{"),
        ("a.json", b"\xff\xfe"),
        ("a.json", b'{"label": [1, 2]}'),
        ("a.json", b'{"label": 0.5}'),
        ("a.json", b"[" * 100_000),
        ("a.cls", b"\xff"),
    ],
)
def test_a_label_that_is_none_is_one_line(tmp_path, name, text):
    write(tmp_path / "a.tar", {"a.jpg": b"1", name: text})
    line = refusal(tmp_path)
    assert "a.tar: " in line and name in line and "data.labels=none" in line
    assert content(read(tmp_path, labels="none").train) == [b"1"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path, form):
    """Names and sizes of all kinds, links among them; the time of pax headers is a fraction."""
    files = [(f"{'d' * n}/{'n' * n}.jpg", bytes(n)) for n in (1, 40, 90, 96)]
    files += [("ü" * 40 + ".jpg", b"1"), ("x" * 100, b"2" * 512), ("a.jpg", b"")]
    link, timed = tarfile.TarInfo("link.jpg"), tarfile.TarInfo("timed.jpg")
    link.type, link.linkname, timed.mtime = tarfile.SYMTYPE, "a.jpg", 1.5
    path = write(tmp_path / "a.tar", [*files, link, timed, ("last.jpg", b"3")], form)
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        assert list(tar._members(file, archive)) == expected
    with tarfile.open(path) as archive:
        assert list(tar.members(archive)) == expected


def test_members_that_are_no_samples_are_passed_over(tmp_path):
    link, hard, folder, pipe = (tarfile.TarInfo(f"{n}.jpg") for n in "lhfp")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "x.jpg"
    folder.type, pipe.type = tarfile.DIRTYPE, tarfile.FIFOTYPE
    files = [("./x.jpg", b"1"), ("._x.jpg", b"2"), ("d/._x.jpg", b"3"), (".d/x.jpg", b"4")]
    files += [("__MACOSX/x.jpg", b"5"), ("d/x.jpg", b"6"), ("x.seg.png", b"7"), ("README", b"8")]
    files += [link, hard, folder, pipe, ("e/y.left.png", b"9"), ("d.x/z.JPG", b"10")]
    write(tmp_path / "a.tar", files)
    raw = read(tmp_path)
    assert raw.train.names == [
        f"a.tar#{n}" for n in ("x.jpg", "d/x.jpg", "e/y.left.png", "d.x/z.JPG")
    ]
    assert content(raw.train) == [b"1", b"6", b"9", b"10"]
    assert "(1 other pictures of the same keys passed over)" in raw.found


def test_nothing_is_ever_unpacked(tmp_path):
    files = [("../out.jpg", b"1"), ("/tmp/out.jpg", b"2"), ("a/../../out2.jpg", b"3")]
    write(tmp_path / "set" / "a.tar", files)
    before = sorted(tmp_path.rglob("*"))
    raw = read(tmp_path / "set")
    assert content(raw.train) == [b"2"] and raw.train.names == ["a.tar#tmp/out.jpg"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cut_file_is_one_line(tmp_path):
    found = blobs(5)
    whole = write(tmp_path / "a.tar", {f"{i}.jpg": b for i, b in enumerate(found)}).read_bytes()
    end = max(n for n in range(0, len(whole), 512) if whole[n : n + 512] != bytes(512)) + 512
    write(tmp_path / "b.tar", {"x.jpg": b"1"})
    for left in (0, 100, 511, 512, *range(600, end, 211), end - 1, end, end + 100):
        (tmp_path / "a.tar").write_bytes(whole[:left])
        assert f"{tmp_path}/a.tar: truncated or damaged" in refusal(tmp_path)
    for left in (end + 512, len(whole)):
        (tmp_path / "a.tar").write_bytes(whole[:left])
        assert content(read(tmp_path).train) == [*found, b"1"]
    damaged = bytearray(whole)
    damaged[1024 + 5] ^= 1  # of the second header
    (tmp_path / "a.tar").write_bytes(damaged)
    assert "a.tar: truncated or damaged" in refusal(tmp_path)


def test_a_file_that_shrinks_later_is_a_damaged_picture(tmp_path):
    path = write(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b"2" * 600})
    raw = read(tmp_path)
    os.truncate(path, 1700)
    assert raw.train.read(0) == b"1"
    with pytest.raises(ValueError, match="shorter than it was"):
        raw.train.read(1)


@pytest.mark.parametrize(
    "end, pack, program",
    [
        (".tar.gz", gzip.compress, "gunzip "),
        (".TGZ", gzip.compress, "gunzip "),
        (".tar.bz2", bz2.compress, "bunzip2 "),
        (".tar.xz", lzma.compress, "unxz "),
        (".tar.zst", lambda b: b"\x28\xb5\x2f\xfd" + b, "unzstd "),
        (".tar", gzip.compress, "gunzip -c "),
        (".tar", lzma.compress, "unxz -c "),
    ],
)
def test_compressed_files_are_refused(tmp_path, end, pack, program):
    whole = write(tmp_path / "a.tar", {"a.jpg": b"1"}).read_bytes()
    (tmp_path / f"b{end}").write_bytes(pack(whole))
    line = refusal(tmp_path)
    assert f"b{end}: is compressed" in line and f"{program}{tmp_path}/b{end}" in line


def test_wrong_files_are_one_line(tmp_path):
    assert "takes a .tar file" in refusal(tmp_path)
    write(tmp_path / "a.tar", {"a.txt": b"1"})
    assert "no training image" in refusal(tmp_path)
    write(tmp_path / "a.tar", {"x.1.jpg": b"1", "x.2.jpg": b"2"})
    assert "the key x has several pictures, x.1.jpg and x.2.jpg" in refusal(tmp_path)
    write(tmp_path / "a.tar", {"x.jpg": b"1", "x.png": b"2"})
    assert "the key x has several pictures" in refusal(tmp_path)
    write(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.jpg", b"2")])
    assert "has two members x.jpg" in refusal(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"no tar file at all" * 100)
    assert "truncated or damaged" in refusal(tmp_path)
    for wrong in ("folders", "labels.csv", "aut"):
        line = refusal(tmp_path, labels=wrong)
        assert f"data.labels: got {wrong!r}, " in line and "takes: auto, none for tar" in line
        assert "data.name=folder" in line
    write(tmp_path / "train-0.tar", {"x.jpg": b"1"})
    write(tmp_path / "a.tar", {"x.jpg": b"1"})
    assert "the set has train alone" in refusal(tmp_path, test_split="test")


def test_the_same_pictures_through_every_door(tmp_path, monkeypatch):
    """The archives have pixels, the others the bytes of PNG, which lose nothing."""
    rng = np.random.default_rng(0)
    pixels, label = rng.integers(0, 256, (6, 32, 32, 3), np.uint8), np.array([3, 1, 4, 1, 5, 9])
    images = []
    for picture in pixels:
        Image.fromarray(picture).save(file := io.BytesIO(), "PNG")
        images.append(file.getvalue())
    known = SETS["cifar10"]
    form = known.forms[0]._replace(
        splits={"train": (("data_batch_1.bin", 6),), "test": (("test_batch.bin", 6),)}
    )
    monkeypatch.setitem(SETS, "cifar10", known._replace(forms=(form,)))
    rows = np.concatenate([label[:, None], pixels.transpose(0, 3, 1, 2).reshape(6, -1)], axis=1)
    folder = tmp_path / "archive" / form.folder
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / form.splits[split][0][0]).write_bytes(rows.astype(np.uint8).tobytes())
        members = {f"{i}.png": image for i, image in enumerate(images)}
        names = {f"{i}.cls": known.names[k].encode() for i, k in enumerate(label)}
        write(tmp_path / "tar" / f"{split}-0.tar", members | names)
        column = pa.array([{"bytes": image, "path": None} for image in images])
        texts = pa.array([known.names[k] for k in label])
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"image": column, "label": texts}), tmp_path / "parquet" / f"{split}.parquet"
        )
    sets = [open_archive("cifar10", str(tmp_path / "archive"), Options(), [])]
    sets += [open_tar(str(tmp_path / "tar"), Options(), [])]
    sets += [open_parquet(str(tmp_path / "parquet"), Options(), [])]
    for raw in sets:
        for records in (raw.train, raw.test):
            own = [raw.label_names[k] for k in records.labels]
            assert own == [known.names[k] for k in label]
            for i, stored in enumerate(content(records)):
                if isinstance(stored, bytes):
                    assert stored == images[i]
                    stored = np.asarray(Image.open(io.BytesIO(stored)))
                np.testing.assert_array_equal(stored, pixels[i])
