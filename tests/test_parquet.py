"""Parquet files as Hugging Face lays them out: the bytes that were put in, and one line for the
rest.
"""

import io
import json
import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_jax.data import cache, parquet, shards
from ssl_jax.data.parquet import open_parquet
from ssl_jax.data.records import Options
from ssl_jax.errors import UserError


def pictures(count: int, seed: int = 0) -> list[bytes]:
    """Encoded pictures, all different."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    return found


def table(images, labels=None, kind="struct", names=None, column="image", label="label"):
    """A table of pictures and labels, with Hugging Face's metadata where `names` is given."""
    if kind == "struct":
        content = [
            None if i is None else {"bytes": i, "path": f"{n}.png"} for n, i in enumerate(images)
        ]
        image = pa.array(content, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        image = pa.array(images, {"binary": pa.binary(), "large": pa.large_binary()}[kind])
    columns = {"id": pa.array(range(len(images))), column: image}
    if labels is not None:
        columns[label] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    made = pa.table(columns)
    if names:
        features = {column: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        made = made.replace_schema_metadata({"huggingface": text})
    return made


def write(path, made, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **{"row_group_size": 4} | options)
    return path


def read(data_dir, **options):
    return open_parquet(str(data_dir), Options(**options), [])


def content(records):
    return [records.read(i) for i in range(len(records.names))]


def refusal(data_dir, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(data_dir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("at_once", [1, 150, 32 << 20])
@pytest.mark.parametrize("kind", ["struct", "binary", "large"])
@pytest.mark.parametrize("column", ["image", "img", "photo"])
def test_bytes_and_labels_come_back_in_any_order(tmp_path, monkeypatch, kind, column, at_once):
    monkeypatch.setattr(parquet, "AT_ONCE", at_once)
    images, labels = pictures(23), [n % 3 for n in range(23)]
    for k, cut in enumerate((slice(0, 9), slice(9, 9), slice(9, 23))):
        made = table(images[cut], pa.array(labels[cut], pa.int64()), kind, column=column)
        write(tmp_path / "data" / f"train-0000{k}-of-00003.parquet", made)
    write(
        tmp_path / "data" / "test-00000-of-00001.parquet",
        table(images[:5], labels[:5], kind, column=column),
    )
    raw = read(tmp_path)
    assert content(raw.train) == images and content(raw.test) == images[:5]
    assert raw.train.labels.tolist() == labels and raw.train.labels.dtype == np.int32
    assert raw.test.labels.tolist() == labels[:5] and raw.label_names == ("0", "1", "2")
    again = pickle.loads(pickle.dumps(raw.train.read))
    for i in np.random.default_rng(0).permutation(np.arange(23).repeat(2)):
        assert raw.train.read(int(i)) == again(int(i)) == images[i]
    assert raw.unlabelled is None
    assert raw.train.names[9] == "data/train-00002-of-00003.parquet#0"
    assert len(set(raw.train.names)) == 23 and "4 Parquet files" in raw.found
    assert f"column {column}" in raw.found and "\n" not in raw.found


def test_what_is_read_in_order_is_read_once(tmp_path, monkeypatch):
    images = pictures(40)
    write(tmp_path / "a.parquet", table(images), row_group_size=8)
    raw, started = read(tmp_path), []
    start = parquet.ReadParquet._start
    monkeypatch.setattr(
        parquet.ReadParquet, "_start", lambda self, *a: started.append(a[-1]) or start(self, *a)
    )
    assert content(raw.train) == images and started == [0, 1, 2, 3, 4]


def _some(read, rows):
    return [read(i) for i in rows]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork")
def test_processes_and_threads_read_the_same(tmp_path, method):
    images = pictures(30)
    write(tmp_path / "a.parquet", table(images))
    raw = read(tmp_path)
    raw.train.read(17)  # something is open before
    wrong = []

    def check(seed):
        for i in np.random.default_rng(seed).permutation(30):
            if raw.train.read(int(i)) != images[i]:
                wrong.append(i)

    threads = [threading.Thread(target=check, args=(k,)) for k in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
    rows = [range(0, 15), range(29, 10, -1)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(_some, [(raw.train.read, part) for part in rows])
    assert found == [[images[i] for i in part] for part in rows]


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"a.parquet": 3}, {"train": 3}),
        ({"test-00000-of-00001.parquet": 3}, {"train": 3}),  # a lone split
        ({"data-00000-of-00001.parquet": 3}, {"train": 3}),
        ({"train.parquet": 3, "valid.parquet": 2}, {"train": 3, "test": 2}),
        (
            {"default/train/0000.parquet": 3, "default/test/0000.parquet": 2},
            {"train": 3, "test": 2},
        ),
        ({"my_train_set.parquet": 3, "VAL.parquet": 2, "test.parquet": 1}, {"train": 3, "test": 1}),
        ({"train/a.parquet": 3, "train/b.parquet": 3, "dev/a.parquet": 2}, {"train": 6, "test": 2}),
        (
            {"train-00000-of-00001.parquet": 3, "valid-00000-of-00001.parquet": 2},
            {"train": 3, "test": 2},
        ),
        ({"strain.parquet": 3, "test.parquet": 2}, {"train": 3, "test": 2}),
        ({"train.parquet": 3, "extra-00000-of-00001.parquet": 2}, {"train": 3}),
        ({"train.parquet": 3, "unlabeled.parquet": 2}, {"train": 3, "unlabelled": 2}),
        ({"a.parquet": 3, ".hidden.parquet": 2, ".x/a.parquet": 1, "a.txt": 1}, {"train": 3}),
    ],
)
def test_names_tell_the_split(tmp_path, files, expected):
    for name, count in files.items():
        write(tmp_path / name, table(pictures(count)))
    raw = read(tmp_path)
    sizes = {
        s: len(getattr(raw, s).names) for s in ("train", "test", "unlabelled") if getattr(raw, s)
    }
    assert sizes == expected
    assert ("extra" in raw.found) == any("extra" in name for name in files)
    for name in files:
        if not name.startswith(".") and name.endswith("parquet"):
            assert len(read(tmp_path / name).train.names) == files[name]


def test_the_split_that_is_asked_for(tmp_path):
    for name, count in {"train": 5, "validation": 3, "test": 2, "odd-00000-of-00001": 1}.items():
        write(tmp_path / f"{name}.parquet", table(pictures(count), [0] * count))
    assert len(read(tmp_path).test.names) == 2
    for split, count in {"validation": 3, "Val": 3, "test": 2, "odd": 1}.items():
        assert len(read(tmp_path, test_split=split).test.names) == count
    for split in ("none", "train", "unlabelled"):
        line = refusal(tmp_path, test_split=split)
        assert f"data.test_split: got {split}" in line and "odd, test, validation" in line


@pytest.mark.parametrize(
    "labels, names, numbers, classes",
    [
        ([2, 0, 2], ["cat", "dog", "horse"], [2, 0, 2], ("cat", "dog", "horse")),
        ([7, 5, 7], None, [1, 0, 1], ("5", "7")),
        (["b", "a", "b"], None, [1, 0, 1], ("a", "b")),
        (pa.array(["b", "a", "b"]).dictionary_encode(), None, [1, 0, 1], ("a", "b")),
        (pa.array([1, 0, 1], pa.uint8()), None, [1, 0, 1], ("0", "1")),
    ],
)
def test_labels_become_classes(tmp_path, labels, names, numbers, classes):
    write(tmp_path / "a.parquet", table(pictures(3), labels, names=names))
    raw = read(tmp_path)
    assert raw.train.labels.tolist() == numbers and raw.label_names == classes
    assert f"{len(classes)} classes from the column label: {classes[0]}, {classes[1]}" in raw.found
    without = read(tmp_path, labels="none")
    assert without.train.labels is None and without.label_names == ()
    assert without.found.endswith("no labels") and without.digest == raw.digest


@pytest.mark.parametrize("column", ["labels", "fine_label", "my_kind"])
def test_the_column_of_labels(tmp_path, column):
    made = table(pictures(2), [0, 1], names=["a", "b"], label=column)
    raw = read(write(tmp_path / "a.parquet", made.append_column("coarse", pa.array([3, 4]))))
    assert raw.train.labels.tolist() == [0, 1] and f"column {column}" in raw.found


def test_the_column_of_pictures(tmp_path):
    images = pictures(2)
    made = table(images, kind="binary").add_column(0, "audio", pa.array([b"a", b"b"]))
    assert content(read(write(tmp_path / "a.parquet", made)).train) == images
    raw = read(write(tmp_path / "a.parquet", made.rename_columns(["a", "id", "b"])))
    assert content(raw.train) == [b"a", b"b"] and "column a" in raw.found


def test_lists_are_no_labels(tmp_path):
    raw = read(write(tmp_path / "a.parquet", table(pictures(2), [[0, 1], [1]])))
    assert raw.train.labels is None and "label is no class" in raw.found


def test_images_without_a_label(tmp_path):
    images = pictures(10)
    write(tmp_path / "train.parquet", table(images[:6], [0, None, 1, -1, 0, 1]))
    write(tmp_path / "test.parquet", table(images[6:], [1, -1, 0, None]))
    write(tmp_path / "unlabelled.parquet", table(images[2:4], [-1, -1]))
    raw = read(tmp_path)
    assert content(raw.train) == [images[i] for i in (0, 2, 4, 5)]
    assert raw.train.labels.tolist() == [0, 1, 0, 1] and raw.label_names == ("0", "1")
    assert content(raw.unlabelled) == [images[i] for i in (1, 3, 2, 3)]
    assert content(raw.test) == [images[6], images[8]] and raw.test.labels.tolist() == [1, 0]
    assert "2 images of the split test have no label: left out" in raw.found
    assert content(pickle.loads(pickle.dumps(raw.unlabelled))) == content(raw.unlabelled)
    assert raw.train.names[1] == "train.parquet#2"
    everything = read(tmp_path, labels="none")
    assert content(everything.train) == images[:6] and content(everything.test) == images[6:]


def test_a_test_without_labels_is_replaced_by_validation(tmp_path):
    write(tmp_path / "train.parquet", table(pictures(4), [0, 1, 0, 1]))
    write(tmp_path / "test.parquet", table(pictures(3), [-1, -1, -1]))
    raw = read(tmp_path)
    assert raw.test is None and "the split test has no labels" in raw.found
    write(tmp_path / "val.parquet", table(pictures(2), [0, 1]))
    raw = read(tmp_path)
    assert len(raw.test.names) == 2
    assert "the split test has no labels; the split validation is the test" in raw.found
    assert "without labels" in refusal(tmp_path, test_split="test")
    for name, count in {"train": 4, "test": 3, "val": 2}.items():
        write(tmp_path / f"{name}.parquet", table(pictures(count), [-1] * count, names=["a", "b"]))
    raw = read(tmp_path)
    assert raw.train.labels is None and raw.label_names == () and len(raw.test.names) == 3
    assert raw.test.labels is None and "no labels" in raw.found


@pytest.mark.parametrize("names, wrong", [(["a", "b"], 2), (["a", "b"], -2), (None, -2)])
def test_labels_that_are_no_classes(tmp_path, names, wrong):
    write(tmp_path / "a.parquet", table(pictures(3), [0, wrong, -1], names=names))
    assert f"the column label: got the label {wrong}" in refusal(tmp_path)
    assert read(tmp_path, labels="none").train.labels is None


def test_paths_without_pictures(tmp_path):
    images = pictures(3)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": f"/etc/{n}.png"} for n in range(3)]
    made = pa.table({"image": pa.array(rows, kind)})
    write(tmp_path / "a.parquet", made)
    assert "holds no picture, at most paths" in refusal(tmp_path)
    rows[1] = {"bytes": images[1], "path": None}
    write(tmp_path / "a.parquet", pa.table({"image": pa.array([*rows, None], kind)}))
    raw = read(tmp_path)
    assert raw.train.read(1) == images[1]
    for i in (0, 2, 3):
        with pytest.raises(ValueError, match="holds no picture"):
            raw.train.read(i)
    assert raw.train.read(1) == images[1]


def test_wrong_files_are_one_line(tmp_path):
    good = write(tmp_path / "train-0.parquet", table(pictures(3), [0, 1, 0]))
    bad = tmp_path / "train-1.parquet"
    whole = good.read_bytes()
    for left in (0, 3, 12, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:left])
        assert f"{bad}: cannot be read as Parquet" in refusal(tmp_path)
    write(bad, pa.table({"n": [1], "text": ["a"], "list": [[b"a"]]}))
    line = refusal(tmp_path)
    assert "no column of pictures" in line and "n: int64, text: string, list: list<" in line
    for other in (
        table(pictures(1), [0], kind="binary"),
        table(pictures(1), ["a"], label="class"),
        table(pictures(1), [0], column="img"),
        table(pictures(1)),
        table(pictures(1), [0], names=["a"]),
    ):
        write(bad, other)
        assert "takes what train-0.parquet has: pictures in image (struct)" in refusal(tmp_path)
    write(bad, table([], pa.array([], pa.int64())))
    assert len(read(tmp_path).train.names) == 3
    assert "no training image" in refusal(bad)
    bad.unlink()
    bad.mkdir()
    assert len(read(tmp_path).train.names) == 3
    for wrong in ("folders", "labels.csv", "aut"):
        line = refusal(tmp_path, labels=wrong)
        assert f"data.labels: got {wrong!r}, " in line and "takes: auto, none for parquet" in line
        assert "data.name=folder" in line
    assert "takes a .parquet file" in refusal(bad)
    for config in ("small", "large"):
        write(tmp_path / "sets" / config / "train.parquet", table(pictures(2)))
    assert "several sets have a split train, in the directories large, small" in refusal(
        tmp_path / "sets"
    )
    write(tmp_path / "no" / "test.parquet", table(pictures(2)))
    write(tmp_path / "no" / "val.parquet", table(pictures(2)))
    assert "none of them is for training" in refusal(tmp_path / "no")


def test_a_damaged_page_is_a_damaged_picture(tmp_path):
    images = pictures(8)
    path = write(tmp_path / "a.parquet", table(images), compression="none", use_dictionary=False)
    whole = bytearray(path.read_bytes())
    at = whole.index(images[5]) - 4  # the length before it
    whole[at : at + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(whole)
    raw = read(tmp_path)
    assert [raw.train.read(i) for i in range(4)] == images[:4]
    for _ in range(2):
        with pytest.raises(Exception, match=r"\S"):
            raw.train.read(5)
    assert raw.train.read(2) == images[2]


def test_another_content_is_another_digest(tmp_path):
    write(tmp_path / "a.parquet", table(pictures(3), [0, 1, 1]))
    first = read(tmp_path).digest
    assert read(tmp_path).digest == first
    write(tmp_path / "a.parquet", table(pictures(3), [0, 1, 0]))
    assert read(tmp_path).digest != first


def test_digests_know_directories_and_other_sets_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "RECENT", 0.0)

    def digest(path):
        hashed.append(path)
        return Path(path).read_text()

    monkeypatch.setattr(cache, "_file_digest", digest)
    for n, name in enumerate(("a/x", "b/x", "b/y", "z")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(str(n))
    sets = [["a/x", "b/x"], ["z"], ["b/y", "z"]]
    hashed, roots, digests = [], [tmp_path / "cache"], set()
    for _ in range(2):
        digests |= {cache.files_digest([tmp_path / n for n in own], roots) for own in sets}
    assert len(digests) == 3 and len(hashed) == 4  # each file once
    (tmp_path / "a" / "x").write_text("1")
    (tmp_path / "b" / "x").write_text("0")
    assert cache.files_digest([tmp_path / n for n in sets[0]], roots) not in digests


def test_an_index_that_is_damaged_is_made_again(tmp_path):
    made = []

    def build():
        made.append(1)
        return {"a": [1, "ä"]}

    roots = [tmp_path / "no" / "place", tmp_path / "second"]
    (tmp_path / "no").write_text("a file")
    for _ in range(2):
        assert shards.cached_index(roots, "x", build) == {"a": [1, "ä"]}
    assert len(made) == 1
    (card,) = (tmp_path / "second" / "index").iterdir()
    whole = card.read_bytes()
    for damage in (b"", b"1\n{}", whole[:-1], whole.replace(b"[1", b"[2"), b"\xff"):
        card.write_bytes(damage)
        assert shards.cached_index(roots, "x", build) == {"a": [1, "ä"]}
    assert len(made) == 6 and shards.cached_index([], "x", build) == {"a": [1, "ä"]}
