"""The task "embed": write the features of a set's pictures, their neighbours and a map of them."""

import functools
import hashlib
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_jax.builders import checks
from ssl_jax.builders.data import open_dataset, with_data
from ssl_jax.builders.defaults import defaults_of
from ssl_jax.builders.trained_run import checkpoint_of, parents_of, step_of
from ssl_jax.data.cache import cache_roots
from ssl_jax.data.decode import Damaged, decode_row, in_order, lines_of, none_decodes, small_row
from ssl_jax.data.pictures import read_image
from ssl_jax.data.records import RawSet, Records, join, part
from ssl_jax.errors import UserError
from ssl_jax.files import write_whole
from ssl_jax.probes.knn import nearest_in_pieces
from ssl_jax.probes.label_free import spaced
from ssl_jax.reports import embedding_map
from ssl_jax.reports.figure import optional
from ssl_jax.reports.run_figures import draw_neighbours
from ssl_jax.runs import Encoder, open_run
from ssl_jax.runtime.terminal import progress_bar, say, warn
from ssl_jax.tasks.probe import NEIGHBOURS, QUERIES
from ssl_jax.text import printable
from ssl_jax.types import Config, Interrupted
from ssl_jax.workdir import embeddings, result_json
from ssl_jax.workdir.directory import check_workdir
from ssl_jax.workdir.embeddings import Columns, Embeddings, Part, Parts

# Fields in which two starts on one work directory may differ: none decides about a feature.
LATER = ("format", "map", "map_images", "seed", "data.damaged")
SHOWN = 3  # damaged pictures that a line has room for


class Pictures(NamedTuple):
    """All pictures of a set, undecoded."""

    name: str
    records: Records  # of all splits, one after the other
    columns: Columns
    identity: str  # of their contents, names, splits and labels


def embed(config: Config, directory: str, interrupted: Interrupted = lambda: False) -> None:
    """Write embeddings.parquet, result.json, figures/neighbours.png and map.html.

    Args:
        config: configuration of the task.
        directory: work directory of the task.
        interrupted: not asked: what is computed is saved in parts, and a stop loses one of them.

    Raises:
        UserError: a field is wrong, `checkpoint` names no run with an encoder, or pictures are
            damaged.
    """
    forms, step = checks.check_embed(config), step_of(config.step)
    run = open_run(checkpoint_of(config))
    best = step == "best"
    trained = run.checkpoint(None if best or step == -1 else step, best)
    own = trained.config.data.name
    settings = with_data(trained.config, config.data)
    out = check_workdir(directory, config.to_dict(), defaults=defaults_of("embed"), later=LATER)
    raw = open_dataset(settings)
    encoder = Encoder(trained)
    pictures = pictures_of(settings.data.name, raw)
    result_json.open_on_one(directory, config.to_dict(), parents_of(trained))
    say(raw.found)
    method = printable(trained.config.method)
    say(f"embedding {printable(settings.data.name)}: {method} at step {trained.step}")
    begin, path = time.perf_counter(), out / embeddings.NAME
    identity = hashlib.sha256(f"{pictures.identity} {encoder.digest()}".encode()).hexdigest()[:32]
    note = {"identity": identity, "checkpoint": str(trained.source), "step": trained.step}
    note |= {"dataset": settings.data.name, "image": encoder.image}
    stored, computed = embeddings.open_finished(path, identity), 0
    if stored is not None:
        damaged = [(int(row), str(why)) for row, why in stored.note["damaged"]]
        check_damaged(damaged, pictures, settings.data.damaged, out)
    else:
        parts = Parts(out / "parts", identity, len(pictures.records.names))
        damaged, computed = compute(parts, pictures, encoder, settings.data.damaged)
        check_damaged(damaged, pictures, settings.data.damaged, out)
        note["damaged"] = damaged
        embeddings.join(path, parts, pictures.columns, encoder.dim, note)
        parts.delete()
        stored = Embeddings(path)
    seconds = time.perf_counter() - begin
    files = [path, *(out / f"embeddings.{form}" for form in forms[1:])]
    for form, file in zip(forms[1:], files[1:], strict=True):
        embeddings.WRITERS[form](stored, file)
    rows = np.delete(np.arange(len(pictures.records.names)), [row for row, _ in damaged])
    draw(config, pictures, stored, encoder, rows, out)
    result = {"task": "embed", "checkpoint": str(trained.source)}
    result |= result_json.describe(settings.to_dict())
    result |= {"trained_on": own, "steps": trained.step, "images": stored.count}
    result |= {"splits": pictures.columns.sizes(rows), "classes": list(raw.label_names)}
    result |= {"features": stored.dim, "damaged": len(damaged), "files": [f.name for f in files]}
    # of this start: one that finds all computed has no rate
    rate = computed / seconds if computed else None
    result |= {"seconds": seconds, "images_per_second": rate} | result_json.environment()
    result_json.write(out, result)
    say(f"{stored.count} pictures, {stored.dim} features each: {', '.join(map(str, files))}")


def pictures_of(name: str, raw: RawSet) -> Pictures:
    """Return all pictures of a set: train, test and unlabelled, as the set has them."""
    named = (("train", raw.train), ("test", raw.test), ("unlabelled", raw.unlabelled))
    splits = [(split, records) for split, records in named if records is not None]
    whole = functools.reduce(join, [records for _, records in splits])
    sizes = [(split, len(records.names)) for split, records in splits]
    labels = whole.labels if raw.label_names else None
    digest = hashlib.sha256(json.dumps([raw.digest, sizes, raw.label_names]).encode())
    for text in whole.names:
        digest.update(text.encode(errors="surrogateescape") + b"\0")
    digest.update(b"" if labels is None else labels.tobytes())
    columns = Columns(whole.names, labels, sizes, raw.label_names)
    return Pictures(name, whole, columns, digest.hexdigest())


def compute(
    parts: Parts, pictures: Pictures, encoder: Encoder, damaged: str
) -> tuple[list[tuple[int, str]], int]:
    """Compute all parts that are not there, and return the damaged pictures.

    Args:
        parts: where they are kept.
        pictures: all of them.
        encoder: computes the features.
        damaged: "error" | "skip"; only what is said of the first damaged picture depends on it.

    Returns:
        Place and reason of each damaged picture, and the number of pictures of this start.
    """
    total = len(pictures.records.names)
    bad: dict[int, list[tuple[int, str]]] = {}  # damaged pictures of each finished part
    for number in range(parts.count):
        if (kept := parts.read(number)) is not None:
            bad[number] = kept.damaged
    missing = [number for number in range(parts.count) if number not in bad]
    ranges = [
        np.arange(n * embeddings.PART, min((n + 1) * embeddings.PART, total)) for n in missing
    ]
    rows = np.concatenate([np.zeros(0, np.int64), *ranges])
    read = part(pictures.records, rows).read
    job = functools.partial(decode_row, read, encoder.image, *encoder.fit)
    results = in_order(job, len(rows), cache_roots(None))
    title = f"embedding {pictures.name}"
    with progress_bar(total, total - len(rows), "image", title) as bar:
        for number, own in zip(missing, ranges, strict=True):
            made = one_part(own, islice(results, len(own)), encoder)
            if made.damaged and damaged == "error" and not any(bad.values()):
                row, why = made.damaged[0]
                name = printable(pictures.records.names[row])
                warn(
                    f"{name}: cannot be decoded ({printable(why)}); the others are computed, and "
                    "then it is an error (data.damaged=skip leaves it out)"
                )
            bad[number] = made.damaged
            parts.write(number, made)
            bar.update(len(own))
    return [entry for number in sorted(bad) for entry in bad[number]], len(rows)


def one_part(rows: np.ndarray, results: Iterator, encoder: Encoder) -> Part:
    """Return the features of some rows.

    Args:
        rows: places among all records, (n,).
        results: for each the pixels and None, or None and the reason, see `decode_row`.
        encoder: computes the features of all of them at once.

    Returns:
        The part.
    """
    decoded = list(zip(rows.tolist(), results, strict=True))
    sound = [(row, pixels) for row, (pixels, _) in decoded if pixels is not None]
    damaged = [(row, str(why)) for row, (pixels, why) in decoded if pixels is None]
    image = np.zeros((0, *encoder.image), np.uint8)
    if sound:
        image = np.stack([pixels for _, pixels in sound])
    return Part(np.array([row for row, _ in sound], np.int64), encoder(image), damaged)


def check_damaged(
    damaged: list[tuple[int, str]], pictures: Pictures, option: str, out: Path
) -> None:
    """Write damaged.txt where pictures are damaged.

    Args:
        damaged: place and reason of each.
        pictures: all of them.
        option: "error" | "skip".
        out: work directory.

    Raises:
        UserError: some are, and the option says so; or all of them are.
    """
    if not damaged:
        return
    entries = [Damaged(row, pictures.records.names[row], why) for row, why in damaged]
    if len(entries) == len(pictures.records.names):
        raise none_decodes(entries)
    path, lines = out / "damaged.txt", lines_of(entries)
    write_whole(path, "\n".join([*lines, ""]))
    if option == "error":
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise UserError(
            f"data.damaged: {len(lines)} of {len(pictures.records.names)} pictures cannot be "
            f"decoded ({'; '.join(lines[:SHOWN])}{more}), all of them listed in {path}; mend or "
            "delete them, or set data.damaged=skip, which keeps what is computed"
        )
    say(f"{len(lines)} damaged pictures are left out, listed in {path}")


def draw(
    config: Config,
    pictures: Pictures,
    stored: Embeddings,
    encoder: Encoder,
    rows: np.ndarray,
    out: Path,
) -> None:
    """Draw figures/neighbours.png and map.html; one that fails costs a warning.

    Args:
        config: of the task.
        pictures: all of them.
        stored: their features.
        encoder: says how images look to the network.
        rows: place among all records of each picture that has features.
        out: work directory.
    """
    read, (fit, background) = pictures.records.read, encoder.fit

    def images(places: np.ndarray) -> np.ndarray:
        how = encoder.image, fit, background
        return np.stack([read_image(read(row), *how) for row in rows[places].tolist()])

    with optional(out / "figures" / "neighbours.png") as path:
        queries = spaced(stored.count, QUERIES)
        x = stored.take(queries)[1]
        near = nearest_in_pieces(stored.features(), x, queries, NEIGHBOURS)
        found = images(near.ravel()) if near.size else np.zeros((0, *encoder.image), np.uint8)
        draw_neighbours(images(queries), found.reshape(*near.shape, *encoder.image), path)
    if config.map == "none":
        return
    with optional(out / "map.html") as path:
        rng, count = np.random.default_rng(config.seed), min(config.map_images, stored.count)
        chosen = np.sort(rng.choice(stored.count, count, replace=False))
        texts, x = stored.take(chosen)
        some = part(pictures.records, rows[chosen]).read
        small = functools.partial(small_row, some, embedding_map.THUMBNAIL, background)
        drawn = in_order(small, count, cache_roots(None))
        points = [
            embedding_map.Point(str(name), label, picture)
            for name, label, picture in zip(texts["path"], texts["label"], drawn, strict=True)
        ]
        of = "all" if count == stored.count else f"{count} of"
        kind = {"pca": "first two principal components", "umap": "UMAP"}[config.map]
        words = f"{of} {stored.count} pictures by the features of {config.checkpoint}: {kind}"
        where = embedding_map.place(x, config.map, config.seed)
        write_whole(path, embedding_map.page(points, where, f"Map of {pictures.name}", words))
        say(f"map in {path}")
