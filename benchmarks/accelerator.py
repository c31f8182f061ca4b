"""Everything worth an accelerator's minutes, in parts that end by the clock and write as they go.

    python benchmarks/accelerator.py [--minutes=9] [--parts=agree,step,...] [--data_dir=DIR]
    [--out=results/accelerator]

agree: the CPU's losses, and the same bits again (agree.py); step: BYOL, DirectPred, and around
    forward and backward;
matrices: eigh and what could take its place; large: batch 1024; cells: published runs by their
sweeps, with `--data_dir`; peer: PyTorch; calls: 1 and 50 steps a call. --archive=FILE.tgz packs
results and runs after each job. Each job is a process with its own log. A job over its time is
stopped, and the next one starts. --width=8 and --fields, words for the sweeps, make a rehearsal on
a CPU.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import common

RUNS = common.ROOT / "runs" / "accelerator"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
AGREE = {
    "byol-highest": ("byol", "float32", 1),
    "byol-float32": ("byol", "float32", 0),
    "byol-bfloat16": ("byol", "bfloat16", 0),
    "directpred-highest": ("directpred", "float32", 1),
    "directpred-bfloat16": ("directpred", "bfloat16", 0),
}
# In the order of their worth: what decides most about the replication first.
CELLS = [
    ("table1", "byol"),
    ("table2", "directpred_noema"),
    ("table2", "directpred"),
    ("table1", "simsiam_sym"),
    ("table3", "simsiam_sym_nowd"),
]


class Job(NamedTuple):
    """One command. seconds: it may take, at most; environment: beside this process's own."""

    name: str
    words: list[str]
    seconds: float
    environment: dict[str, str] = {}


def main() -> None:
    options = {
        "minutes": 9.0,
        "parts": "agree,step,matrices,large,cells,peer,calls",
        "data_dir": "",
        "archive": "",
    }
    args = common.parse(__doc__, **options, width=64, cells="", fields="")
    out = args.out or common.ROOT / "results" / "accelerator"
    out.mkdir(parents=True, exist_ok=True)
    (RUNS / "logs").mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    for part in args.parts.split(","):
        for group in PARTS[part](args, out):
            left = end - time.monotonic()
            if left < 15:
                print(f"{group[0].name}: no time left", flush=True)
                continue
            run_together(group, left)
            if args.archive:
                archive(Path(args.archive), out)
    for path in sorted(out.glob("*.json")):
        show(path)


# --- What there is to do --------------------------------------------------------------------------


def benchmark(
    name: str, out: Path, script: str, *words: str, seconds: float, environment: dict | None = None
) -> Job:
    command = [f"benchmarks/{script}", *words, f"--out={out / name}.json"]
    return Job(name, command, seconds, environment or {})


def agree(args, out: Path) -> list[list[Job]]:
    """All at once first, for most of it is compiling; then again alone, from what was compiled,
    timed.
    """

    def job(name: str, method: str, precision: str, highest: int, environment: dict) -> Job:
        words = [
            f"--method={method}",
            f"--precision={precision}",
            f"--highest={highest}",
            f"--width={args.width}",
        ]
        words.append(f"--against={out / 'cpu.json'}")
        return benchmark(
            f"agree-{name}", out, "agree.py", *words, seconds=150, environment=environment
        )

    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    fixed = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()}
    first = [job(name, *setting, shared) for name, setting in AGREE.items()]
    first.append(job("byol-deterministic", "byol", "bfloat16", 0, shared | fixed))
    return [
        first,
        [job("byol-bfloat16-again", "byol", "bfloat16", 0, {})],
        [job("byol-deterministic-again", "byol", "bfloat16", 0, fixed)],
    ]


def step(args, out: Path) -> list[list[Job]]:
    return [[benchmark("step", out, "step.py", f"--width={args.width}", seconds=150)]]


def matrices(args, out: Path) -> list[list[Job]]:
    return [[benchmark("matrices", out, "predictor.py", "--steps=0", "--dims=128,512", seconds=60)]]


def large(args, out: Path) -> list[list[Job]]:
    """The decoding of the images, if any are asked for, beside it: that is the host's work."""
    words = ("--batch=1024", "--methods=byol", f"--width={args.width}")
    jobs = [benchmark("step-1024", out, "step.py", *words, seconds=120)]
    if args.data_dir:
        config = [
            "launch.py",
            "--config=configs/cifar10.py",
            f"--workdir={RUNS / 'views'}",
            "--config.task=views",
        ]
        words = [*config, f"--config.data.data_dir={args.data_dir}"]
        jobs.append(Job("decode", words, 120, {"JAX_PLATFORMS": "cpu"}))
    return [jobs]


def calls(args, out: Path) -> list[list[Job]]:
    words = ("--methods=byol", f"--width={args.width}")
    return [
        [benchmark(f"step-calls-{n}", out, "step.py", *words, f"--steps_per_call={n}", seconds=100)]
        for n in (1, 50)
    ]


def peer(args, out: Path) -> list[list[Job]]:
    return [[benchmark("peer", out, "peer.py", f"--width={args.width}", seconds=200)]]


def cells(args, out: Path) -> list[list[Job]]:
    """One process a cell: a sweep of that cell alone, which saves and stops when its minutes are
    over.
    """
    if not args.data_dir:
        sys.exit("error: --data_dir: missing, takes the directory of a prepared CIFAR-10")
    chosen = [cell for cell in CELLS if not args.cells or cell[1] in args.cells.split(",")]
    return [[cell_job(args, table, cell)] for table, cell in chosen]


def cell_job(args, table: str, cell: str) -> Job:
    fields = {
        "scale": "full",
        "full.precision": "bfloat16",
        "cells": cell,
        "seeds": "0,",
        "data_dir": args.data_dir,
        "minutes": "MINUTES",
    }
    words = ["launch.py", f"--config=configs/sweeps/{table}.py", f"--workdir={RUNS / table}"]
    words += [f"--config.{name}={value}" for name, value in fields.items()] + shlex.split(
        args.fields
    )
    return Job(f"{table}-{cell}", words, 3600)


PARTS = {
    "agree": agree,
    "step": step,
    "matrices": matrices,
    "large": large,
    "cells": cells,
    "peer": peer,
    "calls": calls,
}


# --- Doing it -------------------------------------------------------------------------------------


def run_together(jobs: list[Job], left: float) -> None:
    """Starts the jobs at once and waits for all of them; says of each how it ended, and how long it
    took.
    """
    begin = time.monotonic()
    running = [(job, start(job, left)) for job in jobs]
    for job, process in running:
        try:
            process.wait(max(0.0, begin + min(job.seconds, left) - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # workers too
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        ended = {0: "done", 75: "stopped by the clock, goes on"}.get(
            process.returncode, f"ended with {process.returncode}"
        )
        print(f"{job.name}: {ended} after {time.monotonic() - begin:.0f} s", flush=True)
        if process.returncode not in (0, 75):
            print(
                "".join(log_of(job).read_text(errors="replace").splitlines(keepends=True)[-4:]),
                flush=True,
            )


def start(job: Job, left: float) -> subprocess.Popen:
    # A cell is told when to save and stop: half a minute before its time is over, or it would be
    # killed unsaved.
    words = [word.replace("MINUTES", f"{max(left - 30, 10) / 60:.3f}") for word in job.words]
    environment = (
        os.environ
        | {"PYTHONPATH": f"{common.ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        | job.environment
    )
    with log_of(job).open("w") as log:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=common.ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def log_of(job: Job) -> Path:
    return RUNS / "logs" / f"{job.name}.log"


def archive(path: Path, out: Path) -> None:
    """Results, logs, metrics, dynamics and figures; no checkpoints and no features, which are
    large.
    """
    scratch = path.with_suffix(".tmp")
    with tarfile.open(scratch, "w:gz") as tar:
        for folder in (common.ROOT / "results", RUNS):
            for file in folder.rglob("*"):
                if file.is_file() and not {"checkpoints", "features"} & set(file.parts):
                    tar.add(file, file.relative_to(common.ROOT))
    os.replace(scratch, path)


def show(path: Path) -> None:
    """The tables of a result file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    for rows in (value for value in result.values() if isinstance(value, list) and value):
        print(f"\n{path.stem}\n{common.table(rows)}")


if __name__ == "__main__":
    main()
