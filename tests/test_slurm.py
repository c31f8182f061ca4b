"""A real Slurm: a sweep as an array, and a run over two nodes, each stopped and queued again."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import slurm_cluster
from commands import ROOT

from ssl_jax.workdir import metrics_csv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm_cluster.is_there(), reason="SSL_JAX_TEST_SLURM and Slurm"),
]
SMALL = {
    "batch_size": "32",
    "data.train_size": "96",
    "log_every": "1",
    "eval_every": "0",
    "checkpoint_every": "1",
    "encoder.width": "4",
    "projector.hidden": "8",
    "projector.out": "4",
    "predictor.hidden": "8",
    "probe.epochs": "1",
    "probe.knn_k": "5",
    "probe.few_labels": "0",
    "probe.validation_size": "32",
    "probe.random_init": "False",
}
WAIT = 600  # seconds for a job on two busy cores


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"SSL_JAX_VENV": sys.prefix}


def submit(environment, script, options, words, out):
    line = ["sbatch", "--parsable", "--cpus-per-task=1", "--gpus-per-task=0", f"--output={out}"]
    line += [*options, str(ROOT / "cluster" / script), *words]
    found = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def control(environment, *words):
    found = subprocess.run(["scontrol", *words], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def wait_until(true, what):
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def wait_for_jobs(environment, job):
    """Until the queue has nothing of the job; jobs that are queued again need not wait for it."""

    def gone():
        line = ["squeue", "-h", "-j", job, "-o", "%i %T"]
        found = subprocess.run(line, env=environment, capture_output=True, text=True).stdout
        for name, state in (row.split() for row in found.splitlines()):
            if state == "PENDING" and "[" not in name:
                words = ["scontrol", "update", f"JobId={name}", "StartTime=now"]
                subprocess.run(words, env=environment, capture_output=True)
        return not found

    wait_until(gone, f"job {job} is still there")


def rows_of(run: Path):
    """metrics.csv without the columns that tell time."""
    rows = metrics_csv.read_rows(run / "metrics.csv")
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows
    ]


def assert_same(run: Path, other: Path):
    ours, theirs = rows_of(run), rows_of(other)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_equal(a, b)
    accuracies = [
        json.loads((p / "result.json").read_text())["linear_accuracy"] for p in (run, other)
    ]
    assert accuracies[0] == accuracies[1]


def has_trained(run: Path, steps: int):
    return (run / "metrics.csv").is_file() and len(
        metrics_csv.read_rows(run / "metrics.csv")
    ) > steps


def test_an_array_whose_element_is_queued_again(cluster, tmp_path):
    vary = "; ".join(f"{k}={v}" for k, v in SMALL.items()) + "; epochs=30; target.tau=0,0.9"
    words = ["--config", "sweep", "--config.of=quickstart", f"--config.vary={vary}"]
    words += ["--config.seeds=0,1", "--workdir"]
    out = tmp_path / "%A_%a.out"
    job = submit(cluster, "sweep.sbatch", ["--array=0-3"], [*words, str(tmp_path / "w")], out)
    cells = [
        tmp_path / f"w/target.tau={tau}/seed-{seed}" for tau in ("0", "0.9") for seed in (0, 1)
    ]
    wait_until(lambda: has_trained(cells[0], 5), "the first cell does not begin")
    control(cluster, "requeue", f"{job}_0")
    wait_for_jobs(cluster, job)
    texts = {path.name: path.read_text() for path in tmp_path.glob("*.out")}
    assert all((cell / "result.json").is_file() for cell in cells), texts
    assert "DUE TO JOB REQUEUE" in texts[f"{job}_0.out"], texts
    whole = [sys.executable, "launch.py", *words, str(tmp_path / "whole")]
    subprocess.run(whole, cwd=ROOT, check=True, capture_output=True)
    for cell in cells:
        assert_same(cell, tmp_path / "whole" / cell.relative_to(tmp_path / "w"))


def test_a_run_on_two_nodes_that_is_queued_again(cluster, tmp_path):
    words = ["--config", "quickstart", "--config.epochs=40", "--config.devices=0"]
    words += [f"--config.{k}={v}" for k, v in SMALL.items()]
    for name in ("whole", "stopped"):
        run = tmp_path / name
        out = tmp_path / f"{name}.out"
        job = submit(cluster, "run.sbatch", ["--nodes=2"], [*words, "--workdir", str(run)], out)
        if name == "stopped":
            wait_until(lambda: has_trained(tmp_path / "stopped", 10), "the run does not begin")
            control(cluster, "requeue", job)
        wait_for_jobs(cluster, job)
        assert (run / "result.json").is_file(), out.read_text()
    text = (tmp_path / "stopped.out").read_text()
    assert "DUE TO JOB REQUEUE" in text and "going on from step" in text, text
    result = json.loads((tmp_path / "stopped/result.json").read_text())
    assert result["device"].startswith("2 x cpu"), result["device"]
    assert_same(tmp_path / "stopped", tmp_path / "whole")
