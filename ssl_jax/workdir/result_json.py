"""What every run writes into result.json: configuration, time, device, versions, provenance."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssl_jax.runtime.terminal import is_writer
from ssl_jax.workdir import metrics_csv, provenance
from ssl_jax.workdir.directory import begin_workdir, write_json

NAME = "result.json"


def open_on_one(
    directory: str, config: dict, parents: Sequence[dict[str, Any]] | None = ()
) -> Path:
    """Return the work directory, which was checked; only process 0 writes into it.

    Args:
        directory: the work directory.
        config: the configuration of this start.
        parents: as `provenance.begin` takes them.

    Returns:
        The directory.
    """
    return begin_workdir(Path(directory), config, parents) if is_writer() else Path(directory)


def write(directory: Path, result: dict[str, Any]) -> None:
    """Write result.json, with the provenance that the work directory states."""
    write_json(directory / NAME, result | {"provenance": provenance.stated(directory)})


def begin_log(out: Path, start: int, kept: str | None) -> list[metrics_csv.Row]:
    """Cut metrics.csv back to the step from which training goes on.

    Args:
        out: the work directory.
        start: the step of the checkpoint; 0: a fresh run.
        kept: the table as the checkpoint has it; None: it has none.

    Returns:
        The rows up to `start`.
    """
    path = out / metrics_csv.NAME
    if start == 0:  # nothing of the file counts
        kept = metrics_csv.table([])
    if not is_writer():
        rows = metrics_csv.read_rows(path) if kept is None else metrics_csv.parse(kept)
        return [row for row in rows if row["step"] <= start]
    return (
        metrics_csv.truncate_after(path, start)
        if kept is None
        else metrics_csv.restore(path, start, kept)
    )


def describe(config: dict) -> dict:
    """Return method, data set, seed, epochs and batch size of a run's configuration."""
    own = {name: config[name] for name in ("method", "seed", "epochs", "batch_size")}
    return {"method": own.pop("method"), "dataset": config["data"]["name"]} | own


def fields(config: dict) -> dict:
    """Return the configuration without `data.data_dir`, the place of the data on this machine."""
    if "data" not in config:
        return config
    return config | {
        "data": {name: value for name, value in config["data"].items() if name != "data_dir"}
    }


def spent(rows: list[dict[str, float]], step: int, members: int = 1) -> dict:
    """Return wall time and speed of training up to `step`, from the rows of metrics.csv.

    Args:
        rows: of metrics.csv.
        step: the last one that counts.
        members: runs that trained together in the last start, this one included.

    Returns:
        "seconds" and "images_per_second", None where there are no rows; and, of several members,
        how many: "together".
    """
    rows = [row for row in rows if row["step"] <= step]
    together = {"together": members} if members > 1 else {}
    if not rows:
        return {"seconds": None, "images_per_second": None} | together
    # The first interval of a start compiles, so the middle one speaks for all.
    speed = float(np.median([row["images_per_second"] for row in rows]))
    return {"seconds": rows[-1]["seconds"], "images_per_second": speed} | together


def processor() -> str:
    """Return the name of the machine's processor, or of its architecture."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    names = re.findall(r"model name\s*: (.*)", text)
    return names[0] if names else platform.processor() or platform.machine()


def environment() -> dict:
    """Return the device and the package versions that made a result."""
    packages = ("jax", "flax", "optax", "chex", "orbax-checkpoint", "tensorflow-datasets", "numpy")
    kinds = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return {
        "device": f"{kinds} ({os.cpu_count()} cores, {processor()})",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
