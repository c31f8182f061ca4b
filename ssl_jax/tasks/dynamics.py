"""The task "dynamics": draw recorded runs side by side, and the theory over each.

The figures are those of the replication, 2 to 4.
"""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ssl_jax import files
from ssl_jax.builders.trained_run import read_trained
from ssl_jax.errors import UserError
from ssl_jax.reports.dynamics import cosine_law, figures, theory_fit, theory_fit_figure
from ssl_jax.reports.dynamics import table as tables
from ssl_jax.reports.figure import required
from ssl_jax.runtime.terminal import say
from ssl_jax.text import in_file_name
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import result_json
from ssl_jax.workdir.directory import check_workdir, open_workdir
from ssl_jax.workdir.dynamics_npz import LATER, NAME, RECORDED, read_dynamics
from ssl_jax.workdir.metrics_csv import read_rows


def dynamics(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Write figures/*.png, table.md, overlay.md and result.json of the runs in `config.runs`.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked, as the task takes seconds.

    Raises:
        UserError: `runs` is empty, or names a directory that holds no recorded pretraining run.
    """
    paths = [Path(word.strip()) for word in config.runs.split(",") if word.strip()]
    if not paths:
        raise UserError(
            "runs: got '', takes work directories with commas between them "
            "(--config.runs=DIR1,DIR2)"
        )
    check_workdir(directory, config.to_dict())
    runs = named([read_run(path) for path in paths])
    check_same_size(runs)
    out = open_workdir(directory, config.to_dict())
    for name, draw in figures.FIGURES.items():
        with required(out / "figures" / f"{name}.png") as path:
            draw(runs, path)
        say(f"wrote {path}")
    fits = {run.name: theory_fit.fit_run(run, bool(find_spec("diffrax"))) for run in runs}
    for run, name in zip(runs, overlay_names(runs), strict=True):
        with required(out / "figures" / name) as path:
            theory_fit_figure.draw(run, fits[run.name], path)
        say(f"wrote {path}")
    laws = {run.name: found for run in runs if (found := cosine_law.compare(run)) is not None}
    if laws:
        with required(out / "figures" / "cosine_law.png") as path:
            cosine_law.draw(runs, path)
        say(f"wrote {path}")
    records = {run.name: tables.run_record(run) for run in runs}
    table = tables.report(records)
    files.write_whole(out / "table.md", table)
    overlays = "\n".join(theory_fit.report(run, fits[run.name]) for run in runs)
    files.write_whole(out / "overlay.md", overlays)
    results = {
        name: of_run
        | {"theory": theory_fit.fit_json(fits[name])}
        | ({"cosine_law": laws[name].summary()} if name in laws else {})
        for name, of_run in records.items()
    }
    result_json.write(out, {"task": "dynamics", "runs": results, "published": tables.PUBLISHED})
    for line in table.split("\n"):
        say(line)


def overlay_names(runs: list[figures.Run]) -> list[str]:
    """Return the names of the overlays, distinct and plain whatever the runs are called."""
    if len(runs) == 1:
        return ["overlay.png"]
    stems = [f"overlay-{in_file_name(run.name)}" for run in runs]
    count = Counter(stems)
    return [
        f"{stem}.png" if count[stem] == 1 else f"{stem}-{number}.png"
        for number, stem in enumerate(stems, 1)
    ]


def read_run(path: Path) -> figures.Run:
    """Return a recorded run, finished or not; UserError where there is none.

    Arrays that are damaged or absent are NaN.
    """
    if not path.is_dir():
        raise UserError(f"runs: no directory {path}, takes work directories of pretraining runs")
    config = read_trained(path).to_dict()
    recorded = read_dynamics(path)
    size, records = config["projector"]["out"], len(recorded["step"])
    check_modes(path, recorded, size)
    arrays, lost = {"step": recorded["step"]}, []
    for name, shape in RECORDED.items():
        shape = (records, *(size if n == "D" else n for n in shape))
        whole = name in recorded and recorded[name].shape == shape
        arrays[name] = recorded[name] if whole else np.full(shape, np.nan)
        lost += [] if whole or (name in LATER and name not in recorded) else [name]
    logged = read_log(path / "metrics.csv")
    if "epoch" in lost and len(logged):
        arrays["epoch"] = recorded["step"] * logged[-1, 1] / logged[-1, 0]
    rates = (
        logged[:, [0, 2]] if len(logged) else np.array([[0, config["optimizer"]["learning_rate"]]])
    )
    return figures.Run(config["method"], path, config, arrays, rates, tuple(lost))


def check_modes(path: Path, recorded: dict[str, np.ndarray], size: int) -> None:
    """Refuse records of another number of modes than config.json has, or of none.

    Args:
        path: the work directory, for the message.
        recorded: arrays of dynamics.npz.
        size: modes that config.json has.

    Raises:
        UserError: names both numbers.
    """
    spectra = [
        recorded[name] for name, shape in RECORDED.items() if shape == ("D",) and name in recorded
    ]
    modes = sorted({spectrum.shape[1] for spectrum in spectra if spectrum.ndim == 2})
    if size not in modes:
        has = ", ".join(map(str, modes)) or "no"
        raise UserError(
            f"{path / 'config.json'}: projector.out: got {size}, but {path / NAME} has {has} modes"
        )


def read_log(path: Path) -> np.ndarray:
    """Return step, epoch, learning rate (N, 3) of the rows of metrics.csv that have all three."""
    try:
        rows = [
            [row.get(name, np.nan) for name in ("step", "epoch", "learning_rate")]
            for row in read_rows(path)
        ]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}), takes the table that training writes"
        ) from error
    table = np.array(rows).reshape(-1, 3)
    return table[np.isfinite(table).all(1)]


def named(runs: list[figures.Run]) -> list[figures.Run]:
    """Return the runs with distinct names.

    A name is the method. Where methods are equal the seed follows, and then the directory.
    """
    for more in (lambda run: f"seed {run.config['seed']}", lambda run: str(run.path)):
        count = Counter(run.name for run in runs)
        runs = [
            run._replace(name=f"{run.name}, {more(run)}") if count[run.name] > 1 else run
            for run in runs
        ]
    return runs


def check_same_size(runs: list[figures.Run]) -> None:
    """Raise a UserError where runs have different numbers of modes."""
    for run in runs:
        if run.size != runs[0].size:
            sizes = f"{runs[0].path} has {runs[0].size}, {run.path} has {run.size}"
            raise UserError(
                f"runs: {sizes} modes (projector.out), takes runs of one size in one figure"
            )
