"""The task "views": draw a grid of augmented views. It trains nothing."""

from pathlib import Path

import jax
import jax.numpy as jnp

from ssl_jax.augment.views import Recipe, make_views, statistics
from ssl_jax.builders import checks, choices, pretraining
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.data.dataset import Dataset
from ssl_jax.reports import run_figures
from ssl_jax.reports.figure import required
from ssl_jax.runtime.terminal import say
from ssl_jax.tasks.training import keep_damaged
from ssl_jax.train.pretrain import example_keys
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import check_workdir


def views(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Draw a grid of augmented views, so that a person can look at what the network sees.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked, as the task takes seconds.

    Raises:
        UserError: a field is wrong, or the views do not fit the images.
    """
    pretraining.build_recipe(choices.stand_ins(config))
    config, data, lines = choices.settle(config)
    later = choices.unmeasured(config, data.channels)
    check_workdir(directory, config.to_dict(), defaults=defaults_of("views"), later=later)
    checks.check_views(choices.build_recipe(config, data.channels), data)
    dataset = read_dataset(config)
    config, more = choices.measure_statistics(config, dataset)
    for line in lines + more:
        say(line)
    recipe = pretraining.build_recipe(config)
    out = result_json.open_on_one(directory, config.to_dict())
    keep_damaged(out, dataset)
    with required(out / "figures" / "views.png") as path:
        draw_views(config, recipe, dataset, out)
    say(f"wrote {path}")


def draw_views(config: Config, recipe: Recipe, dataset: Dataset, out: Path, count: int = 8) -> None:
    """Draw figures/views.png: images beside the two views that training would see at step 0.

    Args:
        config: gives the seed of the views.
        recipe: the augmentations.
        dataset: whose first images for pretraining are drawn.
        out: work directory.
        count: number of images.
    """
    image = dataset.pretrain.image[:count]
    keys = example_keys(
        jax.random.key(config.seed), jnp.zeros((), jnp.int32), jnp.arange(len(image))
    )
    pairs = jax.jit(make_views(recipe, dataset.side))(keys, image)
    run_figures.draw_views(image, pairs, *statistics(recipe), out / "figures" / "views.png")
