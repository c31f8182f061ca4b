"""Sets as arrays: digits, TFDS sets (tiny ones, written here without TensorFlow), the cache, user
errors.
"""

import errno
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import cache
from ssl_jax.data import tfds as prepared
from ssl_jax.data.dataset import Description
from ssl_jax.data.fitted import fit_pictures
from ssl_jax.data.records import Options
from ssl_jax.data.sources import describe, load_dataset
from ssl_jax.errors import UserError

REAL = Path(os.environ.get("SSL_JAX_TFDS_DIR", "not given"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "png")
    return file.getvalue()


def random_images(count: int, shape=(5, 5, 3), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def write_tfds(
    folder: Path, splits: dict, features: dict, name="tiny", file_format="array_record"
) -> Path:
    """A prepared TFDS set: `splits` maps to lists of examples, dicts of bytes or int. Gives the
    data_dir.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    def value(x):
        if isinstance(x, bytes):
            return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[x]))
        return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[x]))

    root = folder / name / "1.0.0"
    root.mkdir(parents=True)
    for split, examples in splits.items():
        path = root / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for example in examples:
            fields = tf_feature_pb2.Features(feature={k: value(v) for k, v in example.items()})
            writer.write(tf_example_pb2.Example(features=fields).SerializeToString())
        writer.close()
    tfds.features.FeaturesDict(features).save_config(str(root))
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": file_format,
        "moduleName": "tests.tiny",
        "splits": [
            {
                "name": s,
                "shardLengths": [str(len(x))],
                "numBytes": "1",
                "filepathTemplate": template,
            }
            for s, x in splits.items()
        ],
    }
    (root / "dataset_info.json").write_text(json.dumps(info))
    return folder


def labelled(images, labels, ids=None) -> list[dict]:
    examples = [{"image": png(x), "label": int(y)} for x, y in zip(images, labels, strict=True)]
    return examples if ids is None else [{"id": i, **x} for i, x in zip(ids, examples, strict=True)]


def usual_features(shape=(5, 5, 3), with_id=False) -> dict:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=list("ab")),
    }
    return features | ({"id": tfds.features.Text()} if with_id else {})


IMAGES, LABELS = random_images(6), np.array([0, 1, 0, 1, 1, 0])


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Six 5x5 training images stored in reverse order of their ids, and two test images."""
    order = [5, 4, 3, 2, 1, 0]
    ids = [b"train_%d" % i for i in order]
    train = labelled(IMAGES[order], LABELS[order], ids)
    test = labelled(IMAGES[:2], LABELS[:2], [b"test_0", b"test_1"])
    return write_tfds(
        tmp_path / "data", {"train": train, "test": test}, usual_features(with_id=True)
    )


@pytest.mark.parametrize("shape", [(5, 5, 1), (5, 5, 3), (7, 7, 1), (4, 6, 3)])
def test_images_in_another_shape_than_the_set_s(tiny, shape, capfd):
    """Each shape has a cache of its own: the set's own images are the same before and after."""
    for _ in range(2):
        own = load_dataset("tiny", str(tiny))
        np.testing.assert_array_equal(own.train.image, IMAGES)
        options = Options(image=shape)
        data = load_dataset("tiny", str(tiny), options=options)
        assert data.description == describe("tiny", str(tiny), options=options)
        expected = np.concatenate(list(fit_pictures(IMAGES, shape, 10)))
        np.testing.assert_array_equal(data.train.image, expected)
    assert "warning" not in capfd.readouterr().err, "one cache was taken for the other, and rebuilt"


# --- digits ---------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_split_once_and_evenly():
    from sklearn.datasets import load_digits

    digits = load_dataset("digits")
    assert digits.train.image.shape == (1297, 8, 8, 1) and digits.test.image.shape == (500, 8, 8, 1)
    assert digits.train.image.dtype == np.uint8 and digits.train.label.dtype == np.int32
    assert digits.num_classes == 10 and digits.label_names == tuple("0123456789")

    def rows(image, label):
        return sorted((int(y), x.tobytes()) for x, y in zip(image, label, strict=True))

    stored = load_digits()
    # 16 x 255 / 16 is whole; halves come only from x = 8
    reference = np.floor(stored.images * 255 / 16 + 0.5)
    reference[stored.images == 8] = 128  # round half to even, as 127.5 goes to 128
    both = (np.concatenate(pair) for pair in zip(digits.train, digits.test, strict=True))
    assert rows(*both) == rows(reference.astype(np.uint8)[..., None], stored.target)
    share = np.bincount(digits.test.label) / np.bincount(stored.target)
    np.testing.assert_allclose(share, 500 / 1797, atol=0.005)
    np.testing.assert_array_equal(load_dataset("digits").train.image, digits.train.image)


def test_digits_come_from_the_cache_or_do_without(tmp_path, monkeypatch):
    fresh = load_dataset("digits", cache_dir=str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # an import of it fails
    kept = load_dataset("digits", cache_dir=str(tmp_path / "cache"))
    monkeypatch.undo()
    (tmp_path / "file").touch()
    bare = load_dataset("digits", cache_dir=str(tmp_path / "file"))
    for other in (kept, bare):
        for a, b in zip((*fresh.train, *fresh.test), (*other.train, *other.test), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_digits_are_resized_on_request():
    image = load_dataset("digits", image_size=16).train.image
    assert image.shape == (1297, 16, 16, 1)
    small = Image.fromarray(load_dataset("digits").train.image[0, ..., 0])
    np.testing.assert_array_equal(
        image[0, ..., 0], np.asarray(small.resize((16, 16), Image.Resampling.BILINEAR))
    )


def test_digits_do_not_import_tfds():
    code = (
        "import sys; from ssl_jax.data.sources import load_dataset; load_dataset('digits');"
        "print([m for m in ('tensorflow_datasets', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- TFDS -----------------------------------------------------------------------------------------


def test_tfds_set_comes_in_the_order_of_its_ids(tiny):
    data = load_dataset("tiny", str(tiny))
    np.testing.assert_array_equal(data.train.image, IMAGES)
    np.testing.assert_array_equal(data.train.label, LABELS)
    np.testing.assert_array_equal(data.pretrain.image, IMAGES)
    np.testing.assert_array_equal(data.test.image, IMAGES[:2])
    assert (data.name, data.num_classes, data.label_names) == ("tiny", 2, ("a", "b"))
    assert data.train.image.dtype == np.uint8 and data.train.label.dtype == np.int32


def test_order_is_as_stored_without_ids_and_validation_stands_in_for_test(tmp_path):
    images = random_images(3, (4, 6, 1))
    splits = {"train": labelled(images, [1, 0, 1]), "validation": labelled(images[:1], [1])}
    data = load_dataset(
        "tiny", str(write_tfds(tmp_path / "data", splits, usual_features((4, 6, 1))))
    )
    np.testing.assert_array_equal(data.train.image, images)
    np.testing.assert_array_equal(data.train.label, [1, 0, 1])
    assert len(data.test.label) == 1


def test_unlabelled_images_of_stl10_are_for_pretraining_only(tmp_path):
    images = random_images(7, (96, 96, 3))  # TFDS knows stl10, and so its shape
    splits = {
        "train": labelled(images[:2], [0, 1]),
        "test": labelled(images[2:3], [1]),
        "unlabelled": labelled(images[3:], [-1] * 4),
    }
    folder = str(write_tfds(tmp_path / "data", splits, usual_features((96, 96, 3)), name="stl10"))
    data = load_dataset("stl10", folder)
    np.testing.assert_array_equal(data.train.image, images[:2])
    np.testing.assert_array_equal(data.train.label, [0, 1])
    np.testing.assert_array_equal(data.pretrain.image, images[[0, 1, 3, 4, 5, 6]])
    np.testing.assert_array_equal(data.pretrain.label, [0, 1, -1, -1, -1, -1])
    fewer = load_dataset("stl10", folder, train_size=4)
    assert len(fewer.train.label) == 2 and len(fewer.pretrain.label) == 4


def test_images_of_many_sizes_need_a_size_and_get_cropped_to_it(tmp_path):
    wide, tall = random_images(1, (8, 12, 3))[0], random_images(1, (12, 8, 3))[0]
    splits = {"train": labelled([wide, tall], [0, 1]), "test": labelled([wide], [0])}
    folder = str(write_tfds(tmp_path / "data", splits, usual_features((None, None, 3))))
    with pytest.raises(UserError, match="data.image_size: got None"):
        load_dataset("tiny", folder)
    data = load_dataset("tiny", folder, image_size=8)
    np.testing.assert_array_equal(data.train.image, [wide[:, 2:10], tall[2:10]])
    half = Image.fromarray(wide).resize((6, 4), Image.Resampling.BILINEAR)
    got = load_dataset("tiny", folder, image_size=4).train.image[0]
    # Pillow's own rounding of a box
    assert np.abs(got.astype(int) - np.asarray(half)[:, 1:5]).max() <= 1


@pytest.mark.parametrize("size", [1, 4, 6])
def test_train_size_takes_the_first_of_the_official_order(tiny, size):
    data = load_dataset("tiny", str(tiny), train_size=size)
    for split in (data.train, data.pretrain):
        np.testing.assert_array_equal(split.image, IMAGES[:size])
        np.testing.assert_array_equal(split.label, LABELS[:size])
    assert len(data.test.label) == 2


@pytest.mark.parametrize("size", [-1, 0, 7])
def test_train_size_out_of_range(tiny, size):
    with pytest.raises(UserError, match=f"data.train_size: got {size}, takes 1 to 6"):
        load_dataset("tiny", str(tiny), train_size=size)


# --- which split is the test ----------------------------------------------------------------------


@pytest.fixture
def imagenet(tmp_path) -> str:
    """A set whose test labels are -1, as TFDS stores ImageNet's, and which has a validation."""
    images = random_images(8)
    splits = {
        "train": labelled(images[:4], [0, 1, 0, 1]),
        "validation": labelled(images[4:6], [1, 0]),
        "test": labelled(images[6:], [-1, -1]),
    }
    return str(write_tfds(tmp_path / "data", splits, usual_features()))


def test_a_test_split_without_labels_gives_way_before_anything_is_decoded(
    imagenet, described_first, capsys
):
    prepared._say_once.cache_clear()
    assert described_first("tiny", imagenet).test == 2
    np.testing.assert_array_equal(load_dataset("tiny", imagenet).test.label, [1, 0])
    said = "tiny: test has no labels, validation is the test split\n"
    assert capsys.readouterr().out == said
    with pytest.raises(UserError, match="split test: labels -1 to -1, takes 0 to 1"):
        load_dataset("tiny", imagenet, options=Options(test_split="test"))


def test_test_split_names_another(tmp_path, described_first):
    good = labelled(IMAGES, LABELS)
    splits = {"train": good, "test": good[:1], "extra": good[1:4]}
    folder = str(write_tfds(tmp_path / "data", splits, usual_features()))
    for name, count in (("", 1), ("test", 1), ("extra", 3)):
        assert described_first("tiny", folder, options=Options(test_split=name)).test == count


@pytest.mark.parametrize("further", [{}, {"test": labelled(IMAGES[:2], [-1, -1])}])
def test_a_set_without_test_labels_is_split_by_a_draw(tmp_path, described_first, further):
    images, labels = random_images(100), np.repeat([0, 1], [80, 20])
    splits = {"train": labelled(images, labels)} | further
    folder = str(write_tfds(tmp_path / "data", splits, usual_features()))
    options = Options(test_share=0.3)
    about = described_first("tiny", folder, options=options)
    assert (about.train, about.test, about.pretrain) == (70, 30, 70)
    data = load_dataset("tiny", folder, options=options)
    assert np.bincount(data.test.label).tolist() == [24, 6]
    place = {image.tobytes(): i for i, image in enumerate(images)}
    rows = [[place[image.tobytes()] for image in split.image] for split in (data.train, data.test)]
    assert sorted(rows[0] + rows[1]) == list(range(100)) and data.pretrain is data.train
    for split, taken in zip((data.train, data.test), rows, strict=True):
        np.testing.assert_array_equal(split.label, labels[taken])


@pytest.mark.parametrize("how", ["no class feature", "labels=none"])
def test_a_set_without_labels_is_read(tmp_path, described_first, how, tiny):
    folder = without("label", tmp_path / "bare") if how == "no class feature" else str(tiny)
    options = Options() if how == "no class feature" else Options(labels="none")
    about = described_first("tiny", folder, options=options)
    assert (about.train, about.test, about.num_classes, about.label_names) == (6, 2, 0, ())
    data = load_dataset("tiny", folder, options=options)
    for split in (data.train, data.test, data.pretrain):
        assert (split.label == -1).all()
    np.testing.assert_array_equal(data.train.image, IMAGES)


# --- descriptions ---------------------------------------------------------------------------------


@pytest.fixture
def described_first(monkeypatch):
    """check(*args, **fields): `describe`, while no image can be decoded, says what `load_dataset`
    then holds.
    """

    def check(*args, **fields) -> Description:
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "read_pixels", lambda *_, **__: pytest.fail("decoded"))
            patch.setattr(prepared, "source_digest", lambda *_: pytest.fail("read the files"))
            patch.setitem(sys.modules, "sklearn.datasets", None)  # an import of it fails
            about = describe(*args, **fields)
        data = load_dataset(*args, **fields)
        sizes = [len(split.image) for split in (data.train, data.test, data.pretrain)]
        assert [about.train, about.test, about.pretrain] == sizes
        for split in (data.train, data.test, data.pretrain):
            assert split.image.shape[1:] == about.image and len(split.label) == len(split.image)
        assert (about.side, about.channels) == (
            data.train.image.shape[1],
            data.train.image.shape[3],
        )
        assert (about.name, about.num_classes, about.label_names) == (
            data.name,
            data.num_classes,
            data.label_names,
        )
        assert data.description == about
        return about

    return check


@pytest.mark.parametrize(
    "fields", [{}, {"image_size": 16}, {"train_size": 100}, {"train_size": 1, "image_size": 4}]
)
def test_digits_are_described(described_first, fields):
    assert described_first("digits", **fields).num_classes == 10


@pytest.mark.parametrize("fields", [{}, {"image_size": 3}, {"train_size": 4}])
def test_tfds_set_is_described(tiny, described_first, fields):
    assert described_first("tiny", str(tiny), **fields).label_names == ("a", "b")


def test_images_that_are_not_square_are_described(tmp_path, described_first):
    images = random_images(3, (4, 6, 1))
    splits = {"train": labelled(images, [1, 0, 1]), "validation": labelled(images[:1], [1])}
    folder = str(write_tfds(tmp_path / "data", splits, usual_features((4, 6, 1))))
    assert described_first("tiny", folder).image == (4, 6, 1)


@pytest.mark.parametrize(
    "train_size, sizes", [(None, (2, 6)), (1, (1, 1)), (2, (2, 2)), (4, (2, 4)), (6, (2, 6))]
)
def test_unlabelled_images_are_described(tmp_path, described_first, train_size, sizes):
    images = random_images(7, (96, 96, 3))
    splits = {
        "train": labelled(images[:2], [0, 1]),
        "test": labelled(images[2:3], [1]),
        "unlabelled": labelled(images[3:], [-1] * 4),
    }
    folder = write_tfds(tmp_path / "data", splits, usual_features((96, 96, 3)), name="stl10")
    about = described_first("stl10", str(folder), train_size=train_size)
    assert (about.train, about.pretrain) == sizes


def test_images_of_many_sizes_and_channels_are_described(tmp_path, described_first):
    wide, tall = random_images(1, (8, 12, 3))[0], random_images(1, (12, 8, 3))[0]
    splits = {"train": labelled([wide, tall], [0, 1]), "test": labelled([wide], [0])}
    folder = str(write_tfds(tmp_path / "data", splits, usual_features((None, None, None))))
    with pytest.raises(UserError, match="data.image_size: got None"):
        describe("tiny", folder)
    assert described_first("tiny", folder, image_size=5).image == (5, 5, 3)


def test_a_description_refuses_what_reading_would(tmp_path, tiny):
    good = labelled(IMAGES, LABELS)
    lone = str(write_tfds(tmp_path / "lone", {"train": good}, usual_features()))
    bare = {k: v for k, v in usual_features().items() if k != "label"}
    bare = str(write_tfds(tmp_path / "bare", {"train": good, "test": good}, bare))
    wrong = {
        "data.data_dir: got .*none, which is not a directory": {
            "name": "tiny",
            "data_dir": str(tmp_path / "none"),
        },
        "lacks cifar10": {"name": "cifar10", "data_dir": str(tiny)},
        "did you mean 'digits'": {"name": "didgits", "data_dir": str(tiny)},
        "data.image_size: got 0": {"name": "digits", "image_size": 0},
        "data.train_size: got 1298, takes 1 to 1297 for digits": {
            "name": "digits",
            "train_size": 1298,
        },
        "data.train_size: got 7, takes 1 to 6 for tiny": {
            "name": "tiny",
            "data_dir": str(tiny),
            "train_size": 7,
        },
        "data.train_size: got 0": {"name": "tiny", "data_dir": str(tiny), "train_size": 0},
        "data.test_share: got 0 of 6 images": {
            "name": "tiny",
            "data_dir": lone,
            "options": Options(test_share=0.0),
        },
        "data.test_split: got 'other', tiny has test": {
            "name": "tiny",
            "data_dir": bare,
            "options": Options(test_split="other"),
        },
    }
    for line, fields in wrong.items():
        refusals = []
        for function in (describe, load_dataset):
            with pytest.raises(UserError, match=line) as caught:
                function(**fields)
            refusals.append(str(caught.value))
        assert refusals[0] == refusals[1]


def test_a_set_is_prepared_for_its_description_only_where_its_sizes_are_not_known(
    tmp_path, monkeypatch
):
    """TFDS may know the sizes of a set that lies nowhere yet; then a mistake elsewhere is told
    before the download.
    """
    import tensorflow_datasets as tfds

    class Prepared(Exception):
        pass

    def prepare(builder):
        raise Prepared

    class Builder:
        name = "tiny"

        def __init__(self, sizes):
            splits = {
                name: type("Split", (), {"num_examples": count}) for name, count in sizes.items()
            }
            self.info = type("Info", (), {"features": usual_features(), "splits": splits})

        def is_prepared(self):
            return False

    monkeypatch.setattr(prepared, "_prepare", prepare)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: Builder({"train": 7, "test": 2}))
    assert describe("tiny") == Description("tiny", 7, 2, 7, (5, 5, 3), 2, ("a", "b"))
    with pytest.raises(Prepared):
        load_dataset("tiny")
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: Builder({}))
    with pytest.raises(Prepared):
        describe("tiny")


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def no_decoding(monkeypatch):
    def forbid():
        def fail(*_):
            raise AssertionError("decoded again")

        monkeypatch.setattr(prepared, "_decode", fail)

    return forbid


def test_second_load_reads_the_cache(tiny, no_decoding, capfd):
    first = load_dataset("tiny", str(tiny))
    capfd.readouterr()
    no_decoding()
    second = load_dataset("tiny", str(tiny))
    for a, b in zip(first[1:4], second[1:4], strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.label, b.label)
    assert capfd.readouterr().err == ""
    assert not second.train.image.flags.writeable


def cached_file(tmp_path, suffix) -> Path:
    (path,) = (tmp_path / "cache").glob(f"tiny-1.0.0-*/train.{suffix}")
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip_last_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def other_shape(path):
    array = np.load(path)
    np.save(path, array[:-1])


DAMAGE = {
    "truncated image": ("image.npy", truncate),
    "truncated label": ("label.npy", truncate),
    "flipped image bit": ("image.npy", flip_last_byte),
    "flipped label bit": ("label.npy", flip_last_byte),
    "image of another shape": ("image.npy", other_shape),
    "label of another shape": ("label.npy", other_shape),
    "missing image": ("image.npy", Path.unlink),
    "empty image": ("image.npy", lambda path: path.write_bytes(b"")),
    "bad json": ("json", truncate),
    "json of another kind": ("json", lambda path: path.write_text("[]")),
    "binary json": ("json", lambda path: path.write_bytes(b"\xff\xfe")),
}


@pytest.mark.parametrize("suffix, damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_cache_is_rebuilt_with_a_warning(
    tiny, tmp_path, capfd, no_decoding, suffix, damage
):
    load_dataset("tiny", str(tiny))
    capfd.readouterr()
    damage(cached_file(tmp_path, suffix))
    data = load_dataset("tiny", str(tiny))
    np.testing.assert_array_equal(data.train.image, IMAGES)
    np.testing.assert_array_equal(data.train.label, LABELS)
    warnings = [x for x in capfd.readouterr().err.splitlines() if x.startswith("warning:")]
    assert len(warnings) == 1 and "train" in warnings[0] and "decoding again" in warnings[0]
    no_decoding()
    load_dataset("tiny", str(tiny))
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_unfinished_cache_is_built_without_a_word_of_damage(tiny, tmp_path, capfd):
    load_dataset("tiny", str(tiny))
    cached_file(tmp_path, "json").unlink()
    capfd.readouterr()
    np.testing.assert_array_equal(load_dataset("tiny", str(tiny)).train.image, IMAGES)
    assert "warning" not in capfd.readouterr().err


def test_other_data_of_the_same_name_and_version_is_not_mistaken(tiny, tmp_path):
    load_dataset("tiny", str(tiny))
    examples = labelled(IMAGES, 1 - LABELS, [b"train_%d" % i for i in range(6)])
    splits = {"train": examples, "test": examples[:2]}
    folder = write_tfds(tmp_path / "other", splits, usual_features(with_id=True))
    np.testing.assert_array_equal(load_dataset("tiny", str(folder)).train.label, 1 - LABELS)


def relabel(folder: Path, label: np.ndarray) -> None:
    """Write the set of `many` again, in place, with other labels."""
    image = random_images(len(label), (12, 12, 3))
    splits = {"train": labelled(image, label), "test": labelled(image[:2], label[:2])}
    shutil.rmtree(folder / "tiny", ignore_errors=True)
    write_tfds(folder, splits, usual_features((12, 12, 3)))


def test_corrected_labels_are_seen_wherever_they_are(tmp_path, monkeypatch, capfd):
    """Records that lie before the last 64 KiB of their file, under the same sizes and names."""
    monkeypatch.setattr(cache, "RECENT", 0.0)
    wrong = np.zeros(300, np.int32)
    relabel(tmp_path / "data", wrong)
    np.testing.assert_array_equal(load_dataset("tiny", str(tmp_path / "data")).train.label, wrong)
    (records,) = (tmp_path / "data").rglob("*train*")
    end, size = records.read_bytes()[-(2**16) :], records.stat().st_size
    right = (np.arange(300) < 200).astype(np.int32)
    relabel(tmp_path / "data", right)
    assert records.stat().st_size == size and records.read_bytes()[-(2**16) :] == end, (
        "the test changes no more than the records"
    )
    np.testing.assert_array_equal(load_dataset("tiny", str(tmp_path / "data")).train.label, right)
    assert "damaged" not in capfd.readouterr().err


def test_a_change_in_place_under_an_old_date_is_seen(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "RECENT", 0.0)
    (path,) = tiny.rglob("*train*")
    roots = [tmp_path / "cache"]
    before, status = cache.source_digest(path.parent, roots), path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_ino == status.st_ino and path.stat().st_mtime_ns == status.st_mtime_ns
    assert cache.source_digest(path.parent, roots) != before


def test_unchanged_files_are_read_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "RECENT", 0.0)
    read: list[str] = []
    whole = cache._file_digest
    monkeypatch.setattr(
        cache, "_file_digest", lambda path: read.append(Path(path).name) or whole(path)
    )
    (path,) = tiny.rglob("*train*")
    roots = [tmp_path / "first", tmp_path / "second"]
    first = cache.source_digest(path.parent, roots)
    assert sorted(read) == sorted(p.name for p in path.parent.iterdir())
    read.clear()
    assert cache.source_digest(path.parent, roots) == first and not read
    path.touch()
    assert cache.source_digest(path.parent, roots) == first and read == [path.name]
    (card,) = (tmp_path / "first" / "sources").iterdir()
    for damage in (b"", b"[]", b"{", b"\xff", b'{"a": 1}', card.read_bytes()[:-9], b"[" * 10**5):
        card.write_bytes(damage)
        assert cache.source_digest(path.parent, roots) == first
    monkeypatch.setattr(cache, "RECENT", 1e6)  # nothing is old enough to be remembered
    read.clear()
    for _ in range(2):
        card.unlink()
        assert cache.source_digest(path.parent, roots) == first
    assert len(read) == 2 * len(list(path.parent.iterdir()))
    card.unlink()
    card.parent.rmdir()
    card.parent.write_text("no place to remember")
    assert cache.source_digest(path.parent, roots[:1]) == first


def test_digests_tell_names_and_contents_apart(tmp_path):
    def digest(files: dict[str, bytes]) -> str:
        folder = tmp_path / "set"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return cache.source_digest(folder, [])

    sets: list[dict[str, bytes]] = [
        {"a": b"1"},
        {"a": b"2"},
        {"b": b"1"},
        {"a": b"1", "b": b""},
        {},
    ]
    assert len({digest(files) for files in sets}) == len(sets)
    assert digest(sets[0]) == digest(sets[0])


def test_one_digest_for_files_at_any_depth(tmp_path, monkeypatch):
    """Of a list of files: the same wherever their folder lies, another for another path."""
    monkeypatch.setattr(cache, "RECENT", 0.0)
    monkeypatch.setattr(cache, "GROUP", 2)
    roots, names = [tmp_path / "cache"], ["a/1", "a/2", "b/1", "b/c/\u00e4 \n1", "b/c/2"]
    for folder in ("one", "other"):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)

    def digest(folder: str) -> str:
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert cache.files_digest(files[::-1], []) == cache.files_digest(files, roots)
        return cache.files_digest(files, roots)

    first = digest("one")
    assert digest("other") == first
    (tmp_path / "other" / "b" / "c" / "2").rename(tmp_path / "other" / "b" / "c" / "3")
    assert digest("other") != first
    read: list[str] = []
    whole = cache._file_digest
    monkeypatch.setattr(cache, "_file_digest", lambda path: read.append(path) or whole(path))
    of_a = cache.files_digest([tmp_path / "one" / "a" / n for n in "12"], roots)
    assert of_a not in (first, cache.files_digest([], roots))
    part = [tmp_path / "one" / name for name in names[1:]]
    part[0].touch()  # so that the card is written again, by a call that does not know a/1
    cache.files_digest(part, roots)
    read.clear()
    assert digest("one") == first and len(read) == len(names), "only the calls without a root read"
    with pytest.raises(OSError, match="gone"):
        cache.files_digest([tmp_path / "one" / "gone"], roots)


def test_sound_cache_of_another_shape_is_not_taken(tmp_path, capfd):
    cache.write(tmp_path / "train", "tiny", (2, 5, 5, 3), zip(IMAGES[:2], LABELS[:2], strict=True))
    assert cache.read(tmp_path / "train", "tiny", (2, 5, 5, 3)) is not None
    assert cache.read(tmp_path / "train", "tiny", (3, 5, 5, 3)) is None
    assert cache.read(tmp_path / "train", "other", (2, 5, 5, 3)) is None
    assert capfd.readouterr().err.count("warning:") == 2


def test_an_interrupted_build_leaves_nothing_behind(tmp_path):
    def examples():
        yield IMAGES[0], 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write(tmp_path / "set/train", "tiny", IMAGES.shape, examples())
    assert list((tmp_path / "set").iterdir()) == []


def test_cache_place_follows_argument_environment_and_home(tmp_path, monkeypatch):
    assert cache.cache_roots(str(tmp_path / "given")) == [tmp_path / "given"]
    assert cache.cache_roots(None) == [tmp_path / "cache"]
    monkeypatch.delenv("SSL_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache.cache_roots(None) == [tmp_path / "home/ssl_jax"]


def test_nothing_is_written_beside_the_data(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = sorted(tiny.rglob("*"))
    load_dataset("tiny", str(tiny))
    assert sorted(tiny.rglob("*")) == before and list((tmp_path / "home/ssl_jax").iterdir())


def test_cache_falls_back_when_the_first_place_refuses(tmp_path):
    (tmp_path / "blocked").write_text("a file where a directory should be")
    roots = [tmp_path / "blocked", tmp_path / "open"]
    examples = list(zip(IMAGES, LABELS, strict=True))
    image, label = cache.load_or_build(
        roots, "a/train", "tiny", IMAGES.shape, lambda: iter(examples)
    )
    np.testing.assert_array_equal(image, IMAGES)
    np.testing.assert_array_equal(label, LABELS)
    with pytest.raises(UserError, match="SSL_JAX_CACHE: got .*blocked"):
        cache.load_or_build(roots[:1], "a/train", "tiny", IMAGES.shape, lambda: iter(examples))


Usage = namedtuple("Usage", "total used free")


def test_no_decoding_starts_where_there_is_no_room(tmp_path, monkeypatch):
    needed = cache.needed_bytes(IMAGES.shape)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 10**9, needed - 1))
    roots = [tmp_path / "a" / "b", tmp_path / "c"]

    def decode():
        raise AssertionError("decoding began")

    with pytest.raises(UserError) as caught:
        cache.load_or_build(roots, "x/train", "tiny", IMAGES.shape, decode)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("SSL_JAX_CACHE: got ")
    for root in roots:
        assert f"{root} (no space left: {needed:,} bytes needed, {needed - 1:,} free)" in message
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 10**9, needed))
    pairs = list(zip(IMAGES, LABELS, strict=True))
    cache.load_or_build(roots, "x/train", "tiny", IMAGES.shape, lambda: iter(pairs))


def test_the_bytes_needed_are_at_least_those_written(tmp_path):
    pairs = list(zip(IMAGES, LABELS, strict=True))
    cache.load_or_build([tmp_path], "x/train", "tiny", IMAGES.shape, lambda: iter(pairs))
    written = sum(path.stat().st_size for path in (tmp_path / "x").iterdir())
    assert written <= cache.needed_bytes(IMAGES.shape) <= written + 8192


@pytest.mark.parametrize("when", ["reserving", "writing"])
def test_a_full_disk_is_met_once(when, tmp_path, monkeypatch):
    """A quota shows only when space is taken; the second root lies on the same disk."""
    begun: list[int] = []

    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def decode():
        begun.append(1)
        yield IMAGES[0], 0
        full()

    if when == "reserving":
        monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="Disk quota exceeded.* and .*/b .*exceeded") as caught:
        cache.load_or_build(
            [tmp_path / "a", tmp_path / "b"], "x/train", "tiny", IMAGES.shape, decode
        )
    assert "\n" not in str(caught.value) and len(begun) == (when == "writing")
    assert ("bytes needed) and" in str(caught.value)) == (when == "reserving")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_size_limit_is_one_line_before_the_decoding(tmp_path):
    code = f"""
import resource, numpy as np
from pathlib import Path
from ssl_jax.data import cache
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
def decode():
    print("began")
    yield from ()
cache.load_or_build([Path({str(tmp_path)!r})], "x/train", "tiny", (100, 10, 10, 3), decode)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: SSL_JAX_CACHE: " in run.stderr.splitlines()[-1], run.stderr
    assert "File too large: 30,000 bytes needed" in run.stderr and not run.stdout


def test_another_number_of_images_than_declared_is_one_line(tmp_path):
    pairs = list(zip(IMAGES[:3], LABELS[:3], strict=True))
    with pytest.raises(UserError, match="has 3 images, 6 are declared"):
        cache.load_or_build([tmp_path], "x/train", "tiny", IMAGES.shape, lambda: iter(pairs))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_cache_is_private(tmp_path):
    pairs = list(zip(IMAGES, LABELS, strict=True))
    root = tmp_path / "own" / "cache"
    before = os.umask(0o022)
    try:
        cache.load_or_build([root], "x/train", "tiny", IMAGES.shape, lambda: iter(pairs))
    finally:
        os.umask(before)
    assert [place.stat().st_mode & 0o777 for place in (root, root / "x")] == [0o700, 0o700]


def test_without_a_place_for_a_cache_one_line(tmp_path, monkeypatch):
    def nowhere():
        raise OSError("no temporary directory")

    monkeypatch.setattr(cache, "user_cache", nowhere)
    monkeypatch.delenv("SSL_JAX_CACHE")
    with pytest.raises(UserError, match="SSL_JAX_CACHE: not set, .*no temporary directory"):
        cache.cache_roots(None)
    assert load_dataset("digits").train.image.shape == (1297, 8, 8, 1)


# --- mistakes of the user -------------------------------------------------------------------------


def refused(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_data_dir_that_is_not_there(tmp_path, tiny):
    assert "data.data_dir" in refused("cifar10", str(tmp_path / "none"))
    load_dataset("tiny", str(tiny))
    tiny.rename(tmp_path / "moved")  # the cache alone must not hide the mistake
    assert f"got {tiny}" in refused("tiny", str(tiny))


def test_data_dir_without_the_set_says_what_it_must_hold(tiny):
    message = refused("cifar10", str(tiny))
    assert str(tiny) in message and "lacks cifar10" in message and "array_record" in message
    (tiny / "cifar10").mkdir()
    assert "lacks cifar10" in refused("cifar10", str(tiny))


def test_unknown_name_is_answered_with_the_nearest(tiny):
    for data_dir in (None, str(tiny)):
        message = refused("cifar1O", data_dir)
        assert "got 'cifar1O'" in message and "did you mean 'cifar10'?" in message


def test_other_file_format_is_refused(tmp_path):
    splits = {"train": labelled(IMAGES, LABELS), "test": labelled(IMAGES, LABELS)}
    folder = write_tfds(tmp_path / "data", splits, usual_features(), file_format="tfrecord")
    assert "as array_record" in refused("tiny", str(folder))


def test_preparing_without_tensorflow_names_the_extra_and_says_no_more(tmp_path):
    code = """
import importlib.util
from ssl_jax.data.sources import load_dataset
importlib.util.find_spec = lambda name: None
try:
    load_dataset("cifar10")
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert "pip install 'ssl-jax[prepare]'" in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_failed_download_is_one_line(monkeypatch):
    class Builder:
        name, data_path = "cifar10", "nowhere"

        def download_and_prepare(self, **_):
            raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(
        UserError, match="cifar10 could not be .* ConnectionError: no route to host$"
    ):
        prepared._prepare(Builder())


def without(feature: str, folder: Path) -> str:
    examples = [{k: v for k, v in x.items() if k != feature} for x in labelled(IMAGES, LABELS)]
    features = {k: v for k, v in usual_features().items() if k != feature}
    return str(write_tfds(folder, {"train": examples, "test": examples[:2]}, features))


def test_a_set_without_images_is_refused(tmp_path):
    assert "no image feature" in refused("tiny", without("image", tmp_path / "data"))


def test_missing_split_broken_images_and_labels_out_of_range(tmp_path):
    good = labelled(IMAGES, LABELS)
    wrong = {
        "has no train split, only test": {"test": good},
        "an image of (5, 7, 3), where (5, 5, 3) is declared": {
            "train": labelled(random_images(1, (5, 7, 3)), [0]),
            "test": good,
        },
        "split train cannot be read": {
            "train": [{"image": b"no picture", "label": 0}],
            "test": good,
        },
        "labels 0 to 2, takes 0 to 1": {"train": good, "test": labelled(IMAGES[:2], [0, 2])},
        "labels -1 to 0, takes 0 to 1": {"train": good, "test": labelled(IMAGES[:2], [0, -1])},
    }
    for i, (complaint, splits) in enumerate(wrong.items()):
        folder = write_tfds(tmp_path / f"data{i}", splits, usual_features())
        assert complaint in refused("tiny", str(folder))


def test_truncated_records_are_refused(tiny):
    path = next(tiny.rglob("tiny-train.array_record*"))
    path.write_bytes(path.read_bytes()[:-100])
    assert "split train cannot be read" in refused("tiny", str(tiny))


def test_image_size_below_one():
    assert "data.image_size: got 0" in refused("digits", image_size=0)


# --- the real thing -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="no CIFAR-10: set SSL_JAX_TFDS_DIR")
def test_real_cifar10():
    data = load_dataset("cifar10", str(REAL))
    assert data.train.image.shape == (50000, 32, 32, 3) and data.test.image.shape == (
        10000,
        32,
        32,
        3,
    )
    np.testing.assert_array_equal(np.bincount(data.train.label), np.full(10, 5000))
    np.testing.assert_array_equal(np.bincount(data.test.label), np.full(10, 1000))
    assert data.description == describe("cifar10", str(REAL))
    # Channel means of the training set, as normalisations of CIFAR-10 commonly quote them.
    mean = data.train.image.mean((0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
