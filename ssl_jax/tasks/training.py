"""Train from a fresh state, or from the last checkpoint, to the end: shared by tasks that train."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import CheckpointManager

from ssl_jax.builders.plan import Plan
from ssl_jax.builders.program import compile_program, steps_per_call
from ssl_jax.builders.recorders import make_recorders
from ssl_jax.builders.trained_run import IMAGE
from ssl_jax.builders.weights import Weights, begin_with
from ssl_jax.data.batches import Feed
from ssl_jax.data.dataset import Dataset
from ssl_jax.errors import UserError
from ssl_jax.files import make_folder, write_whole
from ssl_jax.runtime import stops
from ssl_jax.runtime.terminal import Progress, is_writer, naming, progress_bar, say
from ssl_jax.runtime.threads import lapack_on_one_thread
from ssl_jax.tasks.printing import print_weights
from ssl_jax.train import parallel, together
from ssl_jax.train.loop import Held, Hooks, Row, drive, hold, plan_calls, train_loop
from ssl_jax.types import Config, Interrupted, Metrics, PyTree, Step
from ssl_jax.workdir import checkpoints, metrics_csv, result_json
from ssl_jax.workdir.dynamics_npz import Record, digest, resume_dynamics, write_dynamics
from ssl_jax.workdir.recorder import Recorder

# Seconds between two writes of dynamics.npz where no checkpoint is due: it is written whole.
WRITE_EVERY = 30
# What a checkpoint notes besides the state: the rows and a digest of the records up to its step, so
# that a run goes on with its own whole history; the fields of `rounding`; and the shape of the
# run's images, by which the encoder is read without them.
METRICS, DYNAMICS = "metrics.csv", "dynamics"
OWED = "owed"  # and the row of its own step, where a stop did not let the evaluation end


class TrainingJob(NamedTuple):
    """What differs between the tasks that train."""

    # step(state, batch, key) -> (state, metrics), which averages over `Plan.axis`.
    step: Step
    # The metric that ranks checkpoints.
    best: str
    # header(start): prints what is about to run, before the first step.
    header: Callable[[int], None]
    # signs(state) -> the columns of metrics.csv that are computed from it.
    signs: Callable[[Any], Row]
    # evaluate(state, step) -> more columns, every eval_every epochs.
    evaluate: Callable[[Any, int], Row]
    # adjust(state, all rows so far) -> (state, whether to end here), after an evaluation and at a
    # restart.
    adjust: Callable[[Any, list[Row]], tuple[Any, bool]]
    # Columns that the progress bar shows.
    shown: tuple[str, ...]
    # track(state) -> the arrays of dynamics.npz that are computed from it.
    track: Callable[[Any], Record] = lambda state: {}
    # score(value of `best`): the checkpoint with the largest is the best one.
    score: Callable[[float], float] = lambda value: value
    # Metrics that a checkpoint keeps beside `best`: a later start may rank by another one.
    others: tuple[str, ...] = ()
    # message(all rows so far) -> a line to print after a row, or None.
    message: Callable[[list[Row]], str | None] = lambda rows: None
    # Whether a batch has labels.
    labelled: bool = False


class Session(NamedTuple):
    """One start of a run that trains."""

    config: Config  # as the user gave it
    out: Path  # its work directory
    plan: Plan  # devices, numbers of steps, when things happen
    parts: Any  # what a step is made of: `pretraining.Parts` or `supervised.ClassifierParts`
    dataset: Dataset  # all images, held-out ones included
    feed: Feed  # of the images to train on
    fresh: PyTree  # the state as drawn from the seed, on the host
    interrupted: Interrupted  # asked after each call of the compiled program
    weights: Weights | None = None  # what takes the place of parts of `fresh` at step 0
    members: int = 1  # runs that train together, this one included

    @property
    def key(self) -> jax.Array:
        """The key of the run, from which its steps draw."""
        return jax.random.key(self.config.seed)

    def epoch(self, step: int) -> float:
        """Return the epochs that `step` steps are."""
        return step * self.config.epochs / self.plan.cadence.total


class Log(NamedTuple):
    """What a session writes while it trains."""

    manager: CheckpointManager  # of its checkpoints
    start: int  # step that it goes on from; 0: a fresh run
    rows: list[Row]  # of metrics.csv, of all starts
    dynamics: list[Record]  # of dynamics.npz, of all starts; [] where none are wanted
    # [the row whose evaluation is still to be made]: of step `start`, later of the step at which a
    # stop arrived; [] where there is none
    owed: list[Row]
    recorders: list[Recorder]  # to which every row is handed; [] in a process that writes no files


class Training(NamedTuple):
    """A run that is ready to train."""

    session: Session
    job: TrainingJob
    finish: Callable[[PyTree], None]  # finish(the state at the end, on the host)


# Yields the batches of each call, takes its metrics; returns the state at the end, on the host.
Course = Generator[parallel.HostBatches, "Metrics | None", "PyTree | None"]


def train(training: Training) -> None:
    """Train to the end, and finish, unless training was interrupted and saved.

    A signal raises `Stopped`, after saving where there is something to save.
    """
    held = hold()
    with contextlib.ExitStack() as closing:
        with stops.saving_first() as begin, lapack_on_one_thread():
            program = compile_alone(training)

            def run(state: Any, batches: parallel.HostBatches) -> tuple[Any, Metrics]:
                result = program(state, batches)
                begin()
                return result

            state = drive(run, course(training, held, closing), held)
        if state is not None:
            training.finish(state)


def compile_alone(training: Training) -> Callable:
    """Return run(state, batches) -> (state, metrics of every step), on all devices."""
    session = training.session
    size = steps_per_call(session.config, session.plan.devices)
    return compile_program(
        training.job.step, session.feed.data, session.plan.devices, session.key, size
    )


def course(
    training: Training, held: Held, closing: contextlib.ExitStack, shown: bool = True
) -> Course:
    """Go through a run from its last checkpoint to its end; whoever drives it runs the calls.

    Args:
        training: the run.
        held: takes the state at the start, and has it after each call.
        closing: closes the recorders, when the figures are drawn.
        shown: whether what is about to run, and its progress, are shown.

    Yields:
        The batches of each call.

    Returns:
        The state at the end, on the host; None where training was interrupted and saved.
    """
    session, job, _ = training
    config, out, cadence = session.config, session.out, session.plan.cadence
    with checkpoints.open_manager(out / "checkpoints", job.best, job.score) as manager:
        start = manager.latest_step() or 0
        if start > cadence.total:
            gone = start // session.plan.steps_per_epoch
            raise UserError(f"epochs: got {config.epochs}, {out} has already gone {gone}")
        state = checkpoints.restore(manager, session.fresh) if start else first_state(session)
        notes = checkpoints.read_notes(out / "checkpoints", start) if start else {}
        require_same_rounding(notes, session)
        # No file of the run is written before this line: a refused start leaves it as it was.
        result_json.open_on_one(str(out), config.to_dict(), parents_of(session, start))
        keep_damaged(out, session.dataset)
        rows = result_json.begin_log(out, start, notes.get(METRICS))
        records = (
            begin_dynamics(out, job, state, start, notes.get(DYNAMICS)) if cadence.track else []
        )
        recorders = make_recorders(config, out, rows) if is_writer() else []
        for recorder in recorders:
            closing.callback(recorder.close)
            recorder.open(config.to_dict())
        owed = [notes[OWED]] if OWED in notes else []
        log = Log(manager, start, rows, records, owed, recorders)
        state, enough = job.adjust(state, rows)
        held.put(state)
        if not enough:
            if shown:
                job.header(start)
            step = yield from _loop(session, job, log, held, shown)
            checkpoints.finish(manager)
            if log.owed or (step < cadence.total and not job.adjust(held.get(), rows)[1]):
                say(
                    f"stopped at step {step} of {cadence.total}, saved; "
                    "the same command goes on from here"
                )
                return None
    return jax.device_get(held.get())


# --- Several at once ------------------------------------------------------------------------------


class Group(NamedTuple):
    """Runs that can train together, by their names."""

    trainings: dict[str, Training]
    traces: dict[str, together.Traced]  # of their steps


class Together(NamedTuple):
    """Runs whose steps are one program."""

    # call(batches of each by its number) -> metrics of each by its number
    call: Callable[[Mapping[int, parallel.HostBatches]], dict[int, Metrics]]
    held: list[Held]  # the place of each run's state


def groups_of(trainings: Mapping[str, Training]) -> list[Group]:
    """Return the runs in groups that can train together, in the order of their first ones.

    Those of a group do the same things at the same steps, to the same images, by steps that differ
    in numbers alone, and have gone equally far.
    """
    groups: list[tuple[tuple, Group]] = []
    for name, training in trainings.items():
        session, traced = training.session, trace(training)
        form = (
            session.plan.cadence,
            rounding(session),
            latest(session.out),
            traced.form,
        )
        for known, group in groups:
            first = next(iter(group.trainings.values())).session
            if known == form and same_images(session.feed.data, first.feed.data):
                group.trainings[name], group.traces[name] = training, traced
                break
        else:
            groups.append((form, Group({name: training}, {name: traced})))
    return [group for _, group in groups]


def same_images(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Return whether two feeds gather from the same images, or both from none on the device."""
    return one.keys() == other.keys() and all(
        one[name] is other[name] or np.array_equal(one[name], other[name]) for name in one
    )


def trace(training: Training) -> together.Traced:
    """Trace the step of a run, which computes nothing."""
    session, plan = training.session, training.session.plan
    return together.trace_step(
        training.job.step,
        session.fresh,
        plan.data.image,
        parallel.per_device(session.config.batch_size, plan.devices),
        labelled=training.job.labelled,
        devices=len(plan.devices),
    )


def latest(out: Path) -> int:
    """Return the step of the newest checkpoint in a work directory; 0: there is none."""
    folder = out / "checkpoints"
    return max(checkpoints.steps_in(folder)) if checkpoints.has_any(folder) else 0


def train_together(group: Group, look: Callable[[], None]) -> dict[str, Exception]:
    """Train runs by one program, and finish each; what breaks one run stops no other.

    A run that ends or breaks keeps its place in the program, whose width is fixed, and its result
    there is not looked at. Where one run stops, all do, at the same step.

    Args:
        group: the runs.
        look: called after each call, before any run is asked whether to stop.

    Returns:
        The errors of those that broke, by name.
    """
    failed: dict[str, Exception] = {}
    with contextlib.ExitStack() as closing:
        for name, state in _train_together(group, look, failed, closing).items():
            say(f"--- {name} ---")
            try:
                group.trainings[name].finish(state)
            except Exception as error:
                failed[name] = error
    return failed


def _train_together(
    group: Group,
    look: Callable[[], None],
    failed: dict[str, Exception],
    closing: contextlib.ExitStack,
) -> dict[str, PyTree]:
    """Return the states at the end, on the host, of the runs that came there.

    Args:
        group: the runs.
        look: called after each call.
        failed: takes the errors of those that broke, by name.
        closing: closes the recorders, when the figures are drawn.
    """
    names, runs = list(group.trainings), list(group.trainings.values())
    ended: dict[str, PyTree] = {}  # None where training was interrupted and saved
    wanted: dict[int, parallel.HostBatches] = {}  # of the next call, by the run's number
    with (
        stops.saving_first() as begin,
        lapack_on_one_thread(),
        contextlib.ExitStack() as leaving,
    ):
        program = compile_together(runs, list(group.traces.values()))
        courses = [
            course(run, held, closing, shown=not number)
            for number, (run, held) in enumerate(zip(runs, program.held, strict=True))
        ]
        for one in courses:
            leaving.callback(one.close)

        def advance(number: int, metrics: Metrics | None) -> None:
            """Let a run go on to its next call; None: to its end."""
            name = names[number]
            wanted.pop(number, None)
            with naming(name):
                try:
                    wanted[number] = courses[number].send(metrics)
                except StopIteration as end:
                    ended[name] = end.value
                except Exception as error:  # whatever it is: the others can do without this one
                    failed[name] = error

        for number in range(len(runs)):
            advance(number, None)
        while wanted:
            if any(state is None for state in ended.values()):
                for number in list(wanted):
                    advance(number, None)
                break
            found = program.call(wanted)
            begin()
            look()
            for number in list(wanted):
                advance(number, found[number])
    return {name: state for name, state in ended.items() if state is not None}


def compile_together(runs: list[Training], traces: list[together.Traced]) -> Together:
    """Return the program of all runs, of whose steps there are traces; the first call compiles."""
    session = runs[0].session
    size, devices = steps_per_call(session.config, session.plan.devices), session.plan.devices
    axes = together.state_axes(session.fresh)
    take = jax.jit(lambda states, n: together.take_state(states, axes, n))
    put = jax.jit(lambda states, n, state: together.put_state(states, axes, n, state))
    split = jax.jit(lambda rows: [{k: x[:, n] for k, x in rows.items()} for n in range(len(runs))])
    joined = together.join(traces, [run.session.key for run in runs], session.fresh)
    program = compile_program(joined.step, session.feed.data, devices, joined.own, size)
    first: list[PyTree] = [run.session.fresh for run in runs]  # until the first call
    states: list[PyTree] = []  # of all runs, one array a leaf

    def call(wanted: Mapping[int, parallel.HostBatches]) -> dict[int, Metrics]:
        if not states:
            stacked = together.stack_states([jax.device_get(state) for state in first])
            states.append(parallel.replicate(stacked, devices))
            first.clear()
        model = next(iter(wanted.values()))
        # Nobody looks at a run that has ended: what it gets need only be of the right size.
        rows = [wanted.get(number, model) for number in range(len(runs))]
        batches = jax.tree.map(lambda *xs: np.stack(xs, axis=2), *rows)
        states[0], metrics = program(states[0], batches)
        return {number: found for number, found in enumerate(split(metrics)) if number in wanted}

    def place(number: int) -> Held:
        def get() -> PyTree:
            return take(states[0], number) if states else first[number]

        def replace(state: PyTree) -> None:
            if states:
                states[0] = put(states[0], number, state)
            else:
                first[number] = state

        return Held(get, replace)

    return Together(call, [place(number) for number in range(len(runs))])


# --- The start of a run ---------------------------------------------------------------------------


def first_state(session: Session) -> PyTree:
    """Return the state at step 0, with what the run takes from elsewhere, which is printed.

    UserError where it was not read, as there seemed to be a checkpoint.
    """
    weights = session.weights
    if weights is None and session.config.weights:
        raise UserError(f"{session.out / 'checkpoints'}: none is complete; delete this folder")
    if weights is not None:
        print_weights(weights)
    return begin_with(weights, session.fresh, session.parts.optimizer)


def parents_of(session: Session, start: int) -> list[dict[str, Any]] | None:
    """Return what this start read of other runs; None where it goes on from a checkpoint."""
    return None if start else [session.weights.parent] if session.weights else []


def keep_damaged(out: Path, dataset: Dataset) -> None:
    """Write damaged.txt, the pictures that the run does without, where there are some."""
    if dataset.damaged and is_writer():
        path = out / "damaged.txt"
        if not out.exists():  # of one of several sets
            make_folder(out)
        write_whole(path, "\n".join([*dataset.damaged, ""]))
        say(f"{len(dataset.damaged)} damaged pictures are left out, listed in {path}")


def rounding(session: Session) -> dict[str, Any]:
    """Return what a step's rounding depends on besides the fields that no start may change."""
    devices = session.plan.devices
    return {
        "devices": len(devices) * jax.process_count(),  # of all processes
        "steps_per_call": steps_per_call(session.config, devices),
    }


def require_same_rounding(notes: dict[str, Any], session: Session) -> None:
    """Raise UserError where the run would not go on with the bits of a run in one piece.

    Sums over another number of devices, and another compiled program, round differently.
    """
    for field, now in rounding(session).items():
        if (before := notes.get(field, now)) != now:
            raise UserError(
                f"{field}: got {now}, the run began with {before}, and another number rounds "
                "differently; takes the same number, or another work directory"
            )


def begin_dynamics(
    out: Path, job: TrainingJob, state: PyTree, start: int, kept: str | None
) -> list[Record]:
    """Return the records up to the step that training goes on from.

    Args:
        out: the work directory.
        job: says what the first record, of the fresh state, holds.
        state: the state at step `start`.
        start: the step; 0: a fresh run.
        kept: digest of the records in the checkpoint; None: it has none.

    Returns:
        The records; none in a process that writes no files.
    """
    earlier = resume_dynamics(out, start, kept) if is_writer() else []
    return earlier if start else [job.track(state) | {"step": np.int64(0), "epoch": np.float32(0)}]


def _loop(
    session: Session, job: TrainingJob, log: Log, held: Held, shown: bool
) -> Generator[parallel.HostBatches, "Metrics | None", int]:
    """Run the loop; return the step reached.

    Args:
        session: this start.
        job: the task.
        log: what was written so far.
        held: where the state is, that of step `log.start`.
        shown: whether the progress is.
    """
    config, devices, cadence = session.config, session.plan.devices, session.plan.cadence
    if session.members == 1:
        held.put(parallel.replicate(held.get(), devices))
    size = steps_per_call(config, devices)
    calls = session.feed.batches(
        plan_calls(log.start, cadence, size), parallel.process_rows(config.batch_size)
    )
    last = [*log.rows[-1:], *log.owed]
    title = f"{session.members} together" if session.members > 1 else ""
    with progress_bar(cadence.total, log.start, title=title, shown=shown) as bar:
        return (
            yield from train_loop(
                held,
                calls,
                start=log.start,
                cadence=cadence,
                batch_size=config.batch_size,
                seconds_before=last[-1]["seconds"] if last else 0.0,
                hooks=_hooks(session, job, log, bar),
                owed=log.owed[0] if log.owed else None,
            )
        )


def _hooks(session: Session, job: TrainingJob, log: Log, bar: Progress) -> Hooks:
    """Return what the loop does at its events."""

    def signs(state: Any) -> Row:
        return {"epoch": session.epoch(int(state.step))} | job.signs(state)

    def record(row: Row) -> None:
        row = metrics_csv.as_written(row)
        log.rows.append(row)
        for recorder in log.recorders:
            recorder.write(int(row["step"]), row)
        if line := job.message(log.rows):
            say(line)

    written = [time.monotonic()]

    def write() -> None:
        if log.dynamics and is_writer():
            write_dynamics(session.out, log.dynamics)
            written[0] = time.monotonic()

    def track(state: Any, step: int, metrics: Metrics) -> None:
        place = {"step": np.int64(step), "epoch": np.float32(session.epoch(step))}
        log.dynamics.append(job.track(state) | jax.device_get(metrics) | place)
        if time.monotonic() - written[0] > WRITE_EVERY:
            write()

    def evaluate(state: Any, step: int) -> Row | None:
        row = stops.unless_stopped(lambda: job.evaluate(state, step))
        given_up = parallel.any_process(row is None)
        if given_up and row is not None:
            stops.adopt()
        return None if given_up else row

    def notes_of() -> dict[str, Any]:
        write()  # first: a record that is missing after a restart would never be made again
        notes = rounding(session) | {METRICS: metrics_csv.table(log.rows)}
        notes[IMAGE] = list(session.plan.data.image)
        if log.dynamics:
            notes[DYNAMICS] = digest(log.dynamics)
        return notes

    def save(state: Any, step: int, row: Row) -> None:
        ranked = {n: row[n] for n in (job.best, *job.others) if math.isfinite(row.get(n, math.nan))}
        if not log.owed:
            checkpoints.save(log.manager, state, step, ranked, notes_of())
            return
        notes = notes_of()  # the state of the step is there already
        if is_writer():
            checkpoints.complete(session.out / "checkpoints", step, ranked, notes)
        parallel.any_process(False)  # waits until it is written
        log.manager.reload()
        log.owed.clear()

    def postpone(state: Any, step: int, row: Row) -> None:
        known = {name: float(value) for name, value in row.items() if value == value}
        checkpoints.save(log.manager, state, step, {}, notes_of() | {OWED: known})
        log.owed[:] = [known]

    def stop(event: bool) -> bool:
        flag = session.interrupted()
        if jax.process_count() == 1:
            return flag
        agreed = event and parallel.any_process(flag)
        if agreed and not flag:
            stops.adopt()
        return agreed

    def progress(step: int, row: Row) -> None:
        bar.update(step - bar.n)
        if row:
            shown = {name: row[name] for name in job.shown if name in row}
            texts = {
                name: f"{value:.0f}" if value >= 100 else f"{value:.3g}"
                for name, value in shown.items()
            }
            bar.set_postfix(texts)

    def adjust(state: Any) -> tuple[Any, bool]:
        return job.adjust(state, log.rows)

    return Hooks(signs, evaluate, record, save, stop, progress, postpone, adjust, track)
