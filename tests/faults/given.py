"""Attacks by what users and other people write: values, names, paths, numbers."""

import json
import math
import os
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from nasty import NASTY, random_texts
from test_foreign_results import check_page, encodable, open_picture, write_cell, write_run

from ssl_jax import launch
from ssl_jax.builders import fields as tables
from ssl_jax.builders import pretraining, supervised
from ssl_jax.builders.checks import check_few_labels
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.fields import flat, read_config, with_local_paths
from ssl_jax.builders.program import check_exclude, check_memory
from ssl_jax.data.dataset import Dataset
from ssl_jax.diagnosis.signs import NEEDED
from ssl_jax.files import local_path
from ssl_jax.models.batch_norm import BatchNorm
from ssl_jax.probes.knn import knn_accuracy
from ssl_jax.probes.linear import standardise
from ssl_jax.reports import doctor, run_figures
from ssl_jax.reports.replication.page import page
from ssl_jax.reports.replication.results import gather
from ssl_jax.tasks import registry, report
from ssl_jax.text import in_markdown, printable
from ssl_jax.types import Config
from ssl_jax.workdir.directory import read_json

from .suite import SMALL, Named, Place, command, group

# --- Values on the command line -------------------------------------------------------------------

VALUES = (
    *("1", "2", "3", "7", "16", "64", "100", "0.1", "0.25", "1e-3", "1.0", "2.5", "true", "False"),
    *("inf", "-inf", "nan", "1e400", "-1e400", "1e308", "1e-320", "-1", "0", "-0.0", "0.5"),
    *("1" + "0" * 30, str(2**31), str(2**63), str(10**9), "0x10", "1_000", "1,2", "1,", "[1]"),
    *("", " ", "None", "True", "text", "½", "١٢", "\ud800", "\x1b[2J", "x" * 5000, "{}", "a=b"),
)
SUPERVISED = ["--config.data.name=digits", "--config.data.validation_size=100"]
SUPERVISED += ["--config.batch_size=64", "--config.encoder.name=mlp", "--config.encoder.depth=1"]
FILES = {"configs/quickstart.py": SMALL, "configs/supervised.py": SUPERVISED}


@group("command line", quick=35)
def command_line(rng: np.random.Generator) -> Named:
    """Every field at a value beyond what it takes, as far as a run checks before it trains."""
    for file, count in zip(FILES, (140, 60), strict=True):
        fields = list(flat(read_config(file)))
        chosen = [*fields, *rng.choice(fields, max(0, count - len(fields)))]
        for field in chosen[: max(count, len(fields))]:
            value = VALUES[rng.integers(len(VALUES))]
            name = f"{file}: {field}={ascii(value)[:40]}"
            yield name, partial(set_field, file, str(field), value)
    yield "a value of 100 000 characters", run_long


@cache
def digits() -> Dataset:
    """Return the images, for a check that needs them."""
    values = launch.parse_flags(["launch.py", *words_of("configs/quickstart.py")])
    return read_dataset(values["config"].value)


def run_long(place: Place) -> None:
    """Give a value of a hundred thousand characters on a command line."""
    command(*words_of("configs/quickstart.py"), f"--config.loss={'x' * 10**5}")


def words_of(file: str) -> list[str]:
    """Return the command line that the values are added to."""
    return [f"--config={file}", "--workdir=w", *FILES[file]]


def set_field(file: str, field: str, value: str, place: Place) -> None:
    """Set a field, and check as a run does before it trains; what is accepted is what was set."""
    values = launch.parse_flags(["launch.py", *words_of(file), f"--config.{field}={value}"])
    config = with_local_paths(values["config"].value)
    if config.task not in registry.TASKS:
        registry.run_task(config, "w", lambda: False)
    check(config)
    found = config
    for name in field.split("."):
        found = found[name]
    if isinstance(found, str):
        path = field.rpartition(".")[2] in tables.PATHS and value
        assert found == (local_path(field, value) if path else value)
    for number in found if isinstance(found, tuple) else [found]:
        if isinstance(number, int | float):
            assert math.isfinite(number) and abs(number) <= 1e308, f"took {number}"
            assert isinstance(number, float) or abs(number) < 2**63, f"took {number}"
    if type(found) is float:
        assert found == float(value)
    if type(found) is int:
        assert found == int(value, 0)


def check(config: Config) -> None:
    """Check a configuration as its task does before it trains."""
    if config.task == "supervised":
        plan, parts, _ = supervised.prepare(config)
        init = supervised.make_init(parts, plan.data)
    else:
        config, plan, parts, _ = pretraining.prepare(config)
        init = pretraining.make_init(parts, plan.data)
        check_few_labels(config.probe, digits())
    check_memory(config, init, jax.devices()[:1])
    check_exclude(config, init)


# --- Names ----------------------------------------------------------------------------------------


@group("names", quick=12)
def names(rng: np.random.Generator) -> Named:
    """Nasty texts as class, method, data set and folder, in figures, Markdown and the page."""
    texts = [*NASTY, *random_texts(20, int(rng.integers(2**31)))]
    kinds = [name_classes, name_method, name_folder]
    for number, text in enumerate(texts):
        yield f"{ascii(text)[:40]} {number}", partial(kinds[number % len(kinds)], text)


def name_classes(text: str, place: Place) -> None:
    """Draw features of classes of this name."""
    x = np.random.default_rng(0).normal(size=(20, 5))
    features = {"test_x": x, "test_y": np.arange(20) % 2}
    run_figures.draw_features(features, (text, "b"), place.folder / "f.png")
    assert open_picture(place.folder / "f.png").std() > 5


def name_method(text: str, place: Place) -> None:
    """Draw a run of this method on this data set, and its diagnosis."""
    write_run(place.folder, method=text, dataset=text)
    run_figures.draw_run(place.folder)
    assert open_picture(place.folder / "figures" / "training.png").std() > 5
    rows = {name: np.linspace(1, 2, 30) for name in (*NEEDED, "predictor_norm", "step")}
    facts = SimpleNamespace(dim=4)
    doctor.draw(rows, SimpleNamespace(since=None), facts, f"{text}: x", place.folder / "d.png")
    assert open_picture(place.folder / "d.png").std() > 5


def name_folder(text: str, place: Place) -> None:
    """Report a result under a folder of this name, or, where none is called so, with this state."""
    fields = {"sweep": text, "cell": text} if encodable(text) else {"state": text, "command": text}
    write_cell(place.folder, **fields)
    gathered = gather([place.folder])
    assert not gathered.left_out
    stored = json.loads(json.dumps(text))  # of two halves JSON makes the character
    assert printable(stored).strip() in check_page(page(gathered)).text
    written = report.text_of(gathered)
    assert "<img" not in written and "\x1b" not in written
    assert "sweep" not in fields or in_markdown(text) in written


# --- Paths ----------------------------------------------------------------------------------------

PATHS = (
    *("gs://bucket/run", "https://x.org/run", "file:///tmp/x", "s3://a", "~nobody-of-this-name/x"),
    *("a\0b", "a\nb", "\tx", "\x7f", "x" * 300, "ü" * 200, "a/" * 3000, "\ud800", "\udcff"),
    *("/dev/null/x", "/dev/null", "/proc/1/x", "/proc/self/x", "../outside/file", "."),
    *(" ", "-", "--x", "$HOME", "%s{0}", "Käfer 中", "a,b", "x y'\"", "loop", "fifo"),
)


@group("paths", quick=10)
def paths(rng: np.random.Generator) -> Named:
    """As the run that the doctor reads, and as a work directory that pretraining checks."""
    for number, path in enumerate(PATHS):
        use = (write_at, read_at)[number % 2]
        yield f"{use.__name__} {ascii(path)[:40]}", partial(use, path)


def odd_entries(place: Place) -> None:
    """Make a link to itself and a pipe in the current directory."""
    os.symlink("loop", place.here / "loop")
    os.mkfifo(place.here / "fifo")


def read_at(path: str, place: Place) -> None:
    """Diagnose a run at a path where there is none."""
    odd_entries(place)
    command("--config=configs/doctor.py", "--workdir=out", f"--config.run={path}")
    raise AssertionError("was taken")


def write_at(path: str, place: Place) -> None:
    """Write a diagnosis into a work directory; where the path is taken, it lies there."""
    odd_entries(place)
    command("--config=configs/doctor.py", f"--workdir={path}", f"--config.run={place.run}")
    assert read_json(place.here / path / "result.json")["task"] == "doctor"


# --- Numbers --------------------------------------------------------------------------------------


@group("numbers", quick=9)
def numbers(rng: np.random.Generator) -> Named:
    """Where float32 has no digits left, against NumPy's float64."""
    for mean, deviation in ((0, 1), (1, 1e-3), (300, 0.03), (3e3, 1), (-1e4, 3), (1e5, 30)):
        yield f"BatchNorm, {mean} ± {deviation}", partial(normalise, mean, deviation)
    for size in (0, 10, 100, 300, 1e3, 1e4, 1e5):
        yield f"kNN beside a direction of {size:g}", partial(neighbours, size)
    for mean, deviation in ((0, 1), (300, 0.03), (1e4, 1e-2), (1e6, 1), (-1e30, 1e27)):
        yield f"standardise, {mean} ± {deviation}", partial(scale, mean, deviation)
    for value in (math.nan, math.inf, -math.inf):
        yield f"kNN of {value}", partial(not_finite, value)


def drawn(mean: float, deviation: float, count: int = 256) -> np.ndarray:
    """Return float32 numbers (count, 4) about a mean."""
    normal = np.random.default_rng(0).normal(size=(count, 4))
    return np.float32(mean + deviation * normal)


def normalise(mean: float, deviation: float, place: Place) -> None:
    """Train BatchNorm on one batch."""
    x = drawn(mean, deviation)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.asarray(x), use_running_average=False)
    found, _ = layer.apply(
        variables, jnp.asarray(x), use_running_average=False, mutable=["batch_stats"]
    )
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + layer.epsilon)
    np.testing.assert_allclose(found, exact, atol=0.02)


def neighbours(size: float, place: Place) -> None:
    """Classify digits' pixels beside a constant of this size."""
    image, label = digits().train
    x = image.reshape(len(image), -1).astype(np.float32) / 255
    x = np.concatenate([x, np.full((len(x), 1), size, np.float32)], 1)
    bank, query, y = x[:90], x[90:], np.asarray(label)
    found = knn_accuracy(bank, y[:90], query, y[90:], num_classes=10, k=1)
    unit = x.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    nearest = (unit[90:] @ unit[:90].T).argmax(1)
    assert abs(found - np.mean(y[nearest] == y[90:])) < 1e-9


def scale(mean: float, deviation: float, place: Place) -> None:
    """Scale the probes' features."""
    x = drawn(mean, deviation)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(0)) / exact.std(0)
    np.testing.assert_allclose(standardise(x)[0], exact, atol=1e-4)


def not_finite(value: float, place: Place) -> None:
    """Classify features with a number that is none."""
    x, y = drawn(0, 1), np.zeros(256, int)
    x[7, 2] = value
    knn_accuracy(x, y, x, y, num_classes=1, k=3)
    raise AssertionError("was taken")
