"""The authors' archives give what TFDS gives, pixel by pixel; a pickle of theirs runs nothing."""

import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ssl_jax.data import archives
from ssl_jax.data.archives import SETS, has_archive, load_arrays, open_archive
from ssl_jax.data.records import Options
from ssl_jax.data.sources import load_dataset
from ssl_jax.errors import UserError

TFDS = os.environ.get("SSL_JAX_TFDS_DIR")
ROWS = 4  # images in a file of the small sets
CODE = {"cifar10": "cifar-10", "cifar100": "cifar-100"}


@pytest.fixture
def cache(tmp_path):
    return [tmp_path / "cache"]


@pytest.fixture
def small(monkeypatch):
    """The sets with `ROWS` images in each file."""
    for name, known in SETS.items():
        forms = tuple(
            form._replace(
                splits={k: tuple((file, ROWS) for file, _ in v) for k, v in form.splits.items()}
            )
            for form in known.forms
        )
        monkeypatch.setitem(archives.SETS, name, known._replace(forms=forms))


def planar(image: np.ndarray) -> np.ndarray:
    """(N, H, W, C) as CIFAR's files have it: (N, C H W)."""
    return image.transpose(0, 3, 1, 2).reshape(len(image), -1)


def python2(value, out=None) -> bytes:
    """A pickle as Python 2 and NumPy 1 wrote it: protocol 2, byte strings, `numpy.core`."""
    out, top = (io.BytesIO(), True) if out is None else (out, False)
    if top:
        out.write(b"\x80\x02")
    if isinstance(value, dict):
        out.write(b"}(")
        for key, item in value.items():
            python2(key, out)
            python2(item, out)
        out.write(b"u")
    elif isinstance(value, list):
        out.write(b"](")
        for item in value:
            python2(item, out)
        out.write(b"e")
    elif isinstance(value, int):
        out.write(b"J" + struct.pack("<i", value))
    elif isinstance(value, bytes):
        out.write(b"T" + struct.pack("<i", len(value)) + value)
    else:
        out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85")
        out.write(b"U\x01b\x87R(K\x01")
        out.write(b"".join(b"J" + struct.pack("<i", n) for n in value.shape) + b"\x86")
        out.write(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff")
        out.write(b"J\xff\xff\xff\xffK\x00tb\x89")
        python2(value.tobytes(), out)
        out.write(b"tb")
    if top:
        out.write(b".")
    return out.getvalue()


def cifar_files(name: str, kind: str, splits: dict, dump=python2) -> dict[str, bytes]:
    """The files of a CIFAR set in a form: "binary" or "python"; splits: (image, label) each."""
    form = SETS[name].forms[kind == "python"]
    files = {}
    for split, (image, label) in splits.items():
        own = form.splits[split]
        for (file, _), x, y in zip(
            own, np.split(planar(image), len(own)), np.split(label, len(own)), strict=True
        ):
            if kind == "binary":
                coarse = [y // 5] if name == "cifar100" else []
                rows = np.concatenate([np.stack([*coarse, y], 1).astype(np.uint8), x], axis=1)
                files[file] = rows.tobytes()
            else:
                fine = name == "cifar100"
                labels = {b"coarse_labels": (y // 5).tolist()} if fine else {}
                labels[b"fine_labels" if fine else b"labels"] = y.tolist()
                files[file] = dump({b"batch_label": b"a batch", **labels, b"data": x})
    names = [word.encode() for word in SETS[name].names]
    if kind == "binary":
        files[form.classes] = b"\n".join(names) + b"\n\n"
    else:
        key = b"fine_label_names" if name == "cifar100" else b"label_names"
        files[form.classes] = dump({b"num_vis": 3072, key: names})
    return files


def stl_files(splits: dict) -> dict[str, bytes]:
    """The files of STL-10: channel by channel, each by columns; labels from 1."""
    files = {}
    for split, (image, label) in splits.items():
        stem = {"unlabelled": "unlabeled"}.get(split, split)
        files[f"{stem}_X.bin"] = b"".join(
            image[n, :, :, c].tobytes(order="F") for n in range(len(image)) for c in range(3)
        )
        if label is not None:
            files[f"{stem}_y.bin"] = (label + 1).astype(np.uint8).tobytes()
    files["class_names.txt"] = "\n".join(SETS["stl10"].names).encode()
    return files


def store(root: Path, folder: str, archive: str, files: dict[str, bytes], packed: bool) -> Path:
    """Write a folder of files or an archive of it; return its path."""
    root.mkdir(parents=True, exist_ok=True)
    if not packed:
        (root / folder).mkdir()
        for name, content in files.items():
            (root / folder / name).write_bytes(content)
        return root / folder
    mode = "w:gz" if archive.endswith("gz") else "w"
    options = {"compresslevel": 1} if mode == "w:gz" else {}
    with tarfile.open(root / archive, mode, **options) as tar:
        for name, content in {f"{folder}/._{n}": b"x" for n in files}.items():
            add(tar, name, content)  # macOS leaves these
        for name, content in files.items():
            add(tar, f"{folder}/{name}", content)
    return root / archive


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def random_splits(name: str) -> dict:
    rng = np.random.default_rng(0)
    known = SETS[name]

    def draw(files, labelled=True):
        image = rng.integers(0, 256, (files * ROWS, *known.shape), np.uint8)
        return image, rng.integers(0, len(known.names), files * ROWS) if labelled else None

    splits = {"train": draw(5 if name == "cifar10" else 1), "test": draw(1)}
    return splits | ({"unlabelled": draw(1, False)} if name == "stl10" else {})


def files_of(name: str, kind: str, splits: dict) -> tuple[str, str, dict[str, bytes]]:
    form = SETS[name].forms[kind == "python"]
    files = stl_files(splits) if name == "stl10" else cifar_files(name, kind, splits)
    return form.folder, form.archive, files


def images(records) -> np.ndarray:
    return np.stack([records.read(i) for i in range(len(records.names))])


def refusal(name: str, place: Path, roots=()) -> str:
    with pytest.raises(UserError) as caught:
        open_archive(name, str(place), Options(), roots)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FORMS = [("cifar10", "binary"), ("cifar10", "python"), ("cifar100", "binary")]
FORMS += [("cifar100", "python"), ("stl10", "binary")]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name, kind", FORMS)
def test_images_and_labels_come_back(small, tmp_path, cache, name, kind, packed):
    splits = random_splits(name)
    assert not has_archive(name, str(tmp_path / "set"))
    store(tmp_path / "set", *files_of(name, kind, splits), packed)
    assert has_archive(name, str(tmp_path / "set"))
    for _ in range(2):  # the second time from the index
        raw = open_archive(name, str(tmp_path / "set"), Options(), cache)
        assert raw.label_names == SETS[name].names
        for split, (image, label) in splits.items():
            records = getattr(raw, split)
            assert len(set(records.names)) == len(label if label is not None else image)
            for read in (records.read, pickle.loads(pickle.dumps(records.read))):
                np.testing.assert_array_equal([read(i) for i in range(len(image))], image)
                np.testing.assert_array_equal(read(0), image[0])  # and back
            if label is not None:
                assert records.labels.dtype == np.int32
                np.testing.assert_array_equal(records.labels, label)
            else:
                assert records.labels is None
        assert raw.found.startswith(f"{SETS[name].title} from ") and "classes: a" in raw.found
    assert (raw.unlabelled is None) == (name != "stl10")
    without = open_archive(name, str(tmp_path / "set"), Options(labels="none"), cache)
    assert without.train.labels is None and without.test.labels is None
    assert without.label_names == () and without.found.endswith("no labels")


@pytest.mark.slow
@pytest.mark.skipif(not TFDS, reason="SSL_JAX_TFDS_DIR names no prepared CIFAR-10")
@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar10_is_what_tfds_gives(tmp_path, cache, kind):
    known = load_dataset("cifar10", TFDS)
    splits = {"train": known.train, "test": known.test}
    store(tmp_path, *files_of("cifar10", kind, splits), False)
    raw = open_archive("cifar10", str(tmp_path), Options(), cache)
    assert raw.label_names == known.label_names
    for split, records in (("train", raw.train), ("test", raw.test)):
        np.testing.assert_array_equal(images(records), splits[split].image)
        np.testing.assert_array_equal(records.labels, splits[split].label)


def test_the_form_that_is_preferred(small, tmp_path, cache):
    splits = random_splits("cifar10")
    for kind in ("python", "binary"):
        for packed in (True, False):
            store(tmp_path / "set", *files_of("cifar10", kind, splits), packed)
            raw = open_archive("cifar10", str(tmp_path / "set"), Options(), cache)
            np.testing.assert_array_equal(images(raw.test), splits["test"][0])
    assert "from cifar-10-batches-bin:" in raw.found
    for own in ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-batches-bin"):
        assert has_archive("cifar10", str(tmp_path / "set" / own))
        raw = open_archive("cifar10", str(tmp_path / "set" / own), Options(), cache)
        assert f"from {own}:" in raw.found
    half = tmp_path / "half"
    folder, archive, files = files_of("cifar10", "python", splits)
    store(half, folder, archive.removesuffix(".gz"), files, True)
    raw = open_archive("cifar10", str(half), Options(), cache)
    np.testing.assert_array_equal(images(raw.train), splits["train"][0])


def test_another_content_is_another_digest(small, tmp_path, cache):
    splits = random_splits("cifar10")
    place = store(tmp_path / "set", *files_of("cifar10", "binary", splits), False)
    first = open_archive("cifar10", str(place), Options(), cache)
    file = place / "data_batch_3.bin"
    content = bytearray(file.read_bytes())
    content[0] = (content[0] + 1) % 10  # a label
    file.write_bytes(content)
    second = open_archive("cifar10", str(place), Options(), cache)
    assert first.digest != second.digest
    assert (first.train.labels != second.train.labels).sum() == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name, kind", FORMS)
def test_what_is_missing_or_cut_is_one_line(small, tmp_path, name, kind, packed):
    folder, archive, files = files_of(name, kind, random_splits(name))
    needed = [file for file in files if file != SETS[name].forms[kind == "python"].classes]
    for n, file in enumerate(needed):
        less = {k: v for k, v in files.items() if k != file}
        place = store(tmp_path / f"less{n}", folder, archive, less, packed)
        assert f"lacks {file}" in refusal(name, place)
        for cut in (1, len(files[file]) // 2):
            short = files | {file: files[file][:-cut]}
            place = store(tmp_path / f"short{n}-{cut}", folder, archive, short, packed)
            assert file in refusal(name, place)
    if packed:
        place = store(tmp_path / "cut", folder, archive, files, True)
        content = place.read_bytes()
        for left in (0, 1, 10, len(content) // 2, len(content) - 9, len(content) - 1):
            place.write_bytes(content[:left])
            assert "truncated or damaged" in refusal(name, place)
        changed = bytearray(content)
        changed[-6] ^= 1  # the checksum
        place.write_bytes(changed)
        assert "truncated or damaged" in refusal(name, place)
    else:
        place = store(tmp_path / "plain", folder, archive, files, False)
        (place / needed[0]).unlink()
        (place / needed[0]).mkdir()
        assert "lacks" in refusal(name, place)


@pytest.mark.parametrize("name, kind", FORMS)
def test_a_label_that_is_no_class_is_refused(small, tmp_path, name, kind):
    splits = random_splits(name)
    image, label = splits["train"]
    label = label.copy()
    label[1] = len(SETS[name].names)
    files = files_of(name, kind, splits | {"train": (image, label)})
    assert "class 10" in refusal(name, store(tmp_path, *files, False))


def test_names_of_classes_fall_back_on_the_known_ones(small, tmp_path):
    splits = random_splits("cifar10")
    for kind, damage in (("binary", b"only\ntwo\n"), ("python", python2({b"label_names": 3}))):
        folder, archive, files = files_of("cifar10", kind, splits)
        form = SETS["cifar10"].forms[kind == "python"]
        for n, content in enumerate((None, damage)):
            some = {k: v for k, v in files.items() if k != form.classes}
            some |= {form.classes: content} if content is not None else {}
            place = store(tmp_path / f"{kind}{n}", folder, archive, some, False)
            raw = open_archive("cifar10", str(place), Options(), [])
            assert raw.label_names == SETS["cifar10"].names
        files[form.classes] = files[form.classes].replace(b"airplane", b"aircraft")
        place = store(tmp_path / f"{kind}-own", folder, archive, files, False)
        assert open_archive("cifar10", str(place), Options(), []).label_names[0] == "aircraft"


def test_known_names_are_in_order_and_all_different():
    for name, count in (("cifar10", 10), ("cifar100", 100), ("stl10", 10)):
        names = SETS[name].names
        assert len(set(names)) == count and list(names) == sorted(names)


def test_options(small, tmp_path):
    place = store(tmp_path, *files_of("cifar10", "binary", random_splits("cifar10")), False)
    with pytest.raises(UserError, match="data.labels: got 'folders', .* none for cifar10"):
        open_archive("cifar10", str(place), Options(labels="folders"), [])
    with pytest.raises(UserError, match="data.test_split: got validation, takes test"):
        open_archive("cifar10", str(place), Options(test_split="validation"), [])
    assert "cifar-10-batches-py/" in refusal("cifar10", tmp_path / "nothing")
    assert "no files of cifar100" in refusal("cifar100", tmp_path)


# --- Pickles --------------------------------------------------------------------------------------


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["data_batch_2", "batches.meta"])
def test_a_malicious_pickle_does_nothing(small, tmp_path, protocol, where):
    mark = tmp_path / "mark"
    evil = [
        Evil(os.system, f"touch {mark}"),
        Evil(eval, f"open({str(mark)!r}, 'w')"),
        Evil(subprocess.call, ["touch", str(mark)]),
        Evil(os.mkdir, str(mark)),
        Evil(getattr, os, "system"),
    ]
    folder, archive, files = files_of("cifar10", "python", random_splits("cifar10"))
    for n, value in enumerate(evil):
        try:
            content = pickle.dumps({"data": value}, protocol)
        except (pickle.PicklingError, TypeError):  # modules cannot be pickled
            continue
        place = store(tmp_path / f"{n}", folder, archive, files | {where: content}, False)
        line = refusal("cifar10", place)
        assert "asks for" in line and "nothing of it was executed" in line and where in line
    assert not mark.exists()
    pickle.loads(pickle.dumps(evil[0], protocol))
    assert mark.exists(), "the pickle is harmless in itself"


@pytest.mark.parametrize(
    "asks",
    "os.system posix.system builtins.eval __builtin__.eval numpy.load numpy.fromfile "
    "numpy.core.multiarray.scalar numpy.core.multiarray.fromfile _codecs.decode _codecs.lookup "
    "copyreg._reconstructor numpy.dtype.x numpy.ndarray.tofile".split(),
)
def test_only_what_arrays_need_is_known(asks):
    module, _, name = asks.rpartition(".")
    for body in (
        b"c%b\n%b\n." % (module.encode(), name.encode()),
        b"\x80\x04\x8c%c%b\x8c%c%b\x93." % (len(module), module.encode(), len(name), name.encode()),
    ):
        with pytest.raises(UserError, match="asks for"):
            load_arrays(body, "here")


@pytest.mark.parametrize(
    "entry",
    [
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00utf-16tR",  # another encoding
        b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR",  # of objects
        b"cnumpy\ndtype\n(X\x04\x00\x00\x00S999tR",
        b"c_codecs\nencode\n}X\x01\x00\x00\x00xK\x01sb",  # changes the callable
        b"c_codecs\nencode\nN}X\x01\x00\x00\x00xK\x01s\x86b",
        b"cnumpy\ndtype\nN}X\x08\x00\x00\x00__call__K\x01s\x86b",
        b"cnumpy\nndarray\n)\x81",  # NEWOBJ
        b"\x82\x01",  # of the registry of extensions
        b"Pother\n",  # a persistent id
    ],
)
def test_an_odd_entry_is_one_line(entry):
    with pytest.raises(UserError, match="^here is ") as caught:
        load_arrays(b"\x80\x02}X\x01\x00\x00\x00a" + entry + b"s.", "here")
    assert "\n" not in str(caught.value)
    assert load_arrays(pickle.dumps({"a": b"\xff"}, 2), "here") == {"a": b"\xff"}  # still sound


@pytest.mark.parametrize(
    "body", [b"", b"\x80\x02}", b"\x80\xff}.", b"]" * 10 + b".", b"K\x01.", b"N.", b"}}}s."]
)
def test_a_damaged_pickle_is_one_line(body):
    with pytest.raises(UserError, match="^here is damaged") as caught:
        load_arrays(body, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        np.arange(4, dtype=">i4"),
        np.linspace(0, 1, 5, dtype=np.float32).reshape(5, 1),
        np.array([True, False]),
    ],
    ids=str,
)
def test_arrays_are_what_pickle_itself_reads(array, protocol):
    content = {"a": array, b"b": [1, "ä", b"\xff", {"c": 1.5}], "n": 2**70}
    found = load_arrays(pickle.dumps(content, protocol), "here")
    np.testing.assert_array_equal(found.pop("a"), array)
    assert found == {"b": content[b"b"], "n": 2**70}


def test_a_python_2_pickle_is_what_pickle_itself_reads():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = python2({b"data": array, b"labels": [3, 1], b"name": b"x"})
    names = {argument for op, argument, _ in pickletools.genops(content) if op.name == "GLOBAL"}
    assert "numpy.core.multiarray _reconstruct" in names
    found = load_arrays(content, "here")
    np.testing.assert_array_equal(found["data"], array)
    assert found["labels"] == [3, 1] and found["name"] == "x"


@pytest.mark.parametrize(
    "change",
    [
        {"data": np.zeros((ROWS, 3071), np.uint8)},
        {"data": np.zeros((ROWS, 3072), np.int8)},
        {"data": [1, 2]},
        {"labels": [0] * (ROWS - 1)},
        {"labels": [0.0] * ROWS},
        {"labels": [True] * ROWS},
        {"labels": None},
    ],
)
def test_a_batch_of_another_kind_is_refused(small, tmp_path, change):
    folder, archive, files = files_of("cifar10", "python", random_splits("cifar10"))
    batch = {"data": np.zeros((ROWS, 3072), np.uint8), "labels": [0] * ROWS}
    good = files | {"data_batch_4": pickle.dumps(batch, 2)}
    assert open_archive(
        "cifar10", str(store(tmp_path, folder, archive, good, False)), Options(), []
    )
    bad = files | {"data_batch_4": pickle.dumps(batch | change, 2)}
    line = refusal("cifar10", store(tmp_path / "bad", folder, archive, bad, False))
    assert "data_batch_4" in line and f"takes {ROWS} images" in line
    huge = files | {"data_batch_4": pickle.dumps(batch | {"x": bytes(2**21)}, 2)}
    line = refusal("cifar10", store(tmp_path / "huge", folder, archive, huge, True))
    assert "more than" in line


def test_reading_takes_no_jax():
    code = "import sys, ssl_jax.data.archives, ssl_jax.data.tar, ssl_jax.data.parquet\n"
    code += "assert not {'jax', 'tensorflow', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
