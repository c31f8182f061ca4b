"""Four cells of a sweep by one program, and one after the other: time, and how far numbers part.

    python benchmarks/together.py [--quick] [--steps=20] [--part=100] [--width=8] [--out FILE]

--steps: timed at a time; --part: most steps after which numbers are compared; --width: of the
encoder for CIFAR-10's size, whose images are noise.

"total" is compilation and --part steps of all cells. Parting is the largest difference of a
parameter, over the largest parameter, between a cell's two ways; "one ulp" the same between two
runs alone, of which one starts with every parameter at the next larger float: what rounding does.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import alternate, finish, parse, read_config, wait
from setup_step import changed, random_dataset

from ssl_jax.augment.views import make_views
from ssl_jax.builders import pretraining
from ssl_jax.builders.data import read_dataset
from ssl_jax.builders.program import compile_program
from ssl_jax.data.batches import Feed, make_feed
from ssl_jax.data.dataset import Dataset
from ssl_jax.runtime.threads import lapack_on_one_thread
from ssl_jax.train import parallel, together

# Four cells in rates, decays, tau and seed.
CELLS: list[dict[str, Any]] = [
    {"target.tau": 0.9, "seed": 0},
    {"target.tau": 0.99, "seed": 1},
    {"optimizer.learning_rate": 0.02, "seed": 0},
    {"optimizer.weight_decay": 1e-3, "predictor.rho": 0.5, "seed": 2},
]
AFTER = (1, 10, 100)  # steps after which numbers are compared


def main() -> None:
    args = parse(__doc__.splitlines()[0], steps=20, part=100, width=8)
    digits = read_config("quickstart.py")
    narrow = {"data.train_size": 2000, "encoder.width": args.width, "data.name": "noise"}
    small = {kind: changed(read_config(f"cifar10_small.py:{kind}"), narrow) for kind in KINDS}
    settings = {"digits, byol": (digits, read_dataset(digits))}
    if not args.quick:
        noise = random_dataset(2000, 32)
        settings |= {f"cifar10_small, {kind}": (config, noise) for kind, config in small.items()}
    rows, parting = [], []
    for name, (config, dataset) in settings.items():
        cells = [changed(config, cell) for cell in CELLS]
        timed, parted = compare(cells, dataset, args.steps, 10 if args.quick else args.part)
        rows.append({"setting": name, **timed})
        parting += [{"setting": name, **row} for row in parted]
    finish(args, "together", rows, parting=parting)


KINDS = ("byol", "directpred")


class Cell:
    """A cell's step, state and batches."""

    def __init__(self, config: Any, dataset: Dataset) -> None:
        self.key = jax.random.key(config.seed)
        self.feed: Feed = make_feed(dataset.pretrain.image, config.batch_size, config.seed, True)
        parts = pretraining.build(config, 10_000, self.feed.steps_per_epoch, None)
        self.step = pretraining.build_step(
            config, parts, make_views(parts.recipe, dataset.side), None
        )
        init = pretraining.make_init(parts, dataset.description)
        self.fresh = jax.device_get(pretraining.fresh_state(config, init))
        self.image, self.size = dataset.description.image, config.batch_size

    def batches(self) -> Iterator[dict]:
        """One step a call, without an end."""
        return self.feed.batches((n, 1) for n in range(10**9))

    def trace(self) -> together.Traced:
        return together.trace_step(
            self.step, self.fresh, self.image, self.size, labelled=False, devices=1
        )


class Ways:
    """What runs: a program, its state, its batches. `go(n)` takes n steps."""

    def __init__(self, compile_it: Callable, state: Any, batches: Iterator) -> None:
        self.devices = jax.local_devices()[:1]
        begin = time.perf_counter()
        self.program = compile_it(self.devices)
        self.state, self.batches = parallel.replicate(state, self.devices), batches
        self.go(1)
        self.compile_s = time.perf_counter() - begin

    def go(self, steps: int) -> None:
        with lapack_on_one_thread():
            for _ in range(steps):
                self.state, _ = self.program(self.state, next(self.batches))
            wait(self.state)


def alone(cell: Cell, state: Any) -> Ways:
    """A cell by itself, from a state."""
    return Ways(
        lambda devices: compile_program(cell.step, cell.feed.data, devices, cell.key, 1),
        state,
        cell.batches(),
    )


def joined(cells: list[Cell]) -> Ways:
    """All cells by one program."""
    one = together.join([c.trace() for c in cells], [c.key for c in cells], cells[0].fresh)
    each = [cell.batches() for cell in cells]
    batches = (
        jax.tree.map(lambda *xs: np.stack(xs, axis=2), *rows) for rows in zip(*each, strict=True)
    )
    return Ways(
        lambda devices: compile_program(one.step, cells[0].feed.data, devices, one.own, 1),
        together.stack_states([cell.fresh for cell in cells]),
        batches,
    )


def compare(
    configs: list[Any], dataset: Dataset, steps: int, most: int
) -> tuple[dict[str, float], list[dict]]:
    """The times of both ways, and how far they part."""
    cells = [Cell(config, dataset) for config in configs]
    singles, all_of_them = [alone(cell, cell.fresh) for cell in cells], joined(cells)
    shifted = [alone(cell, next_floats(cell.fresh)) for cell in cells[:1]]
    axes, parting, done = together.state_axes(cells[0].fresh), [], 1
    for after in (n for n in AFTER if n <= most):
        for way in [*singles, *shifted, all_of_them]:
            way.go(after - done)
        done = after
        host = jax.device_get(all_of_them.state)
        apart = [
            distance(together.take_state(host, axes, n).params, way.state.params)
            for n, way in enumerate(singles)
        ]
        parting.append(
            {
                "steps": after,
                "median": float(np.median(apart)),
                "largest": max(apart),
                "one ulp": distance(shifted[0].state.params, singles[0].state.params),
            }
        )

    def one_after_the_other() -> None:
        for way in singles:
            way.go(steps)

    times = alternate(
        {"alone": one_after_the_other, "together": lambda: all_of_them.go(steps)}, repeats=5
    )
    ms = {name: 1e3 * times[name]["median_s"] / steps for name in times}
    compiled = {
        "alone": sum(way.compile_s for way in singles),
        "together": all_of_them.compile_s,
    }
    return {
        "cells": len(cells),
        "step alone (ms, all)": ms["alone"],
        "step together (ms)": ms["together"],
        "ratio": ms["together"] / ms["alone"],
        "compile alone (s, all)": compiled["alone"],
        "compile together (s)": compiled["together"],
        **{f"total {name} (s)": compiled[name] + most * ms[name] / 1e3 for name in ms},
    }, parting


def next_floats(state: Any) -> Any:
    """The state with every parameter at the next larger float, its target's as well."""

    def up(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.nextafter(x, np.float32(np.inf)), tree)

    return state._replace(params=up(state.params), target=up(state.target))


def distance(one: Any, other: Any) -> float:
    """The largest difference of a parameter over the largest parameter."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    most = max(float(jnp.max(jnp.abs(jnp.asarray(b)))) for _, b in pairs)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs) / most


if __name__ == "__main__":
    main()
