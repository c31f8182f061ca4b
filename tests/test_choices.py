"""What a configuration leaves to its data: chosen once, the same each time, printed and stored."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import own_images, quickstart
from ssl_jax import launch
from ssl_jax.augment.views import RECIPES
from ssl_jax.builders import choices, pretraining
from ssl_jax.builders.checks import check_counts
from ssl_jax.builders.data import read_dataset
from ssl_jax.data.dataset import Description
from ssl_jax.errors import UserError
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.directory import check_workdir, flatten, open_workdir

ROOT = Path(__file__).parent.parent


def own(**fields):
    """The configuration for own images, on the digits."""
    config = own_images.get_config()
    fields = {"data.name": "digits", "data.train_size": 40} | fields
    config.update_from_flattened_dict(fields)
    return config


def described(monkeypatch, height: int, width: int, channels: int = 3, count: int = 5000) -> None:
    """A set of images of that size, stored as `data.image_size` asks."""

    def describe(config):
        side = config.data.image_size
        image = (side or height, side or width, channels)
        return Description("made", count, 100, count, image, 2, ("a", "b"))

    monkeypatch.setattr(choices, "describe_dataset", describe)


def changes(before, after) -> set[str]:
    old, new = flatten(before.to_dict()), flatten(after.to_dict())
    return {name for name in new if new[name] != old.get(name)}


def test_forty_digits_get_sizes_that_fit_them():
    """The largest power of two in 40; a tenth of 40; the root of the 36 that are left."""
    config = choices.settle(own()).config
    assert (config.batch_size, config.probe.validation_size, config.probe.knn_k) == (32, 4, 6)
    assert (config.encoder.stem, config.views.size, config.data.image_size) == ("cifar", 0, 0)


def test_every_choice_is_told_on_a_line_and_nothing_else_changes():
    config = own()
    settled = choices.settle(config)
    assert all("\n" not in line for line in settled.lines)
    told = " ".join(line.split(": ")[0] for line in settled.lines)
    for field in changes(config, settled.config):
        assert told.count(field) == 1, field
    assert config.batch_size == 0  # the configuration itself stays


def test_what_is_settled_stays_as_it_is():
    settled = choices.settle(own()).config
    again = choices.settle(settled)
    assert again.lines == [] and again.config.to_dict() == settled.to_dict()
    config = quickstart.get_config()
    assert choices.settle(config).lines == []
    assert choices.settle(config).config.to_dict() == config.to_dict()


def test_what_a_user_sets_is_not_chosen():
    fields = {"batch_size": 16, "encoder.stem": "imagenet", "views.size": 6}
    fields |= {"views.blur_kernel": 5, "probe.validation_size": 7, "probe.knn_k": 3}
    config = choices.settle(own(**fields)).config
    assert {name: flatten(config.to_dict())[name] for name in fields} == fields


@pytest.mark.parametrize(
    "height, width, image_size, size, stem, kernel",
    [
        (427, 640, 256, 224, "imagenet", 23),  # BYOL's sizes and kernel
        (300, 300, 256, 224, "imagenet", 23),
        (256, 256, 0, 224, "imagenet", 23),
        (96, 96, 0, 0, "imagenet", 9),
        (100, 80, 80, 0, "imagenet", 9),
        (64, 64, 0, 0, "cifar", 7),
        (32, 32, 0, 0, "cifar", 3),
    ],
)
def test_sizes_follow_from_the_images(monkeypatch, height, width, image_size, size, stem, kernel):
    described(monkeypatch, height, width)
    config, data, _ = choices.settle(own())
    assert (config.data.image_size, config.views.size) == (image_size, size)
    assert (config.encoder.stem, config.views.blur_kernel) == (stem, kernel)
    assert data.image[:2] == ((image_size, image_size) if image_size else (height, width))
    assert (config.batch_size, config.probe.validation_size, config.probe.knn_k) == (128, 500, 67)


def test_images_that_are_not_square_stay_so_where_no_size_is_chosen(monkeypatch):
    described(monkeypatch, 120, 160)
    config, data, lines = choices.settle(own(**{"views.size": 0}))
    assert (config.data.image_size, data.image) == (0, (120, 160, 3))


def test_large_sets_get_no_more_than_is_usual(monkeypatch):
    described(monkeypatch, 32, 32, count=1_000_000)
    config = choices.settle(own()).config
    assert (config.batch_size, config.probe.validation_size, config.probe.knn_k) == (128, 2000, 200)


def test_two_images_are_enough_and_one_is_one_line(monkeypatch):
    described(monkeypatch, 32, 32, count=2)
    config = choices.settle(own()).config
    assert (config.batch_size, config.probe.validation_size, config.probe.knn_k) == (2, 1, 1)
    described(monkeypatch, 32, 32, count=1)
    with pytest.raises(UserError, match="^data.data_dir: .* 1 image.* takes at least 2") as error:
        choices.settle(own())
    assert "\n" not in str(error.value)


def test_a_field_left_open_may_be_so_only_until_it_is_chosen():
    """A stored configuration has no such field, and other wrong values are no open ones."""
    check_counts(choices.stand_ins(own()))
    with pytest.raises(UserError, match="batch_size: got 0"):
        check_counts(own())
    with pytest.raises(UserError, match="batch_size: got 1"):
        check_counts(choices.stand_ins(own(batch_size=1)))
    with pytest.raises(UserError, match="views.size: got -2"):
        pretraining.prepare(own(**{"views.size": -2}))


def test_views_larger_than_what_is_stored_are_refused():
    with pytest.raises(UserError, match="views.size: got 9, takes at most 8"):
        pretraining.prepare(own(**{"views.size": 9}))
    pretraining.prepare(own(**{"views.size": 8}))


# --- One channel ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_images_of_one_channel(recipe):
    """Without what means nothing there, told on one line; `prepare` checks the rest."""
    fields = {"views.recipe": recipe, "views.blur_kernel": 3}
    config, _, parts, lines = pretraining.prepare(own(**fields))
    assert (parts.recipe.saturation, parts.recipe.hue, parts.recipe.gray) == (0, 0, 0)
    assert parts.recipe.brightness == RECIPES[recipe].brightness > 0
    told = [line for line in lines if "views.gray" in line]
    assert len(told) == (recipe != "digits")
    dataset = read_dataset(config)
    config, _ = choices.measure_statistics(config, dataset)
    assert len(pretraining.build_recipe(config).mean) == 1


@pytest.mark.parametrize("field", ["saturation", "hue", "gray"])
def test_a_colour_that_a_user_asks_for_is_refused_on_one_channel(field):
    with pytest.raises(UserError, match=rf"views\.{field}: got 0\.3, takes 0"):
        pretraining.prepare(own(**{f"views.{field}": 0.3}))


def test_colours_stay_on_three_channels(monkeypatch):
    described(monkeypatch, 32, 32)
    config = choices.settle(own()).config
    assert (config.views.saturation, config.views.hue, config.views.gray) == (None, None, None)


# --- Mean and standard deviation ------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["photo", "cifar"])
def test_statistics_are_measured_where_the_recipe_has_none_that_fit(recipe):
    """CIFAR's three numbers do not fit one channel."""
    config = choices.settle(own(**{"views.recipe": recipe})).config
    assert choices.unmeasured(config, 1) == ("views.mean", "views.std")
    dataset = read_dataset(config)
    found, lines = choices.measure_statistics(config, dataset)
    pixels = dataset.pretrain.image.astype(np.float64) / 255
    assert found.views.mean == pytest.approx([pixels.mean()], rel=1e-5)
    assert found.views.std == pytest.approx([pixels.std()], rel=1e-5)
    assert [line.split("=")[0] for line in lines] == ["views.mean", "views.std"]
    assert choices.measure_statistics(found, dataset) == (found, [])


def test_given_statistics_stay():
    for recipe, channels in (("stl10", 3), ("stl10", 1), ("digits", 1), ("cifar", 3)):
        assert choices.unmeasured(own(**{"views.recipe": recipe}), channels) == ()
    config = choices.settle(own(**{"views.mean": (0.5,)})).config
    assert choices.unmeasured(config, 1) == ("views.std",)
    found, _ = choices.measure_statistics(config, read_dataset(config))
    assert found.views.mean == (0.5,) and found.views.std is not None


def test_what_is_not_known_yet_is_not_compared(tmp_path):
    config = own(**{"views.mean": (0.25,), "views.std": (0.5,)})
    open_workdir(str(tmp_path), config.to_dict())
    check_workdir(str(tmp_path), own().to_dict(), later=("views.mean", "views.std"))
    with pytest.raises(UserError, match="views.std"):
        check_workdir(str(tmp_path), own().to_dict(), later=("views.mean",))
    with pytest.raises(UserError, match="seed"):
        check_workdir(str(tmp_path), own(seed=1).to_dict(), later=("views.mean", "views.std"))


# --- Through the door -----------------------------------------------------------------------------

TINY = """
    epochs=2 encoder.name=convnet_digits encoder.width=4 projector.hidden=8 projector.out=4
    predictor.hidden=8 schedule.name=constant views.size=6 probe.epochs=1 probe.random_init=False
    devices=1 eval_every=1 checkpoint_every=1
""".split()


def start(config: str, out: Path, *fields: str) -> int:
    words = [f"--config.{field}" for field in fields]
    return launch.main(
        ["launch.py", "--config", f"configs/{config}.py", f"--workdir={out}", *words]
    )


@pytest.mark.slow
def test_own_images_train_go_on_and_are_probed(tmp_path, monkeypatch, capsys):
    """Views of 6 pixels of 8 stored; more epochs; the statistics are in the work directory."""
    monkeypatch.chdir(ROOT)
    fields = ["data.name=digits", "data.train_size=40", *TINY]
    out = tmp_path / "run"
    assert start("own_images", out, *fields) == 0
    printed = capsys.readouterr().out
    assert "batch_size=32: of 40 images" in printed and "views.mean=" in printed
    assert "views.saturation, views.hue, views.gray: left out" in printed
    stored = json.loads((out / "config.json").read_text())
    assert (stored["batch_size"], stored["probe"]["knn_k"], stored["views"]["size"]) == (32, 6, 6)
    image = read_dataset(own()).pretrain.image.astype(np.float64) / 255
    assert stored["views"]["mean"] == pytest.approx([image.mean()], rel=1e-5)
    assert start("own_images", out, *fields, "epochs=3") == 0
    assert metrics_csv.read_rows(out / "metrics.csv")[-1]["epoch"] == 3
    again = json.loads((out / "config.json").read_text())
    assert again == stored | {"epochs": 3}
    # other images under the same name: their statistics are not those of the run
    monkeypatch.setattr(choices, "measure", lambda image: ((0.4,), (0.4,)))
    assert start("own_images", out, *fields, "epochs=3") == 2
    assert "views.mean" in capsys.readouterr().err
    fields = [f"checkpoint={out}", "probe.knn_k=0", "probe.epochs=1", "probe.random_init=False"]
    assert start("probe", tmp_path / "probe", *fields) == 0
    assert json.loads((tmp_path / "probe" / "config.json").read_text())["probe"]["knn_k"] == 6


def test_a_folder_is_all_that_is_needed(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    config = own_images.get_config()
    config.data.data_dir = str(tmp_path)
    settled, plan, parts, _ = pretraining.prepare(config)
    assert plan.data.image == (32, 32, 3) and settled.batch_size == 32
    assert parts.recipe.mean is None and settled.encoder.stem == "cifar"
