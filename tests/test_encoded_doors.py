"""data.resident=encoded through folders, Parquet and tar: the set that decoding to disk gives."""

import json
import warnings

import numpy as np
import pytest
from doors import write_doors
from test_continuation import assert_same_state, make_config, train
from test_decode import MIXED, PLACE, records_of
from test_folder import fill, photo
from test_pictures import DAMAGED, cut, encoded

from ssl_jax.data import decode
from ssl_jax.data.encoded import EncodedImages
from ssl_jax.data.records import Options
from ssl_jax.data.sources import load_dataset
from ssl_jax.errors import UserError
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.checkpoints import steps_in

DOORS = ("folder", "parquet", "tar")
NAMES = [f"{c}/{n:02}.png" for c in "ab" for n in range(40)]
BAD = {  # of both classes; a/14 and b/08 are drawn for the test split
    "a/03.png": b"",
    "a/17.png": b"<html>",
    "a/14.png": DAMAGED["bomb"][0],
    "b/08.png": cut("PNG"),
    "b/30.png": b"?",
}
FIT = {"fit": "pad", "background": (9, 200, 30)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(number: int) -> bytes:
    """Twice as wide as high or the reverse, so that it shows how it becomes a square."""
    pixels = photo(number, 20)
    return encoded(pixels[:10] if number % 3 else pixels[:, :10], "PNG")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    pictures = {name: picture(n) for n, name in enumerate(NAMES)}
    return write_doors(tmp_path_factory.mktemp("sound"), pictures)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    pictures = {name: BAD.get(name, picture(n)) for n, name in enumerate(NAMES)}
    return write_doors(tmp_path_factory.mktemp("damaged"), pictures)


def both(name, place, train_size=None, **options):
    """Return the set encoded, and decoded to disk."""
    return [
        load_dataset(
            name, place, train_size, image_size=9, options=Options(encoded=e, **FIT | options)
        )
        for e in (True, False)
    ]


def assert_same_set(own, other):
    for one, two in zip(own[1:4], other[1:4], strict=True):
        assert isinstance(one.image, EncodedImages) or not len(one.image)
        np.testing.assert_array_equal(np.asarray(one.image), two.image)
        np.testing.assert_array_equal(one.label, two.label)
    assert own.description == other.description and own.damaged == other.damaged


@pytest.mark.parametrize("size", [None, 30])
@pytest.mark.parametrize("name", DOORS)
def test_it_is_the_set_that_is_decoded(name, size, sound, cache):
    load_dataset(name, sound[name], image_size=9, options=Options(encoded=True))
    assert not list(cache.rglob("*.npy")), "nothing is decoded to disk"
    own, other = both(name, sound[name], size)
    assert_same_set(own, other)
    assert np.bincount(own.test.label).tolist() == [4, 4]
    assert len(own.train.label) == (size or 72)
    assert own.description.label_names == ("a", "b")


@pytest.mark.parametrize("name", DOORS)
def test_sets_without_labels_are_the_same(name, sound):
    own, other = both(name, sound[name], labels="none")
    assert_same_set(own, other)
    assert len(own.pretrain.label) == 80 and (own.pretrain.label == -1).all()


@pytest.mark.parametrize("name", DOORS)
def test_the_same_damaged_pictures_are_left_out(name, damaged):
    for size in (None, 30):
        own, other = both(name, damaged[name], size, damaged="skip")
        assert len(own.damaged) == len(BAD) and len(own.test.label) == 8 - 2
        assert_same_set(own, other)
    assert len(own.pretrain.label) == 30


@pytest.mark.parametrize("name", DOORS)
def test_the_error_names_the_same_damaged_pictures(name, damaged):
    lines = []
    for stays in (True, False):
        options = Options(encoded=stays)
        with pytest.raises(UserError, match="^data.damaged: 5 of 80 pictures cannot be") as caught:
            load_dataset(name, damaged[name], image_size=9, options=options)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    first = {"folder": "a/03.png", "parquet": "train.parquet#3", "tar": "train.tar#a-03.png"}
    assert f"({first[name]}: an empty file" in lines[0]


def test_damaged_pictures_among_further_ones_for_pretraining(tmp_path):
    folders = ("train/a", "train/b", "test/a", "unlabelled")
    names = [f"{folder}/{n}.png" for folder in folders for n in range(4)]
    base = fill(tmp_path / "set", names, side=12)
    for bad in ("train/a/1.png", "unlabelled/0.png", "unlabelled/3.png", "test/a/2.png"):
        (base / bad).write_bytes(b"")
    own, other = both("folder", str(base), damaged="skip")
    assert_same_set(own, other)
    assert own.pretrain.label.tolist() == [0, 0, 0, 1, 1, 1, 1, -1, -1]
    assert len(own.train.label) == 7 and len(own.test.label) == 3


def test_whatever_reading_raises_is_the_same_damage(cache):
    records = records_of([*MIXED, RuntimeError(), OSError("two\nlines"), ValueError("x" * 300)])
    args = records, (8, 8, 3), Options(), [cache], PLACE
    own, other = decode.keep_encoded(*args), decode.decode_records(*args)
    assert own.damaged == other.damaged and len(own.damaged) > 15
    np.testing.assert_array_equal(np.asarray(own.image), other.image)


def test_a_set_of_damaged_pictures_alone_is_the_same_line(cache):
    args = records_of([b"", b"<html>"]), (8, 8, 3), Options(), [cache], PLACE
    lines = []
    for make in (decode.keep_encoded, decode.decode_records):
        with pytest.raises(UserError, match="none of the 2 pictures can be decoded") as caught:
            make(*args)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]


def test_damage_is_remembered_by_what_decides_about_it(cache, damaged):
    options = Options(encoded=True, damaged="skip")
    first = load_dataset("tar", damaged["tar"], image_size=9, options=options)
    cards = sorted((cache / "verified").iterdir())
    assert sum(len(json.loads(card.read_text())["damaged"]) for card in cards) == len(BAD)
    again = load_dataset("tar", damaged["tar"], image_size=9, options=options)
    assert again.damaged == first.damaged and sorted((cache / "verified").iterdir()) == cards


def test_decoding_in_threads_leaves_warnings_as_they_were(sound):
    before = list(warnings.filters)
    data = load_dataset("folder", sound["folder"], image_size=9, options=Options(encoded=True))
    for _ in range(20):
        np.asarray(data.train.image)
    assert warnings.filters == before


@pytest.mark.slow
def test_a_run_has_the_same_losses_and_state_however_its_images_come(
    damaged, tmp_path, monkeypatch
):
    """Pretraining: decoded and streamed; encoded; and encoded with a stop in the middle."""
    runs = {
        "streamed": ("folder", "no", [None]),
        "encoded": ("parquet", "encoded", [None]),
        "stopped": ("tar", "encoded", [2, None]),
    }
    fields = "data.damaged=skip data.image_size=8 data.train_size=0 views.blur=0".split()
    losses = {}
    for run, (name, resident, calls) in runs.items():
        place = f"data.data_dir={damaged[name]}"
        config = make_config(
            f"data.name={name}", place, f"data.resident={resident}", *fields, "epochs=4"
        )
        for call in calls:
            train(config, tmp_path / run, monkeypatch, call)
            saved = steps_in(tmp_path / run / "checkpoints")[-1]
            assert saved == 8 if call is None else 0 < saved < 8
        rows = metrics_csv.read_rows(tmp_path / run / "metrics.csv")
        losses[run] = [row["loss"] for row in rows]
    assert len(losses["streamed"]) > 2
    for run in runs:
        assert losses[run] == losses["streamed"], run
        assert_same_state(tmp_path / run, tmp_path / "streamed")
