"""Cells that train together: which may, that their numbers are those of each alone, and that each
stays an ordinary run.
"""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from commands import last_parameters
from jax import lax
from test_sweep import Pretend, never

from configs import sweep as configuration
from ssl_jax.builders.fields import configured
from ssl_jax.errors import UserError
from ssl_jax.sweeps import together as planning
from ssl_jax.sweeps.jobs import Job
from ssl_jax.sweeps.together import Form, company, fitting, form_of, limit, wanted
from ssl_jax.tasks import sweep
from ssl_jax.tasks.training import Group
from ssl_jax.train import parallel, together
from ssl_jax.workdir import metrics_csv, result_json
from ssl_jax.workdir.directory import open_workdir

# --- Steps that are alike -------------------------------------------------------------------------


def traced(step, state, image=(2,), devices=1):
    return together.trace_step(step, state, image, 4, labelled=False, devices=devices)


def every_way(a, b, table):
    """A step with a number in every place where it may differ: by itself, in a call, in a
    branch, in an array, and as a result.
    """

    def step(state, batch, key):
        x = state["x"] * a + jnp.asarray(table) + batch["image"].mean() * b
        x = jax.jit(lambda x: jnp.sin(b * x))(x)
        x = lax.cond(state["n"] % 2 == 0, lambda x: x * a, lambda x: x - b, x)
        x = jax.nn.relu(x + 2 * a) + jax.random.normal(jax.random.fold_in(key, state["n"]), x.shape)
        return {"x": x, "n": state["n"] + 1}, {"loss": x.sum(), "rate": jnp.float32(a)}

    return step


def test_a_number_may_differ_wherever_it_stands():
    rng = np.random.default_rng(0)
    numbers = [(*rng.uniform(0.5, 1.5, 2), rng.normal(size=5).astype("f")) for _ in range(3)]
    steps = [every_way(*n) for n in numbers]
    states = [{"x": np.float32(rng.normal(size=5)), "n": np.int32(0)} for _ in steps]
    keys = [jax.random.key(seed) for seed in range(3)]
    batches = [
        {"image": rng.integers(0, 255, (4, 2), np.uint8), "position": np.arange(4, dtype=np.int32)}
        for _ in steps
    ]
    joined = together.join([traced(s, states[0]) for s in steps], keys, states[0])
    steps, run = [jax.jit(step) for step in steps], jax.jit(joined.step)
    axes = together.state_axes(states[0])
    assert axes == {"x": 0, "n": None}
    stacked = together.stack_states(states)
    assert stacked["x"].shape == (3, 5) and stacked["n"].shape == ()
    batch = jax.tree.map(lambda *xs: np.stack(xs, axis=1), *batches)
    for _ in range(2):  # an even step, and an odd one
        stacked, metrics = run(stacked, batch, joined.own)
        for n, step in enumerate(steps):
            states[n], own = step(states[n], batches[n], keys[n])
            got = together.take_state(stacked, axes, n)
            np.testing.assert_allclose(got["x"], states[n]["x"], rtol=2e-6, atol=1e-6)
            assert got["n"] == states[n]["n"] and np.allclose(metrics["loss"][n], own["loss"])
            assert metrics["rate"][n] == np.float32(numbers[n][0])


def test_a_state_can_be_put_back():
    axes = {"x": 0, "n": None}
    states = together.put_state(
        {"x": jnp.zeros((2, 3)), "n": jnp.int32(4)}, axes, 1, {"x": jnp.ones(3), "n": 9}
    )
    np.testing.assert_array_equal(states["x"], [[0] * 3, [1] * 3])
    assert states["n"] == 4


def form(function) -> str:
    def step(state, batch, key):
        return function(state), {"loss": state.sum()}

    return traced(step, np.ones(3, np.float32)).form


def summed(scale):
    """A number within an operation's own program: it cannot become an argument."""
    return lambda x: x + lax.reduce(x, np.float32(0), lambda a, b: a + scale * b, (0,))


def test_what_is_more_than_a_number_makes_another_form():
    assert form(lambda x: 3.0 * x) == form(lambda x: 2.0 * x)
    assert form(lambda x: x + np.ones(3, "f")) == form(lambda x: x + np.zeros(3, "f"))
    others = [
        lambda x: 2.0 * x,
        lambda x: x,
        lambda x: jnp.sin(2.0 * x),
        lambda x: 2.0 + x,
        lambda x: x**2,  # a whole power is a part of the operation
        lambda x: x**3,
        lambda x: jnp.flip(2.0 * x),
        lambda x: x + np.ones(1, "f"),
        summed(1.0),
        summed(2.0),
        lambda x: lax.fori_loop(0, 3, lambda _, x: 2.0 * x, x),
        lambda x: lax.fori_loop(0, 3, lambda _, x: 3.0 * x, x),
    ]
    assert len({form(function) for function in others}) == len(others)


def test_steps_of_different_forms_are_not_joined():
    states = np.ones(3, np.float32)
    steps = [traced(lambda s, b, k, f=f: (f(s), {"loss": s.sum()}), states) for f in (abs, jnp.sin)]
    with pytest.raises(ValueError, match="more than numbers"):
        together.join(steps, [jax.random.key(0)] * 2, states)


def test_the_memory_of_a_step_is_counted_as_its_arrays_live():
    """Three arrays of 4 000 bytes at once: the argument, and two of the chain."""
    chain = jax.make_jaxpr(lambda x: jnp.sum(jnp.cos(jnp.sin(jnp.exp(x)))))(jnp.ones(1000))
    assert 12_000 <= together.peak_bytes(chain.jaxpr) < 12_100
    wide = jax.make_jaxpr(jax.jit(lambda x: jnp.sum(x[:, None] * x[None, :])))(jnp.ones(1000))
    assert 4_000_000 <= together.peak_bytes(wide.jaxpr) < 8_100_000


# --- Real steps -----------------------------------------------------------------------------------

# What a member may have of its own; every kind has its predictor's numbers besides.
NUMBERS = {
    "mlp": ({}, {}),
    "linear": ({"rho": 0.6}, {"rho": 0.8}),
    "direct_pred": ({"eps": 0.1, "every": 2, "rho": 0.3}, {"eps": 0.3, "every": 2, "rho": 0.45}),
}


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        ("direct_pred", 2),
        *(
            pytest.param(kind, devices, marks=pytest.mark.slow)
            for kind, devices in (("direct_pred", 1), ("mlp", 1), ("mlp", 2), ("linear", 1))
        ),
    ],
)
def test_a_step_together_is_the_step_alone(kind, devices):
    """From the same states, three steps in a row: to 1e-5 of the largest weight."""
    axis = parallel.AXIS if devices > 1 else None
    shared = {"kind": kind, "momentum": 0.9, "axis_name": axis}
    own = [
        {"tau": 0.9, "rate": 0.1, "decay": 1e-3} | NUMBERS[kind][0],
        {"tau": 0.99, "rate": 0.03, "decay": 1e-2} | NUMBERS[kind][1],
    ]
    parts = [tiny.make_parts(**shared, **numbers) for numbers in own]
    steps = [tiny.make_step(part, axis_name=axis) for part in parts]
    states = [tiny.make_state(part, seed) for seed, part in enumerate(parts)]
    keys = [jax.random.key(seed) for seed in range(2)]
    size, image = tiny.BATCH // devices, (tiny.SIDE, tiny.SIDE, 1)
    traces = [
        together.trace_step(step, states[0], image, size, labelled=False, devices=devices)
        for step in steps
    ]
    joined = together.join(traces, keys, states[0])
    assert joined.own[1], "no number differs"

    def load(data, batch):
        return data["image"][batch["index"]]

    chosen = jax.local_devices()[:devices]
    alone = [parallel.parallelise(step, load, chosen) for step in steps]
    program = parallel.parallelise(joined.step, load, chosen)
    data = parallel.replicate({"image": tiny.make_batch(count=40)["image"]}, chosen)
    axes = together.state_axes(states[0])
    rng = np.random.default_rng(0)
    for _ in range(3):
        index = rng.integers(0, 40, (2, 1, tiny.BATCH))
        position = np.arange(tiny.BATCH, dtype=np.int32)[None]
        batches = [{"index": i, "position": position} for i in index]
        stacked = together.stack_states([jax.device_get(state) for state in states])
        both, metrics = program(
            stacked, data, jax.tree.map(lambda *xs: np.stack(xs, 2), *batches), joined.own
        )
        for n in range(2):
            state, found = alone[n](jax.device_get(states[n]), data, batches[n], keys[n])
            states[n] = jax.device_get(state)
            got = jax.device_get(together.take_state(both, axes, n))
            for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(states[n]), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
            for name, value in found.items():
                np.testing.assert_allclose(metrics[name][:, n], value, rtol=1e-4, atol=1e-6)


SMALL = {
    "data.train_size": "96",
    "batch_size": "32",
    "epochs": "2",
    "encoder.name": "mlp",
    "encoder.width": "8",
    "projector.hidden": "8",
    "projector.out": "4",
    "predictor.hidden": "8",
    "predictor.kind": "direct_pred",
    "views.jitter": "0",
    "probe.validation_size": "32",
    "probe.knn_k": "5",
    "probe.few_labels": "0",
    "probe.epochs": "1",
    "probe.random_init": "False",
}
# Every field that the page promises: numbers that do not change the form of the step.
OTHER_NUMBERS = {
    "target.tau": "0.5",
    "optimizer.learning_rate": "0.01",
    "optimizer.weight_decay": "0.1",
    "optimizer.momentum": "0.5",
    "predictor.eps": "0.7",
    "predictor.rho": "0.4",
    "loss_scale": "3",
    "views.crop_scale": "0.2,0.9",
    "seed": "5",
    "method": "another",
    "probe.ridge": "False",
}


@pytest.fixture(scope="module")
def plain() -> Form:
    return form_of(configured("configs/quickstart.py", SMALL))


def test_numbers_do_not_change_the_form_of_a_cell(plain):
    assert form_of(configured("configs/quickstart.py", SMALL | OTHER_NUMBERS)) == plain


@pytest.mark.parametrize(
    "field",
    ["target.tau=0", "epochs=3", "data.fit=pad", "predictor.symmetric=False;init=he"]
    + [
        pytest.param(field, marks=pytest.mark.slow)
        for field in (
            *("optimizer.weight_decay=0", "predictor.eps_mode=literal"),
            *("predictor.rho=0.9", "encoder.width=4"),
        )
    ],
)
def test_what_changes_the_form_of_a_cell(plain, field):
    """The step itself, when things happen, or the images."""
    changes = dict(part.split("=") for part in field.split(";"))
    other = form_of(configured("configs/quickstart.py", SMALL | changes))
    assert (other.words == plain.words) == (field == "predictor.symmetric=False;init=he")


# --- Groups ---------------------------------------------------------------------------------------


def jobs_of(*forms):
    """Jobs "0", "1", ... whose cells have these forms, and what is known of them."""
    jobs = [Job(str(n), 0, SimpleNamespace(), None, None) for n in range(len(forms))]  # pyright: ignore
    return jobs, {str(n): Form((form,), 10, 100) for n, form in enumerate(forms)}


def names(jobs):
    return "".join(job.cell for job in jobs)


def test_a_group_is_of_one_form_in_the_order_of_the_jobs():
    jobs, forms = jobs_of(*"abaabb")
    assert names(company(jobs[0], jobs, 9, forms)) == "023"
    assert names(company(jobs[1], jobs, 9, forms)) == "145"
    assert names(company(jobs[0], jobs[2:], 2, forms)) == "02"
    assert names(company(jobs[0], jobs, 1, forms)) == "0"


def test_no_cell_is_traced_where_each_trains_by_itself(monkeypatch):
    monkeypatch.setattr(planning, "form_of", lambda config: pytest.fail("traced"))
    jobs, _ = jobs_of("a", "a")
    assert names(company(jobs[0], jobs, 1, {})) == names(company(jobs[0], jobs, None, {})) == "0"


def test_as_many_as_fit():
    known = Form(("a",), 10, 100)
    assert [fitting(memory, known) for memory in (0, 220, 239, 240, 10**6)] == [1, 1, 1, 2, 64]
    assert limit(None, known) == 1, "auto on a CPU"
    assert limit(7, known) == 7


@pytest.mark.parametrize("value", ["auto", "1", "False", "4", 4, False])
def test_what_together_takes(value):
    assert wanted(value) == {"auto": None, "4": 4, "False": 1, "1": 1}[str(value)]


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "all", True])
def test_what_together_does_not_take(value):
    with pytest.raises(UserError, match="^together: got .*, takes 'auto', a whole number") as error:
        wanted(value)
    assert "\n" not in str(error.value)


# --- The engine, with trainings that only pretend -------------------------------------------------


@pytest.fixture
def engine(monkeypatch):
    """A sweep of four cells "a" to "d" of one form. Set `trains`, what happens to a group."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(sweep.gc, "collect", lambda: 0)
    monkeypatch.setattr(planning, "form_of", lambda config: Form(("same",), 1, 1))
    made = []

    def make(config, directory, interrupted, read, members):
        made.append((config.method, members))
        return SimpleNamespace(config=config, out=directory)

    monkeypatch.setitem(sweep.MAKERS, "pretrain", make)
    monkeypatch.setattr(sweep, "groups_of", lambda trainings: [Group(dict(trainings), {})])
    config = configuration.get_config()
    config.of, config.together = "configs/quickstart.py", "3"
    config.vary = ";".join(f"{field}={value}" for field, value in SMALL.items())
    config.vary += ";method=a,b,c,d"
    own = SimpleNamespace(config=config, made=made, alone=Pretend())

    def run(directory, trains):
        monkeypatch.setattr(sweep, "train_together", trains)
        sweep.sweep(config, str(directory), never, own.alone)

    own.run = run
    return own


def finished(training):
    out = open_workdir(training.out, training.config.to_dict())
    result_json.write(out, {"task": "pretrain"})


def test_a_group_is_trained_at_once_and_the_rest_alone(engine, tmp_path, capsys):
    groups = []

    def trains(group, look):
        groups.append([training.config.method for training in group.trainings.values()])
        for training in group.trainings.values():
            finished(training)
        return {}

    engine.run(tmp_path, trains)
    assert groups == [["a", "b", "c"]] and engine.alone.ran == [("d", 0)]
    assert engine.made == [("a", 3), ("b", 3), ("c", 3)]
    out = capsys.readouterr().out
    assert "3 together: method=a seed 0, method=b seed 0, method=c seed 0 ---" in out
    assert "3 of 4 cells done; 3 together took" in out and "4 of 4 cells done, 0 failed" in out


def test_one_that_breaks_stops_no_other(engine, tmp_path, capsys):
    def trains(group, look):
        first, second, third = group.trainings
        finished(group.trainings[first])
        finished(group.trainings[third])
        return {second: UserError("loss: became nan at step 3")}

    with pytest.raises(SystemExit) as end:
        engine.run(tmp_path, trains)
    assert end.value.code == 1
    assert (tmp_path / "method=b/seed-0.failed.txt").read_text().startswith("loss: became nan")
    assert not (tmp_path / "method=a/seed-0.failed.txt").exists()
    assert "3 of 4 cells done, 1 failed" in capsys.readouterr().out


@pytest.mark.parametrize("of_one", [False, True])
def test_what_does_not_fit_together_goes_on_by_itself(engine, tmp_path, capsys, of_one):
    """The program of all, or what one of them does at an event."""

    def trains(group, look):
        first, *others = group.trainings
        if not of_one:
            raise MemoryError("no room")
        for name in others:
            finished(group.trainings[name])
        return {first: MemoryError()}

    engine.run(tmp_path, trains)
    assert engine.alone.ran == [(name, 0) for name in ("ad" if of_one else "abcd")]
    out = capsys.readouterr().out
    assert ("method=a seed 0: out of memory beside 2 others, goes on by itself" in out) == of_one
    assert ("MemoryError: no room; the 3 cells go on by themselves" in out) != of_one
    assert "4 of 4 cells done, 0 failed" in out


def test_a_finished_cell_is_not_in_a_group_again(engine, tmp_path):
    def first_only(group, look):
        first, *others = group.trainings
        finished(group.trainings[first])
        return dict.fromkeys(others, UserError("no"))

    with pytest.raises(SystemExit):
        engine.run(tmp_path, first_only)
    engine.made.clear()

    def trains(group, look):
        for training in group.trainings.values():
            finished(training)
        return {}

    engine.run(tmp_path, trains)
    assert engine.made == [("b", 2), ("c", 2)] and engine.alone.ran == [("d", 0)]


# --- Whole sweeps ---------------------------------------------------------------------------------

WHOLE = SMALL | {
    "epochs": "4",
    "log_every": "2",
    "eval_every": "2",
    "checkpoint_every": "2",
    "dynamics.every": "3",
    "views.crop_scale": "(0.5,1)",
}
TIMES = ("seconds", "images_per_second")
VARIED = "target.tau=0.9,0.5; optimizer.learning_rate=0.1,0.03"


def run_sweep(directory, vary=VARIED, count="4", interrupted=never, **changes):
    config = configuration.get_config()
    config.of, config.together = "configs/quickstart.py", count
    fields = WHOLE | changes
    config.vary = "; ".join([*(f"{f}={v}" for f, v in fields.items()), vary])
    sweep.sweep(config, str(directory), interrupted)


def rows_in(run):
    rows = metrics_csv.read_rows(run / "metrics.csv")
    return [{name: row[name] for name in row if name not in TIMES} for row in rows]


def runs_in(directory):
    return {run.parent.name: run for run in sorted(directory.glob("*/seed-*")) if run.is_dir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of four cells that trained together, from start to end."""
    directory = tmp_path_factory.mktemp("whole")
    run_sweep(directory)
    return directory


@pytest.mark.slow
def test_each_cell_is_the_run_that_it_is_alone(whole, tmp_path):
    """The same files, configuration and rows. Rounding grows with the steps: 1e-3 of a loss."""
    run_sweep(tmp_path, count="1")
    together_, alone = runs_in(whole), runs_in(tmp_path)
    assert together_.keys() == alone.keys() and len(alone) == 4
    for name, run in alone.items():
        other = together_[name]
        files = [
            sorted(p.relative_to(at).as_posix() for p in at.rglob("*.*")) for at in (run, other)
        ]
        assert files[0] == files[1]
        assert (run / "config.json").read_text() == (other / "config.json").read_text()
        for one, two in zip(rows_in(run), rows_in(other), strict=True):
            np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-3, atol=1e-4)
            np.testing.assert_equal(two["learning_rate"], one["learning_rate"])
        results = [json.loads((at / "result.json").read_text()) for at in (run, other)]
        assert results[1].keys() - results[0].keys() == {"together"}
        assert results[1]["together"] == 4
        assert abs(results[0]["ridge_accuracy"] - results[1]["ridge_accuracy"]) < 0.05
        records = [np.load(at / "dynamics.npz") for at in (run, other)]
        np.testing.assert_array_equal(records[0]["step"], records[1]["step"])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 5, 6])
def test_a_group_that_is_stopped_goes_on_bit_for_bit(whole, tmp_path, steps, capsys):
    """Within an epoch, and where an evaluation is due; all of the group stop at the same step."""
    asked = []

    def interrupted():
        asked.append(None)
        return len(asked) > steps + 1  # the sweep asks twice before the first step

    run_sweep(tmp_path, interrupted=interrupted)
    out = capsys.readouterr().out
    stopped = {
        line.rsplit("stopped at step ")[-1] for line in out.splitlines() if ": stopped at" in line
    }
    assert len(stopped) == 1 and out.count(": stopped at step ") == 4
    assert not list(tmp_path.rglob("result.json"))
    run_sweep(tmp_path)
    for name, run in runs_in(tmp_path).items():
        other = runs_in(whole)[name]
        ends = [last_parameters(at) for at in (run, other)]
        assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 5
        assert all(ends[0][leaf].tobytes() == ends[1][leaf].tobytes() for leaf in ends[0])
        # a stop between two rows makes one of its own, and the next has the mean since
        rows = [rows_in(at)[-1 if steps == 5 else 0 :] for at in (run, other)]
        np.testing.assert_equal(*rows)
        ours, theirs = (np.load(at / "dynamics.npz") for at in (run, other))
        for array in theirs.files:
            np.testing.assert_array_equal(ours[array], theirs[array])


@pytest.mark.slow
def test_a_cell_that_diverges_leaves_the_others_alone(whole, tmp_path):
    vary = "target.tau=0.9; optimizer.learning_rate=0.1,1e30,0.03"
    with pytest.raises(SystemExit):
        run_sweep(tmp_path, vary=vary)
    runs = runs_in(tmp_path)
    ended = {name for name, run in runs.items() if (run / "result.json").exists()}
    assert ended == {"optimizer.learning_rate=0.1", "optimizer.learning_rate=0.03"}
    failed = (tmp_path / "optimizer.learning_rate=1e-30").parent.glob("*/*.failed.txt")
    (line,) = [path.read_text().splitlines()[0] for path in failed]
    assert "not finite" in line or "became" in line


@pytest.mark.slow
def test_supervised_cells_and_several_forms(tmp_path, capsys):
    """Groups form by themselves: two optimizers are two programs."""
    config = configuration.get_config()
    config.of, config.together = "configs/supervised.py", "8"
    fields = {
        "data.name": "digits",
        "data.train_size": "120",
        "data.validation_size": "20",
        "encoder.name": "mlp",
        "encoder.width": "8",
        "batch_size": "20",
        "epochs": "2",
        "plateau.patience": "1",
        "augment.mean": "0.5",
        "augment.std": "0.5",
    }
    config.vary = "; ".join([f"{f}={v}" for f, v in fields.items()])
    config.vary += "; optimizer.name=adam,momentum; optimizer.learning_rate=1e-3,1e-2"
    sweep.sweep(config, str(tmp_path), never)
    out = capsys.readouterr().out
    assert out.count(" 2 together: ") == 2 and "4 of 4 cells done, 0 failed" in out
