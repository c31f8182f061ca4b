"""What docs/scale.md calculates with: peak memory by micro-batches, sizes, orders, eigh.

    python benchmarks/large.py [--quick] [--accumulate=1,2,4,8] [--batch=128] [--out FILE]

Memory is what XLA plans for one step of BYOL beside its arguments (temporary arrays at most, after
compilation for this device; nothing runs): ResNet-18 of width 64 at 32 pixels in float32. Sizes are
those of the shapes; what is kept of an image for the gradient is in bfloat16. An order is what each
epoch draws, once in every process that makes batches.
"""

import time
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, forward_flops, parse, read_config, say, wait
from predictor import correlation
from setup_step import TOTAL_STEPS, changed

from ssl_jax.augment.views import make_views
from ssl_jax.builders import pretraining
from ssl_jax.builders.network import build_encoder
from ssl_jax.builders.program import count_bytes
from ssl_jax.data.order import epoch_order
from ssl_jax.linalg import symmetric_eigh
from ssl_jax.runtime.threads import lapack_on_one_thread

# BYOL on ImageNet (Grill et al. 2020, section 3.2): heads of 4096, projections of 256.
LARGE = {"encoder.stem": "imagenet", "projector.hidden": 4096, "projector.out": 256}
NETWORKS = {
    "ResNet-18, 32 pixels": ({"encoder.name": "resnet18"}, 32),
    "ResNet-18, 224 pixels": (LARGE | {"encoder.name": "resnet18"}, 224),
    "ResNet-50, 224 pixels": (LARGE | {"encoder.name": "resnet50"}, 224),
}


def main() -> None:
    args = parse(__doc__.splitlines()[0], accumulate="1,2,4,8", batch=128, config="cifar10.py:byol")
    config = changed(read_config(args.config), {"batch_size": args.batch, "predictor.hidden": 512})
    if args.quick:
        config = changed(config, {"encoder.width": 16})
    memory = [memory_of(config, int(count)) for count in args.accumulate.split(",")]
    networks = [sizes_of(config, name) for name in NETWORKS]
    orders = [order_of(size) for size in (10**6, 10**7, *([] if args.quick else [10**8]))]
    spectra = [eigh_of(dim) for dim in (128, 256, 512, 1024, *([] if args.quick else [2048]))]
    finish(args, "large", orders, memory=memory, networks=networks, eigh=spectra)


def memory_of(config: Any, count: int) -> dict:
    """Bytes that XLA plans for a step of `count` micro-batches."""
    say(f"compiling {count} micro-batches")
    config = changed(config, {"accumulate": count})
    parts = pretraining.build(config, TOTAL_STEPS, 100, None)
    step = pretraining.build_step(config, parts, make_views(parts.recipe, 32), None)
    state = shapes_of(parts, 32)
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, 32, 32, 3), np.uint8),
        "position": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }
    program = jax.jit(step, donate_argnums=0).lower(state, batch, jax.random.key(0)).compile()
    found = program.memory_analysis()
    return {
        "batch": config.batch_size,
        "accumulate": count,
        "temporary_MB": found.temp_size_in_bytes / 1e6,
        "state_MB": count_bytes(state) / 1e6,
    }


def shapes_of(parts: pretraining.Parts, side: int) -> Any:
    """The shapes of a state."""
    image = jnp.zeros((2, side, side, 3))
    return jax.eval_shape(
        lambda key: pretraining.init_state(
            key, image, parts.network, parts.predictor, parts.optimizer, parts.tau is not None
        ),
        jax.random.key(0),
    )


def sizes_of(config: Any, name: str) -> dict:
    """Parameters, state and operations of one of `NETWORKS`, of width 64."""
    fields, side = NETWORKS[name]
    fields |= {"encoder.width": 64, "predictor.hidden": fields.get("projector.hidden", 512)}
    config = changed(config, fields | {"precision": "bfloat16"})
    parts = pretraining.build(config, TOTAL_STEPS, 100, None)
    state, image = shapes_of(parts, side), jnp.zeros((1, side, side, 3))
    norms = jax.tree.leaves(state.stats)  # a mean and a variance of each channel

    def kept(batch: int) -> int:
        """Bytes that one view's forward pass keeps for the gradient."""
        view = jnp.zeros((batch, side, side, 3))
        return count_bytes(
            jax.eval_shape(
                lambda params, stats: jax.vjp(
                    lambda params: parts.network.train(params, stats, view)[0], params
                )[1],
                state.params,
                state.stats,
            )
        )

    return {
        "network": name,
        "encoder_M": count_bytes(state.params["encoder"]) / 4e6,
        "gradient_MB": count_bytes(state.params) / 1e6,
        "checkpoint_MB": count_bytes(state) / 1e6,
        "forward_GFLOP": forward_flops(build_encoder(config, None), image, train=False) / 1e9,
        "kept_MB_an_image": 2 * (kept(4) - kept(2)) / 2e6,  # by both views
        "norms": len(norms) // 2,
        "channels": sum(leaf.size for leaf in norms) // 2,
    }


def eigh_of(dim: int) -> dict:
    """Milliseconds of an eigendecomposition as in training, where LAPACK has one thread on a CPU.

    Processor time is that of the whole process: beside other work it says more than the clock.
    """
    say(f"eigh of {dim}")
    matrix = jnp.asarray(correlation(dim, 2 * dim), jnp.float32)
    decompose, times = jax.jit(symmetric_eigh), []
    with lapack_on_one_thread():
        for _ in range(6):
            begin = time.perf_counter(), time.process_time()
            wait(decompose(matrix))
            times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    clock, processor = 1e3 * np.median(times[1:], axis=0)  # the first compiles
    return {"dim": dim, "median_ms": float(clock), "processor_ms": float(processor)}


def order_of(size: int) -> dict:
    """Seconds and bytes of one epoch's order of `size` images."""
    say(f"order of {size} images")
    tracemalloc.start()
    begin = time.perf_counter()
    kept = epoch_order(0, 0, size)
    seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "images": size,
        "seconds": seconds,
        "peak_MB": peak / 1e6,
        "kept_MB": kept.nbytes / 1e6,
    }


if __name__ == "__main__":
    main()
