"""A run stopped in any way and started again ends as one never stopped, bit for bit."""

import random
import signal
import time
from importlib.util import find_spec

import event_reader
import numpy as np
import pytest
from commands import TINY, finish_command, last_parameters, start_command

from ssl_jax.workdir.checkpoints import steps_in
from ssl_jax.workdir.dynamics_npz import read_dynamics
from ssl_jax.workdir.metrics_csv import read_rows

pytestmark = pytest.mark.slow
EVENTS = find_spec("tensorboardX") is not None
FIELDS = [*TINY, "--config.epochs=15", "--config.dynamics.every=3"]
FIELDS += [f"--config.tensorboard={EVENTS}"]
STEPS = 60
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The work directory of a run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("unbroken")
    finish_command(start_command(workdir, *FIELDS))
    return workdir


def assert_same_dynamics(workdir, unbroken):
    found, expected = (read_dynamics(path) for path in (workdir, unbroken))
    assert expected["step"].tolist() == list(range(0, STEPS + 1, 3))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def assert_same_events(workdir, unbroken):
    """The event file has metrics.csv's rows; those of both runs agree, but for the times."""
    if not EVENTS:
        return
    found, expected = (event_reader.scalars(path) for path in (workdir, unbroken))
    for path, events in ((workdir, found), (unbroken, expected)):
        assert event_reader.as_text(events) == event_reader.spelled(path / "metrics.csv")
    for (step, row), (other, wanted) in zip(found, expected, strict=True):
        assert step == other and row | dict.fromkeys(TIMES) == wanted | dict.fromkeys(TIMES)


def wait_for(process, workdir, step):
    """Until the run has a checkpoint of `step` or a later one."""
    begin = time.monotonic()
    while not any(
        int(p.name) >= step for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()
    ):
        assert process.poll() is None and time.monotonic() - begin < 240, process.communicate(
            timeout=9
        )
        time.sleep(0.002)


def assert_same_end(workdir, unbroken):
    assert steps_in(workdir / "checkpoints")[-1] == STEPS
    ends = [last_parameters(path) for path in (workdir, unbroken)]
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 20
    for name in ends[0]:
        np.testing.assert_array_equal(ends[0][name], ends[1][name], err_msg=name)


def test_killed_again_and_again(tmp_path, unbroken):
    """SIGKILL at a moment that nobody chose, once early and once late."""
    for step in (8, 32):
        process = start_command(tmp_path, *FIELDS)
        wait_for(process, tmp_path, step)
        time.sleep(random.uniform(0, 0.15))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert "going on from step" in finish_command(start_command(tmp_path, *FIELDS))
    assert_same_end(tmp_path, unbroken)
    rows, expected = (read_rows(path / "metrics.csv") for path in (tmp_path, unbroken))
    assert [row["step"] for row in rows] == list(range(2, STEPS + 1, 2))
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_equal(row | dict.fromkeys(TIMES), other | dict.fromkeys(TIMES))
    assert_same_dynamics(tmp_path, unbroken)
    assert_same_events(tmp_path, unbroken)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_killed_in_micro_batches(tmp_path):
    """Two micro-batches a step, in bfloat16."""
    fields = [*FIELDS, "--config.accumulate=2", "--config.precision=bfloat16"]
    process = start_command(tmp_path / "killed", *fields)
    wait_for(process, tmp_path / "killed", 8)
    process.kill()
    process.communicate()
    text = finish_command(start_command(tmp_path / "killed", *fields))
    assert "batch 64 in 2 micro-batches" in text and "going on from step" in text
    finish_command(start_command(tmp_path / "unbroken", *fields))
    assert_same_end(tmp_path / "killed", tmp_path / "unbroken")
    assert_same_dynamics(tmp_path / "killed", tmp_path / "unbroken")


def test_asked_to_stop(tmp_path, unbroken):
    process = start_command(tmp_path, *FIELDS)
    wait_for(process, tmp_path, 8)
    process.send_signal(signal.SIGTERM)
    text = finish_command(process, status=75)
    stopped = steps_in(tmp_path / "checkpoints")[-1]
    assert f"stopped at step {stopped} of {STEPS}, saved" in text and 8 <= stopped < STEPS
    assert not (tmp_path / "result.json").exists()
    assert f"going on from step {stopped}" in finish_command(start_command(tmp_path, *FIELDS))
    assert (tmp_path / "result.json").exists()
    assert_same_end(tmp_path, unbroken)
    assert_same_dynamics(tmp_path, unbroken)
    steps = [row["step"] for row in read_rows(tmp_path / "metrics.csv")]
    assert steps == sorted({*range(2, STEPS + 1, 2), stopped})


def test_a_loss_that_runs_away(tmp_path):
    """A warm-up that starts from nothing: the first epoch is sound, then the rate is beyond
    float32.
    """
    fields = ("optimizer.learning_rate=1e38", "schedule.warmup_epochs=3", "data.train_size=64")
    fields += ("probe.validation_size=32", "dynamics.every=1")
    text = finish_command(
        start_command(tmp_path, *TINY, *(f"--config.{f}" for f in fields)), status=2
    )
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "optimizer.learning_rate" in errors[0] and "at step" in errors[0]
    assert "Traceback" not in text and not (tmp_path / "result.json").exists()
    kept = last_parameters(tmp_path)
    assert all(np.all(np.isfinite(value)) for value in kept.values())
