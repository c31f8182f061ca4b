"""A run opened from Python: what it holds, its encoder on pictures of any kind, and one line for
what is wrong.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import TINY, last_parameters
from PIL import Image

import ssl_jax
from ssl_jax import launch
from ssl_jax.builders import trained_run
from ssl_jax.builders.supervised import build_classifier
from ssl_jax.data.fitted import fit_pictures
from ssl_jax.data.sources import load_dataset
from ssl_jax.errors import UserError
from ssl_jax.probes import features as extraction
from ssl_jax.runs import BATCH, CHUNK
from ssl_jax.workdir import checkpoints
from ssl_jax.workdir.directory import read_json, write_json

SMALL = dict(word.removeprefix("--config.").split("=") for word in TINY) | {"eval_every": 1}
LABELLED = {
    "encoder.name": "convnet_digits",
    "data.name": "digits",
    "data.train_size": 300,
    "data.validation_size": 44,
    "epochs": 2,
    "batch_size": 64,
    "augment.mean": (0.3,),
    "augment.std": (0.4,),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ssl_jax.train("quickstart", tmp_path_factory.mktemp("run") / "W", **SMALL)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", train_size=256)


@pytest.fixture(scope="module")
def encoder(run):
    return run.encoder()


@pytest.fixture
def copy(run, tmp_path):
    """The work directory, to be damaged."""
    return Path(shutil.copytree(run.workdir, tmp_path / "copy"))


# --- The record -----------------------------------------------------------------------------------


def test_a_run_is_what_its_files_hold(run):
    assert run.result == read_json(run.workdir / "result.json")
    assert (run.config.epochs, run.config.encoder.width) == (3, 4)
    assert run.steps[-2:] == [8, 12]  # the latest two, and the best one
    table = np.genfromtxt(run.workdir / "metrics.csv", delimiter=",", names=True)
    assert set(run.metrics) == set(table.dtype.names)
    for name, column in run.metrics.items():
        np.testing.assert_array_equal(column, table[name])


def test_a_run_under_way(copy):
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "checkpoints")
    (copy / "metrics.csv").unlink()
    opened = ssl_jax.open_run(str(copy))
    assert (opened.result, opened.metrics, opened.steps) == (None, {}, [])
    with pytest.raises(UserError, match="checkpoints: no checkpoint found"):
        opened.encoder()


def test_a_run_of_an_earlier_version_has_its_fields_at_their_defaults(copy):
    config = read_json(copy / "config.json")
    del config["loss_scale"]
    write_json(copy / "config.json", config)
    assert ssl_jax.open_run(copy).config.loss_scale == 1.0


# --- The encoder ----------------------------------------------------------------------------------


def test_features_are_those_of_the_probes(run, encoder, digits):
    with np.load(run.workdir / "features" / "step-12.npz") as kept:
        assert encoder.step == 12 and kept["test_x"].shape == (500, encoder.dim)
        for split in ("train", "test"):
            found = encoder(getattr(digits, split).image)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, kept[f"{split}_x"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3, BATCH + 1, CHUNK + 5])
def test_any_number_of_images(count, encoder, digits):
    image = np.resize(digits.test.image, (count, 8, 8, 1))
    found = encoder(image)
    assert found.shape == (count, encoder.dim)
    expected = np.resize(encoder(digits.test.image), (count, encoder.dim))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_few_programs_are_compiled(encoder, digits):
    encoder(digits.test.image[:8])
    before = extraction._call._cache_size()
    for count in (5, 6, 7, 8):
        encoder(digits.test.image[:count])
    assert extraction._call._cache_size() == before


def reference(picture: Image.Image) -> np.ndarray:
    """The largest central square of a picture, as 8x8 grey pixels."""
    grey = picture.convert("L")
    side, (width, height) = min(grey.size), grey.size
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(grey.resize((8, 8), Image.Resampling.BILINEAR, box))[..., None]


@pytest.fixture
def pictures():
    """Grey and coloured, of several sizes."""
    rng = np.random.default_rng(0)
    shapes = [(8, 8), (20, 31, 3), (31, 20), (8, 8, 3), (64, 64, 3), (5, 4)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def test_pictures_of_mixed_sizes_in_every_form(encoder, pictures, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    arrays = [np.asarray(picture) for picture in pictures]
    arrays[0] = arrays[0][..., None]
    expected = encoder(np.stack([reference(picture) for picture in pictures]))
    assert np.ptp(expected, axis=0).max() > 0.01, "the pictures differ"
    mixed = [arrays[0], str(paths[1]), pictures[2], paths[3], arrays[4], pictures[5]]
    for form in (pictures, paths, [str(path) for path in paths], arrays, tuple(mixed)):
        np.testing.assert_array_equal(encoder(form), expected)


def test_an_array_of_another_shape(encoder):
    image = np.random.default_rng(1).integers(0, 256, (3, 30, 24, 3), dtype=np.uint8)
    expected = encoder(np.stack([reference(Image.fromarray(one)) for one in image]))
    np.testing.assert_array_equal(encoder(image), expected)
    np.testing.assert_array_equal(encoder(jax.numpy.asarray(image)), expected)


def test_grey_pictures_for_a_run_on_colours():
    grey = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    coloured = np.concatenate(list(fit_pictures(grey, (8, 8, 3), 3)))
    np.testing.assert_array_equal(coloured, np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize("as_file", [True, False])
def test_pictures_for_a_run_on_images_that_are_not_square(as_file, tmp_path):
    """A picture of 24x40 keeps 24x36, its middle, for images of 6x9."""
    pixels = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    given = [tmp_path / "a.png" if as_file else picture]
    [found] = fit_pictures(given, (6, 9, 3), 1)
    expected = picture.resize((9, 6), Image.Resampling.BILINEAR, (2, 0, 38, 24))
    np.testing.assert_array_equal(found[0], np.asarray(expected))


WRONG = {
    "a single image": (np.zeros((8, 8, 1), np.uint8), "uint8 of shape (8, 8, 1)"),
    "floats": (np.zeros((2, 8, 8, 1)), "float64 of shape (8, 8, 1) as number 0"),
    "two channels": (np.zeros((2, 8, 8, 2), np.uint8), "uint8 of shape (8, 8, 2)"),
    "a path alone": ("a.png", "got one str"),
    "no file": (["none.png"], "none.png"),
    "a list of floats": ([np.zeros((8, 8), np.uint8), np.zeros((8, 8))], "as number 1"),
    "a URL": (["https://example.org/a.png"], "images[0]: got the URL"),
    "rows": (np.zeros((2, 64), np.uint8), "takes (N, H, W, C) uint8"),
    "no pixels": ([np.zeros((0, 8, 3), np.uint8)], "as number 0"),
}


@pytest.mark.parametrize("images, words", WRONG.values(), ids=WRONG)
def test_what_is_no_picture(images, words, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        encoder(images)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_number_of_a_wrong_picture_counts_from_the_first_of_all():
    images = [np.zeros((8, 8), np.uint8)] * 5 + [np.zeros((8, 8))]
    with pytest.raises(UserError, match="as number 5"):
        list(fit_pictures(images, (8, 8, 1), 2))


def test_a_damaged_picture_is_named(encoder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=f"{tmp_path}/a.png: is no picture that can be read"):
        encoder([tmp_path / "a.png"])


# --- Which checkpoint -----------------------------------------------------------------------------


def test_a_checkpoint_by_its_step(run, digits):
    first, last = (run.encoder(step) for step in (run.steps[0], run.steps[-1]))
    assert (first.step, last.step) == (run.steps[0], 12)
    assert np.abs(first(digits.test.image) - last(digits.test.image)).max() > 1e-3
    with pytest.raises(UserError, match=r"step: got 5, .* has .*8, 12"):
        run.encoder(5)
    with pytest.raises(UserError, match="step, best"):
        run.encoder(step=8, best=True)


@pytest.mark.parametrize("best", [8, 12])
def test_the_best_checkpoint_by_the_recorded_metric(best, copy):
    opened = ssl_jax.open_run(copy)
    for step in opened.steps:
        path = copy / "checkpoints" / str(step) / "metrics" / "metrics"
        assert "knn_validation" in json.loads(path.read_text())
        path.write_text(json.dumps({"knn_validation": 0.9 if step == best else 0.1}))
    assert opened.encoder(best=True).step == best
    # as Orbax ranks them at the next start
    with checkpoints.open_manager(copy / "checkpoints", "knn_validation") as manager:
        assert manager.best_step() == best


def test_no_best_without_a_metric(copy):
    opened = ssl_jax.open_run(copy)
    for step in opened.steps:
        shutil.rmtree(copy / "checkpoints" / str(step) / "metrics")
    with pytest.raises(UserError, match="no checkpoint has knn_validation"):
        opened.encoder(best=True)


# --- The shape of its images ----------------------------------------------------------------------


def test_the_encoder_needs_no_data(run, monkeypatch):
    monkeypatch.setattr(trained_run, "describe_dataset", lambda config: pytest.fail("asked"))
    assert run.encoder().image == (8, 8, 1)


def test_a_checkpoint_of_an_earlier_version_has_its_shape_from_the_data(copy, monkeypatch):
    monkeypatch.setattr(checkpoints, "read_notes", lambda folder, step: {})
    assert ssl_jax.open_run(copy).encoder().image == (8, 8, 1)
    config = read_json(copy / "config.json")
    config["data"]["data_dir"] = f"{copy}/nowhere"
    write_json(copy / "config.json", config)
    with pytest.raises(UserError, match=r"how large its images are.*nowhere"):
        ssl_jax.open_run(copy).encoder()


# --- Runs that are no such runs -------------------------------------------------------------------


def test_no_work_directory(tmp_path):
    with pytest.raises(UserError, match="config.json: not found"):
        ssl_jax.open_run(tmp_path)
    with pytest.raises(UserError, match="workdir: got the URL"):
        ssl_jax.open_run("s3://bucket/run")


def test_a_damaged_checkpoint(copy):
    opened = ssl_jax.open_run(copy)
    shutil.rmtree(copy / "checkpoints" / "12" / "state")
    with pytest.raises(UserError, match="checkpoints/12: this checkpoint cannot be read"):
        opened.encoder()
    assert opened.encoder(8).step == 8


@pytest.mark.parametrize("width", [8, 10**6])
def test_a_configuration_that_does_not_fit(width, copy):
    """Nothing of the size that it asks for is made."""
    config = read_json(copy / "config.json")
    config["encoder"]["width"] = width
    write_json(copy / "config.json", config)
    with pytest.raises(UserError, match=r"has shape .* this configuration needs"):
        ssl_jax.open_run(copy).encoder()


def test_a_work_directory_of_another_task(run, tmp_path):
    write_json(tmp_path / "config.json", {"task": "theory", "figure": 1, "eta": [0.1, 0.2]})
    write_json(tmp_path / "result.json", {"task": "theory"})
    opened = ssl_jax.open_run(tmp_path)
    assert (opened.result, opened.config.figure) == ({"task": "theory"}, 1)
    with pytest.raises(UserError, match=r"config.json: task: got 'theory', takes 'pretrain'"):
        opened.encoder()


def test_the_features_of_a_supervised_run_lie_before_its_head(tmp_path, digits):
    run = ssl_jax.train("supervised:convnet", tmp_path / "S", **LABELLED)
    features = run.encoder()(digits.test.image)
    assert run.encoder(best=True).step in run.steps
    params = last_parameters(run.workdir)
    logits = features @ params["/params/head/kernel"] + params["/params/head/bias"]
    trained = run.checkpoint()
    parts = build_classifier(trained.config, 10, 1, 8, 4, None)
    image = (digits.test.image / np.float32(255) - np.float32(0.3)) / np.float32(0.4)
    shapes = jax.eval_shape(parts.classifier.init, jax.random.key(0), image[:2])
    like = jax.tree.map(
        lambda s: np.zeros(s.shape, s.dtype), dict(zip(("params", "stats"), shapes, strict=True))
    )
    state = checkpoints.restore_parts(trained.folder, trained.step, like)
    expected = parts.classifier.logits(state["params"], state["stats"], image)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


# --- ssl_jax.train --------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The flags with which a run would have begun, and where there is nothing to open."""
    seen = []
    monkeypatch.setattr(launch, "run", seen.append)
    monkeypatch.setattr("ssl_jax.runs.open_run", lambda workdir: workdir)
    return seen


def test_train_is_the_command(asked):
    fields = {"epochs": 3, "views.crop_scale": (0.2, 1), "optimizer": {"learning_rate": 1e-05}}
    fields |= {
        "sync_batch_norm": np.bool_(False),
        "probe": {"seed": np.int64(5)},
        "method": "x=y z",
    }
    assert ssl_jax.train(Path("configs/quickstart.py"), Path("W"), **fields) == Path("W")
    words = [
        "--config=quickstart",
        "--workdir=W",
        "--config.epochs=3",
        "--noconfig.sync_batch_norm",
    ]
    words += ["--config.views.crop_scale=0.2,1", "--config.optimizer.learning_rate=1e-5"]
    words += ["--config.probe.seed=5", "--config.method=x=y z"]
    command = launch.parse_flags(["launch.py", *words])
    assert asked[0]["config"].value == command["config"].value
    assert asked[0]["workdir"].value == "W"


@pytest.mark.parametrize(
    "config, fields, words",
    [
        ("quickstrt", {}, "did you mean 'quickstart'"),
        ("quickstart", {"epoch": 5}, "epoch: no such field, did you mean 'epochs'?"),
        ("quickstart", {"epochs": 2.5}, "epochs: got '2.5', takes a whole number"),
        ("quickstart", {"epochs": None}, "epochs: got None, takes a value"),
        ("quickstart", {"optimizer": {"rate": 1}}, "optimizer.rate: no such field"),
        ("quickstart", {"optimizer": 3}, "optimizer: is a section"),
        ("cifar10:byoll", {}, "did you mean 'byol'"),
    ],
)
def test_a_mistake_is_the_command_s_line(config, fields, words, asked):
    with pytest.raises(UserError) as caught:
        ssl_jax.train(config, "W", **fields)
    assert words in str(caught.value) and not asked


def test_a_value_that_no_run_takes(tmp_path):
    with pytest.raises(UserError, match="target.tau: got 2.0"):
        ssl_jax.train("quickstart", tmp_path / "W", **{"target.tau": 2})
    assert not list(tmp_path.iterdir())
