"""What the benchmarks share: arguments, alternating measurement, the machine's own rates, table and
JSON.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.runtime.memory import use_huge_pages
from ssl_jax.workdir.result_json import processor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the package and the configurations

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision", "lightly")


def parse(description: str, **choices: Any) -> argparse.Namespace:
    """--quick, --out FILE, and one option for each of `choices` (name=default). Huge pages as
    launch.py asks for.
    """
    use_huge_pages()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="small settings, under two minutes on two cores"
    )
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    for name, default in choices.items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"default: {default}"
        )
    args = parser.parse_args()
    if args.out and not args.out.parent.is_dir():
        parser.error(f"--out: no directory {args.out.parent}; make it first")
    return args


def read_config(name: str) -> Any:
    """The configuration `configs/NAME.py[:ARG]`, as launch.py reads it."""
    from ssl_jax.builders import fields

    return fields.read_config(str(ROOT / "configs" / name))


def wait(value: Any) -> Any:
    """`value` once the device has finished it."""
    return jax.block_until_ready(value)


def alternate(
    contenders: dict[str, Callable[[], Any]], repeats: int, warmup: int = 1
) -> dict[str, dict]:
    """Runs every contender in turn, `repeats` times round, so that what disturbs the machine
    disturbs them alike.

    A contender returns when its work is done. {name: {"median_s", "min_s", "max_s", "seconds":
    [...]}}.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, run in contenders.items():
            say(f"{name}: {f'{turn + 1 - warmup} of {repeats}' if turn >= warmup else 'warm-up'}")
            begin = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    say("")
    return {name: spread(values) for name, values in seconds.items()}


def spread(seconds: list[float]) -> dict:
    """Median and range of repeated times."""
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "seconds": seconds,
    }


def say(text: str) -> None:
    """One line of progress that the next one overwrites."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Device, cores and versions: without them a time says nothing."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    return {
        "platform": device.platform,
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "commit": _commit(),
        **versions,
    }


def matmul_rate(dtype: Any = jnp.float32, size: int = 0) -> float:
    """Operations per second of a square matrix product through XLA: the ceiling that a step is held
    against.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a, b = (
        jax.random.normal(jax.random.key(i), (size, size), jnp.float32).astype(dtype)
        for i in range(2)
    )
    product = jax.jit(jnp.matmul)
    times = alternate({"matmul": lambda: wait(product(a, b))}, repeats=10, warmup=2)["matmul"]
    return 2 * size**3 / times["median_s"]


def copy_rate(size: int = 0) -> float:
    """Return the memory bandwidth in bytes per second: x + 1 on a large array, read and written."""
    size = size or (1 << 26 if jax.default_backend() == "cpu" else 1 << 29)
    x = jnp.arange(size, dtype=jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    box = [wait(add(x))]

    def run():
        box[0] = wait(add(box[0]))

    return 2 * 4 * size / alternate({"copy": run}, repeats=10, warmup=2)["copy"]["median_s"]


def forward_flops(module: nn.Module, *inputs: Any, **options: Any) -> int:
    """Multiplications and additions of one forward pass, from the shapes of kernels and outputs
    alone.

    2 * (kernel entries) * (output positions) for every layer with a kernel; norms and activations
    count nothing.
    """
    apply = functools.partial(
        module.init_with_output, capture_intermediates=True, mutable=True, **options
    )
    _, variables = jax.eval_shape(lambda key: apply(key, *inputs), jax.random.key(0))
    outputs = {
        _path(path): leaf for path, leaf in jax.tree.leaves_with_path(variables["intermediates"])
    }
    total = 0
    for path, kernel in jax.tree.leaves_with_path(variables["params"]):
        *layer, name = _path(path)
        if name == "kernel":
            out = outputs[(*layer, "__call__")]
            total += 2 * kernel.size * int(np.prod(out.shape[:-1]))
    return total


def finish(args: argparse.Namespace, name: str, rows: list[dict], **more: Any) -> None:
    """Prints `rows`, and every list in `more`, as a table with the machine below; writes all of it
    to --out.
    """
    result = {"benchmark": name, "quick": args.quick, "machine": machine(), "rows": rows, **more}
    for each in [rows, *(value for value in more.values() if isinstance(value, list))]:
        print(table(each), end="\n\n")
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def table(rows: list[dict]) -> str:
    """A Markdown table of the scalar fields of `rows`."""
    columns = list(
        dict.fromkeys(key for row in rows for key, value in row.items() if _scalar(value))
    )
    lines = [columns, ["---"] * len(columns)]
    lines += [[_text(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _path(path: Iterable) -> tuple[str, ...]:
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"
