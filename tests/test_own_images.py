"""Whole runs on a folder of pictures, of which some are damaged."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from commands import ROOT
from doors import write_doors
from test_decode import damage
from test_end_to_end import TINY, command
from test_folder import fill, photo
from test_pictures import encoded

from ssl_jax.data.sources import describe, load_dataset
from ssl_jax.tasks.training import keep_damaged

NAMES = [f"{c}/{n:02}.png" for c in "ab" for n in range(40)]
BAD = ["a/03.png", "a/17.png", "b/30.png"]
FOLDER = (
    "data.name=folder data.damaged=skip data.image_size=8 data.train_size=0 devices=1 epochs=1 "
    "batch_size=10 encoder.width=4"
).split()
# 80 pictures, of which 8 are drawn for the test, and of the other 72 those that are damaged go
STEPS = (72 - 3) // 10


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    base = fill(tmp_path / "set", NAMES, side=8)
    damage(base, BAD)
    return f"data.data_dir={base}"


def check(out):
    listed = (out / "damaged.txt").read_text().splitlines()
    assert sorted(line.split(":")[0] for line in listed) == BAD
    assert json.loads((out / "result.json").read_text())["steps"] == STEPS


@pytest.mark.slow
def test_pretraining_goes_on_without_the_damaged_pictures(pictures, tmp_path):
    views = ["views.recipe=cifar", "views.blur=0", "probe.validation_size=10"]
    fields = [*TINY, *FOLDER, *views]
    assert command("quickstart", tmp_path / "run", *fields, pictures) == 0
    check(tmp_path / "run")


def test_views_name_the_damaged_pictures_that_they_do_without(pictures, tmp_path, capfd):
    fields = [*TINY, *FOLDER, "views.recipe=cifar", "views.blur=0", "probe.validation_size=10"]
    assert command("quickstart", tmp_path / "run", *fields, pictures, "task=views") == 0
    listed = (tmp_path / "run" / "damaged.txt").read_text().splitlines()
    assert sorted(line.split(":")[0] for line in listed) == BAD
    assert "3 damaged pictures are left out" in capfd.readouterr().out


def test_the_list_makes_its_folder(tmp_path):
    keep_damaged(tmp_path / "sets" / "1-a", SimpleNamespace(damaged=("x: cut off",)))
    assert (tmp_path / "sets" / "1-a" / "damaged.txt").read_text() == "x: cut off\n"
    keep_damaged(tmp_path / "none", SimpleNamespace(damaged=()))
    assert not (tmp_path / "none").exists()


def test_supervised_training_goes_on_without_the_damaged_pictures(pictures, tmp_path):
    fields = [
        "data.validation_size=0",
        "encoder.name=mlp",
        "encoder.depth=1",
        "eval_every=0",
        "checkpoint_every=0",
    ]
    assert command("supervised", tmp_path / "run", *FOLDER, *fields, pictures) == 0
    check(tmp_path / "run")


def test_damaged_pictures_end_a_run_before_it_writes(pictures, tmp_path, capfd):
    fields = [*TINY, *FOLDER, "data.damaged=error", "views.recipe=cifar"]
    fields += ["probe.validation_size=10"]
    assert command("quickstart", tmp_path / "run", *fields, pictures) == 2
    error = capfd.readouterr().err
    assert "error: data.damaged: 3 of 80 pictures cannot be decoded (" in error
    assert not (tmp_path / "run").exists()


def test_the_same_pictures_are_the_same_set_through_every_door(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))
    pictures = {name: encoded(photo(n, 20), "PNG") for n, name in enumerate(NAMES)}
    places = write_doors(tmp_path, pictures)
    found = {name: load_dataset(name, place, image_size=9) for name, place in places.items()}
    for name, place in places.items():
        data = found[name]
        assert data.description == describe(name, place, image_size=9)
        assert data.label_names == ("a", "b")
        for one, other in zip(data[1:4], found["folder"][1:4], strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.label, other.label)
