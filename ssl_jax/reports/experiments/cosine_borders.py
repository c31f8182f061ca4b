"""Table and figure of the experiment cosine_borders."""

from typing import TYPE_CHECKING

import numpy as np

from ssl_jax.reports.experiments.parts import numbers_table, panels, paragraphs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# scan: (its name in words, label of its axis)
SCANS = {
    "balance": ("no decay", "$r = α_p s / p^2$ at the start"),
    "decay": ("decay", "$η_p / η_s$"),
    "eps": ("DirectPred, no decay", "ε"),
    "grid": ("grid of the phase diagram", ""),
}
# forecast: (its name in words, colour, line)
FORECASTS = {
    "start": ("steps from the start", "#D55E00", "-"),
    "norms": ("the same, norms of the run", "#009E73", "--"),
    "end": ("end of the flow", "#0072B2", ":"),
    "late": ("the law by the end's own c", "#CC79A7", "-."),
}


def named(scan: str) -> str:
    """Return a scan in words."""
    kind, _, rest = scan.partition("-")
    words = {"none": "no average", "average": "target averaged"}.get(rest, f"noise {rest}")
    return f"{SCANS[kind][0]}, {words}"


def report(result: dict) -> str:
    """Return a table with a row for every scan and forecast."""
    early, steps = result["steps"]
    head = ["scan", "forecast", f"agree, {early} steps", f"agree, {steps} steps"]
    head += ["share differs by", "border, forecast", "border, measured", "rank differs by"]
    head += ["Spearman"]
    lines = []
    for scan, part in result["scans"].items():
        ended, scanned = part["end"], not scan.startswith("grid")
        for kind, found in ended["forecasts"].items():
            before = part["early"]["forecasts"].get(kind)
            first = f"{100 * before['agreement']:.0f}%" if before else "–"
            sides = found["alive"], ended["alive"]
            borders = [border(part["x"], side) if scanned else "–" for side in sides]
            lines.append(
                [
                    named(scan),
                    FORECASTS[kind][0],
                    first,
                    f"{100 * found['agreement']:.0f}%",
                    f"{found['difference']:.3f}",
                    *borders,
                    f"{found['rank_difference']:.2f}",
                    f"{found['correlation']:.2f}",
                ]
            )
    text = (
        f"Cells agree where both say that half of the modes live, mean of "
        f"{result['config']['seeds']} seeds (of the grid {result['config']['grid']['seeds']}), or "
        "both that they do not. A border is where that share crosses a half. The last four columns "
        f"are after {steps} steps. Ranks are effective ranks of F; Spearman's correlation is that "
        "of forecast and measured ranks over the cells."
    )
    return paragraphs(numbers_table(head, lines), text)


def border(x: list[float], alive: list[list[float]]) -> str:
    """Return where the share of living modes crosses a half, between points on a log scale.

    Args:
        x: what is scanned, (M,), ascending.
        alive: shares, (S, M).

    Returns:
        The first crossing as text; "none" where there is none.
    """
    share, at = np.mean(alive, axis=0), np.log(np.array(x))
    for i in range(len(at) - 1):
        before, after = share[i] - 0.5, share[i + 1] - 0.5
        if (before >= 0) != (after >= 0):
            return f"{np.exp(at[i] + (at[i + 1] - at[i]) * before / (before - after)):.2g}"
    return "none"


def draw(result: dict) -> "dict[str, Figure]":
    """Return the figure cosine_borders: share of living modes and effective rank by scan."""
    shown = {name: part for name, part in result["scans"].items() if not name.startswith("grid")}
    figure, axes = panels(2, len(shown), 2.3, 2.6)
    for column, (name, part) in enumerate(shown.items()):
        for axis, number in zip(axes[:, column], ("alive", "rank"), strict=True):
            _panel(axis, part, number)
        axes[0, column].set_title(named(name), fontsize=8)
        axes[1, column].set_xlabel(SCANS[name.partition("-")[0]][1])
    axes[0, 0].set_ylabel("share of modes that live")
    axes[1, 0].set_ylabel("effective rank of F")
    axes[0, 0].legend(fontsize=5.5)
    axes[0, -1].legend(fontsize=5.5)
    figure.suptitle("Where modes die under the cosine loss: small network on digits", fontsize=11)
    return {"cosine_borders": figure}


def _panel(axis: "Axes", part: dict, number: str) -> None:
    """Draw what was measured, early and at the end with its range, and the forecasts of the end."""
    x = np.array(part["x"])
    early, seen = (np.array(part[when][number]) for when in ("early", "end"))
    axis.plot(x, early.mean(0), "o", ms=4, mfc="none", color="0.55", label="network, early")
    low, middle, high = seen.min(0), seen.mean(0), seen.max(0)
    axis.errorbar(
        x,
        middle,
        [middle - low, high - middle],
        fmt="o",
        ms=4,
        color="0.1",
        lw=0.8,
        label="network",
    )
    for kind, found in part["end"]["forecasts"].items():
        words, colour, line = FORECASTS[kind]
        axis.plot(x, np.mean(found[number], axis=0), color=colour, ls=line, lw=1.3, label=words)
    axis.set(xscale="log", ylim=(0, 1.05) if number == "alive" else (0.8, None))
    axis.grid(alpha=0.25)
