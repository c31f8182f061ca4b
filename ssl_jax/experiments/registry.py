"""The experiments by name, and the one that a configuration names."""

from collections.abc import Callable
from functools import partial

from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments import (
    ablation,
    adam_l2,
    model_scale,
    optimizers,
    phase_diagram,
    random_labels,
    ridge,
    robustness,
    signal,
    snapshots,
    strong_penalty,
    zero_shot,
)
from ssl_jax.experiments.harness import run_cells
from ssl_jax.types import Config, Interrupted

# config.experiment -> function(config, directory, interrupted)
EXPERIMENTS: dict[str, Callable[[Config, str, Interrupted], None]] = {
    "robustness": robustness.robustness,
    "ablation": ablation.ablation,
    "zero_shot": zero_shot.zero_shot,
    "strong_penalty": strong_penalty.strong_penalty,
    "model_scale": model_scale.model_scale,
    "phase_diagram": phase_diagram.phase_diagram,
    "signal": partial(run_cells.run, signal.EXPERIMENT),
    "adam_l2": partial(run_cells.run, adam_l2.EXPERIMENT),
    "optimizers": partial(run_cells.run, optimizers.EXPERIMENT),
    "random_labels": partial(run_cells.run, random_labels.EXPERIMENT),
    "snapshots": partial(run_cells.run, snapshots.EXPERIMENT),
    "ridge": partial(run_cells.run, ridge.EXPERIMENT),
}


def run_experiment(config: Config, directory: str, interrupted: Interrupted) -> None:
    """The experiment that the configuration names."""
    if config.experiment not in EXPERIMENTS:
        raise UserError(f"experiment: got {config.experiment!r}, {nearest(config.experiment, EXPERIMENTS)}")
    EXPERIMENTS[config.experiment](config, directory, interrupted)
