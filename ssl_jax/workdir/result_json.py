"""What every run writes into its work directory besides checkpoints: where it ran, how long it
took, what it was.
"""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import jax
import numpy as np

from ssl_jax.runtime.terminal import is_writer
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.directory import open_workdir


def open_on_one(directory: str, config: dict) -> Path:
    """The work directory; only process 0 writes into it."""
    return open_workdir(directory, config) if is_writer() else Path(directory)


def begin_log(out: Path, start: int) -> list[dict[str, float]]:
    """Cuts metrics.csv back to the step that training goes on from; the rows up to there."""
    if is_writer():
        return metrics_csv.truncate_after(out / "metrics.csv", start)
    return [row for row in metrics_csv.read_rows(out / "metrics.csv") if row["step"] <= start]


def describe(config: dict) -> dict:
    """What was run, of a run's configuration."""
    own = {name: config[name] for name in ("method", "seed", "epochs", "batch_size")}
    return {"method": own.pop("method"), "dataset": config["data"]["name"]} | own


def fields(config: dict) -> dict:
    """The configuration as it ran, without the place where this machine keeps its data."""
    if "data" not in config:
        return config
    return config | {
        "data": {name: value for name, value in config["data"].items() if name != "data_dir"}
    }


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
