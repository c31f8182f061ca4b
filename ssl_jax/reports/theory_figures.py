"""The figures of Tian et al. 2021 (arXiv 2102.06810) from the theory, and a phase diagram.

Every public function draws one figure into a file and returns the arrays that it drew. Defaults are
the paper's where it states them. The starting points of Figures 5 and 7 to 9 and their matrix sizes
are this project's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_jax.dynamics import theory
from ssl_jax.reports import cosine_figures
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.figure import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, distinct for every kind of colour vision, and a line style for each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
DPI = 150
BASE = {"alpha_p": 1.0, "sigma2": 0.0}
FIGURE5 = {
    "eta": 0.04,
    "beta": 0.4,
}  # at a learning rate of 0.01: weight decay 4e-4, target.tau 0.996


def figure3(
    path: Path, etas: Sequence[float] = (0.0, 0.01, 1.0), cells: int = 48
) -> dict[str, np.ndarray]:
    """Draw phase portraits of (p, s) at τ = 1 and α_p = 1.

    They show the flow, the invariant parabola, the fixed points and the basin of collapse.

    Args:
        path: the file; its folder is created.
        etas: weight decays, one for each panel.
        cells: points of the grid along either axis.

    Returns:
        eta (E,), p and s (cells,), and collapses (E, cells, cells), booleans by s and p.
    """
    figure, axes = plt.subplots(
        1, len(etas), figsize=(4.1 * len(etas), 3.9), layout="constrained", sharey=True
    )
    kept_or_dead = plt.matplotlib.colors.ListedColormap(["white", "#F3D9C6"])
    p, s = np.meshgrid(np.linspace(-1.2, 1.6, cells), np.linspace(0, 1.6, cells))
    dies = []
    for axis, eta in zip(axes, etas, strict=True):
        decays = BASE | {"eta_p": eta, "eta_s": eta}
        dp, ds, _ = theory.mode_rates(p, s, 1.0, **decays)
        dies.append(theory.collapses(p=p, s=s, **decays))
        axis.pcolormesh(
            p, s, dies[-1], cmap=kept_or_dead, vmin=0, vmax=1, shading="nearest", rasterized=True
        )
        axis.streamplot(p, s, dp, ds, color="0.6", linewidth=0.6, arrowsize=0.7, density=1.1)
        line = np.linspace(-1.2, 1.27, 200)
        axis.plot(line, line**2, color=COLOURS[0], lw=1.8, label="s = p²/$α_p$ (invariant)")
        _separatrix(axis, decays)
        _rest(axis, decays)
        axis.set(
            title=f"η = {eta:g}",
            xlabel="eigenvalue p of $W_p$",
            xlim=(-1.2, 1.6),
            ylim=(-0.04, 1.6),
        )
        axis.title.set_fontsize(10)
    axes[0].set_ylabel("eigenvalue s of F")
    axes[0].fill_between([0], [0], [0], color=kept_or_dead(1.0), label="collapses (s → 0)")
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle("One mode of predictor and features: τ = 1, $α_p$ = 1, σ² = 0", fontsize=11)
    save(figure, path, DPI)
    return {"eta": np.array(etas), "p": p[0], "s": s[:, 0], "collapses": np.array(dies)}


def figure4(
    path: Path,
    etas: Sequence[float] = (0.0, 0.1, 0.25, 0.4),
    taus: Sequence[float] = (1.0, 0.8, 0.6),
) -> dict[str, np.ndarray]:
    """Draw dp against p on the parabola, and the fixed points over the weight decay.

    Args:
        path: the file; its folder is created.
        etas: weight decays of the curves of dp.
        taus: τ of the curves of fixed points.

    Returns:
        eta (E,), p (400,), dp (E, 400), decay (400,), taus (T,), and roots (T, 2, 400): p₋ and p₊.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.8), layout="constrained")
    p = np.linspace(-0.15, 1.1, 400)
    dp = np.array(
        [theory.mode_rates(p, p**2, 1.0, alpha_p=1, eta_p=eta, eta_s=eta)[0] for eta in etas]
    )
    for eta, row, colour, style in zip(etas, dp, COLOURS, STYLES, strict=False):
        left.plot(
            p,
            row,
            color=colour,
            ls=style,
            label=f"η = {eta:g}" + (" = $η_c$" if eta == 0.25 else ""),
        )
        low, high = theory.roots(eta_s=eta)
        for x, stable in ((0.0, eta > 0), (low, False), (high, low < high)):
            left.plot(
                x,
                0,
                "o",
                ms=6,
                mec=colour,
                mfc=colour if stable else "white",
                clip_on=False,
                zorder=3,
            )
    left.axhline(0, color="0.4", lw=0.7)
    left.set(xlabel="eigenvalue p of $W_p$", ylabel="dp/dt", ylim=(-0.12, 0.16), xlim=(-0.15, 1.1))
    left.set_title("on s = p²/$α_p$, τ = 1 (full: stable, open: unstable)", fontsize=9)
    left.legend(fontsize=8)
    eta = np.linspace(0, 0.27, 400)
    roots = np.array([theory.roots(eta_s=eta, tau=tau) for tau in taus])
    for tau, (low, high), colour in zip(taus, roots, COLOURS, strict=False):
        right.plot(eta, high, color=colour, label=f"p₊ (stable), τ = {tau:g}")
        right.plot(eta, low, color=colour, ls="--", label=f"p₋ (unstable), τ = {tau:g}")
        right.axvline(theory.critical_decay(tau=tau), color=colour, lw=0.8, ls=":")
    right.set(xlabel="weight decay η", ylabel="p at rest", xlim=(0, 0.27), ylim=(0, 1.05))
    right.set_title("points of rest; dotted: critical decay τ²/4a", fontsize=9)
    right.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    figure.suptitle("Learning and collapse on the parabola: $α_p$ = 1, σ² = 0", fontsize=11)
    save(figure, path, DPI)
    return {
        "eta": np.array(etas),
        "p": p,
        "dp": dp,
        "decay": eta,
        "taus": np.array(taus),
        "roots": roots,
    }


def figure5(
    path: Path,
    etas: Sequence[float] = (0.01, 0.04, 0.07, 0.1),
    betas: Sequence[float] = (0.1, 0.4, 1.6, 6.4),
) -> dict[str, np.ndarray]:
    """Draw p, s, τ and the smallest eigenvalue of K over time.

    The upper row varies the weight decay, the lower row the rate of the target's average. All
    curves start from W_a = 0 on the parabola at p = 0.1.

    Args:
        path: the file; its folder is created.
        etas: weight decays of the upper row.
        betas: rates of the lower row.

    Returns:
        time (401,); eta (E,) with eta_p, eta_s, eta_tau and eta_k (E, 401); beta (B,) with
        beta_p, beta_s, beta_tau and beta_k (B, 401).
    """
    times = np.linspace(0, 80, 401)
    decay, rate = np.array(etas), np.array(betas)
    sweeps = {
        "η": (decay, *_modes(decay, FIGURE5["beta"], times)),
        "β": (rate, *_modes(FIGURE5["eta"], rate, times)),
    }
    names = (
        "eigenvalue p of $W_p$",
        "eigenvalue s of F",
        "τ (target over online)",
        "λ(K) (> 0: aligning)",
    )
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.6), layout="constrained", sharex=True)
    for row, (symbol, (values, *panels)) in zip(axes, sweeps.items(), strict=True):
        for axis, name, curves in zip(row, names, panels, strict=True):
            for value, curve, colour, style in zip(values, curves, COLOURS, STYLES, strict=False):
                axis.plot(times, curve, color=colour, ls=style, label=f"{symbol} = {value:g}")
            axis.axhline(0, color="0.4", lw=0.7)
            axis.set_title(name, fontsize=9)
            axis.grid(alpha=0.3)
        held = f"β = {FIGURE5['beta']:g}" if symbol == "η" else f"η = {FIGURE5['eta']:g}"
        row[0].set_ylabel(f"sweep of {symbol} ({held})")
        row[0].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("time t (1 = 100 steps at rate 0.01)")
    start = "p(0) = 0.1, s(0) = p², $W_a$(0) = 0"
    figure.suptitle(
        f"Weight decay and target average over time: $α_p$ = 1, σ² = 0, {start}", fontsize=11
    )
    save(figure, path, DPI)
    drawn = {"time": times}
    for key, (values, *panels) in zip(("eta", "beta"), sweeps.values(), strict=True):
        drawn |= {key: values} | {
            f"{key}_{n}": x for n, x in zip(("p", "s", "tau", "k"), panels, strict=True)
        }
    return drawn


def _modes(eta: np.ndarray | float, beta: np.ndarray | float, times: np.ndarray) -> tuple[Any, ...]:
    """Return p, s, τ and λ(K) of Figure 5."""
    eta = np.asarray(eta)
    decays = {"alpha_p": 1.0, "eta_p": eta, "eta_s": eta}
    curves = theory.simulate(p=0.1, s=0.01, tau=0.0, times=times, beta=beta, **decays)
    wide = {"alpha_p": 1.0, "eta_p": eta[..., None], "eta_s": eta[..., None]}
    return (
        curves.p,
        curves.s,
        curves.tau,
        theory.mode_alignment(curves.p, curves.s, curves.tau, **wide),
    )


def figure7(
    path: Path,
    etas: Sequence[float] = (0.0, 0.01, 0.1),
    runs: int = 10,
    size: int = 8,
    beta: float = 0.4,
) -> dict[str, np.ndarray]:
    """Draw the correlation of W_a with W where the target starts at 0: is W_a = τ W?

    X = I, X' = 0.03² I, and the starts are random.

    Args:
        path: the file; its folder is created.
        etas: weight decays, one for each panel.
        runs: number R of starts.
        size: rows and columns of the matrices.
        beta: rate of the target's average.

    Returns:
        eta (E,), time (T,) and correlation (E, R, T).
    """
    times = np.concatenate([[0], np.geomspace(0.01, 60, 150)])
    w, w_p = _starts(runs, size)
    decays = {
        "alpha_p": 1.0,
        "eta_p": np.array(etas)[:, None],
        "eta_s": np.array(etas)[:, None],
        "beta": beta,
    }
    data = {"x": np.eye(size), "x_prime": 0.03**2 * np.eye(size)}
    online, _, target = theory.simulate_matrices(w, w_p, 0 * w, times=times, **data, **decays)
    inner, squares = (
        (online * target).sum((-2, -1)),
        (online**2).sum((-2, -1)) * (target**2).sum((-2, -1)),
    )
    correlation = inner[..., 1:] / np.sqrt(squares[..., 1:])
    figure, axes = plt.subplots(
        1, len(etas), figsize=(3.6 * len(etas), 3.4), layout="constrained", sharey=True
    )
    _runs(axes, etas, times[1:], correlation, COLOURS[0])
    for axis in axes:
        axis.set(xscale="log", ylim=(correlation.min() - 0.002, 1.001))
    axes[0].set_ylabel("corr($W_a$, W)")
    setting = (
        f"{runs} random starts of {size} × {size}, $α_p$ = 1, β = {beta:g}, X' = 0.03² I, $W_a$(0) "
        "= 0"
    )
    figure.suptitle(f"Is the target in proportion to the online network? {setting}", fontsize=10)
    save(figure, path, DPI)
    return {"eta": np.array(etas), "time": times[1:], "correlation": correlation}


def figure8(
    path: Path,
    etas: Sequence[float] = (0.001, 0.01, 0.05),
    runs: int = 10,
    size: int = 8,
) -> dict[str, np.ndarray]:
    """Draw the norms of the symmetric part A and the antisymmetric part B of W_p over time.

    Nothing symmetrises W_p, and F = W_pᵀW_p at the start.

    Args:
        path: the file; its folder is created.
        etas: weight decays, one for each panel.
        runs: number R of starts.
        size: rows and columns of the matrices.

    Returns:
        eta (E,), time (T,), and symmetric and antisymmetric (E, R, T), Frobenius norms.
    """
    times = np.linspace(0, 300, 151)
    w_p = _starts(runs, size)[1]
    decays = {"alpha_p": 1.0, "eta_p": np.array(etas)[:, None], "eta_s": np.array(etas)[:, None]}
    start = np.swapaxes(w_p, -1, -2) @ w_p
    _, w_p = theory.simulate_reduced(start, w_p, times=times, symmetric=False, **decays)
    turned = np.swapaxes(w_p, -1, -2)
    a, b = (np.linalg.norm((w_p + sign * turned) / 2, axis=(-2, -1)) for sign in (1, -1))
    figure, axes = plt.subplots(
        1, len(etas), figsize=(3.6 * len(etas), 3.4), layout="constrained", sharey=True
    )
    _runs(axes, etas, times, a, COLOURS[0], label="‖A‖, symmetric part")
    _runs(axes, etas, times, b, COLOURS[1], label="‖B‖, antisymmetric part", style="--")
    axes[0].set_ylabel("Frobenius norm")
    axes[0].legend(fontsize=8)
    for axis in axes:
        axis.set(yscale="log", ylim=(1e-4, 2 * a.max()))
    figure.suptitle(
        (
            f"Does $W_p$ become symmetric? F = $W_p^⊤W_p$, {runs} starts of {size} × {size}, τ = "
            "1, $α_p$ = 1"
        ),
        fontsize=10,
    )
    save(figure, path, DPI)
    return {"eta": np.array(etas), "time": times, "symmetric": a, "antisymmetric": b}


def figure9(
    path: Path,
    etas: Sequence[float] = (0.001, 0.01, 0.05),
    runs: int = 10,
    size: int = 8,
) -> dict[str, np.ndarray]:
    """Draw the norm of the commutator [F, W_p] of the symmetrised system from unaligned starts.

    Args:
        path: the file; its folder is created.
        etas: weight decays, one for each panel.
        runs: number R of starts.
        size: rows and columns of the matrices.

    Returns:
        eta (E,), time (T,) and commutator (E, R, T), Frobenius norm.
    """
    times = np.linspace(0, 60, 151)
    w, w_p = _starts(runs, size)
    w_p = (w_p + np.swapaxes(w_p, -1, -2)) / 2
    decays = {"alpha_p": 1.0, "eta_p": np.array(etas)[:, None], "eta_s": np.array(etas)[:, None]}
    f, w_p = theory.simulate_reduced(w @ np.swapaxes(w, -1, -2), w_p, times=times, **decays)
    norm = np.linalg.norm(f @ w_p - w_p @ f, axis=(-2, -1))
    figure, axes = plt.subplots(
        1, len(etas), figsize=(3.6 * len(etas), 3.4), layout="constrained", sharey=True
    )
    _runs(axes, etas, times, norm, COLOURS[0])
    axes[0].set_ylabel("‖[F, $W_p$]‖ (Frobenius)")
    for axis in axes:
        axis.set(yscale="log", ylim=(1e-8, 3 * norm.max()))
    figure.suptitle(
        f"Do F and $W_p$ align? Symmetrised, {runs} starts of {size} × {size}, τ = 1, $α_p$ = 1",
        fontsize=10,
    )
    save(figure, path, DPI)
    return {"eta": np.array(etas), "time": times, "commutator": norm}


def figure10(path: Path, l_s: float = 1.0, l_d: float = 0.5) -> dict[str, np.ndarray]:
    """Draw the flow of one coordinate of data that are not isotropic.

    The panels are (w, w_p) at w_a = 1, (w, w_a) with w_p = w, and (w, w_a) without a predictor.

    Args:
        path: the file; its folder is created.
        l_s: eigenvalue of X + X'.
        l_d: eigenvalue of X.

    Returns:
        w and y (41,), the axes, and flows (3, 2, 41, 41).
    """
    data = {"l_s": l_s, "l_d": l_d, "alpha_p": 1.0, "beta": 1.0}
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 41), np.linspace(-1.5, 1.5, 41))
    dw_p, dw, _ = theory.scalar_rates(y, x, 1.0, **data)
    _, tied, tied_a = theory.scalar_rates(x, x, y, **data)
    _, plain, plain_a = theory.scalar_rates(1.0, x, y, **data)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    flows = ((dw, dw_p), (tied, tied_a), (plain, plain_a))
    for axis, (u, v) in zip(axes, flows, strict=True):
        axis.streamplot(x, y, u, v, color="0.55", linewidth=0.7, arrowsize=0.8)
        axis.set(xlabel="w (online)", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    branch, ratio = np.linspace(0.2, 1.5, 100), l_d / l_s
    for sign in (1, -1):
        axes[0].plot(sign * branch, sign * ratio / branch, color=COLOURS[0], lw=2)
    _point(axes[0], 0, 0, False)
    for value in (0.0, ratio):
        _point(axes[1], value, value, value > 0)
    _point(axes[2], 0, 0, True)
    axes[0].set_ylabel("$w_p$ (predictor)")
    for axis in axes[1:]:
        axis.set_ylabel("$w_a$ (target)")
    titles = (
        "$w_a$ = 1 held; blue: stable, $w_p w = l_d / l_s$",
        "$w_p = w$ (invariant)",
        "no predictor ($w_p$ = 1): collapse",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.suptitle(
        (
            f"One coordinate, $l_s$ = {l_s:g}, $l_d$ = {l_d:g}, $α_p$ = β = 1, η = 0 (full: "
            "stable, open: not)"
        ),
        fontsize=11,
    )
    save(figure, path, DPI)
    return {"w": x[0], "y": y[:, 0], "flows": np.array(flows)}


def phase_diagram(
    path: Path, cells: int = 40, eta_s: float = 0.1, p: float = 0.0, s: float = 0.1
) -> dict[str, np.ndarray]:
    """Draw whether a mode collapses, over decay and learning rate of the predictor.

    There is one panel for each of four targets, with and without an average.

    Args:
        path: the file; its folder is created.
        cells: points of the grid along either axis.
        eta_s: decay of W.
        p: eigenvalue of W_p at the start.
        s: eigenvalue of F at the start.

    Returns:
        eta_p and alpha_p (cells,), targets (4,), and collapses (4, cells, cells), booleans by
        alpha_p and eta_p.
    """
    eta_p, alpha_p = np.geomspace(0.02, 2, cells), np.geomspace(0.1, 10, cells)
    targets = {
        "$W_a$ = W (SimSiam)": (1.0, None),
        "β = 0.4": (1.0, 0.4),
        "β = 0.1": (1.0, 0.1),
        "β = 0.4, $W_a$(0) = 0": (0.0, 0.4),
    }
    numbers = {"p": p, "s": s, "eta_p": eta_p[None, :], "alpha_p": alpha_p[:, None], "eta_s": eta_s}
    dies = [theory.collapses(tau=tau, beta=beta, **numbers) for tau, beta in targets.values()]
    figure, axes = plt.subplots(
        1, len(targets), figsize=(3.4 * len(targets), 3.9), layout="constrained", sharey=True
    )
    two = plt.matplotlib.colors.ListedColormap(["#0072B2", "#E69F00"])
    for axis, name, map_ in zip(axes, targets, dies, strict=True):
        axis.pcolormesh(eta_p, alpha_p, map_, cmap=two, vmin=0, vmax=1, shading="nearest")
        axis.axvline(eta_s, color="black", lw=0.8, ls=":")
        axis.set(xscale="log", yscale="log", xlabel="$η_p$ (decay of $W_p$)", title=name)
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("$α_p$ (rate of $W_p$ over rate of W)")
    for colour, label in (("#0072B2", "learns"), ("#E69F00", "collapses")):
        axes[0].fill_between([eta_s], [1], [1], color=colour, label=label)
    axes[0].plot([], [], color="black", lw=0.8, ls=":", label="$η_p$ = $η_s$")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(
        f"Does a mode collapse? Start p = {p:g}, s = {s:g}; $η_s$ = {eta_s:g}, σ² = 0", fontsize=11
    )
    save(figure, path, DPI)
    return {
        "eta_p": eta_p,
        "alpha_p": alpha_p,
        "targets": np.array(list(targets)),
        "collapses": np.array(dies),
    }


FIGURES = {
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure7": figure7,
    "figure8": figure8,
    "figure9": figure9,
    "figure10": figure10,
    "phase_diagram": phase_diagram,
    **cosine_figures.FIGURES,
}


def _starts(runs: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return W and W_p (runs, size, size), the same in every call.

    Their entries are independent, of variance 1 / size.
    """
    w, w_p = np.random.default_rng(0).normal(size=(2, runs, size, size)) / np.sqrt(size)
    return w, w_p


def _runs(
    axes: np.ndarray,
    etas: Sequence[float],
    times: np.ndarray,
    curves: np.ndarray,
    colour: str,
    *,
    label: str = "",
    style: str = "-",
) -> None:
    """Draw one panel for each decay: thin lines for all runs, a bold one for their median."""
    for axis, eta, rows in zip(axes, etas, curves, strict=True):
        axis.plot(times, rows.T, color=colour, lw=0.6, alpha=0.5, ls=style)
        axis.plot(times, np.median(rows, axis=0), color=colour, lw=2, label=label, ls=style)
        axis.set(xlabel="time t", title=f"η = {eta:g}")
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)


def _separatrix(axis: "Axes", decays: dict[str, Any]) -> None:
    border = theory.separatrix(**decays)
    if border is not None:
        axis.plot(*border, color=COLOURS[1], lw=1.5, ls="--", label="separatrix")


def _rest(axis: "Axes", decays: dict[str, Any]) -> None:
    """Draw the fixed points of a phase portrait; without decay they are two lines."""
    if decays["eta_p"] == 0:
        axis.plot([0, 1], [0, 0], color="black", lw=2, ls=":", clip_on=False)
        for xs, ys in (([-1.2, 0], [0, 0]), ([1, 1.6], [0, 0]), ([1, 1], [0, 1.6])):
            axis.plot(
                xs, ys, color="black", lw=2, clip_on=False, label="lines at rest (dotted: unstable)"
            )
        return
    for point in theory.fixed_points(**decays):
        _point(axis, point.p, point.s, point.stable, "stable" if point.stable else "saddle")


def _point(axis: "Axes", x: float, y: float, stable: bool, label: str | None = None) -> None:
    face = "black" if stable else "white"
    axis.plot(
        x, y, "o", ms=7, mec="black", mfc=face, zorder=5, clip_on=False, label=label, ls="none"
    )
