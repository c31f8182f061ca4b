"""Experiments: each one command that ends in a table, figures and result.json."""

from collections.abc import Callable

from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments import ablation, decay, phase_diagram, zero_shot
from ssl_jax.experiments.lectures import LECTURES
from ssl_jax.types import Config

EXPERIMENTS: dict[str, Callable[[Config, str, Callable[[], bool]], None]] = {
    "robustness": decay.robustness,
    "ablation": ablation.ablation,
    "zero_shot": zero_shot.zero_shot,
    "strong_penalty": decay.strong_penalty,
    "model_scale": decay.model_scale,
    "phase_diagram": phase_diagram.phase_diagram,
    **LECTURES,
}


def run_experiment(config: Config, directory: str, interrupted: Callable[[], bool]) -> None:
    """The experiment that the configuration names."""
    if config.experiment not in EXPERIMENTS:
        raise UserError(f"experiment: got {config.experiment!r}, {nearest(config.experiment, EXPERIMENTS)}")
    EXPERIMENTS[config.experiment](config, directory, interrupted)
