"""The command line, run for real on the smallest of runs: four steps an epoch, a checkpoint after
each epoch.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from ssl_jax.workdir.checkpoints import steps_in

ROOT = Path(__file__).parent.parent
TINY = [
    f"--config.{field}"
    for field in (
        "epochs=3",
        "batch_size=64",
        "data.train_size=256",
        "encoder.width=4",
        "projector.hidden=16",
        "projector.out=8",
        "predictor.hidden=16",
        "log_every=2",
        "eval_every=0",
        "checkpoint_every=1",
        "probe.epochs=1",
        "probe.ridge=False",
        "probe.random_init=False",
        "probe.few_labels=0",
        "probe.validation_size=64",
        "probe.knn_k=5",
    )
]


def start_command(workdir: Path, *words: str, config: str = "quickstart") -> subprocess.Popen:
    """`python launch.py`, on the digits unless another configuration is named, both streams in one
    pipe.
    """
    command = [
        sys.executable,
        "launch.py",
        f"--config=configs/{config}.py",
        f"--workdir={workdir}",
        *words,
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment.pop("XLA_FLAGS", None)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish_command(process: subprocess.Popen, status: int = 0) -> str:
    """What the command wrote, once it has ended with `status`."""
    text, _ = process.communicate(timeout=300)
    assert process.returncode == status, text
    return text


def last_parameters(workdir: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint, every array under its path."""
    step = steps_in(workdir / "checkpoints")[-1]
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore((workdir / "checkpoints" / str(step) / "state").resolve())
    return flat(tree)


def flat(tree, prefix=""):
    if not isinstance(tree, dict | list | tuple):
        return {} if tree is None else {prefix: np.asarray(tree)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for name, value in items for k, v in flat(value, f"{prefix}/{name}").items()}
