"""Attacks on the files of a work directory."""

import gc
import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
from test_foreign_results import BAD, STORED, WHOLE_RUN, check_page, places, replaced, write_cell
from test_trained_run import ATTACKS, DELETED, FIELDS, READERS, SECTIONS, attacked, fits

from ssl_jax.builders.defaults import default_config
from ssl_jax.builders.trained_run import read_trained
from ssl_jax.diagnosis.history import facts_of
from ssl_jax.errors import UserError
from ssl_jax.reports.experiments import registry as experiments
from ssl_jax.reports.replication.page import page
from ssl_jax.reports.replication.results import gather
from ssl_jax.reports.replication.tables import markdown
from ssl_jax.tasks.doctor import whole_rows
from ssl_jax.tasks.dynamics import read_run
from ssl_jax.tasks.pretrain import KNN
from ssl_jax.tasks.probe import encoder_of
from ssl_jax.workdir import checkpoints, metrics_csv, result_json
from ssl_jax.workdir.directory import spread
from ssl_jax.workdir.dynamics_npz import NAME, resume_dynamics, write_dynamics

from .suite import DAMAGES, Named, Place, command, damaged, group, same_rows, same_tree

# --- Checkpoints ----------------------------------------------------------------------------------


@group("checkpoint", quick=25)
def checkpoint(rng: np.random.Generator) -> Named:
    """Files with faults, parts missing, folders under other names."""
    kinds = ["flip"] * 110 + ["cut"] * 30 + ["zeros", "noise", "twice"] * 8
    for number, kind in enumerate(kinds):
        which, share = rng.random(2)
        name = f"{kind} {number} in file {which:.3f} at {share:.3f}"
        yield name, partial(damage_checkpoint, kind, which, share, number)
    for number in range(20):
        which = rng.random()
        yield f"without file {which:.3f}", partial(damage_checkpoint, "delete", which, 0, number)
    for part in ("state", "manifest", "metrics", "state/d", "state/ocdbt.process_0"):
        yield f"without {part}", partial(remove_part, part)
    for old, new in (
        (4, "9"), (4, "3"), (4, "latest"), (4, "04"), (4, "-4"), (4, "4.old"), (2, "9"), (2, "0"),
        (2, "1" + "0" * 30), (4, "2"),
    ):  # fmt: skip
        yield f"{old} called {new}", partial(rename_step, old, new, False)
    for new in ("3", "6", "10"):
        yield f"a copy of 2 called {new}", partial(rename_step, 2, new, True)


def damage_checkpoint(kind: str, which: float, share: float, number: int, place: Place) -> None:
    """Damage a file of the newest checkpoint, and read it."""
    files = sorted(p for p in (place.run / "checkpoints" / "4").rglob("*") if p.is_file())
    path = files[int(which * len(files))]
    place.note = str(path.relative_to(place.run))
    if kind == "delete":
        path.unlink()
    else:
        path.write_bytes(damaged(path.read_bytes(), kind, share, number))
    check_checkpoint(place)


def remove_part(part: str, place: Place) -> None:
    """Delete a folder of the newest checkpoint, and read it."""
    shutil.rmtree(place.run / "checkpoints" / "4" / part)
    check_checkpoint(place)


def rename_step(old: int, new: str, copy: bool, place: Place) -> None:
    """Put a checkpoint in the place of another step, and read the newest."""
    folder = place.run / "checkpoints"
    if copy:
        shutil.copytree(folder / str(old), folder / new)
    else:
        shutil.rmtree(folder / new, ignore_errors=True)
        (folder / str(old)).rename(folder / new)
    check_checkpoint(place)


def check_checkpoint(place: Place) -> None:
    """Read the newest checkpoint as a second start does, and as the probe does."""
    base, folder = place.base, place.run / "checkpoints"
    with checkpoints.open_manager(folder, KNN) as manager:
        step = manager.latest_step()
        if step is None:  # begins anew
            return
        try:
            state = checkpoints.restore(manager, base.fresh)
        except UserError:
            check_parts(place, step)  # which may be whole
            gc.collect()  # what a failed read left behind says nothing when it is collected
            raise
        notes = checkpoints.read_notes(folder, step)
    assert step in base.states and same_tree(state, base.states[step]), "another state"
    without = step == 4 and not (folder / "4" / "manifest").exists()
    assert without or notes == base.notes[step], "other notes"
    check_parts(place, step)


def check_parts(place: Place, step: int) -> None:
    """Read what the probe reads of a checkpoint."""
    try:
        wanted = encoder_of(place.base.fresh)
        parts = checkpoints.restore_parts(place.run / "checkpoints", step, wanted)
    except UserError:
        return
    assert same_tree(parts, encoder_of(place.base.states[step])), "other parameters"


# --- Configurations -------------------------------------------------------------------------------


@group("configuration", quick=50)
def configuration(rng: np.random.Generator) -> Named:
    """Of somebody else's run, for the readers of probe, doctor and dynamics."""
    names = [name for name in (*FIELDS, *SECTIONS) if name != "task"]
    attacks = [*ATTACKS, DELETED]
    pairs = [(name, attacks[rng.integers(len(attacks))]) for name in names]
    while len(pairs) < 238:
        pairs.append((names[rng.integers(len(names))], attacks[rng.integers(len(attacks))]))
    for field, attack in pairs:
        yield f"{field}: {attack}", partial(read_configuration, field, attack)
    for field, attack in (
        ("encoder", "text"),
        ("loss", "null"),
        ("epochs", "dict"),
        ("target.tau", "nan"),
        ("probe.knn_k", "words"),
    ):
        for task in READERS:
            yield f"{task}, {field}: {attack}", partial(run_reader, task, field, attack)


def read_configuration(field: str, attack: str, place: Place) -> None:
    """Read a configuration in which one field is another."""
    text = attacked(field, attack)
    (place.folder / "config.json").write_text(text)
    config = read_trained(place.folder)
    facts_of(config.to_dict(), 100)
    found, table = spread(config.to_dict()), spread(default_config().to_dict())
    if attack == DELETED:
        assert found == table
        return
    value = json.loads(text)
    for name in field.split("."):
        value = value[name]
    assert field in table and fits(value, default_config(), field), f"took {value!r}"
    value = float(value) if isinstance(found[field], float) else value
    assert found == table | {field: value}, f"read {found[field]!r}"


def run_reader(task: str, field: str, attack: str, place: Place) -> None:
    """Run a task on a run whose configuration is damaged: it is refused, and nothing is written."""
    path, out = place.run / "config.json", place.folder / "out"
    path.write_text(attacked(field, attack, json.loads(path.read_text())))
    try:
        command(*(word.format(place.run) for word in READERS[task]), f"--workdir={out}")
    except UserError as error:
        assert field in str(error) and not out.exists()
        raise
    raise AssertionError("was taken")


# --- metrics.csv ----------------------------------------------------------------------------------

TABLES = {
    "deleted": lambda text, rng: None,
    "empty": lambda text, rng: "",
    "cut": lambda text, rng: text[: rng.integers(len(text))],
    "cut at a line": lambda text, rng: "".join(lines(text)[: rng.integers(5)]),
    "a row twice": lambda text, rng: text + lines(text)[rng.integers(1, 5)],
    "all rows twice": lambda text, rng: text + "".join(lines(text)[1:]),
    "a row less": lambda text, rng: text.replace(lines(text)[rng.integers(1, 5)], ""),
    "shuffled": lambda text, rng: "".join([lines(text)[0], *rng.permutation(lines(text)[1:])]),
    "zeros": lambda text, rng: damaged(text.encode(), "zeros", rng.random()).decode(),
    "semicolons": lambda text, rng: text.replace(",", ";"),
    "decimal commas": lambda text, rng: text.replace(".", ","),
    "text": lambda text, rng: text.replace("0.", "zero ", rng.integers(1, 20)),
    "another run's": lambda text, rng: text.replace("0.", "1.", rng.integers(1, 20)),
    "a column less": lambda text, rng: "".join(x.partition(",")[2] for x in lines(text)),
    "another order": lambda text, rng: text.replace("step,epoch,loss", "loss,epoch,step"),
    "old line ends": lambda text, rng: text.replace("\n", "\r"),
    "byte order": lambda text, rng: "\ufeff" + text,
    "infinite steps": lambda text, rng: text.replace("\n3,", "\ninf,"),
    "huge": lambda text, rng: text + "9" * 10**6 + "\n",
    "a page": lambda text, rng: "<html>\n" * 100,
}
SILENT = ("another run's", "another order", "a row less")  # what no reader of the file can see


def lines(text: str) -> list[str]:
    """Return the lines with their ends."""
    return text.splitlines(keepends=True)


@group("metrics.csv", quick=25)
def metrics(rng: np.random.Generator) -> Named:
    """Damaged under a checkpoint, which knows better, and before a reader, who is told."""
    for number in range(2 * len(TABLES)):
        kind = list(TABLES)[number // 2]
        yield f"{kind} {number}", partial(resume_metrics, kind, int(rng.integers(2**31)))
    for kind in ("flip", "noise"):
        for number in range(6):
            yield f"{kind} {number}", partial(resume_metrics, kind, int(rng.integers(2**31)))
    for kind in TABLES:
        if kind not in SILENT:
            yield f"{kind}, for the doctor", partial(read_metrics, kind, int(rng.integers(2**31)))


def damage_metrics(kind: str, seed: int, path: Path) -> None:
    """Damage the file."""
    rng = np.random.default_rng(seed)
    if kind in DAMAGES and kind not in TABLES:
        path.write_bytes(damaged(path.read_bytes(), kind, rng.random(), seed))
    elif (text := TABLES[kind](path.read_text(), rng)) is None:
        path.unlink()
    else:
        path.write_text(text, newline="")


def resume_metrics(kind: str, seed: int, place: Place) -> None:
    """Go on from a checkpoint beside a damaged table: its history is the whole."""
    path, step = place.run / "metrics.csv", 2 + 2 * (seed % 2)
    damage_metrics(kind, seed, path)
    before = path.read_bytes() if path.exists() else b""
    rows = result_json.begin_log(place.run, step, place.base.notes[step]["metrics.csv"])
    whole = [row for row in place.base.rows if row["step"] <= step]
    assert same_rows(rows, whole) and same_rows(metrics_csv.read_rows(path), whole)
    assert [row["seconds"] for row in rows] == [row["seconds"] for row in whole]
    kept = place.run / "metrics.damaged.csv"
    assert not before or not place.warned or kept.read_bytes() == before, "nothing kept beside"


def read_metrics(kind: str, seed: int, place: Place) -> None:
    """Read a damaged table without a checkpoint: a beginning of it, or one line."""
    damage_metrics(kind, seed, place.run / "metrics.csv")
    rows = whole_rows(place.run / "metrics.csv")
    assert same_rows(rows, place.base.rows[: len(rows)]), "other rows"


# --- dynamics.npz ---------------------------------------------------------------------------------


@group("dynamics.npz", quick=25)
def dynamics(rng: np.random.Generator) -> Named:
    """Damaged, another run's, of other types."""
    for number, kind in enumerate(["flip"] * 26 + ["cut", "zeros", "noise", "twice"] * 5):
        share = rng.random()
        yield f"{kind} {number} at {share:.3f}", partial(damage_dynamics, kind, share, number)
    for number in range(6):
        yield f"another run's {number}", partial(exchange_dynamics, number)
    for kind in ODD_ARRAYS:
        yield kind, partial(odd_dynamics, kind)


def damage_dynamics(kind: str, share: float, seed: int, place: Place) -> None:
    """Damage the bytes of the file, and read it both ways."""
    path = place.run / NAME
    path.write_bytes(damaged(path.read_bytes(), kind, share, seed))
    check_dynamics(place)


def exchange_dynamics(number: int, place: Place) -> None:
    """Put another run's records in place: nothing of them is used."""
    records = [dict(record) for record in place.base.records]
    record = records[number % len(records)]
    name = [n for n in record if n != "step"][number % (len(record) - 1)]
    record[name] = np.float32(record[name]) + 1
    write_dynamics(place.run, records)
    kept = place.base.notes[4]["dynamics"]
    assert not resume_dynamics(place.run, 4, kept) and place.warned
    assert (place.run / "dynamics.damaged.npz").exists()


ODD_ARRAYS = {
    "no steps": lambda arrays: {n: a for n, a in arrays.items() if n != "step"},
    "steps of two axes": lambda arrays: arrays | {"step": arrays["step"][:, None]},
    "one step": lambda arrays: arrays | {"step": np.int64(3)},
    "objects": lambda arrays: arrays | {"loss": np.array([print] * 5, object)},
    "text": lambda arrays: arrays | {"loss": np.array(["x"] * 5)},
    "text for steps": lambda arrays: arrays | {"step": np.array(["x"] * 5)},
    "other lengths": lambda arrays: arrays | {"loss": arrays["loss"][:-1]},
    "no records": lambda arrays: {n: a[:0] for n, a in arrays.items()},
    "one more array": lambda arrays: arrays | {"x" * 300: arrays["loss"]},
    "steps that are none": lambda arrays: arrays | {"step": np.array([0, np.nan, 2, np.inf, -1])},
    "other modes": lambda arrays: arrays | {"alignment": arrays["alignment"][:, :3]},
}


def odd_dynamics(kind: str, place: Place) -> None:
    """Write arrays that no run writes, and read them both ways."""
    with np.load(place.run / NAME) as file:
        arrays = dict(file)
    content = io.BytesIO()
    np.savez(content, **ODD_ARRAYS[kind](arrays))
    (place.run / NAME).write_bytes(content.getvalue())
    check_dynamics(place)


def check_dynamics(place: Place) -> None:
    """Read the records as the task dynamics does, and as a second start: what is taken is right."""
    with np.load(place.base.folder / NAME) as file:
        whole = {name: array.astype(np.float64) for name, array in file.items()}
    try:
        found = read_run(place.run).arrays
    except UserError:
        found = {}
    for name, array in found.items():
        assert np.isnan(array).all() or same_tree(array, whole[name]), f"other {name}"
    records = resume_dynamics(place.run, 4, place.base.notes[4]["dynamics"])
    if not same_tree(records, place.base.records):
        assert place.warned and (place.run / "dynamics.damaged.npz").exists(), "lost silently"
    for record, right in zip(records, place.base.records, strict=False):
        assert all(same_tree(record[name], right[name]) for name in record), "other records"


# --- Results --------------------------------------------------------------------------------------


@group("results", quick=20)
def results(rng: np.random.Generator) -> Named:
    """Of experiments and of sweeps, with other values in their places."""
    for number in range(30):
        path = STORED[number % len(STORED)]
        share, bad = rng.random(), BAD[rng.integers(len(BAD))]
        yield f"{path.stem} {number}", partial(report_experiment, path, share, bad)
    sound = json.loads(json.dumps(WHOLE_RUN))
    everywhere = [place for place in places(sound) if place]
    for number in range(30):
        where = everywhere[rng.integers(len(everywhere))]
        bad = BAD[rng.integers(len(BAD))]
        yield f"sweep {number}: {where}", partial(report_sweep, where, bad)


def report_experiment(path: Path, share: float, bad: object, place: Place) -> None:
    """Report a stored result in which one value is another."""
    result = json.loads(path.read_text())
    fields = [p for p in places(result) if p and p[0] not in ("config", "versions")]
    where = fields[int(share * len(fields))]
    place.note = f"{path.name} {where} {ascii(bad)[:40]}"
    changed = place.folder / "result.json"
    changed.write_text(json.dumps(replaced(result, where, bad)))
    text = experiments.report_stored(changed)
    assert text and "<b>" not in text


def report_sweep(where: tuple, bad: object, place: Place) -> None:
    """Gather a store with a result in which one value is another: it is left out or harmless."""
    place.note = f"{where} {ascii(bad)[:40]}"
    write_cell(place.folder, **WHOLE_RUN)
    path = write_cell(place.folder, seed=1, **replaced(WHOLE_RUN, where, bad))
    gathered = gather([place.folder])
    runs = gathered.cells["mini"]["table1", "byol"].runs
    assert len(runs) + len(gathered.left_out) == 2
    assert all(str(path) in line and "\n" not in line for line in gathered.left_out)
    text = markdown(gathered, "mini")
    assert "<b>" not in text and "nan" not in text
    check_page(page(gathered))
