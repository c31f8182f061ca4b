"""What recording the dynamics costs: in every step, and for every record, as a share of training.

    python benchmarks/dynamics.py [--quick] [--config NAME.py:METHOD] [--out FILE]

Target: at most 2% of training with a record every 100 steps.
"""

import argparse

import jax
import jax.numpy as jnp
from common import alternate, finish, parse
from predictor import correlation
from setup_step import TOTAL_STEPS, base_config, changed, compiled, random_dataset

from ssl_jax.builders import pretraining
from ssl_jax.tasks.pretrain import make_track

EVERY = 100  # steps
TARGET = 0.02


def main() -> None:
    args = parse(__doc__.splitlines()[0], config="")
    config = changed(base_config(args), {"projector.out": 128})
    steps = 10 if jax.default_backend() == "cpu" else 100
    contenders = {
        f"recorded {on}": compiled(changed(config, {"dynamics.every": on}), steps).run
        for on in (0, EVERY, 1)  # the last: the views' correlation at every step
    }
    contenders |= {"record": one_record(config)}
    times = alternate(contenders, repeats=7 if args.quick else 21)
    plain, tracked, whole = (times[name]["median_s"] / steps for name in list(contenders)[:3])
    record = times["record"]["median_s"]
    row = {
        "encoder": config.encoder.name,
        "batch": config.batch_size,
        "plain_ms": 1e3 * plain,
        "tracked_ms": 1e3 * tracked,
        "record_ms": 1e3 * record,
        "views_ms": 1e3 * (whole - tracked),
        "step_share": tracked / plain - 1,
        "record_share": record / EVERY / plain,
        "views_share": (whole - tracked) / EVERY / plain,
    }
    finish(args, "dynamics", [row], every=EVERY, target_share=TARGET)


def one_record(config: argparse.Namespace):
    """Takes what a record holds of the state, for D = 128."""
    data, parts = random_dataset(1000, 32), pretraining.build(config, TOTAL_STEPS, 1, None)
    track = make_track(parts.predictor.matrix)
    state = pretraining.fresh_state(config, pretraining.make_init(parts, data.description))
    state = state._replace(memory={"correlation": jnp.float32(correlation(config.projector.out))})
    return lambda: track(state)


if __name__ == "__main__":
    main()
