"""The task "export": write an encoder as files that other programs read, and check them."""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from ssl_jax import files
from ssl_jax.augment.views import statistics
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.builders.network import build_encoder
from ssl_jax.builders.trained_run import (
    WITH_ENCODER,
    Trained,
    checkpoint_of,
    evaluation_recipe,
    image_of,
    load_encoder,
    open_trained,
    parents_of,
    step_of,
)
from ssl_jax.errors import UserError
from ssl_jax.export import card, pytorch, stablehlo
from ssl_jax.models import load_weights, to_arrays
from ssl_jax.runs import Run, open_run
from ssl_jax.runtime.terminal import say, warn
from ssl_jax.text import printable, shown
from ssl_jax.types import Config, Interrupted, PyTree
from ssl_jax.workdir import lock, provenance, result_json
from ssl_jax.workdir.directory import check_workdir, read_json, spread, write_json
from ssl_jax.workdir.schema import require

COUNTS = (1, 3)  # images of the checks
# Largest difference that rounding makes, as a share of the largest feature.
LIMITS = {"float32": 1e-4, "bfloat16": 0.05}


def export(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Write the weights, the program and the card of an encoder, and read each back.

    Args:
        config: configuration of the task.
        directory: folder for the files.
        interrupted: not asked, as the task takes a minute at most.

    Raises:
        UserError: `checkpoint` names no run with an encoder or not this checkpoint, the folder
            holds something else, or a file is not what was written.
    """
    run, trained = chosen(config)
    folder = checked_folder(directory, config, run.workdir)
    with on_cpu():
        write(config, run, trained, folder)


def chosen(config: Config) -> tuple[Run, Trained]:
    """Return the run and the checkpoint that the configuration names."""
    checkpoint = checkpoint_of(config)
    if config.license and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", config.license):
        raise UserError(
            f"license: got {shown(config.license)}, takes an identifier such as apache-2.0"
        )
    step = step_of(config.step)
    run = open_run(checkpoint)
    if run.result is not None:
        require(run.result, card.RESULT, run.workdir / result_json.NAME)
        run = run._replace(result=run.result | {"provenance": provenance.stated(run.workdir)})
    task = run.config.get("task")
    return run, open_trained(run.workdir, step, task if task in WITH_ENCODER else "pretrain")


def checked_folder(directory: str, config: Config, source: Path) -> Path:
    """Return the folder, not yet touched: a new or empty one, or one of the same export.

    Args:
        directory: the folder.
        config: configuration of the task.
        source: work directory of the run.

    Raises:
        UserError: it is another one, or cannot be written.
    """
    folder = Path(directory)
    if folder.resolve() == source.resolve():
        raise UserError(f"--workdir: got {folder}, the run itself; takes a folder of its own")
    path = folder / pytorch.CONFIG
    earlier = read_json(path) if os.path.lexists(path) else {}
    if "task" not in earlier and folder.is_dir():
        ours = (lock.NAME, lock.LEASE)
        with files.reading(folder):
            names = sorted(p.name for p in folder.iterdir() if p.name not in ours)
        if other := next((n for n in names if not files.SCRATCH.fullmatch(n)), None):
            raise UserError(
                f"--workdir: {folder} holds {shown(other)}, which no export wrote; "
                "takes a new or an empty folder"
            )
    # what is there for timm is no field
    later = tuple(set(spread(earlier)) - set(config))
    check_workdir(directory, config.to_dict(), defaults=defaults_of("export"), later=later)
    return folder


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Compute on the CPU within this context: accelerators round products to fewer digits."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was asked to leave it out
        yield
        return
    with jax.default_device(device):
        yield


def write(config: Config, run: Run, trained: Trained, folder: Path) -> None:
    """Write and check all files.

    Args:
        config: configuration of the task.
        run: the run.
        trained: its checkpoint.
        folder: for the files, checked.

    Raises:
        UserError: a file cannot be written, or is not what was written.
    """
    own, stored = trained.config, image_of(trained)
    recipe = evaluation_recipe(own)
    side = (recipe.size, recipe.size) if recipe.size else stored[:2]
    seen = (*side, stored[2])
    encode = load_encoder(trained, stored)
    variables = encode.args[0]
    params, stats = variables["params"], variables.get("batch_stats", {})
    built = pytorch.describe(build_encoder(own, None), own.encoder.name, seen)
    names = own.encoder.name if built.by else None
    images = np.random.default_rng(0).integers(0, 256, (max(COUNTS), *stored), dtype=np.uint8)
    expected = np.asarray(jax.jit(encode)(images))
    mean, std = statistics(recipe)
    description = pytorch.config_json(
        built, features=expected.shape[1], image=seen, stored=stored, mean=mean, std=std
    )
    facts: dict[str, Any] = {
        "task": "export",
        "checkpoint": str(trained.source),
        **result_json.describe(own.to_dict()),
        "steps": trained.step,
        "encoder": own.encoder.to_dict(),
        "precision": own.precision,
        "image": list(stored),
        "crop": list(side),
        "normalisation": {key: description["pretrained_cfg"][key] for key in ("mean", "std")},
        "features": expected.shape[1],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "names": "timm" if built.by else "ssl_jax",
        "built_by": built.by,
        "license": config.license,
        "command": command_of(config, trained, folder),
    }
    facts |= result_json.environment()
    files.make_folder(folder)
    files.delete_scratch(folder)
    with files.writing(folder / result_json.NAME):  # it comes last: without it the rest may be old
        (folder / result_json.NAME).unlink(missing_ok=True)
    provenance.begin(folder, parents_of(trained))
    about = {name: facts[name] for name in ("names", "built_by", "encoder", "precision", "image")}
    about |= {"method": own.method, "dataset": own.data.name, "init": own.init}
    write_json(
        folder / pytorch.CONFIG,
        config.to_dict() | description | {"ssl_jax": about | {"step": trained.step}},
    )
    contents = {pytorch.WEIGHTS: save(to_arrays(params, stats, names), metadata={"format": "pt"})}
    if built.script:
        contents[pytorch.SCRIPT] = built.script.encode()
    contents[stablehlo.NAME] = stablehlo.to_bytes(encode, stored)
    for name, content in contents.items():
        files.write_whole(folder / name, content)
    facts["differences"] = differences(folder, trained, built, images, expected, (params, stats))
    facts["largest_feature"] = float(np.max(np.abs(expected)))
    facts["files"] = {name: entry(folder / name) for name in (pytorch.CONFIG, *contents)}
    row = row_at(run, trained.step)
    text = card.card(own.to_dict(), run.result, row, facts)
    files.write_whole(folder / card.NAME, text)
    if files.read_text(folder / card.NAME, "the card that was just written") != text:
        raise UserError(f"{folder / card.NAME}: is not what was written; the disk may be damaged")
    facts["files"][card.NAME] = entry(folder / card.NAME)
    result_json.write(folder, facts)
    say(f"exported {printable(trained.source)} at step {trained.step} to {printable(folder)}:")
    for name, about in facts["files"].items():
        say(f"  {name:18} {files.size(about['bytes'])}")


def command_of(config: Config, trained: Trained, folder: Path) -> str:
    """Return the command that does this again, whatever step is the newest by then."""
    words = ["ssl-jax", "--config", "export", f"--config.checkpoint={trained.source}"]
    words += [f"--config.step={trained.step}", "--workdir", str(folder)]
    words += [f"--config.license={config.license}"] if config.license else []
    return shlex.join(words)


def row_at(run: Run, step: int) -> dict[str, float]:
    """Return the row of metrics.csv at a step; {} where there is none."""
    found = np.flatnonzero(run.metrics.get("step", np.zeros(0)) == step)
    return {name: float(column[found[-1]]) for name, column in run.metrics.items() if len(found)}


def entry(path: Path) -> dict[str, Any]:
    """Return the size and the digest of a file as it lies on the disk."""
    with files.reading(path):
        return {"bytes": path.stat().st_size, "sha256": provenance.sha256_of(path)}


def differences(
    folder: Path,
    trained: Trained,
    built: pytorch.Built,
    images: np.ndarray,
    expected: np.ndarray,
    variables: tuple[PyTree, PyTree],
) -> dict[str, Any]:
    """Read the files back, each in its own way, and say how far they are from the run.

    Args:
        folder: of the files.
        trained: the checkpoint.
        built: how PyTorch comes to the encoder.
        images: (B, H, W, C) uint8.
        expected: (B, F), the run's features of them.
        variables: parameters and statistics of the encoder.

    Returns:
        The largest absolute difference by what read the file; null where nothing could, with why.

    Raises:
        UserError: one is larger than rounding makes.
    """
    found: dict[str, Any] = {"arrays": arrays_apart(folder, trained, variables)}
    content = files.read_bytes(folder / stablehlo.NAME, "the program that was just written")
    found["stablehlo"] = max(
        apart(stablehlo.features(content, images[:count]), expected[:count]) for count in COUNTS
    )
    limit = LIMITS[trained.config.precision] * max(1.0, float(np.max(np.abs(expected))))
    report(folder / stablehlo.NAME, "jax", found["stablehlo"], limit)
    if built.by is None:
        found |= {"pytorch": None, "pytorch_why": "PyTorch has no such module"}
        return found
    given = pytorch.prepared(images, read_json(folder / pytorch.CONFIG))
    features, why = pytorch.features_in_pytorch(folder, built.by, given)
    if features is None:
        found |= {"pytorch": None, "pytorch_why": why}
        tell = say if why.endswith("not installed") else warn
        tell(f"{folder / pytorch.WEIGHTS}: not built in PyTorch to check it: {why}")
        return found
    if trained.config.precision != "float32":
        config = trained.config.copy_and_resolve_references()
        config.precision = "float32"
        encode = load_encoder(trained._replace(config=config), image_of(trained))
        expected = np.asarray(jax.jit(encode)(images))
    found["pytorch"] = apart(features, expected)
    limit = LIMITS["float32"] * max(1.0, float(np.max(np.abs(expected))))
    report(folder / pytorch.WEIGHTS, built.by, found["pytorch"], limit)
    return found


def arrays_apart(folder: Path, trained: Trained, variables: tuple[PyTree, PyTree]) -> float:
    """Return 0.0 after reading the weights back into another network, bit for bit; else raise."""
    params, stats = ({"encoder": jax.tree.map(jnp.zeros_like, tree)} for tree in variables)
    path = folder / pytorch.WEIGHTS
    new, recorded, _ = load_weights(
        path, params, stats, trained.config.encoder.name, pytorch.WEIGHTS
    )
    pairs = zip(
        jax.tree.leaves((new["encoder"], recorded["encoder"])),
        jax.tree.leaves(variables),
        strict=True,
    )
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise UserError(f"{path}: its arrays are not those of the run; the disk may be damaged")
    say(f"{path}: read back, every bit as in the run")
    return 0.0


def apart(features: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of two (B, F); infinite where the shapes differ."""
    if features.shape != expected.shape:
        return float("inf")
    return float(np.max(np.abs(features.astype(np.float64) - expected)))


def report(path: Path, reader: str, difference: float, limit: float) -> None:
    """Print a difference of features; UserError where it is above the limit."""
    if not difference <= limit:
        raise UserError(
            f"{path}: read by {reader}, its features differ from the run's by {difference:.2g}, "
            f"where rounding makes at most {limit:.2g}; do not use it"
        )
    say(f"{path}: read by {reader}, features differ from the run's by {difference:.2g}")
