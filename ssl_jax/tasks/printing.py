"""Print what is about to run, the table of layers, and the accuracies."""

import jax

from ssl_jax.builders.optimizer import Layer
from ssl_jax.builders.weights import Weights
from ssl_jax.probes.label_free import COLUMNS
from ssl_jax.reports.markdown import NUMBER, table
from ssl_jax.runtime.terminal import say
from ssl_jax.text import in_markdown, printable
from ssl_jax.train.loop import Cadence
from ssl_jax.types import Config


def print_training(
    config: Config, name: str, images: int, devices: list, cadence: Cadence, start: int
) -> None:
    """Print what is about to run.

    Args:
        config: configuration of the run.
        name: name of the data set.
        images: number of images to train on.
        devices: devices of this process.
        cadence: the run's numbers of steps.
        start: steps taken before.
    """
    total = len(devices) * jax.process_count()
    norm = "over all devices" if config.sync_batch_norm else "each device its own"
    parts = ""
    if config.accumulate > 1:
        parts, norm = f" in {config.accumulate} micro-batches", f"{norm}, of each micro-batch"
    method, name = printable(config.method), printable(name)
    say(f"{method} on {name}: {images} images, batch {config.batch_size}{parts}")
    say(f"{cadence.total} steps ({config.epochs} epochs), seed {config.seed}, {config.precision}")
    say(f"{total} x {devices[0].device_kind}; BatchNorm statistics: {norm}")
    if start:
        say(f"going on from step {start}")


def print_weights(weights: Weights) -> None:
    """Print where the weights of the first step are from, and the table of what was taken."""
    say(f"weights from {printable(weights.title)}")
    for part, arrays, size, words in weights.rows:
        numbers = f"{size // 4:11,} numbers" if size else f"{'':19}"
        say(f"    {part:12} {arrays:5} arrays {numbers}  {printable(words)}")
    for note in weights.notes:
        say(f"    {printable(note)}")


def print_layers(layers: list[Layer], optimizer: Config) -> None:
    """Print the rows of `layer_table`; `optimizer` is that section of the configuration."""
    layerwise = optimizer.layerwise or "alike"
    decay = f"{optimizer.decay} decay, scale {optimizer.decay_scale}, layers {layerwise}"
    say(f"{optimizer.name}, {decay}")
    say(
        f"{'':>3} {'layer':34} {'parameters':>11} {'decayed':>11} {'factor':>7} "
        f"{'weight decay':>13} {'rate':>9}"
    )
    for i, name, size, decayed, factor, weight_decay, rate in layers:
        say(
            f"{i:>3} {name:34} {size:11,} {decayed:11,} {factor:7.3f} "
            f"{weight_decay:13.4g} {rate:9.4g}"
        )
    size, decayed = sum(row.size for row in layers), sum(row.decayed for row in layers)
    say(f"    {'in all':34} {size:11,} {decayed:11,}")


def print_accuracies(result: dict) -> None:
    """Print the test accuracies of result.json beside the untrained encoder's, one a line."""
    for name in (n for n in result if n.endswith("_accuracy") and not n.startswith("random_init_")):
        baseline = result.get(f"random_init_{name}")
        beside = "" if baseline is None else f"   untrained encoder {baseline:.4f}"
        say(f"{name:34} {result[name]:.4f}{beside}")
    few = result.get("few_label", {})
    for name in (n for n in few if isinstance(few[n], dict)):
        mean, std = few[name]["mean"], few[name]["std"]
        spread = "over 1 draw" if std is None else f"± {std:.4f} over {few['draws']} draws"
        say(f"{few['labels_per_class']} labels a class, {name:12} {mean:.4f} {spread}")


def transfer_rows(results: list[dict]) -> list[list[str]]:
    """Return the table of a checkpoint on several sets: a header, and a row for each set.

    Args:
        results: of each set, as its result.json would have them.

    Returns:
        Cells: the set's name; accuracies in per cent, the untrained encoder's behind them in
        brackets; RankMe. "-" stands for what a set does not have.
    """
    known = [n for result in results for n in result if n.endswith("_accuracy")]
    names = list(dict.fromkeys(n for n in known if not n.startswith("random_init_")))

    def cell(result: dict, name: str, scale: float) -> str:
        value, beside = result.get(name), result.get(f"random_init_{name}")
        text = "-" if value is None else f"{scale * value:.1f}"
        return text if beside is None else f"{text} ({scale * beside:.1f})"

    header = ["set", *(n.removesuffix("_accuracy").replace("_", " ") for n in names), "RankMe"]
    return [header] + [
        [printable(result["dataset"])]
        + [cell(result, name, 100) for name in names]
        + [cell(result, "rankme", 1)]
        for result in results
    ]


def transfer_table(results: list[dict]) -> str:
    """Return table.md of a checkpoint on several sets."""
    header, *rows = [[in_markdown(cell) for cell in row] for row in transfer_rows(results)]
    note = "Test accuracies in per cent, in brackets those of the untrained encoder.\n"
    return f"{table(header, rows, rest=NUMBER)}\n{note}"


def print_transfer(results: list[dict]) -> None:
    """Print the table of a checkpoint on several sets."""
    rows = transfer_rows(results)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    say("test accuracies in %, in brackets those of the untrained encoder:")
    for name, *cells in rows:
        right = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        say("  ".join([f"{name:{widths[0]}}", *right]))


def print_measures(result: dict) -> None:
    """Print the label-free measures of result.json beside the untrained encoder's, one a line."""
    images = f"{result['label_free_images']} {result['label_free_split']} images"
    say(f"without labels, on {images}:")
    for name in COLUMNS:
        baseline = result.get(f"random_init_{name}")
        beside = "" if baseline is None else f"   untrained encoder {baseline:.4g}"
        value = result[name]
        say(f"{name:34} {'undefined' if value is None else f'{value:.4g}'}{beside}")
