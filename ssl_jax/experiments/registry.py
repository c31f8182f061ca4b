"""The experiments by name, and the one that a configuration names."""

from ssl_jax.errors import UserError, nearest
from ssl_jax.experiments import (
    ablation,
    adam_l2,
    cosine_borders,
    cosine_flow,
    model_scale,
    optimizers,
    phase_diagram,
    random_labels,
    ridge,
    robustness,
    semi_supervised,
    signal,
    snapshots,
    strong_penalty,
    zero_shot,
)
from ssl_jax.experiments.harness.experiment import Experiment, run
from ssl_jax.types import Config, Interrupted

# NAME is the same in configs/experiments/NAME.py, here, in reports/experiments/ and in
# results/experiments/NAME.json.
EXPERIMENTS: dict[str, Experiment] = {
    "ablation": ablation.EXPERIMENT,
    "adam_l2": adam_l2.EXPERIMENT,
    "cosine_borders": cosine_borders.EXPERIMENT,
    "cosine_flow": cosine_flow.EXPERIMENT,
    "model_scale": model_scale.EXPERIMENT,
    "optimizers": optimizers.EXPERIMENT,
    "phase_diagram": phase_diagram.EXPERIMENT,
    "random_labels": random_labels.EXPERIMENT,
    "ridge": ridge.EXPERIMENT,
    "robustness": robustness.EXPERIMENT,
    "semi_supervised": semi_supervised.EXPERIMENT,
    "signal": signal.EXPERIMENT,
    "snapshots": snapshots.EXPERIMENT,
    "strong_penalty": strong_penalty.EXPERIMENT,
    "zero_shot": zero_shot.EXPERIMENT,
}


def run_experiment(config: Config, directory: str, interrupted: Interrupted) -> None:
    """Run the experiment that the configuration names.

    Args:
        config: the configuration.
        directory: the work directory.
        interrupted: whether to stop; the same call then goes on from the finished cells.

    Raises:
        UserError: there is no such experiment, or a field of its configuration is wrong.
    """
    if config.experiment not in EXPERIMENTS:
        raise UserError(
            f"experiment: got {config.experiment!r}, {nearest(config.experiment, EXPERIMENTS)}"
        )
    run(EXPERIMENTS[config.experiment], config, directory, interrupted)
