"""Pictures on a two-dimensional map of their features, as one HTML page that needs no network.

The page holds its pictures, its style and its program. Each picture is an `<img>` whose attributes
have place, path and label, foreign text through `text.in_html`; the program draws them on a canvas,
and writes text as text alone.
"""

import colorsys
import importlib.util
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ssl_jax.errors import UserError
from ssl_jax.reports import html
from ssl_jax.reports.run_figures import principal
from ssl_jax.text import in_html, shortened

THUMBNAIL = 64  # pixels of a picture's longest side
LOSSLESS = 24  # pixels of a side up to which a picture is stored as PNG: it is small
LEGEND = 20  # most classes that are named below the map
LONGEST = 200  # characters of a path that the page shows
KINDS = ("pca", "umap")


class Point(NamedTuple):
    """A picture on the map."""

    path: str
    label: str | None
    picture: np.ndarray  # (H, W, C) uint8


def check_kind(kind: str) -> None:
    """Raise a UserError where a map of this kind, of `KINDS`, takes a package that is not there."""
    if kind == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("map: got 'umap', takes umap-learn: pip install umap-learn; or map=pca")


def place(feature: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Return the place of each picture on the map, in 0..1, both axes in one scale.

    Args:
        feature: (N, F) float32.
        kind: "pca" (the first two principal components) | "umap" (McInnes et al. 2018,
            arXiv:1802.03426, cosine distances).
        seed: of UMAP.

    Returns:
        (N, 2) float64, the middle of the map at 0.5.
    """
    if kind == "umap" and len(feature) > 3:
        import umap  # pyright: ignore[reportMissingImports]  # of the user's own

        neighbours = min(15, len(feature) - 1)
        reducer = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
        found = np.asarray(reducer.fit_transform(feature), np.float64)
    else:
        found = principal(feature)
        found = np.pad(found, [(0, 0), (0, 2 - found.shape[1])])  # a single picture
    low, high = found.min(axis=0), found.max(axis=0)
    return (found - (low + high) / 2) / max((high - low).max(), 1e-300) + 0.5


def thumbnail(picture: np.ndarray) -> str:
    """Return a picture (H, W, C) uint8 as a `data:` URI, each side at most `THUMBNAIL` pixels."""
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    content, kind = io.BytesIO(), "PNG" if max(image.size) <= LOSSLESS else "JPEG"
    image.save(content, kind, **({"quality": 75} if kind == "JPEG" else {}))
    return html.data_uri(content.getvalue(), kind.lower())


def colours(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour of CSS for each class, all as bright as the others on dark and on light."""
    ordered = sorted(set(labels), key=lambda name: (not name.isdigit(), len(name), name))
    if not all(name.isdigit() for name in ordered):
        ordered = sorted(ordered)
    found = {}
    for number, name in enumerate(ordered):
        turn = colorsys.hls_to_rgb(number * 0.61803 % 1, 0.5 if number % 2 else 0.58, 0.72)
        found[name] = "#" + "".join(f"{round(255 * part):02x}" for part in turn)
    return found


def page(points: Sequence[Point], where: np.ndarray, title: str, words: str) -> str:
    """Return the whole document.

    Args:
        points: the pictures.
        where: place of each, (N, 2) in 0..1, the second axis upwards.
        title: of the page.
        words: a sentence on what is shown.

    Returns:
        HTML that loads nothing.
    """
    known = colours([point.label for point in points if point.label is not None])
    images = "".join(
        f'<img src="{thumbnail(point.picture)}" alt="" data-x="{x:.5f}" data-y="{1 - y:.5f}" '
        f'data-path="{in_html(shortened(point.path, LONGEST))}"'
        + (
            ""
            if point.label is None
            else f' data-label="{in_html(point.label)}" data-colour="{known[point.label]}"'
        )
        + ">\n"
        for point, (x, y) in zip(points, where.tolist(), strict=True)
    )
    body = (
        f"<p>{in_html(words)}</p>"
        '<div id="frame"><canvas id="map" tabindex="0" role="img" aria-label="Map of pictures: '
        'arrow keys move it, plus and minus zoom, 0 shows all of it"></canvas>'
        '<div id="tip" hidden><img id="large" alt=""><b id="label"></b><span id="path"></span>'
        '</div><div id="tools"><button id="in" aria-label="zoom in">+</button>'
        '<button id="out" aria-label="zoom out">&minus;</button>'
        '<button id="all" aria-label="show all">all</button></div></div>'
        f"{_legend(known)}<noscript>The map takes JavaScript; the page loads nothing from "
        f'elsewhere.</noscript><div id="pictures" hidden>\n{images}</div>'
    )
    return html.document(title, body, STYLE, SCRIPT)


def _legend(known: dict[str, str]) -> str:
    """Return the names of the classes with their colours, of many only the first."""
    if not known:
        return ""
    items = "".join(
        f'<li><i style="background:{colour}"></i>{in_html(shortened(name))}</li>'
        for name, colour in list(known.items())[:LEGEND]
    )
    more = f"<li>and {len(known) - LEGEND} more</li>" if len(known) > LEGEND else ""
    return f'<ul id="legend">{items}{more}</ul>'


# Beside that of all pages: the map takes the whole window.
STYLE = """
html, body { height: 100%; }
body { max-width: none; padding: .8rem 1rem; display: flex; flex-direction: column; gap: .6rem; }
h1 { font-size: 1.25rem; margin: 0; }
p { margin: 0; color: var(--soft); max-width: 60rem; overflow-wrap: anywhere; }
#frame { position: relative; flex: 1 1 0; min-height: 18rem; border: 1px solid var(--line);
  border-radius: 6px; background: var(--wash); overflow: hidden; }
#map { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; cursor: grab; }
#map:active { cursor: grabbing; }
#map:focus-visible { outline: 2px solid #2f7fd0; outline-offset: -2px; }
#tools { position: absolute; right: .5rem; top: .5rem; display: flex; gap: .3rem; }
button { font: inherit; min-width: 2.2rem; height: 2.2rem; padding: 0 .5rem; color: var(--ink);
  background: var(--paper); border: 1px solid var(--line); border-radius: 5px; cursor: pointer; }
#tip { position: absolute; left: 0; top: 0; max-width: min(16rem, 80%); padding: .5rem;
  background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
  pointer-events: none; box-shadow: 0 2px 10px #0004; font-size: .85rem; }
#tip img { width: 128px; height: 128px; object-fit: contain; margin: 0 0 .3rem;
  background: none; }
#tip b, #tip span { display: block; overflow-wrap: anywhere; } #tip span { color: var(--soft); }
#tip[hidden] { display: none; }
#legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: 0; padding: 0;
  font-size: .85rem; max-height: 6.5rem; overflow-y: auto; }
#legend li { overflow-wrap: anywhere; }
#legend i { display: inline-block; width: .75em; height: .75em; border-radius: 2px;
  margin-right: .35em; }
"""

SCRIPT = """
"use strict";
const canvas = document.getElementById("map"), pen = canvas.getContext("2d");
const tip = document.getElementById("tip");
const points = [...document.querySelectorAll("#pictures img")].map(image => ({
  image, x: +image.dataset.x, y: +image.dataset.y, path: image.dataset.path,
  label: image.dataset.label, colour: image.dataset.colour }));
let view = { x: 0.5, y: 0.5, zoom: 1 }, over = null, due = false, width = 0, height = 0;
const range = name => { const all = points.map(p => p[name]);
  return Math.max(0.05, Math.max(...all) - Math.min(...all)); };
const wide = range("x"), tall = range("y");
const fit = () => Math.max(1, Math.min((width - 40) / wide, (height - 40) / tall) * 0.97);
const side = () => Math.min(64, Math.max(14, Math.min(width, height) / 26)) *
  Math.min(4, Math.sqrt(view.zoom));
const across = p => width / 2 + (p.x - view.x) * fit() * view.zoom;
const down = p => height / 2 + (p.y - view.y) * fit() * view.zoom;

function draw() {
  due = false;
  const ratio = devicePixelRatio || 1;
  width = canvas.clientWidth; height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.imageSmoothingEnabled = true;
  const size = side();
  for (const p of points) put(p, size);
  if (over) put(over, size * 1.35);
}
function put(p, size) {
  const x = across(p), y = down(p), w = p.image.naturalWidth, h = p.image.naturalHeight;
  if (!w || x < -size || y < -size || x > width + size || y > height + size) return;
  const scale = size / Math.max(w, h), a = w * scale, b = h * scale;
  if (p.colour) {
    pen.fillStyle = p.colour;
    pen.fillRect(x - a / 2 - 2, y - b / 2 - 2, a + 4, b + 4);
  }
  pen.drawImage(p.image, x - a / 2, y - b / 2, a, b);
}
function redraw() { if (!due) { due = true; requestAnimationFrame(draw); } }
function zoom(factor, x, y) {
  const next = Math.min(200, Math.max(0.5, view.zoom * factor));
  const unit = fit() * view.zoom, after = fit() * next;
  view.x += (x - width / 2) * (1 / unit - 1 / after);
  view.y += (y - height / 2) * (1 / unit - 1 / after);
  view.zoom = next; show(null); redraw();
}
function at(x, y) {
  const half = side() / 2 + 2;
  let best = null, least = Infinity;
  for (let i = points.length - 1; i >= 0; i--) {
    const a = Math.abs(across(points[i]) - x), b = Math.abs(down(points[i]) - y);
    if (a <= half && b <= half && a + b < least) { least = a + b; best = points[i]; }
  }
  return best;
}
function show(p, x, y) {
  if (p !== over) { over = p; redraw(); }
  tip.hidden = !p;
  if (!p) return;
  document.getElementById("large").src = p.image.src;
  document.getElementById("label").textContent = p.label === undefined ? "" : p.label;
  document.getElementById("path").textContent = p.path;
  const left = x + 14 + tip.offsetWidth > width ? x - 14 - tip.offsetWidth : x + 14;
  const top = Math.min(y + 14, height - tip.offsetHeight - 4);
  tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
}
const fingers = new Map();
const spot = e => { const box = canvas.getBoundingClientRect();
  return { x: e.clientX - box.left, y: e.clientY - box.top }; };
canvas.addEventListener("pointerdown", e => {
  canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, { ...spot(e), moved: 0 });
});
canvas.addEventListener("pointermove", e => {
  const now = spot(e), before = fingers.get(e.pointerId);
  if (!before) { show(at(now.x, now.y), now.x, now.y); return; }
  const moved = before.moved + Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
  if (fingers.size === 1) {
    view.x -= (now.x - before.x) / (fit() * view.zoom);
    view.y -= (now.y - before.y) / (fit() * view.zoom);
    if (moved > 6) show(null);
    redraw();
  } else {
    const [other] = [...fingers.entries()].filter(([id]) => id !== e.pointerId).map(([, f]) => f);
    const gap = f => Math.max(1, Math.hypot(f.x - other.x, f.y - other.y));
    zoom(gap(now) / gap(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
  }
  fingers.set(e.pointerId, { ...now, moved });
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, e => {
  const end = fingers.get(e.pointerId); fingers.delete(e.pointerId);
  if (name === "pointerup" && end && end.moved <= 6) show(at(end.x, end.y), end.x, end.y);
});
canvas.addEventListener("pointerleave", () => { if (!fingers.size) show(null); });
canvas.addEventListener("wheel", e => {
  e.preventDefault(); const now = spot(e); zoom(Math.exp(-e.deltaY * 0.0015), now.x, now.y);
}, { passive: false });
canvas.addEventListener("keydown", e => {
  const step = 60 / (fit() * view.zoom);
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step],
    ArrowDown: [0, step] };
  if (moves[e.key]) { view.x += moves[e.key][0]; view.y += moves[e.key][1]; show(null); redraw(); }
  else if (e.key === "+" || e.key === "=") zoom(1.4, width / 2, height / 2);
  else if (e.key === "-") zoom(1 / 1.4, width / 2, height / 2);
  else if (e.key === "0") all();
  else return;
  e.preventDefault();
});
function all() { view = { x: 0.5, y: 0.5, zoom: 1 }; show(null); redraw(); }
document.getElementById("in").onclick = () => zoom(1.6, width / 2, height / 2);
document.getElementById("out").onclick = () => zoom(1 / 1.6, width / 2, height / 2);
document.getElementById("all").onclick = all;
new ResizeObserver(redraw).observe(canvas);
for (const p of points) if (!p.image.complete) p.image.addEventListener("load", redraw);
redraw();
"""
