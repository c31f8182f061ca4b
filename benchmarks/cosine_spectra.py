"""Modes of recorded runs beside the theory of the cosine loss, in each quarter of the training.

    python benchmarks/cosine_spectra.py --runs DIR1,DIR2 [--out FILE]
    python benchmarks/cosine_spectra.py --stored FILE --figure FILE.png
    python benchmarks/cosine_spectra.py --stored FILE1,FILE2 --forecasts FILE3,FILE4 --figure PNG

The last draws the effective rank over the steps of the runs in FILE1 beside the forecast in FILE3,
a result of cosine_forecast.py, and so on: a panel each.

Each DIR is a work directory with --config.dynamics.every=STEPS. In each quarter the records' mean
gives of every mode c_j, p_j/q (the law says c_j) and f_j/f_1 of F, and of predictors in closed form
the law's. Modes are those of F at the time, by descending eigenvalue: none is followed.

A mode is dead where f_j is below DEAD of the largest. The columns: Spearman's correlation of f and
c; the chance that a living mode has the larger c of a living and a dead one; modes that live, and
that the law lets live by the same DEAD; median of |p/q - c| and of |log10(f/law)| over modes that
live, in the law too.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parse, say

from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.dynamics import cosine_law
from ssl_jax.reports.figure import save
from ssl_jax.tasks.dynamics import read_run

QUARTERS = 4
DEAD = 1e-3
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def main() -> None:
    args = parse(__doc__.splitlines()[0], runs="", stored="", forecasts="", figure="")
    if args.stored:
        stored, forecasts = (
            [json.loads(Path(name).read_text()) for name in names.split(",") if name]
            for names in (args.stored, args.forecasts)
        )
        if forecasts:
            draw_courses(stored, forecasts, Path(args.figure))
        else:
            draw(stored[0]["modes"], Path(args.figure))
        return
    rows, modes, courses = [], [], []
    for name in args.runs.split(","):
        say(name)
        of_run = quarters(Path(name))
        modes += of_run
        courses.append(course(Path(name)))
        rows += [summary(x) for x in of_run]
    say("")
    finish(args, "cosine_spectra", rows, modes=modes, courses={"runs": courses})


def quarters(path: Path) -> list[dict[str, Any]]:
    """Return the modes of a run in each quarter of its records: c, p (over q), f, law (D,)."""
    run, found = read_run(path), []
    edges = np.linspace(0, len(run.arrays["step"]), QUARTERS + 1).astype(int)
    for quarter in range(QUARTERS):
        part = slice(edges[quarter], edges[quarter + 1])
        whole = run._replace(arrays={name: x[part] for name, x in run.arrays.items()})
        modes = cosine_law.compare(whole, share=1.0)
        if modes is None:
            continue
        known = {"c": modes.c, "p": modes.p, "f": modes.f / modes.f.max()}
        if modes.law is not None:
            known["law"] = modes.law / modes.law.max()
        found.append(
            {
                "method": run.config["method"],
                "seed": run.config["seed"],
                "quarter": quarter + 1,
                "mean_share": round(float(np.nanmean(whole.arrays["mean_share"])), 4),
            }
            | {name: [float(f"{x:.4g}") for x in values] for name, values in known.items()}
        )
    return found


def course(path: Path) -> dict[str, Any]:
    """Return a run's settings and course: step, rank of F, mean_share, c_1 (T,); accuracies."""
    run = read_run(path)
    a, config = run.arrays, run.config
    known = np.isfinite(a["view_correlation"]).all(1)
    result = json.loads((path / "result.json").read_text())
    found = {
        "method": config["method"],
        "dataset": config["data"]["name"],
        "seed": config["seed"],
        "learning_rate": config["optimizer"]["learning_rate"],
        "tau": config["target"]["tau"],
    } | {name: result[name] for name in ("linear_accuracy", "knn_accuracy", "effective_rank")}
    columns = {
        "step": a["step"][known],
        "rank": a["effective_rank"][known],
        "mean_share": a["mean_share"][known],
        "c_1": a["view_correlation"][known, 0],
    }
    return found | {n: [float(f"{y:.4g}") for y in x] for n, x in columns.items()}


def draw_courses(stored: list[dict], forecasts: list[dict], path: Path) -> None:
    """Draw the effective rank over the steps, of runs and of the forecasts by matrices."""
    figure, axes = plt.subplots(
        1,
        len(stored),
        figsize=(4.4 * len(stored), 3.7),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    styles = dict(zip(("directpred", "directpred_noema"), COLOURS, strict=False))
    for axis, runs, forecast in zip(axes[0], stored, forecasts, strict=True):
        shown = [run for run in runs["courses"]["runs"] if run["method"] in styles]
        for method, colour in styles.items():
            for run in (run for run in shown if run["method"] == method):
                axis.plot(run["step"], run["rank"], color=colour, lw=1.2)
            for name, of in forecast["forecasts"].items():
                if name.rpartition("-")[0] == method:
                    axis.plot(of["at"], of["matrices_rank"], color=colour, lw=1, ls="--")
            axis.plot([], [], color=colour, label=method)
        axis.plot([], [], color="0.3", ls="--", lw=1, label="forecast from step 0, trunk held")
        axis.set(xscale="log", xlabel="step", title=f"rate {shown[0]['learning_rate']:g}")
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    axes[0, 0].set_ylabel("effective rank of F")
    figure.suptitle("DirectPred with and without a target average on digits", fontsize=11)
    save(figure, path, 110)


def summary(modes: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a quarter (module docstring)."""
    c, p, f = (np.array(modes[x]) for x in ("c", "p", "f"))
    lives, law = f >= DEAD, np.array(modes.get("law", f * np.nan))
    both = lives & (law >= DEAD)
    pairs = c[lives][:, None] - c[~lives][None, :]
    order = [x.argsort().argsort() for x in (c, f)]
    return {name: modes[name] for name in ("method", "seed", "quarter")} | {
        "rank": float(np.exp(-np.sum(f / f.sum() * np.log(np.maximum(f / f.sum(), 1e-30))))),
        "mean_share": modes["mean_share"],
        "c_1": float(c[0]),
        "spearman": float(np.corrcoef(*order)[0, 1]),
        "chance": float(np.mean(pairs > 0)) if pairs.size else None,
        "alive": int(lives.sum()),
        "alive_law": int((law >= DEAD).sum()) if "law" in modes else None,
        "rest": float(np.median(np.abs(p - c)[lives])),
        "log_spectrum": float(np.median(np.abs(np.log10(f[both] / law[both]))))
        if both.any()
        else None,
    }


def draw(modes: list[dict[str, Any]], path: Path) -> None:
    """Draw p/q by c and f by the law's of every method, the last quarter's modes filled."""
    methods = list(dict.fromkeys(x["method"] for x in modes))
    figure, axes = plt.subplots(
        2,
        len(methods),
        figsize=(3.1 * len(methods) + 0.6, 6.2),
        layout="constrained",
        squeeze=False,
        sharey="row",
    )
    for column, method in enumerate(methods):
        top, bottom = axes[:, column]
        top.plot([0, 1.1], [0, 1.1], color="0.5", lw=0.8)
        for x in (x for x in modes if x["method"] == method):
            last, c, f = x["quarter"] == QUARTERS, np.array(x["c"]), np.array(x["f"])
            colour = COLOURS[x["seed"] % len(COLOURS)] if last else "0.75"
            style = {"ms": 4 if last else 2.5, "color": colour, "zorder": 3 if last else 1}
            label = f"seed {x['seed']}, last quarter" if last else None
            lives = f >= DEAD
            top.plot(c[lives], np.array(x["p"])[lives], "o", **style, label=label)
            top.plot(c[~lives], np.array(x["p"])[~lives], "o", **style, mfc="none")
            across = c if "law" not in x else np.maximum(x["law"], 1e-5)
            bottom.plot(across, np.maximum(f, 1e-6), "o", **style)
        top.plot([], [], "o", color="0.75", ms=2.5, label="earlier quarters")
        top.set(title=method, xlabel="$c_j$: what two views share", xlim=(-0.03, 1.05))
        bottom.set(yscale="log")
        bottom.axhline(DEAD, color="0.5", lw=0.8, ls=":")
        if any("law" in x for x in modes if x["method"] == method):
            bottom.plot([1e-5, 1], [1e-5, 1], color="0.5", lw=0.8)
            bottom.set(xscale="log", xlabel="$f_j/f_1$ of the law, dead ones at the edge")
        else:
            bottom.set(xlabel="$c_j$ (no law: decided by the start)")
        for axis in (top, bottom):
            axis.grid(alpha=0.25)
            axis.title.set_fontsize(10)
    axes[0, 0].set_ylabel("$p_j\\,/\\,q$, measured (hollow: dead)")
    axes[1, 0].set_ylabel("$f_j\\,/\\,f_1$ of F, measured")
    axes[0, 0].legend(fontsize=7)
    figure.suptitle("Modes of runs beside the theory of the cosine loss (on the line)", fontsize=11)
    save(figure, path, 110)


if __name__ == "__main__":
    main()
