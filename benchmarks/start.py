"""Seconds to a run's first finished step: at the first start, and at the second, with compiled
programs on disk.

    python benchmarks/start.py [--quick] [--data_dir=DIR] [--repeats=3] [--out=FILE]

Every start is a process of its own that runs launch.py until one step is finished, timed from
outside. A first start finds nothing compiled, neither programs nor convolutions
(`models/cpu/native.py`), a second one what the first left. `--data_dir` holds CIFAR-10, for the
larger setting.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

SETTINGS = {
    "quickstart": ["configs/quickstart.py"],
    # A small batch: on a CPU a step of the full one takes longer to compute than all programs take
    # to compile.
    "cifar10 byol, width 64, batch 16": [
        "configs/cifar10.py:byol",
        "--config.encoder.width=64",
        "--config.batch_size=16",
    ],
}
CHILD = """
import json, sys, time
from ssl_jax import launch

run_task = launch.run

def run(values):
    begin = time.time()
    import ssl_jax.tasks.registry
    imported = time.time() - begin
    import jax
    from ssl_jax.tasks import training

    def one_step(held, batches, **rest):
        jax.block_until_ready((yield next(iter(batches))))
        print(json.dumps({"import_s": imported, "at": time.time()}))
        raise SystemExit(0)

    training.train_loop = one_step
    run_task(values)

launch.run = run
sys.exit(launch.main(sys.argv, own_process=True))
"""


def main() -> None:
    args = common.parse(__doc__, data_dir="", repeats=3)
    rows = []
    for name, words in SETTINGS.items():
        larger = name != "quickstart"
        if larger and (args.quick or not args.data_dir):
            print(
                f"{name}: skipped, "
                f"{'--quick' if args.quick else 'takes --data_dir=DIR with a prepared CIFAR-10'}"
            )
            continue
        words = [*words, f"--config.data.data_dir={args.data_dir}"] if larger else words
        rows.append({"setting": name, **measure(words, 1 if args.quick else args.repeats)})
    common.finish(args, "start", rows)


def measure(words: list[str], repeats: int) -> dict:
    """Medians of `repeats` first and second starts, in turn."""
    first, second = [], []
    with tempfile.TemporaryDirectory() as cache:
        # decodes the data and warms the disk, for all
        start(words, cache, JAX_ENABLE_COMPILATION_CACHE="0")
        for turn in range(repeats):
            common.say(f"{words[0]}: {turn + 1} of {repeats}")
            for folder in ("compiled", "native"):
                shutil.rmtree(Path(cache) / folder, ignore_errors=True)
            first.append(start(words, cache))
            second.append(start(words, cache))
        kept = sum(p.stat().st_size for p in (Path(cache) / "compiled").iterdir())
    common.say("")
    row = {"import_s": middle(first + second, "import_s")}
    row |= {"first_s": middle(first, "step_s"), "second_s": middle(second, "step_s")}
    row |= {"ratio": row["first_s"] / row["second_s"], "kept_MB": kept / 1e6}
    return row | {"repeats": repeats, "first": first, "second": second}


def start(words: list[str], cache: str, **environment: str) -> dict[str, float]:
    """Seconds of `import ssl_jax.tasks.registry`, and from the start of the process to its first
    finished step.
    """
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JAX_COMPILATION_CACHE")
    }
    clean |= {"SSL_JAX_CACHE": cache, "PYTHONPATH": str(common.ROOT)} | environment
    config, *fields = words
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable,
            "-c",
            CHILD,
            f"--config={config}",
            f"--workdir={workdir}/run",
            *fields,
        ]
        begin = time.time()
        done = subprocess.run(
            command, cwd=common.ROOT, env=clean, capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return {"import_s": told["import_s"], "step_s": told["at"] - begin}


def middle(starts: list[dict[str, float]], field: str) -> float:
    return statistics.median(start[field] for start in starts)


if __name__ == "__main__":
    main()
