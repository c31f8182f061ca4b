"""Figures of the theory of the cosine loss: water filling, closed-form spectra, beside Euclid.

Every public function draws one figure into a file and returns the arrays that it drew.
"""

from pathlib import Path

import numpy as np

from ssl_jax.dynamics import cosine, theory
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.figure import save

COLOURS = ("#0072B2", "#D55E00", "#009E73")
MARKS = ("o", "s", "^")
WATER, GROUND = "#9CC9E8", "#B8A68C"
DPI = 150


def water(
    path: Path, modes: int = 8, alpha_p: float = 0.5, time: float = 300.0
) -> dict[str, np.ndarray]:
    """Draw `cosine.fate` as water in vessels, and the flow that levels it.

    A mode is a vessel of width c², whose ground has the area π = p² - α_p s, which is kept. Water
    of area α_p s stands on it up to the height (p/c)². The flow levels the heights.

    Args:
        path: the file; its folder is created.
        modes: number of modes.
        alpha_p: learning rate of W_p divided by that of W.
        time: of the flow that is drawn.

    Returns:
        c, start, alive (modes,), q2 (1,) and the curves: time (T,), s and exact_s (T, modes).
    """
    c = np.linspace(1, 0.45, modes)
    s = 0.35 + 0.25 * np.cos(2.3 * np.arange(modes))
    p = np.ones(modes)
    fate = cosine.fate(p, s, c, alpha_p)
    figure, (before, after, right) = plt.subplots(
        1, 3, figsize=(12.4, 3.9), layout="constrained", width_ratios=(1, 1, 1.1)
    )
    kept = p**2 - alpha_p * s
    tops = ((before, (p / c) ** 2, "start: $W_p$ = I"), (after, (fate.p / c) ** 2, "end"))
    edges = np.concatenate([[0], np.cumsum(c**2)])
    for axis, top, title in tops:
        ground = kept / c**2
        options = {"align": "edge", "width": c**2, "edgecolor": "0.35", "lw": 0.8}
        axis.bar(edges[:-1], ground, color=GROUND, **options)
        axis.bar(edges[:-1], np.maximum(top - ground, 0), bottom=ground, color=WATER, **options)
        for j in range(modes):
            axis.text(edges[j] + c[j] ** 2 / 2, 0.05, str(j + 1), ha="center", fontsize=8)
        axis.set(xlim=(0, edges[-1]), title=title, xlabel="modes, each as wide as $c_j^2$")
        axis.set_ylim(0, 1.08 * max((p / c).max() ** 2, fate.q**2))
    after.axhline(fate.q**2, color=COLOURS[0], lw=1.2, ls="--")
    after.text(edges[-1], fate.q**2, " $q^2$", color=COLOURS[0], va="center", fontsize=9)
    before.set_ylabel("height $(p_j/c_j)^2$")
    handles = [
        plt.matplotlib.patches.Patch(color=WATER, label="water: $α_p s_j$"),
        plt.matplotlib.patches.Patch(color=GROUND, label="ground: $p_j^2 - α_p s_j$, kept"),
    ]
    before.legend(handles=handles, fontsize=7.5, loc="upper left")
    times = np.linspace(0, time, 61)
    flow = {"p": p, "s": s, "c": c, "alpha_p": alpha_p, "times": times}
    leading = cosine.simulate(order="leading", **flow).s
    exact = cosine.simulate(nodes=40, **flow).s
    for j in range(modes):
        colour = plt.get_cmap("viridis")(0.9 * j / max(modes - 1, 1))
        right.plot(times, leading[:, j], color=colour, lw=1.3)
        right.plot(times, exact[:, j], color=colour, lw=1.0, ls="--")
        right.plot(1.03 * time, fate.s[j], marker="<", color=colour, ms=6, clip_on=False)
    right.plot([], [], color="0.3", lw=1.3, label="flow, leading order")
    right.plot([], [], color="0.3", lw=1.0, ls="--", label="flow, exact")
    right.plot([], [], color="0.3", marker="<", ls="", label="water filling")
    right.set(xlabel="time t", ylabel="$s_j$", title="features by mode (dark: largest c)")
    right.legend(fontsize=7.5)
    for axis in (before, after, right):
        axis.title.set_fontsize(10)
    figure.suptitle("Which modes live under the cosine loss: water filling", fontsize=11)
    save(figure, path, DPI)
    return {
        "c": c,
        "start": s,
        "alive": fate.alive,
        "q2": fate.q[None] ** 2,
        "time": times,
        "s": leading,
        "exact_s": exact,
    }


def direct_spectrum(path: Path, modes: int = 8, time: float = 2000.0) -> dict[str, np.ndarray]:
    """Draw the spectrum at which DirectPred ends, by what two views share, and DirectCopy's.

    Lines are the law, points the exact flow from two random starts.

    Args:
        path: the file; its folder is created.
        modes: number of modes of the flow.
        time: of the flow.

    Returns:
        c (modes,), eps (3,), law (3, modes) and flow (3, 2, modes): eigenvalues of F over its
        largest, of DirectPred.
    """
    c, eps = np.linspace(1, 0.1, modes), np.array([0.0, 0.1, 0.3])
    starts = np.random.default_rng(0).uniform(0.1, 1, (2, modes))
    curves = cosine.simulate_direct(s=starts, c=c, eps=eps[:, None], times=[0.0, time], nodes=40)
    flow = curves.s[:, :, -1] / curves.s[:, :, -1].max(-1, keepdims=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.4, 3.9), layout="constrained", sharey=True
    )
    line = np.linspace(0, 1, 400)
    for value, colour, mark, ends in zip(eps, COLOURS, MARKS, flow, strict=True):
        law = cosine.direct_spectrum(line, eps=value)
        left.plot(line, law, color=colour, label=f"ε = {value:g}")
        for end in ends:
            left.plot(c, end, mark, color=colour, ms=5, mfc="none", clip_on=False)
    left.plot([], [], "o", color="0.3", mfc="none", ms=5, label=f"exact flow, {modes} modes")
    left.set_title("DirectPred: $p_j = (f_j/f_1)^{1/2} + ε$", fontsize=10)
    left.set(ylabel="$f_j/f_1$ at the end", xlabel="$c_j/c_1$: what two views share")
    many = np.linspace(0, 1, 32)
    for norm, style in (("max", "-"), ("frobenius", "--"), ("trace", ":")):
        law = cosine.direct_spectrum(many, power=1.0, eps=0.3, norm=norm)
        right.plot(many, law / law.max(), color="0.2", ls=style, marker=".", ms=3, label=norm)
    right.set_title("power 1, ε = 0.3, by the norm of F (32 modes)", fontsize=10)
    right.set(xlabel="$c_j/c_1$")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle("Spectrum of F under predictors in closed form, cosine loss", fontsize=11)
    save(figure, path, DPI)
    law = np.stack([cosine.direct_spectrum(c, eps=value) for value in eps])
    return {"c": c, "eps": eps, "law": law, "flow": flow}


def euclid_and_cosine(path: Path, modes: int = 8, cells: int = 49) -> dict[str, np.ndarray]:
    """Draw how many modes live under either loss, by decay and by the balance r = α_p s / p².

    Modes are independent under the squared distance: c is τ of `theory.collapses`. Under the cosine
    they are those of `cosine.fate`, which equal decays do not change. α_p is 1.

    Args:
        path: the file; its folder is created.
        modes: number of modes, c from 1 to 0.45.
        cells: number of values of decay and of r.

    Returns:
        c (modes,), decay, r (cells,), p (3,), alive by decay, euclid_decay and cosine_decay
        (2, cells) at r 2 and 0.1, and by r, euclid_r (3, cells) for each p and cosine_r (3, cells).
    """
    c = np.linspace(1, 0.45, modes)
    decay, r = np.linspace(0, 0.3, cells), np.geomspace(1e-3, 10, cells)
    starts = ((0.5, 2.0), (0.5, 0.1))  # p, r
    sizes = np.array([0.3, 1.0, 3.0])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.4, 3.9), layout="constrained", sharey=True
    )

    def euclid(p: np.ndarray, r: np.ndarray, decay: np.ndarray) -> np.ndarray:
        equal = {"alpha_p": 1.0, "eta_p": decay[..., None], "eta_s": decay[..., None]}
        p = p[..., None]
        return np.sum(~theory.collapses(p=p, s=r[..., None] * p**2, tau=c, **equal), axis=-1)

    def by_cosine(p: np.ndarray, r: np.ndarray) -> np.ndarray:
        p = np.broadcast_to(p[..., None], (*np.broadcast_shapes(p.shape, r.shape), modes))
        return np.sum(cosine.fate(p, r[..., None] * p**2, c, 1.0).alive, axis=-1)

    p, ratio = (np.array(column)[:, None] * np.ones(cells) for column in zip(*starts, strict=True))
    found = {
        "euclid_decay": euclid(p, ratio, decay * np.ones((len(starts), 1))),
        "cosine_decay": by_cosine(p, ratio),
        "euclid_r": euclid(sizes[:, None] * np.ones(cells), r * np.ones((3, 1)), np.zeros(1)),
        "cosine_r": by_cosine(sizes[:, None] * np.ones(cells), r * np.ones((3, 1))),
    }
    for i, ((_, value), style) in enumerate(zip(starts, ("-", "--"), strict=True)):
        for name, colour, word in (("euclid", COLOURS[1], "squared"), ("cosine", "0.1", "cosine")):
            label = f"{word}, r = {value:g}"
            alive = found[f"{name}_decay"][i]
            left.step(decay, alive, where="mid", color=colour, ls=style, label=label)
    for i, (size, style) in enumerate(zip(sizes, (":", "-", "--"), strict=True)):
        label = f"squared, p = {size:g}"
        alive = found["euclid_r"][i]
        right.step(r, alive, where="mid", color=COLOURS[1], ls=style, label=label)
    right.step(r, found["cosine_r"][0], where="mid", color="0.1", lw=2, label="cosine, any p")
    left.set(xlabel="decay η of W and $W_p$", ylabel=f"modes that live, of {modes}")
    left.set_title("by decay, from $p$ = 0.5", fontsize=10)
    right.set(xscale="log", xlabel="$r = α_p s / p^2$ at the start")
    right.set_title("by balance, without decay", fontsize=10)
    for axis in (left, right):
        axis.set_ylim(-0.3, modes + 0.3)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle("Where the squared distance and the cosine part", fontsize=11)
    save(figure, path, DPI)
    return {"c": c, "decay": decay, "r": r, "p": sizes} | found


FIGURES = {
    "water": water,
    "direct_spectrum": direct_spectrum,
    "euclid_and_cosine": euclid_and_cosine,
}
