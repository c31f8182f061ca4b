"""How the label-free measures rank runs, against the accuracy of a linear probe.

    python benchmarks/label_free.py --work DIR [--quick] [--out FILE]

Trains cells of the quickstart's network on the digits, of different methods, decays, rates, target
rates, views and lengths, each in its own folder below DIR; a cell that is there already is not
trained again. Prints Spearman's rank correlation of each measure with the linear probe's test
accuracy, over all cells and over those of BYOL with learned predictors alone. `docs/label_free.md`
is rendered from the committed results/label_free.json. --quick trains three cells for one epoch.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parse, read_config
from scipy.stats import spearmanr

from ssl_jax.probes.label_free import COLUMNS
from ssl_jax.tasks.pretrain import pretrain
from ssl_jax.workdir.directory import read_json

COMMON = {
    "epochs": 20,
    "eval_every": 0,
    "checkpoint_every": 0,
    "probe.random_init": False,
    "probe.few_labels": 0,
}
SIMSIAM = {"target.tau": 0.0}
# name -> fields in which the cell differs from the quickstart with `COMMON`
CELLS: dict[str, dict[str, Any]] = {
    "byol": {},
    "byol, seed 1": {"seed": 1},
    "byol, 2 epochs": {"epochs": 2},
    "byol, 60 epochs": {"epochs": 60},
    "byol, rate 0.01": {"optimizer.learning_rate": 0.01},
    "byol, rate 0.4": {"optimizer.learning_rate": 0.4},
    "byol, no decay": {"optimizer.weight_decay": 0.0},
    "byol, decay 0.01": {"optimizer.weight_decay": 0.01},
    "byol, decay 0.05": {"optimizer.weight_decay": 0.05},
    "byol, decoupled decay 0.05": {
        "optimizer.weight_decay": 0.05,
        "optimizer.decay": "decoupled",
    },
    "byol, tau 0.9": {"target.tau": 0.9},
    "byol, crop 0.1 to 1": {"views.crop_scale": (0.1, 1.0)},
    "byol, no jitter": {"views.jitter": 0.0},
    "byol, linear predictor": {"predictor.kind": "linear"},
    "byol, 4 projections": {"projector.out": 4},
    "simsiam": SIMSIAM,
    "simsiam, decay 0.01": SIMSIAM | {"optimizer.weight_decay": 0.01},
    "simsiam, linear predictor": SIMSIAM | {"predictor.kind": "linear"},
    "simsiam, rate 0.4": SIMSIAM | {"optimizer.learning_rate": 0.4},
    "directpred": {"predictor.kind": "direct_pred"},
    "directpred, decay 0.01": {"predictor.kind": "direct_pred", "optimizer.weight_decay": 0.01},
    "directpred, eps 0": {"predictor.kind": "direct_pred", "predictor.eps": 0.0},
    "directcopy": {"predictor.kind": "direct_copy", "predictor.eps": 0.3},
    "simsiam directcopy": SIMSIAM | {"predictor.kind": "direct_copy", "predictor.eps": 0.3},
}
# what is correlated: each measure, and alpha-ReQ's distance from its best value
SCORES = (*COLUMNS, "|alpha_req - 1|", "effective_rank")


def main() -> None:
    args = parse(__doc__.splitlines()[0], work="runs/label-free")
    names = list(CELLS)[:3] if args.quick else list(CELLS)
    rows = [cell(name, Path(args.work), args.quick) for name in names]
    groups = {"all": rows, "byol": [row for row in rows if row["cell"].startswith("byol")]}
    finish(args, "label_free", rows, correlations=correlations(groups))


def cell(name: str, work: Path, quick: bool) -> dict[str, Any]:
    """Train a cell, or read its result."""
    folder = work / name.replace(" ", "-").replace(",", "")
    if not (folder / "result.json").exists():
        config = read_config("quickstart.py")
        fields = COMMON | CELLS[name] | ({"epochs": 1} if quick else {})
        config.update_from_flattened_dict(fields)
        pretrain(config, str(folder))
    result = read_json(folder / "result.json")
    kept = ("linear_accuracy", "knn_accuracy", *COLUMNS, "effective_rank", "state")
    return {"cell": name} | {key: result[key] for key in kept}


def correlations(groups: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Spearman's rho of each score with the linear accuracy, a row a score."""
    table = []
    for name in SCORES:
        row: dict[str, Any] = {"measure": name}
        for group, rows in groups.items():
            pairs = [(score(r, name), r["linear_accuracy"]) for r in rows]
            known = np.array([pair for pair in pairs if pair[0] is not None], np.float64)
            rho, p = spearmanr(*known.T) if len(known) > 2 else (math.nan, math.nan)
            finite = {"rho": float(rho), "p": float(p)}
            row |= {f"{group}_{k}": v if math.isfinite(v) else None for k, v in finite.items()}
            row[f"{group}_runs"] = len(known)
        table.append(row)
    return table


def score(row: dict[str, Any], name: str) -> float | None:
    if name != "|alpha_req - 1|":
        return row[name]
    return None if row["alpha_req"] is None else abs(row["alpha_req"] - 1)


if __name__ == "__main__":
    main()
