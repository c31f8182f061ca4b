"""The loop over a fake program: what is called when, what is averaged, and what stops it."""

import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.train.loop import Cadence, Hooks, drive, hold, plan_calls, train_loop

CADENCE = Cadence(total=12, log=2, evaluate=6, save=4)


def random_cadence(rng):
    total = int(rng.integers(1, 60))
    return Cadence(total, *(int(rng.integers(1, 25)) for _ in range(3)), int(rng.integers(0, 9)))


class Recorder:
    """Hooks that write down what they are called with; `stop_at`: the step at which a signal has
    arrived; `give_up_at`: the step whose evaluation it arrives in.
    """

    def __init__(self, stop_at=None, give_up_at=None):
        self.rows, self.saved, self.evaluated, self.reached, self.asked, self.tracked = (
            [],
            [],
            [],
            0,
            [],
            [],
        )
        self.stop_at, self.give_up_at = stop_at, give_up_at
        self.owed = None
        self.saved_rows = []

    def hooks(self):
        return Hooks(
            self.signs,
            self.evaluate,
            self.rows.append,
            self.save,
            self.stop,
            self.progress,
            self.postpone,
            track=self.track,
        )

    def signs(self, state):
        return {"sign": state["step"]}

    def evaluate(self, state, step):
        self.evaluated.append(step)
        return None if step == self.give_up_at else {"accuracy": step / 100}

    def postpone(self, state, step, row):
        assert state["step"] == step == row["step"] and not self.owed
        self.owed = row

    def save(self, state, step, row):
        assert state["step"] == step == row["step"]
        self.saved.append(step)
        self.saved_rows.append(row)

    def track(self, state, step, metrics):
        assert state["step"] == step
        self.tracked.append((step, float(metrics["loss"])))

    def stop(self, event):
        self.asked.append(event)
        return self.stop_at is not None and len(self.asked) + self.start >= self.stop_at

    def progress(self, step, row):
        self.reached = step

    def train(
        self,
        loss=float,
        start=0,
        cadence=CADENCE,
        size=1,
        seconds=0.0,
        grown=lambda step: 1.0,
        owed=None,
    ):
        """The loop from `start`, where step n has loss `loss(n)` and leaves the weight `grown(n)`
        behind.
        """
        self.start = start

        def run(state, batch):
            steps = batch["position"][:, 0]
            assert steps[0] == state["step"]
            after = {"step": int(steps[-1]) + 1, "weight": np.float32(grown(int(steps[-1])))}
            return after, {"loss": np.array([loss(int(n)) for n in steps])}

        batches = (
            {"position": np.tile(np.arange(first, first + count)[:, None], (1, 8))}
            for first, count in plan_calls(start, cadence, size)
        )
        held = hold({"step": start, "weight": np.float32(0)})
        steps = train_loop(
            held,
            batches,
            start=start,
            cadence=cadence,
            batch_size=8,
            seconds_before=seconds,
            hooks=self.hooks(),
            owed=owed,
        )
        reached = drive(run, steps, held)
        return held.get(), reached


# --- When things happen ---------------------------------------------------------------------------


def test_next_event_is_the_first_at_which_anything_is_due():
    rng = np.random.default_rng(0)
    for _ in range(300):
        cadence = random_cadence(rng)
        step = int(rng.integers(0, cadence.total))
        ahead = range(step + 1, cadence.total + 1)
        events = [n for n in ahead if any(cadence.due(n, every) for every in cadence[1:4])]
        stops = [n for n in ahead if any(cadence.due(n, every) for every in cadence[1:] if every)]
        assert cadence.next_event(step) == events[0]
        assert cadence.next_stop(step) == stops[0]


def test_due():
    assert [n for n in range(1, 13) if CADENCE.due(n, 5)] == [5, 10, 12]


def test_plan_covers_every_step_with_two_sizes_and_crosses_no_event():
    rng = np.random.default_rng(1)
    for _ in range(300):
        cadence, size = random_cadence(rng), int(rng.integers(1, 12))
        first = int(rng.integers(0, cadence.total + 1))
        calls = list(plan_calls(first, cadence, size))
        assert [n for start, count in calls for n in range(start, start + count)] == list(
            range(first, cadence.total)
        )
        assert all(1 <= count <= size for _, count in calls)
        assert all(start + count <= cadence.next_stop(start) for start, count in calls)


def test_plan_uses_long_calls_where_it_can():
    assert list(plan_calls(4, Cadence(12, 6, 12, 12), 3)) == [(4, 2), (6, 3), (9, 3)]
    assert list(plan_calls(0, Cadence(12, 6, 12, 12), 3)) == [(0, 3), (3, 3), (6, 3), (9, 3)]


# --- What happens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_without_trouble(size):
    seen = Recorder()
    state, step = seen.train(size=size)
    assert step == state["step"] == seen.reached == 12
    assert [row["step"] for row in seen.rows] == [2, 4, 6, 8, 10, 12]
    assert seen.evaluated == [6, 12] and seen.saved == [4, 8, 12]
    # means of the two steps before
    assert [row["loss"] for row in seen.rows] == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]
    assert [row["sign"] for row in seen.rows] == [row["step"] for row in seen.rows]
    assert [row.get("accuracy") for row in seen.rows] == [None, None, 0.06, None, None, 0.12]


@pytest.mark.parametrize("size", [1, 2])
def test_tracking_sees_its_own_step_and_cuts_no_row(size):
    seen = Recorder()
    seen.train(size=size, cadence=CADENCE._replace(track=5))
    assert seen.tracked == [(5, 4.0), (10, 9.0), (12, 11.0)]
    assert [row["step"] for row in seen.rows] == [2, 4, 6, 8, 10, 12]
    assert [row["loss"] for row in seen.rows] == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]


def test_rows_tell_the_time_of_all_starts_together():
    seen = Recorder()
    seen.train(start=4, seconds=100.0)
    times = [row["seconds"] for row in seen.rows]
    assert 100 < times[0] < 110 and times == sorted(times)
    assert all(row["images_per_second"] > 0 for row in seen.rows)


def test_a_finished_run_has_nothing_to_do():
    seen = Recorder()
    assert seen.train(start=12)[1] == 12
    assert seen.rows == seen.saved == []


def test_a_signal_saves_at_once_and_stops():
    seen = Recorder(stop_at=5)
    _, step = seen.train()
    assert step == 5 and seen.saved == [4, 5]
    assert [row["step"] for row in seen.rows] == [2, 4, 5] and seen.rows[-1]["loss"] == 4.0
    assert seen.asked == [False, True, False, True, False]
    going_on = Recorder()
    going_on.train(start=5)
    assert [row["step"] for row in going_on.rows] == [6, 8, 10, 12] and going_on.rows[0][
        "loss"
    ] == 5.0


@pytest.mark.parametrize("calls", [0, 1, 2, 6, 8])
def test_a_run_stops_at_an_event_because_another_one_does(calls):
    """Which trains with it: there is no call, and the step is saved once, with all of its row."""
    seen = Recorder()
    held = hold({"step": 0, "weight": np.float32(0)})
    batches = ({"position": np.full((2, 8), n)} for n in range(0, 12, 2))
    steps = train_loop(
        held,
        batches,
        start=0,
        cadence=Cadence(12, 2, 6, 8),
        batch_size=8,
        seconds_before=0.0,
        hooks=seen.hooks(),
    )
    next(steps)
    for step in range(2, calls + 1, 2):
        held.put({"step": step, "weight": np.float32(0)})
        steps.send({"loss": np.zeros(2)})
    with pytest.raises(StopIteration) as end:
        steps.send(None)
    reached = calls // 2 * 2
    assert end.value.value == reached and seen.saved == [reached] * (reached > 0)
    assert (
        seen.rows[-1:] == seen.saved_rows[-1:] and ("accuracy" in seen.rows[-1]) == (reached == 6)
        if reached
        else not seen.rows
    )


TIMES = ("seconds", "images_per_second")


def without_times(rows):
    return [{name: row[name] for name in row if name not in TIMES} for row in rows]


@pytest.mark.parametrize("step", [6, 12])
@pytest.mark.parametrize("within", [True, False], ids=["within", "before"])
def test_an_evaluation_that_is_given_up_is_made_by_the_next_start(step, within):
    """The signal arrives within it, or in the step before. The rows are those of one start."""
    first = Recorder(give_up_at=step) if within else Recorder(stop_at=step)
    _, reached = first.train()
    assert reached == step and first.evaluated == [6, 12][: step // 6 - (not within)]
    assert first.rows[-1]["step"] == step - 2 and step not in first.saved
    assert first.owed["step"] == step and first.owed["loss"] == step - 1.5
    going_on, whole = Recorder(), Recorder()
    going_on.train(start=step, owed=first.owed, seconds=100.0)
    whole.train()
    assert without_times(first.rows + going_on.rows) == without_times(whole.rows)
    assert going_on.rows[0]["seconds"] == first.owed["seconds"]
    assert going_on.evaluated == [n for n in (6, 12) if n >= step] and going_on.saved[0] == step
    assert not going_on.owed and going_on.reached == 12


def test_an_evaluation_may_be_given_up_again():
    seen, owed = Recorder(give_up_at=6), {"step": 6, "loss": 4.5}
    assert seen.train(start=6, owed=owed) == ({"step": 6, "weight": 0}, 6)
    assert seen.owed == owed and not seen.rows and not seen.saved


def test_an_evaluation_that_is_no_longer_due_is_left_out():
    """`eval_every` may change from one start to the next."""
    seen = Recorder()
    seen.train(start=6, owed={"step": 6, "loss": 4.5}, cadence=CADENCE._replace(evaluate=12))
    assert seen.rows[0] == {"step": 6, "loss": 4.5} and seen.evaluated == [12]
    assert seen.saved == [6, 8, 12]


def test_a_state_that_is_not_finite_is_neither_evaluated_nor_kept_for_it():
    seen = Recorder(give_up_at=6)
    with pytest.raises(UserError, match="^weight: not finite at step 6; .*optimizer.learning_rate"):
        seen.train(grown=lambda step: float("nan") if step == 5 else 1.0)
    assert not seen.owed and not seen.evaluated


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_saves_nothing_more(bad):
    seen = Recorder()
    with pytest.raises(
        UserError, match=rf"^loss: became {bad} at step 6; .*optimizer.learning_rate"
    ):
        seen.train(loss=lambda n: bad if n in (6, 7) else 0.0)
    assert seen.saved == [4] and [row["step"] for row in seen.rows] == [2, 4, 6, 8]
    assert seen.rows[-1].keys() == {"step", "loss"} and np.isnan(seen.rows[-1]["loss"])


def test_weights_that_are_not_finite_are_not_saved():
    """The loss of the last step before a save was still finite, what it left behind is not."""
    seen = Recorder()
    with pytest.raises(UserError, match="^weight: not finite at step 8; .*optimizer.learning_rate"):
        seen.train(grown=lambda n: float("nan") if n >= 7 else 1.0)
    assert seen.saved == [4]
