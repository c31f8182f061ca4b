"""Does an accelerator compute what the CPU computes, and the same bits when it is asked again?

    JAX_PLATFORMS=cpu python benchmarks/agree.py --reference=FILE     # writes the losses to hold
    others against python benchmarks/agree.py --against=FILE [--method=byol] [--precision=bfloat16]
    [--highest=1] [--out=FILE]

Twenty steps of `configs/cifar10.py:METHOD` on 1280 fixed images of noise: losses against the CPU's
float32, the state's bits after a second run in this process and after one that is resumed at step
10, and the time of a step. --highest=1 multiplies float32 in full, where an accelerator's default
shortens the mantissas. The reference takes two minutes.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from common import finish, parse, read_config, wait
from setup_step import TOTAL_STEPS, random_dataset

from ssl_jax.builders import pretraining
from ssl_jax.data.batches import make_feed
from ssl_jax.runtime.threads import lapack_on_one_thread
from ssl_jax.train import parallel
from ssl_jax.workdir.result_json import processor

METHODS = ("byol", "directpred")
IMAGES, STEPS, HALF = 1280, 20, 10
TIMED = 100  # steps
# Largest difference to the CPU's loss, a cosine summed over two directions, at the first step and
# over all. Rounding of one step is that of the arithmetic: some 2^-24, 2^-11 and 2^-8 of values of
# about 1; training amplifies it.
TOLERANCE = {"highest": (1e-4, 2e-2), "float32": (5e-3, 5e-2), "bfloat16": (2e-2, 1e-1)}


class Trial(NamedTuple):
    """State at steps 10 and 20 on the host, and the loss of each step."""

    half: Any
    state: Any
    losses: list[float]


def main() -> None:
    args = parse(
        __doc__.splitlines()[0],
        reference="",
        against="",
        method="byol",
        precision="float32",
        highest=0,
        width=64,
    )
    if args.reference:
        write_reference(Path(args.reference), args.width)
        return
    if args.highest:
        jax.config.update("jax_default_matmul_precision", "highest")
    begin = time.perf_counter()
    config, run, fresh = program_of(args.method, args.precision, args.width)
    first = trial(run, fresh)
    ready = time.perf_counter() - begin
    second, resumed = trial(run, fresh), trial(run, first.half, HALF)
    kind = "highest" if args.highest else args.precision
    row = {
        "method": args.method,
        "precision": kind,
        "width": args.width,
        "seconds to 20 steps": ready,
    }
    row |= compare(first.losses, args.against, args.method, args.width, TOLERANCE[kind])
    row |= {
        "repeated": str(digest(first.state) == digest(second.state)),
        "resumed": str(digest(first.state) == digest(resumed.state)),
        "digest": digest(first.state),
        "step_ms": 1e3 * step_seconds(run, fresh),
    }
    finish(args, "agree", [row | {"losses": first.losses}])


def program_of(method: str, precision: str, width: int) -> tuple[Any, Any, Any]:
    """(configuration, run(state, first step, count) -> (state, losses), state at step 0 on the
    host).
    """
    config = read_config(f"cifar10.py:{method}")
    config.precision, config.encoder.width = precision, width
    devices, dataset = jax.local_devices()[:1], random_dataset(IMAGES, 32)
    feed = make_feed(dataset.pretrain.image, config.batch_size, config.seed, True)
    parts = pretraining.build(config, TOTAL_STEPS, feed.steps_per_epoch, parallel.axis(devices))
    program = pretraining.compile_step(
        config, parts, feed.data, devices, jax.random.key(config.seed), dataset.side
    )
    size = parallel.steps_per_call("auto", devices)

    def run(state, first: int, count: int):
        state, losses = parallel.replicate(state, devices), []
        with lapack_on_one_thread():
            for batch in feed.batches((at, size) for at in range(first, first + count, size)):
                state, metrics = program(state, batch)
                losses.append(metrics["loss"])
        return wait(state), np.concatenate(jax.device_get(losses)).tolist()

    init = pretraining.make_init(parts, dataset.description)
    return config, run, jax.device_get(pretraining.fresh_state(config, init))


def trial(run, state, start: int = 0) -> Trial:
    """From `start`, 0 or HALF, to STEPS, in two pieces or one."""
    losses: list[float] = []
    half = state
    if start < HALF:
        state, losses = run(state, start, HALF)
        half = state = jax.device_get(state)
    state, rest = run(state, HALF, STEPS - HALF)
    return Trial(half, jax.device_get(state), losses + rest)


def step_seconds(run, state) -> float:
    """Seconds of a step, from TIMED in a row."""
    begin = time.perf_counter()
    run(state, 0, TIMED)
    return (time.perf_counter() - begin) / TIMED


def digest(state: Any) -> str:
    """Of all bits of the state, in the tree's order."""
    leaves = (np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(state))
    return hashlib.blake2b(b"".join(leaf.tobytes() for leaf in leaves), digest_size=8).hexdigest()


def compare(
    losses: list[float], against: str, method: str, width: int, tolerance: tuple[float, float]
) -> dict:
    """Differences to the CPU's losses, and whether they are within the tolerances; {} without a
    file of them.
    """
    if not against:
        return {}
    reference = json.loads(Path(against).read_text(encoding="utf-8"))
    assert reference["width"] == width, f"{against} is of width {reference['width']}"
    off = np.abs(np.array(losses) - reference["losses"][method])
    agrees = bool(off[0] <= tolerance[0] and off.max() <= tolerance[1])
    return {
        "loss 1": losses[0],
        "off at 1": off[0],
        "off at 20": off[-1],
        "off at most": off.max(),
        "agrees": str(agrees),
    }


def write_reference(path: Path, width: int) -> None:
    """The losses of this machine's CPU in float32."""
    assert jax.default_backend() == "cpu", "the reference is a CPU's: set JAX_PLATFORMS=cpu"
    losses = {}
    for method in METHODS:
        _, run, fresh = program_of(method, "float32", width)
        losses[method] = run(fresh, 0, STEPS)[1]
        print(method, losses[method], flush=True)
    written = {"width": width, "jax": jax.__version__, "device": processor(), "losses": losses}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
