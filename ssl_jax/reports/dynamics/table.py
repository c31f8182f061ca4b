"""Numbers that the replication reads off its Figures 2 to 4, for recorded runs beside its own."""

from typing import Any

import numpy as np

from ssl_jax.predictors import KINDS, make_predictor
from ssl_jax.reports import markdown
from ssl_jax.reports.dynamics.figures import Run
from ssl_jax.text import in_markdown
from ssl_jax.workdir.schema import KNOWN, NUMBER, TEXT, WHOLE, Leaf, Shape

ALIGNED, LARGE, SHARE = (
    0.95,
    0.01,
    0.04,
)  # what counts as aligned; eigenvalues of W_p: in itself, of the largest
MOMENTS = (0, 10, 20, 50, 100)  # % of the run

# The replication's own records, decoded from its stored results: D = 128, ResNet-18, CIFAR-10, 100
# epochs; its first spectrum is of the end of the first epoch, its asymmetry the entrywise one,
# before training and at the end.
THEIR_SCALE = "cifar10, 50000 images, 100 epochs, resnet18, width 64, D = 128"
PUBLISHED: dict[str, dict[str, Any]] = {
    "byol": {
        "top_eigenvalue": [190.8, 57.0, 15.4, 2.76, 1.50],
        "aligned": 57,
        "large": 61,
        "top_predictor": 0.249,
        "asymmetry_l1": [1.417, 0.163],
        "effective_rank": 22.6,
    },
    "byol_sym": {
        "top_eigenvalue": [210, 16.3, 6.6, 1.80, 0.87],
        "aligned": 100,
        "large": 101,
        "top_predictor": 0.181,
        "asymmetry_l1": [1.41, 0],
        "effective_rank": 41.7,
    },
    "simsiam": {
        "top_eigenvalue": [174, 42.2, 18.0, 5.46, 7.42],
        "aligned": 25,
        "large": 27,
        "top_predictor": 0.418,
        "asymmetry_l1": [1.413, 0.209],
        "effective_rank": 8.5,
    },
    "simsiam_sym": {
        "top_eigenvalue": [93.8, 111, 65, 531, 3309],
        "aligned": 0,
        "large": 8,
        "top_predictor": 16.7,
        "asymmetry_l1": [1.40, 0],
        "effective_rank": 1.02,
    },
}


def features(run: Run) -> dict[str, Any]:
    """Return the numbers that section 4 of the replication reads off its figures.

    They are of the last record that has them; None stands for unknown.
    """
    a = run.arrays
    top = a["corr_eigenvalues"][:, 0]
    known = np.flatnonzero(np.isfinite(top))
    at = [
        known[np.argmin(np.abs(a["step"][known] - share / 100 * a["step"][-1]))]
        for share in MOMENTS
        if len(known)
    ]
    alignment, predictor = _last(a["alignment"]), _last(a["predictor_eigenvalues"])
    return {
        "aligned": None if alignment is None else int(np.sum(alignment > ALIGNED)),
        "large": None if predictor is None else int(np.sum(predictor > LARGE)),
        "large_share": None
        if predictor is None
        else int(np.sum(predictor > SHARE * max(predictor.max(), 0))),
        "top_predictor": None if predictor is None else float(predictor.max()),
        "asymmetry_l1": _ends(a["asymmetry_l1"]),
        "asymmetry": _ends(a["asymmetry"]),
        "effective_rank": None if (rank := _last(a["effective_rank"])) is None else float(rank),
        "top_eigenvalue": [float(top[i]) for i in at] or None,
        "top_eigenvalue_steps": [int(a["step"][i]) for i in at] or None,
    }


def _last(array: np.ndarray) -> np.ndarray | None:
    """Return the last finite record; None where there is none."""
    known = np.flatnonzero(np.isfinite(array).reshape(len(array), -1).all(1))
    return array[known[-1]] if len(known) else None


def _ends(array: np.ndarray) -> list[float] | None:
    """Return the first and the last finite record; None where there is none."""
    known = array[np.isfinite(array)]
    return [float(known[0]), float(known[-1])] if len(known) else None


def scale(run: Run) -> dict[str, Any]:
    """Return the run's data, network and length."""
    c, steps, epochs = run.config, run.arrays["step"][-1], run.arrays["epoch"][-1]
    about = int(round(steps / epochs)) * c["batch_size"] if epochs > 0 else None
    return {
        "dataset": c["data"]["name"],
        "images": c["data"]["train_size"] or about,
        "epochs": float(epochs),
        "steps": int(steps),
        "encoder": f"{c['encoder']['name']}, width {c['encoder']['width']}",
        "dim": run.size,
        "predictor": c["predictor"]["kind"],
        "loss": c["loss"],
    }


def run_record(run: Run) -> dict[str, Any]:
    """Return the run's part of result.json."""
    who = {"directory": str(run.path), "method": run.config["method"], "seed": run.config["seed"]}
    return who | scale(run) | features(run) | {"damaged": list(run.lost)}


# What `report` reads of `run_record`; a row that nothing recorded is null.
RECORD: dict[str, Shape] = {
    "method": TEXT,
    "dataset": TEXT,
    "images": WHOLE,
    "epochs": NUMBER,
    "encoder": TEXT,
    "dim": WHOLE,
    "predictor": Leaf(", ".join(KINDS), lambda value: isinstance(value, str) and value in KINDS),
    "damaged": [TEXT],
    **{f"{name}?": KNOWN for name in ("aligned", "large", "large_share", "top_predictor")},
    **{f"{name}?": [NUMBER] for name in ("asymmetry_l1", "asymmetry", "top_eigenvalue")},
    "effective_rank?": NUMBER,
}
ROWS = {
    "aligned": f"modes with alignment > {ALIGNED} at the end",
    "large": f"eigenvalues of W_p > {LARGE} at the end",
    "large_share": f"eigenvalues of W_p > {SHARE:.0%} of the largest",
    "top_predictor": "largest eigenvalue of W_p",
    "asymmetry_l1": "asymmetry of W_p, entrywise, before → end",
    "asymmetry": "asymmetry of W_p, Frobenius, before → end",
    "effective_rank": "effective rank of F at the end",
    "top_eigenvalue": f"largest eigenvalue of F at {' / '.join(map(str, MOMENTS))} % of the run",
}


def report(runs: dict[str, dict[str, Any]]) -> str:
    """Return the table in Markdown.

    A run's numbers are those of `run_record`, by its name. The replication's numbers of the same
    method are beside them.
    """
    header, columns = [""], []
    for name, run in runs.items():
        header.append(in_markdown(name))
        columns.append([in_markdown(_scale_words(run)), *(_words(run.get(row)) for row in ROWS)])
        if recorded := PUBLISHED.get(run["method"]):
            header.append(f"{in_markdown(run['method'])}, replication")
            columns.append([THEIR_SCALE, *(_words(recorded.get(row)) for row in ROWS)])
    rows = zip(["scale", *ROWS.values()], *columns, strict=True)
    notes = [
        (
            "Under 0 % stands the first record with a spectrum; the replication's is of the end of "
            "its first epoch."
        ),
        "Eigenvalues of F and W_p go with the scale of the weights, of which the cosine loss sees "
        "nothing: compare what is relative to the largest.",
        *(
            in_markdown(f"{name}: damaged, left out: {', '.join(run['damaged'])}.")
            for name, run in runs.items()
            if run["damaged"]
        ),
    ]
    if not all(make_predictor(run["predictor"], run["dim"]).linear for run in runs.values()):
        notes.append(
            "W_p of a two-layer predictor: product of its matrices, without bias, BatchNorm and "
            "ReLU."
        )
    return (
        f"{markdown.table(header, rows, rest=markdown.NUMBER)}\n"
        + "\n".join(f"* {note}" for note in notes)
        + "\n"
    )


def _scale_words(s: dict[str, Any]) -> str:
    return (
        f"{s['dataset']}, {s['images']} images, {s['epochs']:.4g} epochs, {s['encoder']}, D = "
        f"{s['dim']}"
    )


def _words(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return (" → " if len(value) == 2 else " / ").join(f"{x:.3g}" for x in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
