"""Does the doctor keep its word, and what does it cost? Verdicts of many runs against their ends.

    python benchmarks/doctor.py [--quick] [--first 0] [--seeds 3] [--histories FILE.npz] [--out F]

Small networks on scikit-learn's digits, of which many collapse, are trained here, with the seeds
from --first on (20 minutes on two cores for three); --histories keeps their rows in a file, and
reads them from there where it is. The doctor's thresholds were fixed with seeds 0 to 2 in view:
others are held out. The other histories are those of results/doctor/histories/. The verdict at
every row, and at 10, 25 and 50 % of the rows, is held against the one at the end: a "sure" that the
end contradicts is an error. The last table is what the doctor costs a run for each row that it
logs.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import ROOT, finish, parse, say

from ssl_jax.augment.views import RECIPES, make_views, normalise
from ssl_jax.data.batches import batch_indices
from ssl_jax.data.sources import load_dataset
from ssl_jax.diagnosis.course import Course
from ssl_jax.diagnosis.facts import COLLAPSED, Facts, SetBy
from ssl_jax.diagnosis.history import Watch
from ssl_jax.diagnosis.state import diagnose_course
from ssl_jax.dynamics.collapse import collapse_signs
from ssl_jax.losses import OBJECTIVES
from ssl_jax.models import MLPHead, make_encoder, make_network
from ssl_jax.optim import make_optimizer
from ssl_jax.predictors import make_predictor, recent_correlation
from ssl_jax.train.pretrain import make_pretrain_step
from ssl_jax.train.state import init_key, init_state

DIM, BATCH, EVERY, MOMENTUM = 32, 64, 10, 0.9
STEPS, QUICK_STEPS = 2000, 500
SHARES = (0.1, 0.25, 0.5, 1.0)
COSTED = (1000, 39_000)  # rows; the second is a replication's run that logs every step


class Program(NamedTuple):
    """What is compiled once for all settings."""

    encoder: str
    kind: str  # of the predictor
    symmetric: bool
    averaged: bool
    loss: str = "cosine"
    noise: float = 0.0  # of the views' pixels, in place of crops
    # Added to all weights into one output of the projector: the run begins with projections that
    # are mostly their mean, as those of a ResNet do.
    lean: float = 0.0


PROGRAMS = (
    Program("mlp", "mlp", False, True),
    Program("mlp", "mlp", False, False),
    Program("mlp", "mlp", True, False),
    Program("mlp", "mlp", True, True),
    Program("mlp", "direct_pred", False, False),
    Program("mlp", "direct_pred", False, True),
    Program("mlp", "linear", False, False),
    Program("mlp", "linear", False, False, "euclidean", 0.3),
    Program("convnet_digits", "mlp", False, True),
    Program("convnet_digits", "mlp", True, False),
    Program("convnet_digits", "direct_pred", False, False),
    Program("mlp", "mlp", False, True, lean=0.5),
    Program("mlp", "mlp", False, False, lean=0.5),
    Program("mlp", "mlp", True, False, lean=0.5),
    Program("mlp", "direct_pred", False, False, lean=0.5),
)
# learning rate, weight decay, whether the rate falls by a cosine
SETTINGS = (
    (0.03, 4e-4, False),
    (0.1, 4e-4, True),
    (0.1, 0.01, False),
    (0.1, 0.05, True),
    (0.3, 0.02, False),
)
# Of the Euclidean loss, from decay too weak to matter to more than any mode survives; the last one
# diverges.
EUCLIDEAN = (
    (0.01, 4e-4, False),
    (0.01, 0.1, True),
    (0.01, 1.0, False),
    (0.01, 4.0, True),
    (0.3, 0.02, False),
)
TAU = 0.99


class Run(NamedTuple):
    """A history with the facts of its configuration."""

    name: str
    seed: int
    history: dict[str, np.ndarray]
    facts: Facts


def main() -> None:
    args = parse(__doc__.splitlines()[0], first=0, seeds=3, histories="")
    runs = all_runs(args.quick, args.first, args.seeds, args.histories) + stored_runs()
    rows = []
    for number, run in enumerate(runs):
        say(f"examining run {number + 1} of {len(runs)}")
        rows.append(examine(run))
    say("")
    costs = [cost(count) for count in COSTED]
    finish(args, "doctor", rows, summary=summarise(rows), costs=costs, shares=SHARES)


# --- The examination ------------------------------------------------------------------------------


def examine(run: Run) -> dict:
    """Return the verdicts on a run: at SHARES of its rows, and how many of all were "sure"."""
    course, verdicts = Course(run.facts), []
    count = len(run.history["step"])
    for row in range(count):
        course.extend({name: column[row : row + 1] for name, column in run.history.items()})
        found = diagnose_course(course)
        verdicts.append((found.state, found.certainty.split(":")[0]))
    end = verdicts[-1][0]
    sure = [state for state, certainty in verdicts[:-1] if certainty == "sure"]
    cuts = [", ".join(verdicts[max(round(share * count), 1) - 1]) for share in SHARES]
    return {
        "run": run.name,
        "seed": run.seed,
        **{f"{share:.0%}": cut for share, cut in zip(SHARES, cuts, strict=True)},
        "sure_rows": len(sure),
        "sure_collapsed": sum(state in COLLAPSED for state in sure),
        "contradicted": sum(state != end for state in sure),
        "rows": count,
    }


def summarise(rows: list[dict]) -> list[dict]:
    """Return for each share, and for all rows, how often the doctor was sure, and wrong in it."""
    summary = []
    for share in SHARES[:-1]:
        pairs = [(row[f"{share:.0%}"].split(", "), row["100%"].split(", ")[0]) for row in rows]
        sure = [(state, end) for (state, certainty), end in pairs if certainty == "sure"]
        wrong = sum(state != end for state, end in sure)
        agree = sum(state == end for (state, _), end in pairs)
        summary.append(line(f"{share:.0%}", len(rows), len(sure), wrong) | {"agree": agree})
    totals = [sum(row[name] for row in rows) for name in ("rows", "sure_rows", "contradicted")]
    collapsed = sum(row["sure_collapsed"] for row in rows)
    return [*summary, line("every row", *totals) | {"sure_collapsed": collapsed}]


def line(when: str, verdicts: int, sure: int, contradicted: int) -> dict:
    """Return a line of the summary."""
    return {"at": when, "verdicts": verdicts, "sure": sure, "contradicted": contradicted}


def cost(count: int) -> dict:
    """Return what the doctor costs a run that logs `count` rows, milliseconds a row.

    The rows are those of a run that learns after a swinging start; the last 200 are timed by
    themselves.
    """
    rng = np.random.default_rng(0)
    t = np.arange(1, count + 1)
    columns = {
        "step": t,
        "loss": -1.5 + 0.05 * rng.normal(size=count),
        "relative_spread": 0.6 + 0.1 * np.sin(t / 500) * np.exp(-t / 5000),
        "effective_rank": 1.5 + 20 * t / count + 0.1 * rng.random(count),
        "top_eigenvalue": 200 * np.exp(-4 * t / count),
        "predictor_norm": np.full(count, 9.0),
    }
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    facts = Facts(
        128, 0.996, False, "mlp", 0.03, None, 4e-4, None, 0.9, "coupled", "lr", 1.0, "cosine", count
    )
    watch, log, seconds = Watch(facts), [], []
    for row in rows:
        log.append(row)
        begin = time.perf_counter()
        watch.change(log)
        seconds.append(time.perf_counter() - begin)
    last = np.array(seconds[-200:])
    return {
        "logged_rows": count,
        "ms_a_row": 1e3 * float(np.median(seconds)),
        "ms_a_row_at_the_end": 1e3 * float(np.median(last)),
        "seconds_in_all": float(np.sum(seconds)),
    }


# --- The runs -------------------------------------------------------------------------------------


def stored_runs() -> list[Run]:
    """Return the histories of results/doctor/histories/."""
    found = []
    for path in sorted((ROOT / "results" / "doctor" / "histories").glob("*.json")):
        stored = json.loads(path.read_text())
        history = {name: np.array(column, np.float64) for name, column in stored["history"].items()}
        found.append(Run(stored["name"], 0, history, Facts(**stored["facts"])))
    return found


def all_runs(quick: bool, first: int, seeds: int, file: str) -> list[Run]:
    """Return the runs of all programs and seeds, from the file where it is, else trained.

    The convolutions, which take most of the time, run with the first seed only.
    """
    if file and Path(file).exists():
        return read_runs(Path(file))
    steps, programs = (QUICK_STEPS, PROGRAMS[:4]) if quick else (STEPS, PROGRAMS)
    runs = []
    for seed in range(first, first + (1 if quick else seeds)):
        for program in programs:
            if seed == first or program.encoder == "mlp":
                say(f"training {program.encoder} {program.kind}, seed {seed}")
                runs += train_runs(program, steps, seed)
    say("")
    if file:
        write_runs(Path(file), runs)
    return runs


def write_runs(path: Path, runs: list[Run]) -> None:
    """Write the runs into an .npz file."""
    arrays = {
        f"{i}/{name}": run.history[name] for i, run in enumerate(runs) for name in run.history
    }
    about = [[run.name, run.seed, run.facts._asdict()] for run in runs]
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)


def read_runs(path: Path) -> list[Run]:
    """Return the runs of a file that `write_runs` wrote."""
    with np.load(path) as file:
        about = json.loads(str(file["about"]))
        histories: list[dict[str, np.ndarray]] = [{} for _ in about]
        for key in file.files:
            number, slash, name = key.partition("/")
            if slash:
                histories[int(number)][name] = file[key]
    return [
        Run(name, seed, history, Facts(**facts))
        for (name, seed, facts), history in zip(about, histories, strict=True)
    ]


def train_runs(program: Program, steps: int, seed: int) -> list[Run]:
    """Return the runs of one program, one for each setting."""
    image = jnp.asarray(load_dataset("digits").train.image)
    index = np.stack([batch_indices(seed, i, len(image), BATCH) for i in range(steps)])
    index = index.reshape(steps // EVERY, EVERY, BATCH)
    settings = EUCLIDEAN if program.loss == "euclidean" else SETTINGS
    columns = zip(*settings, strict=True)
    run = jax.vmap(make_run(program, image, index, seed), in_axes=(0, 0, 0))
    rows = jax.jit(run)(*(jnp.asarray(column) for column in columns))
    runs = []
    for i, (rate, decay, cosine) in enumerate(settings):
        history = {name: np.asarray(column[i], np.float64) for name, column in rows.items()}
        facts = Facts(
            dim=DIM,
            tau=TAU if program.averaged else 0.0,
            symmetric=program.symmetric,
            kind=program.kind,
            learning_rate=rate,
            predictor_learning_rate=None,
            weight_decay=decay,
            predictor_weight_decay=None,
            momentum=MOMENTUM,
            decay="coupled",
            decay_scale="lr",
            loss_scale=1.0,
            loss=program.loss,
            total_steps=steps,
            set_by=SetBy(0.5, 0.1, "max") if program.kind == "direct_pred" else None,
        )
        runs.append(Run(name_of(program, rate, decay, cosine), seed, history, facts))
    return runs


def name_of(program: Program, rate: float, decay: float, cosine: bool) -> str:
    """Return a name that says what a run was."""
    words = [program.encoder, program.kind]
    words += ["symmetric"] * program.symmetric + ["averaged"] * program.averaged
    words += [program.loss] * (program.loss != "cosine") + ["leaning"] * (program.lean > 0)
    return " ".join([*words, f"{rate:g}", f"{decay:g}", "cosine" if cosine else "constant"])


def make_run(program: Program, image: jax.Array, index: np.ndarray, seed: int) -> Callable:
    """Return run(rate, decay, cosine) -> the columns of metrics.csv, arrays (rows,)."""
    steps = index.shape[0] * index.shape[1]
    width = 8 if program.encoder == "convnet_digits" else 64
    encoder = make_encoder(program.encoder, width=width, **({"depth": 1} if width == 64 else {}))
    network = make_network(encoder, MLPHead(64, DIM))
    options = {"hidden": 64} if program.kind == "mlp" else {}
    if program.kind != "direct_pred":
        options["symmetric"] = program.symmetric
    predictor = make_predictor(program.kind, DIM, **options)
    views = noisy(program.noise) if program.noise else make_views(RECIPES["digits"], 8)
    key, position = jax.random.key(seed), jnp.arange(BATCH)

    def run(rate, decay, cosine):
        def schedule(step):
            return rate * jnp.where(cosine, (1 + jnp.cos(jnp.pi * step / steps)) / 2, 1.0)

        optimizer = make_optimizer("momentum", schedule, momentum=MOMENTUM, weight_decay=decay)
        step = make_pretrain_step(
            views=views,
            network=network,
            predictor=predictor,
            optimizer=optimizer,
            tau=(lambda step: TAU) if program.averaged else None,
            objective=OBJECTIVES[program.loss],
        )

        def one(state, index):
            return step(state, {"image": image[index], "position": position}, key)

        def row(state, indices):
            state, metrics = jax.lax.scan(one, state, indices)
            matrix = predictor.matrix(state.params["predictor"])
            signs = collapse_signs(recent_correlation(state.memory), matrix)
            last = {name: metrics[name][-1] for name in ("loss", "relative_spread")}
            return state, last | signs | {"step": state.step}

        state = init_state(
            init_key(key), image[:2] / 255, network, predictor, optimizer, program.averaged
        )
        state = state._replace(params=leaning(state.params, program.lean))
        if program.averaged:
            state = state._replace(target=leaning(state.target, program.lean))
        return jax.lax.scan(row, state, jnp.asarray(index))[1]

    return run


def leaning(params: dict, lean: float) -> dict:
    """Return the parameters with `lean` added to all weights into the projector's first output."""
    projector = params["projector"]
    kernel = projector["linear2"]["kernel"].at[:, 0].add(lean)
    return params | {"projector": projector | {"linear2": {"kernel": kernel}}}


def noisy(noise: float) -> Callable:
    """Return views(keys, images) that adds Gaussian noise to every pixel."""
    recipe = RECIPES["digits"]

    def views(keys, image):
        clean = normalise(image, recipe.mean, recipe.std)
        drawn = jax.vmap(lambda key: jax.random.normal(key, (2, *image.shape[1:])))(keys)
        return clean + noise * drawn[:, 0], clean + noise * drawn[:, 1]

    return views


if __name__ == "__main__":
    main()
