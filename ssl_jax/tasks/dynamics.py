"""The task "dynamics": draw recorded runs side by side, and the theory over each.

The figures are those of the replication, 2 to 4.
"""

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.losses import OBJECTIVES
from ssl_jax.predictors import KINDS
from ssl_jax.reports.dynamics import figures, theory_fit, theory_fit_figure
from ssl_jax.reports.dynamics import table as tables
from ssl_jax.runtime.terminal import say
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir.directory import check_workdir, open_workdir, read_json, write_json
from ssl_jax.workdir.dynamics_npz import read_dynamics
from ssl_jax.workdir.metrics_csv import read_rows

# Shape of what a record has of each array that is drawn or counted: () one number, (3,) one for
# each part of the network, ("D",) one for each mode.
RECORDED = {
    **dict.fromkeys(
        ("corr_eigenvalues", "predictor_eigenvalues", "alignment", "mode_predictor"), ("D",)
    ),
    **dict.fromkeys(("parameter_norm", "gradient_norm", "update_norm"), (3,)),
    **dict.fromkeys(
        (
            "epoch",
            "asymmetry",
            "asymmetry_l1",
            "commutator_relative",
            "effective_rank",
            "mean_share",
        ),
        (),
    ),
    **dict.fromkeys(("relative_spread", "online_target_cosine", "weight_cosine", "loss"), ()),
}
NOT_PLAIN = r"[^-.\w]+"  # characters that a file's name should not have
FIELDS = ("method", "seed", "batch_size", "loss", "loss_scale")
SECTIONS = ("data", "encoder", "projector", "predictor", "target", "optimizer")


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
        say(f"wrote {draw(runs, out / 'figures' / f'{name}.png')}")
    fits = {run.name: theory_fit.fit_run(run, bool(find_spec("diffrax"))) for run in runs}
    for run in runs:
        name = (
            "overlay.png" if len(runs) == 1 else f"overlay-{re.sub(NOT_PLAIN, '-', run.name)}.png"
        )
        say(f"wrote {theory_fit_figure.draw(run, fits[run.name], out / 'figures' / name)}")
    records = {run.name: tables.run_record(run) for run in runs}
    table = tables.report(records)
    (out / "table.md").write_text(table)
    (out / "overlay.md").write_text(
        "\n".join(theory_fit.report(run, fits[run.name]) for run in runs)
    )
    results = {
        name: of_run | {"theory": theory_fit.fit_json(fits[name])}
        for name, of_run in records.items()
    }
    write_json(
        out / "result.json", {"task": "dynamics", "runs": results, "published": tables.PUBLISHED}
    )
    say(table)


def read_run(path: Path) -> figures.Run:
    """Return a recorded run, finished or not; UserError where there is none.

    Arrays that are damaged or absent are NaN.
    """
    if not path.is_dir():
        raise UserError(f"runs: no directory {path}, takes work directories of pretraining runs")
    config = read_json(path / "config.json")
    if config.get("task") != "pretrain":
        raise UserError(f"runs: {path} holds a {config.get('task')!r} task, takes pretraining runs")
    lacking = [name for name in FIELDS if name not in config]
    if lacking := lacking + [name for name in SECTIONS if not isinstance(config.get(name), dict)]:
        raise UserError(f"{path / 'config.json'}: damaged, lacks {', '.join(lacking)}")
    kind = config["predictor"].get("kind")
    for field, value, known in (
        ("loss", config["loss"], OBJECTIVES),
        ("predictor.kind", kind, KINDS),
    ):
        if value not in known:
            raise UserError(
                f"{path / 'config.json'}: {field}: got {value!r}, takes {', '.join(known)}"
            )
    recorded = read_dynamics(path)
    size, records = config["projector"]["out"], len(recorded["step"])
    arrays, lost = {"step": recorded["step"]}, []
    for name, shape in RECORDED.items():
        shape = (records, *(size if n == "D" else n for n in shape))
        whole = name in recorded and recorded[name].shape == shape
        arrays[name] = recorded[name] if whole else np.full(shape, np.nan)
        lost += [] if whole else [name]
    logged = read_log(path / "metrics.csv")
    if "epoch" in lost and len(logged):
        arrays["epoch"] = recorded["step"] * logged[-1, 1] / logged[-1, 0]
    rates = (
        logged[:, [0, 2]] if len(logged) else np.array([[0, config["optimizer"]["learning_rate"]]])
    )
    return figures.Run(config["method"], path, config, arrays, rates, tuple(lost))


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
