"""One training step, BYOL and DirectPred, and where its time goes.

python benchmarks/step.py [--quick] [--out FILE] [--batch N] [--width N] [--methods=byol]
[--steps_per_call=N]

ResNet-18 for 32x32 images; width 64 and batch 128 unless said otherwise, width 16 with --quick. In
float32 on a CPU, in bfloat16 elsewhere. The whole step is timed as a run takes it, with its input;
the parts around forward and backward are timed by themselves, as compiled programs of their own,
and forward and backward are the rest. FLOPs are the model's, counted from its shapes: what a step
has to compute by definition, however it is then computed.
"""

import functools
import itertools
import resource
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from common import (
    alternate,
    copy_rate,
    finish,
    forward_flops,
    matmul_rate,
    parse,
    read_config,
    wait,
)
from setup_step import TOTAL_STEPS, compiled, random_dataset

from ssl_jax.augment.views import make_views
from ssl_jax.builders import pretraining
from ssl_jax.data.batches import load, make_feed
from ssl_jax.dynamics.collapse import collapse_signs
from ssl_jax.linalg import second_moment
from ssl_jax.models import MLPHead, make_encoder
from ssl_jax.predictors import make_predictor, recent_correlation
from ssl_jax.train.parallel import steps_per_call
from ssl_jax.train.pretrain import average, example_keys

SIZE, SIDE = 1000, 32


class Part(NamedTuple):
    """`run()` does the work of `steps` steps and returns when the device is done."""

    run: Any
    steps: int


def main() -> None:
    args = parse(__doc__, batch=128, width=0, methods="byol,directpred", steps_per_call="auto")
    cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if cpu else jnp.bfloat16
    ceiling, traffic = matmul_rate(dtype), copy_rate()
    rows, parts = [], []
    for method in args.methods.split(","):
        config = read_config(f"cifar10.py:{method}")
        config.encoder.width = args.width or (16 if args.quick else 64)
        config.batch_size = args.batch
        config.precision, config.steps_per_call = jnp.dtype(dtype).name, args.steps_per_call
        count = steps_per_call(args.steps_per_call, jax.local_devices()[:1])
        setting = {
            "method": method,
            "width": config.encoder.width,
            "batch": args.batch,
            "steps a call": count,
        }
        row, breakdown = measure(config, ceiling)
        rows.append(setting | row)
        parts += [{"method": method} | part for part in breakdown]
    finish(args, "step", rows, parts=parts, matmul_flops_per_s=ceiling, memory_bytes_per_s=traffic)


def measure(config: Any, ceiling: float) -> tuple[dict, list[dict]]:
    """Images/s and the model's FLOP/s; and every part's share of the step."""
    count = steps_per_call(config.steps_per_call, jax.local_devices()[:1])
    whole = compiled(config, count, size=SIZE, side=SIDE)
    contenders = {"whole": Part(whole.run, whole.steps)} | parts_around(config)
    times = alternate(
        {name: part.run for name, part in contenders.items()}, repeats=3 if count == 1 else 20
    )
    each = {name: times[name]["median_s"] / contenders[name].steps for name in contenders}
    step = each.pop("whole")
    around = sum(each.values())
    each |= {
        "forward and backward: the rest": step - around,
        "all but forward and backward": around,
    }
    breakdown = [
        {"part": name, "ms": 1e3 * seconds, "share": seconds / step}
        for name, seconds in each.items()
    ]
    flops = step_flops(config)
    row = {
        "images_per_s": config.batch_size / step,
        "step_ms": 1e3 * step,
        "min_ms": 1e3 * times["whole"]["min_s"] / whole.steps,
        "max_ms": 1e3 * times["whole"]["max_s"] / whole.steps,
        "model_gflop": flops / 1e9,
        "gflop_per_s": flops / step / 1e9,
        "floor_ms": 1e3 * flops / ceiling,
        "share_of_matmul_rate": flops / step / ceiling,
        "peak_mib": peak_memory() / 2**20,
    }
    return row, breakdown


def parts_around(config: Any) -> dict[str, Part]:
    """Everything of a step that is neither forward nor backward."""
    data = random_dataset(SIZE, SIDE)
    feed = make_feed(data.pretrain.image, config.batch_size, config.seed)
    parts = pretraining.build(config, TOTAL_STEPS, feed.steps_per_epoch, None)
    state = pretraining.fresh_state(config, pretraining.make_init(parts, data.description))
    resident = jax.device_put(feed.data)
    plan = feed.batches((first, 1) for first in itertools.count())
    gather = jax.jit(load)
    image = gather(resident, next_batch(plan))
    keys = jax.jit(
        lambda: example_keys(jax.random.key(0), jnp.zeros((), int), jnp.arange(config.batch_size))
    )()
    views = jax.jit(make_views(parts.recipe, SIDE))
    z1, z2 = jax.random.normal(jax.random.key(1), (2, config.batch_size, config.projector.out))
    correlate = jax.jit(functools.partial(correlate_and_update, parts))
    matrix = parts.predictor.matrix
    signs = jax.jit(
        lambda state: collapse_signs(
            recent_correlation(state.memory), matrix(state.params["predictor"])
        )
    )
    return {
        "input": repeated(lambda: gather(resident, next_batch(plan))),
        "augmentation": repeated(lambda: views(keys, image)),
        "optimizer and target": optimizer_part(parts, state),
        "correlation and predictor": repeated(lambda: correlate(state, z1, z2)),
        "logging": repeated(lambda: signs(state), steps=10 * config.log_every),
    }


def repeated(work: Any, calls: int = 10, steps: int = 0) -> Part:
    """`calls` calls in a row, waited for at the end, as they follow each other in a run."""

    def run():
        wait([work() for _ in range(calls)])

    return Part(run, steps or calls)


def optimizer_part(parts: pretraining.Parts, state: Any) -> Part:
    """Momentum, decay and the moving target, on gradients that stand still; buffers are given up as
    in a step.
    """
    gradients = jax.tree.map(lambda x: 1e-3 * x, state.params)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(carried, gradients):
        params, opt_state, target = carried
        updates, opt_state = parts.optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, average(target, params, 0.99) if target else target

    box = [jax.tree.map(jnp.copy, (state.params, state.opt_state, state.target))]

    def run():
        for _ in range(10):
            box[0] = update(box[0], gradients)
        wait(box[0])

    return Part(run, 10)


def correlate_and_update(parts: pretraining.Parts, state: Any, z1: jax.Array, z2: jax.Array):
    return parts.predictor.update(
        state.params["predictor"], state.memory, second_moment(z1, z2), state.step
    )


def next_batch(plan: Any) -> dict:
    """The next step's batch, without the axis that counts steps."""
    return jax.tree.map(lambda x: x[0], next(plan))


def step_flops(config: Any) -> int:
    """Per step: two views, each forward and backward (three times a forward) online and forward in
    the target.
    """
    image = jnp.zeros((1, SIDE, SIDE, 3))
    encoder = make_encoder(config.encoder.name, width=config.encoder.width)
    features = jax.eval_shape(
        lambda key: encoder.init_with_output(key, image, train=True)[0], jax.random.key(0)
    )
    projector = MLPHead(config.projector.hidden, config.projector.out)
    z = jnp.zeros((1, config.projector.out))
    trunk = forward_flops(encoder, image, train=True) + forward_flops(
        projector, jnp.zeros(features.shape), train=True
    )
    head = MLPHead(config.predictor.hidden, len(z[0]))
    linear = make_predictor(config.predictor.kind, len(z[0])).linear
    predictor = 2 * z.size**2 if linear else forward_flops(head, z, train=True)
    passes = 3 + (config.target.tau > 0)
    return 2 * config.batch_size * (passes * trunk + 3 * predictor)


def peak_memory() -> int:
    """Return the peak memory in bytes: the device's where it reports it, else this process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        stats.get("peak_bytes_in_use") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )


if __name__ == "__main__":
    main()
