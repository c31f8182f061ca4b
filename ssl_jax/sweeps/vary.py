"""The sweep over any fields of any configuration that trains.

    --config.vary='target.tau=0,0.9,0.996; optimizer.predictor.learning_rate=0.03,0.3'

One value fixes a field, several vary it. The value of a field that takes several numbers stands in
brackets: `views.crop_scale=(0.2,1),(0.08,1)`. Draws take ranges as well: `0.1..0.9`, `4..64`, and
`log:1e-4..1e-1`.
"""

import hashlib
import itertools
import math
import re
from typing import NamedTuple

import numpy as np

from ssl_jax.builders.fields import configured, flat, read_config
from ssl_jax.errors import UserError, nearest
from ssl_jax.sweeps.jobs import TRAINERS, Grid
from ssl_jax.types import Config
from ssl_jax.workdir.directory import flatten

FORM = "takes FIELD=VALUE,VALUE,...; FIELD=..., e.g. target.tau=0,0.9; optimizer.learning_rate=0.1"
DRAWN_DIGITS = 3  # of a number drawn from a range: it names a directory
LONGEST = 100  # characters of a cell's name
MOST = 10_000  # cells of a sweep


class Range(NamedTuple):
    """An interval that values are drawn from, evenly, or evenly by their logarithm."""

    low: float
    high: float
    log: bool
    whole: bool  # of whole numbers, both ends included


Values = list[str] | Range


def varied_grid(config: Config) -> Grid:
    """Return the sweep over the fields of `config.vary`; UserError for a wrong field.

    Args:
        config: of the sweep. `of`: the configuration that the cells start from; `vary`: fields
            and their values; `pair`: the values are taken together, the first of all, the second
            of all, and so on; `random`: so many draws, 0 for every combination.
    """
    if config.sweep:
        raise UserError(
            f"sweep: got {config.sweep!r} beside of and vary; "
            f"takes --config configs/sweeps/{config.sweep}.py, which has the cells of that table"
        )
    if not config.of:
        raise UserError(
            "of: got none, takes a configuration that trains, e.g. configs/cifar10_small.py:byol"
        )
    base = read_config(config.of)
    if base.task not in TRAINERS:
        raise UserError(f"of: got {config.of}, whose task is {base.task}; takes one that trains")
    if config.random < 0:
        raise UserError(f"random: got {config.random}, takes how many cells to draw, or 0")
    if config.random and config.pair:
        raise UserError("pair: got True beside random, takes one of the two")
    fields = parse(config.vary, ranges=config.random > 0)
    known = flat(base)
    for field in fields:
        if field not in known:
            raise UserError(f"vary: {field}: no such field, {nearest(field, known, few=True)}")
        if field == "seed":
            raise UserError("vary: seed: no field of a cell; takes --config.seeds=0,1,2")
        if field == "task":
            raise UserError("vary: task: all cells have that of the configuration in of")
    if config.random:
        settings = draw(fields, config.random, config.draw_seed)
    else:  # there are no ranges
        lists = {field: list(values) for field, values in fields.items()}
        settings = pairs(lists) if config.pair else combinations(lists)
    varying = [f for f, values in fields.items() if isinstance(values, Range) or len(values) > 1]
    cells: dict[str, Config] = {}
    same: dict[str, str] = {}
    for name, setting in named(settings, varying).items():
        try:
            cells[name] = configured(config.of, setting)
        except UserError as error:
            raise UserError(f"vary: {error}") from error
        if (other := same.setdefault(repr(flatten(cells[name])), name)) != name:
            raise UserError(f"vary: {other} and {name} are the same run; takes each value once")
    return Grid(
        title=f"{len(cells)} cells of {config.of}",
        marks={},
        file=config.of,
        cells=cells,
    )


def named(settings: list[dict[str, str]], varying: list[str]) -> dict[str, dict[str, str]]:
    """Return the settings by the names of their cells; equal draws are one cell.

    UserError where two settings would have one name.
    """
    found: dict[str, dict[str, str]] = {}
    for setting in settings:
        own = {field: setting[field] for field in varying}
        other = found.setdefault(name := name_of(own), setting)
        if field := next((field for field in varying if other[field] != own[field]), ""):
            raise UserError(
                f"vary: {field}: {other[field]} and {own[field]} would both be the directory "
                f"{name}; takes another spelling of one of them"
            )
    return found


def require_few(count: int) -> None:
    """Raise a UserError where there are more cells than a sweep has, before any is made."""
    if count > MOST:
        raise UserError(f"vary: got {count:,} cells, takes at most {MOST:,}")


def parse(text: str, ranges: bool = False) -> dict[str, Values]:
    """Return the values of each field, as texts.

    Args:
        text: `FIELD=VALUE,...; FIELD=...`
        ranges: whether LOW..HIGH is one.

    Returns:
        {field: its values, or its range}.

    Raises:
        UserError: the text has another form, a field or a value stands twice.
    """
    fields: dict[str, Values] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        field, equals, listed = part.partition("=")
        field = field.strip()
        values = [value.strip() for value in re.split(r",(?![^(]*\))", listed)]
        if not (equals and field and all(values)):
            raise UserError(f"vary: got {part!r}, {FORM}")
        if field in fields:
            raise UserError(f"vary: {field} stands twice; takes all its values with commas between")
        if len(set(values)) < len(values):
            raise UserError(f"vary: {field}: got {listed.strip()}, a value stands twice")
        found = [as_range(field, value) for value in values]
        if any(found) and (not ranges or len(found) > 1):
            raise UserError(f"vary: {field}: got {listed.strip()}; takes one range, with random=N")
        fields[field] = found[0] or [value.strip("()") for value in values]
    if not fields:
        raise UserError(f"vary: got none, {FORM}")
    return fields


def as_range(field: str, text: str) -> Range | None:
    """Return the range that a text is, or None."""
    match = re.fullmatch(r"(log:)?(\S+?)\.\.(\S+)", text)
    if match is None:
        return None
    try:
        low, high = float(match[2]), float(match[3])
    except ValueError:  # a path, such as ../data
        return None
    if not (math.isfinite(high - low) and low < high and (low > 0 or not match[1])):
        raise UserError(
            f"vary: {field}: got {text}, takes LOW..HIGH, or log:LOW..HIGH with LOW above 0"
        )
    whole = match[2].lstrip("+-").isdigit() and match[3].lstrip("+-").isdigit()
    return Range(low, high, bool(match[1]), whole)


def combinations(fields: dict[str, list]) -> list[dict[str, str]]:
    """Return every combination of the values, the last field's changing fastest."""
    require_few(math.prod(map(len, fields.values())))
    rows = itertools.product(*fields.values())
    return [dict(zip(fields, row, strict=True)) for row in rows]


def pairs(fields: dict[str, list]) -> list[dict[str, str]]:
    """Return the first values of all fields, the second of all, ...; one value goes with all."""
    several = {field: values for field, values in fields.items() if len(values) > 1}
    counts = {len(values) for values in several.values()}
    if len(counts) > 1:
        told = ", ".join(f"{field} {len(values)}" for field, values in several.items())
        raise UserError(f"pair: got {told} values, takes as many of each field")
    count = max(counts, default=1)
    columns = [values if len(values) > 1 else values * count for values in fields.values()]
    return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]


def draw(fields: dict[str, Values], count: int, seed: int) -> list[dict[str, str]]:
    """Return `count` settings, each drawn by its own number: a larger count adds to a smaller."""
    require_few(count)
    settings = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        settings.append({field: draw_one(values, generator) for field, values in fields.items()})
    return settings


def draw_one(values: Values, generator: np.random.Generator) -> str:
    """Return one of the values, or a number of the range with `DRAWN_DIGITS` digits."""
    if not isinstance(values, Range):
        return values[generator.integers(len(values))]
    # A whole number stands for the half around it: both ends are as likely as the others.
    low, high = values.low - values.whole / 2, values.high + values.whole / 2
    if values.log:
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    return str(math.floor(value + 0.5)) if values.whole else f"{value:.{DRAWN_DIGITS}g}"


def name_of(setting: dict[str, str]) -> str:
    """Return a name for a cell that a directory can have, and that no comma splits."""
    texts = [f"{field}={value}" for field, value in setting.items()]
    name = "+".join(re.sub(r"[^\w.=-]+", "-", text) for text in texts) or "base"
    if len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
