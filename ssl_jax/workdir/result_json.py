"""What every run writes into its work directory besides checkpoints: where it ran, how long it took, what it was."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import jax
import numpy as np

from ssl_jax.runtime.terminal import is_writer
from ssl_jax.types import Config
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.directory import open_workdir


def open_on_one(directory: str, config: Config) -> Path:
    """The work directory; only process 0 writes into it."""
    return open_workdir(directory, config.to_dict()) if is_writer() else Path(directory)


def begin_log(out: Path, start: int) -> list[dict[str, float]]:
    """Cuts metrics.csv back to the step that training goes on from; the rows up to there."""
    if is_writer():
        return metrics_csv.truncate_after(out / "metrics.csv", start)
    return [row for row in metrics_csv.read_rows(out / "metrics.csv") if row["step"] <= start]


def describe(config: Config) -> dict:
    return {
        "method": config.method,
        "dataset": config.data.name,
        "seed": config.seed,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
    }


def fields(config: Config) -> dict:
    """The configuration as it ran, without the place where this machine keeps its data."""
    content = config.to_dict()
    content.get("data", {}).pop("data_dir", None)
    return content


def spent(rows: list[dict[str, float]], step: int) -> dict:
    """Wall time and speed of training up to `step`, from the rows of metrics.csv."""
    rows = [row for row in rows if row["step"] <= step]
    if not rows:
        return {"seconds": None, "images_per_second": None}
    # The first interval of a start compiles, so the middle one speaks for all.
    speed = float(np.median([row["images_per_second"] for row in rows]))
    return {"seconds": rows[-1]["seconds"], "images_per_second": speed}


def processor() -> str:
    """The machine's processor, as well as it can be told."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def provenance() -> dict:
    """Device and versions that made a result."""
    packages = ("jax", "flax", "optax", "chex", "orbax-checkpoint", "tensorflow-datasets", "numpy")
    kinds = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return {
        "device": f"{kinds} ({os.cpu_count()} cores, {processor()})",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
