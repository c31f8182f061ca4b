"""The doctor on histories whose state is known: made up, published, stored, and of small runs made
to fail each way.
"""

import functools
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau

from ssl_jax import launch
from ssl_jax.diagnosis import course as course_module
from ssl_jax.diagnosis.advice import advise, decay_time, flow_of
from ssl_jax.diagnosis.course import Course
from ssl_jax.diagnosis.facts import COLLAPSED, MEANING, Facts, SetBy
from ssl_jax.diagnosis.history import Watch, facts_of
from ssl_jax.diagnosis.rows import HELD, LINE
from ssl_jax.diagnosis.signs import (
    ROWS,
    content_rank,
    latched,
    read_signs,
    running_median,
    thinned,
    trend,
)
from ssl_jax.diagnosis.state import diagnose, diagnose_course
from ssl_jax.dynamics import cosine, theory
from ssl_jax.dynamics.collapse import collapse_signs
from ssl_jax.errors import UserError
from ssl_jax.losses import OBJECTIVES
from ssl_jax.models import MLPHead, make_network
from ssl_jax.optim import make_optimizer
from ssl_jax.predictors import make_predictor
from ssl_jax.train.pretrain import make_pretrain_step
from ssl_jax.train.state import init_state
from ssl_jax.workdir.metrics_csv import COLUMNS, append_row, truncate_after

ROOT = Path(__file__).parent.parent
FACTS = Facts(
    64, 0.99, False, "mlp", 0.05, None, 0.02, None, 0.9, "coupled", "lr", 1.0, "cosine", 1000
)
BARE = FACTS._replace(tau=0.0)
SYMMETRIC = BARE._replace(symmetric=True)
EUCLIDEAN = FACTS._replace(loss="euclidean")


def made_up(steps=1000, rows=40, noise=0.03, **columns):
    """A history in which each column goes from its first to its last value geometrically, with some
    noise on it.
    """
    rng = np.random.default_rng(0)
    ends = {"loss": (-0.8, -1.6), "relative_spread": (0.8, 0.7), "effective_rank": (5, 4.5)}
    ends |= {"top_eigenvalue": (10, 0.2), "predictor_norm": (4, 2)} | columns
    history = {"step": np.linspace(steps / rows, steps, rows).round()}
    for name, (first, last) in ends.items():
        curve = first * (last / first) ** np.linspace(0, 1, rows)
        history[name] = curve * (1 + noise * rng.uniform(-1, 1, rows))
    return history | {"effective_rank": np.maximum(history["effective_rank"], 1)}


# --- Its tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share, rest", [(0.9, 5), (0.5, 2), (0.2, 7), (0.6, 1)])
def test_content_is_the_rank_beside_the_mean(share, rest):
    """Against the spectrum of a mean direction and `rest` even directions beside it."""
    s = np.array([share, *[(1 - share) / rest] * rest])
    assert content_rank(np.exp(-np.sum(s * np.log(s))), share) == pytest.approx(rest)
    assert content_rank(1.0, share) == 1


def test_spread_tells_the_mean_share_of_projections():
    """m = ||E u||², the mean cosine, is 1 - spread² where all coordinates vary alike."""
    rng = np.random.default_rng(0)
    z = 0.3 * rng.normal(size=(4000, 16)) + rng.choice([-1, 1], 16)[None, :]
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    spread = 4 * u.std(axis=0).mean()
    assert 1 - spread**2 == pytest.approx(np.sum(u.mean(axis=0) ** 2), abs=2e-3)
    assert np.mean(u[:2000] @ u[2000:].T) == pytest.approx(1 - spread**2, abs=1e-2)


def test_trend_is_kendalls():
    x = np.random.default_rng(0).normal(size=30) + np.linspace(0, 1, 30)
    n, tau = 30, kendalltau(np.arange(30), x).statistic
    assert trend(x) == pytest.approx(
        tau * n * (n - 1) / 2 / np.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    )
    assert trend(-x) == -trend(x) and trend(x[:3]) == 0


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 12])
def test_running_median_looks_back_only(length):
    x = np.random.default_rng(1).normal(size=length)
    expected = [np.median(x[max(0, i - 4) : i + 1]) for i in range(length)]
    np.testing.assert_array_equal(running_median(x), expected)
    for before in (0, 1, 4, 7):
        found = running_median(np.array([x, -x]), min(before, length))
        np.testing.assert_array_equal(found[0], expected[before:])
        np.testing.assert_array_equal(found[1], -np.array(expected)[before:])


def test_an_alarm_ends_later_than_it_began():
    x = np.array([2, 1.6, 1.4, 1.6, 1.4, 1.9, 1.6])
    expected = [False, False, True, True, True, False, False]
    np.testing.assert_array_equal(latched(x < 1.5, x < 1.8), expected)
    later = latched(x[3:] < 1.5, x[3:] < 1.8, expected[2])
    np.testing.assert_array_equal(later, expected[3:])


# --- Made-up histories ----------------------------------------------------------------------------


def test_a_run_that_learns():
    found = diagnose(made_up(), FACTS)
    assert (found.state, found.since, found.advice, found.collapsed) == ("healthy", None, (), False)
    assert (
        found.rank == pytest.approx(4.5, rel=0.05)
        and found.dim == 64
        and found.certainty.startswith("sure")
    )


ILL = {
    "dimensional collapse": {"effective_rank": (6, 1.1), "top_eigenvalue": (10, 0.05)},
    "complete collapse": {"relative_spread": (0.8, 0.02), "effective_rank": (5, 1.01)},
    "rank-one explosion": {"effective_rank": (3, 1.02), "top_eigenvalue": (90, 3300)},
    "divergence": {"predictor_norm": (8, 4e4), "loss": (2, 0.5)},
}


@pytest.mark.parametrize("state", ILL)
def test_each_illness_is_told_and_dated(state):
    history = made_up(**ILL[state])
    # the cosine sees no size of weights
    facts = BARE._replace(loss="euclidean") if state == "divergence" else BARE
    found = diagnose(history, facts)
    assert found.state == state and found.collapsed == (state in COLLAPSED)
    assert 100 < found.since < 1000 and str(found.since) in found.words and "\n" not in found.words
    before = {name: column[history["step"] < found.since] for name, column in history.items()}
    assert diagnose(before, facts).state == "healthy"
    assert found.advice and set(MEANING) == {*ILL, "healthy", "too early"}


def test_what_is_not_finite_is_a_divergence_from_that_row():
    history = made_up()
    for name in ("loss", "top_eigenvalue"):
        broken = history | {name: np.append(history[name][:-2], [np.nan, np.inf])}
        found = diagnose(broken, FACTS)
        assert (
            found.state == "divergence"
            and found.since == history["step"][-2]
            and "sure" in found.certainty
        )
    first = {name: column[:1] * np.nan for name, column in history.items()}
    assert diagnose(first, FACTS)[:2] == ("divergence", None)


def test_too_early_to_tell():
    history = made_up(**ILL["dimensional collapse"])
    few = {name: column[:4] for name, column in history.items()}
    soon = {name: column[-8:] for name, column in history.items()} | {
        "step": np.arange(10, 90, 10),
        "top_eigenvalue": np.ones(8),
    }
    for rows in (few, soon, {name: column[:0] for name, column in history.items()}):
        assert diagnose(rows, BARE).state == "too early"


def test_a_run_on_its_way_up_is_no_alarm():
    """As the replication's begin: all mean, rank 1, which the mean's fading mends."""
    rising = {
        "relative_spread": (0.05, 0.09),
        "effective_rank": (1.01, 1.3),
        "top_eigenvalue": (190, 57),
    }
    slow = FACTS._replace(weight_decay=4e-4, learning_rate=0.03, total_steps=39_000)
    found = diagnose(made_up(steps=3900, noise=0.003, **rising), slow)
    assert found.state == "too early" and "rising" in found.certainty
    assert diagnose(
        made_up(steps=3900, noise=0.003, **rising), slow._replace(total_steps=3900)
    ).collapsed
    fading = rising | {"effective_rank": (1.1, 1.1), "relative_spread": (0.05, 0.05)}
    found = diagnose(made_up(steps=3900, noise=0.003, **fading), slow)
    assert found.state == "too early" and "fading" in found.certainty
    stuck = fading | {"top_eigenvalue": (190, 200)}
    assert diagnose(made_up(steps=3900, noise=0.003, **stuck), slow).collapsed


def test_eigenvalues_all_gone_matter_to_the_euclidean_loss_alone():
    history = made_up(top_eigenvalue=(10, 1e-5), loss=(5, 0.1))
    assert diagnose(history, FACTS).state == "healthy"
    assert diagnose(history, FACTS._replace(loss="euclidean")).state == "complete collapse"


def test_recorded_dynamics_are_heard():
    history = made_up(effective_rank=(5, 2))
    dynamics = {"step": np.array([0, 500, 1000]), "mean_share": np.array([np.nan, 0.5, 0.9])}
    assert diagnose(history, FACTS).state == "dimensional collapse"  # spread .7 and rank 2: a line
    beside = read_signs(history | {"dynamics": dynamics}, 64)
    # 9/10 are mean: the rest is rich
    assert beside.mean[-1] > 0.85 and beside.content[-1] > LINE[1]
    dynamics["parameter_norm"] = np.array([[1, 1, 1], [2, 2, 2], [300, 1, 1]])
    found = diagnose(history | {"dynamics": dynamics}, FACTS)
    assert (found.state, found.since) == ("divergence", 1000)
    dynamics["predictor_eigenvalues"] = np.tile([1, 0.5, 0.01], (3, 1))
    assert any(
        "2 of 64 eigenvalues" in sign
        for sign in diagnose(history | {"dynamics": dynamics}, FACTS).signs
    )


# --- How sure -------------------------------------------------------------------------------------


def level(diagnosis):
    """The first word of a certainty."""
    return diagnosis.certainty.split(":")[0]


def promised(diagnosis):
    """The step by which a diagnosis says that it is settled."""
    return int(re.match(r"by step (\d+)", diagnosis.settles).group(1))


def until(history, step):
    """The rows up to a step."""
    return {name: column[history["step"] <= step] for name, column in history.items()}


def verdicts(history, facts):
    """The diagnosis after each row."""
    course, found = Course(facts), []
    for row in range(len(history["step"])):
        course.extend({name: column[row : row + 1] for name, column in history.items()})
        found.append(diagnose_course(course))
    return found


@pytest.fixture(scope="module")
def byol_full():
    """A healthy run at full scale: (history, facts), and its verdicts. Its final accuracy is in
    results/table1/full/byol.
    """
    path = ROOT / "results" / "doctor" / "histories" / "byol_full.json"
    stored = json.loads(path.read_text())
    history = {name: np.array(column, float) for name, column in stored["history"].items()}
    facts = Facts(**stored["facts"])
    return history, facts, verdicts(history, facts)


def test_a_slow_transient_is_not_sure(byol_full):
    """BYOL's mean direction takes thousands of steps to fade. Its first rows look collapsed."""
    history, facts, found = byol_full
    ill = [each for each in found if each.collapsed]
    assert ill and all(level(each) != "sure" and each.settles for each in ill)
    (at_250,) = [each for each, step in zip(found, history["step"], strict=True) if step == 250]
    assert at_250.state == "rank-one explosion" and level(at_250) == "likely"
    assert 250 < promised(at_250) < 39_000
    assert "few beside the 38750 to come" in at_250.certainty
    assert at_250.settles in at_250.words
    sure = [each.state for each in found if level(each) == "sure"]
    assert set(sure) == {"healthy"} and len(sure) > 390  # of 780 rows
    assert found[-1].settles == ""


def swinging():
    """DirectPred without an average (ResNet-18 of width 16, CIFAR-10, published settings): its
    spread swings and its largest eigenvalue falls slowly. Given were these points; the curve
    between them and the rank are made up.
    """
    step = np.arange(50.0, 2651, 50)
    points = (50, 1550, 2340, 2650)
    spread = np.exp(np.interp(step, points, np.log((0.53, 0.11, 0.34, 0.12))))
    top = 270 * (116 / 270) ** ((step - 50) / 2600)
    noise = np.random.default_rng(0).uniform(0.97, 1.03, (3, len(step)))
    return {
        "step": step,
        "loss": -1.5 * noise[0],
        "relative_spread": spread,
        "effective_rank": 1.4 * (1.2 / 1.4) ** ((step - 50) / 2600) * noise[1],
        "top_eigenvalue": top * noise[2],
    }


PUBLISHED_FACTS = BARE._replace(
    dim=128, kind="direct_pred", weight_decay=4e-4, learning_rate=0.03, total_steps=39_000
)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])  # the theory has a clock for one only
def test_a_swing_is_not_sure(optimizer):
    facts = PUBLISHED_FACTS._replace(optimizer=optimizer)
    found = verdicts(swinging(), facts)
    assert not any(level(each) == "sure" for each in found)
    for each, step in zip(found, swinging()["step"], strict=True):
        assert step < promised(each) <= 39_000
    if optimizer == "adam":  # without a clock it says what it sees
        at_850 = found[16]
        assert (at_850.state, level(at_850)) == ("rank-one explosion", "likely")
        assert "850 steps are few beside the 38150 to come" in at_850.certainty
        assert any("moved by a factor of" in each.certainty for each in found)


STILL = {
    "rank-one explosion": {"effective_rank": (1.02, 1.02), "top_eigenvalue": (90, 90)},
    "dimensional collapse": {"effective_rank": (1.1, 1.1), "top_eigenvalue": (0.2, 0.2)},
    "complete collapse": {"effective_rank": (1.01, 1.01), "relative_spread": (0.02, 0.02)}
    | {"top_eigenvalue": (10, 10)},
    "healthy": {"relative_spread": (0.7, 0.7), "top_eigenvalue": (0.2, 0.2)},
}


def still(state, rows=100):
    """A history of 1000 steps that shows one state from the start, and does not move. The first
    rows set the scale of the eigenvalue.
    """
    history = made_up(rows=rows, noise=0, **STILL[state])
    if STILL[state].get("top_eigenvalue", (1,))[0] < 1:
        history["top_eigenvalue"][:ROWS] = 10
    return history


@pytest.mark.parametrize("state", STILL)
def test_a_state_that_lasts_and_stands_still_is_sure(state):
    """By the step that is promised, and only from there on, while much is still to come."""
    facts, history = BARE._replace(total_steps=2000, weight_decay=0.0), still(state)
    found = verdicts(history, facts)
    assert (found[-1].state, level(found[-1]), found[-1].settles) == (state, "sure", "")
    by = promised(found[29])  # at step 300
    assert 600 < by < 800  # about a third of the run
    sure = [level(each) == "sure" for each in found]
    first = sure.index(True)
    assert all(sure[first:]) and history["step"][first - 1] < by <= history["step"][first]
    much = diagnose(history, facts._replace(total_steps=4000))
    assert level(much) == "likely" and promised(much) == pytest.approx(1334, rel=0.05)


def test_what_moves_or_is_a_close_thing_is_likely():
    facts, history = BARE._replace(total_steps=2000), still("rank-one explosion")
    wave = np.exp(0.6 * np.sin(np.arange(100) / 4))  # by a factor of 3.3
    assert level(diagnose(history, facts)) == "sure"
    for name, factor, words in (
        ("top_eigenvalue", wave, "largest eigenvalue moved"),
        ("relative_spread", wave / 3, "the spread moved"),
        ("top_eigenvalue", np.linspace(1, 0.5, 100), "eigenvalue falls"),
        ("relative_spread", np.linspace(0.5, 1, 100), "variety grows"),
    ):
        found = diagnose(history | {name: history[name] * factor}, facts)
        assert found.state == "rank-one explosion" and level(found) == "likely", name
        assert words in found.certainty and 1000 < promised(found) <= 2000
    near = history | {"effective_rank": np.r_[np.full(20, 1.5), np.full(80, 2.2)]}
    near |= {"relative_spread": np.full(100, 0.4)}
    found = diagnose(near, facts)
    assert found.state == "rank-one explosion" and "a close thing" in found.certainty


def test_a_falling_eigenvalue_is_waited_for_until_it_is_gone():
    """By the step at which it passes HELD[1] at its rate: top = e^(-step / 800), from step 50."""
    facts, history = BARE._replace(optimizer="adam", total_steps=2400), still("rank-one explosion")
    history["top_eigenvalue"] = 90 * np.exp(-history["step"] / 800)
    found = diagnose(history, facts)
    gone = 50 + 800 * np.log(1 / HELD[1])
    assert level(found) == "likely" and promised(found) == pytest.approx(gone, rel=0.02)


def test_zeros_and_nan_do_not_come_back():
    facts = BARE._replace(total_steps=100_000)
    zero = still("complete collapse")
    zero["top_eigenvalue"][50:] = 0
    zero["relative_spread"][50:] = 0
    zero["effective_rank"][50:] = 1
    found = diagnose(zero, facts)
    assert (found.state, level(found), found.settles) == ("complete collapse", "sure", "")
    zero["top_eigenvalue"][-3:] = 1e-3
    assert level(diagnose(zero, facts)) == "likely"


@pytest.mark.parametrize("seed", range(3))
def test_row_by_row_is_as_all_at_once(seed):
    """Whatever the rows are and however many come at a time; also with a number that is missing."""
    rng = np.random.default_rng(seed)

    def walk(low, high, step):
        x = np.log(low) + np.cumsum(step * rng.normal(size=120))
        x = np.abs((x - np.log(low)) % (2 * np.log(high / low)) - np.log(high / low))
        return low * np.exp(x)

    history = {
        "step": np.arange(20.0, 2401, 20),
        "loss": -rng.random(120),
        "relative_spread": walk(0.05, 1.0, 0.3),
        "effective_rank": walk(1.0, 6.0, 0.3),
        "top_eigenvalue": walk(0.1, 1000.0, 0.6),
        "predictor_norm": walk(1, 100, 0.2),
    }
    facts = BARE._replace(total_steps=3000, loss="euclidean" if seed == 2 else "cosine")
    if seed == 1:
        history["loss"][100] = np.nan
    found = verdicts(history, facts)
    assert len({each.state for each in found}) > 2
    course, read = Course(facts), 0
    for n in range(1, 121):
        part = {name: column[:n] for name, column in history.items()}
        assert n % 7 or diagnose(part, facts) == found[n - 1]
        if n in (3, 7, 50, 51, 90, 120):
            course.extend({name: column[read:n] for name, column in history.items()})
            read = n
            assert diagnose_course(course) == found[n - 1]


def test_a_row_costs_the_same_after_many(monkeypatch):
    """No row reads more than the ROWS that its medians are of, nor looks at more than 60 for a
    trend, whether it is the hundredth or the thousandth.
    """
    sizes = []
    original = course_module.read_signs

    def counted(history, *args):
        sizes.append(len(history["step"]))
        return original(history, *args)

    monkeypatch.setattr(course_module, "read_signs", counted)
    rows, watch = rows_of(made_up(rows=1000)), Watch(FACTS)
    for n in range(1, 1001):
        watch.change(rows[:n])
    assert sizes[-900:] == [ROWS] * 900
    for size in (59, 60, 61, 119, 39_000):
        assert len(thinned(np.zeros(size))) <= 60


def test_a_resumed_run_says_the_same_lines():
    rows = rows_of(made_up(**ILL["rank-one explosion"]))
    whole, said = Watch(BARE), {}
    for n in range(1, 41):
        said[n] = whole.change(rows[:n])
    for stop in (0, 3, 20, max(n for n in said if said[n]) - 1):
        again = Watch(BARE)
        assert {n: again.change(rows[:n]) for n in range(stop + 1, 41)} == {
            n: said[n] for n in range(stop + 1, 41)
        }


@pytest.mark.parametrize("name", ["verdicts", "held_out"])
def test_no_stored_verdict_was_sure_and_wrong(name):
    """Of the runs of benchmarks/doctor.py, as it last examined them; the second's seed no threshold
    was fixed with."""
    stored = json.loads((ROOT / "results" / "doctor" / f"{name}.json").read_text())
    assert len(stored["rows"]) >= 20 and sum(row["sure_rows"] for row in stored["rows"]) > 1000
    assert sum(row["sure_collapsed"] for row in stored["rows"]) > 100
    for row in stored["rows"]:
        assert row["contradicted"] == 0, row
        end = row["100%"].split(", ")[0]
        for share in ("10%", "25%", "50%"):
            assert row[share] in (f"{end}, sure",) or "sure" not in row[share].split(", "), row


# --- Published and stored runs --------------------------------------------------------------------

# The replication's stored results (CIFAR-10, D = 128): largest eigenvalue of F after epochs 0, 10,
# 20, 50, 100, and the effective rank after 100. Between the epochs, and of what was not stored, the
# tests make it up: rank from 1.05 (all of it mean) geometrically; spread from .3 to .7 or, in the
# collapse, standing still.
PUBLISHED = {
    "byol": ((190.8, 57.0, 15.4, 2.76, 1.50), 22.6),
    "byol_sym": ((210, 16.3, 6.6, 1.80, 0.87), 41.7),
    "simsiam": ((174, 42.2, 18.0, 5.46, 7.42), 8.5),
    "simsiam_sym": ((93.8, 111, 65, 531, 3309), 1.02),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_replications_spectra(name):
    top, rank = PUBLISHED[name]
    epochs = np.linspace(1, 100, 200)
    curve = np.exp(np.interp(epochs, (1, 10, 20, 50, 100), np.log(top)))
    spread = (0.3, 0.7) if rank > 2 else (0.3, 0.3)
    history = made_up(rows=200, effective_rank=(1.05, rank), relative_spread=spread, noise=0.01)
    history |= {"step": (390 * epochs).round(), "top_eigenvalue": curve}
    facts = FACTS._replace(
        dim=128, tau=0.0, weight_decay=4e-4, learning_rate=0.03, total_steps=39_000
    )
    states = [diagnose({k: v[:n] for k, v in history.items()}, facts).state for n in range(1, 201)]
    assert states[0] == "too early" and states[-1] == (
        "healthy" if rank > 2 else "rank-one explosion"
    )
    if rank > 2:
        assert set(states) == {"too early", "healthy"}  # no false alarm on the way


MINI = [
    path
    for sweep in ("table1", "table2", "table3", "directcopy")
    for path in (ROOT / "results" / sweep).glob("mini/*/*")
]


@pytest.mark.parametrize(
    "paths", [MINI, list((ROOT / "results" / "decay_ssl").glob("*/seed-*.json"))]
)
def test_stored_runs_at_their_end(paths):
    """Collapsed are those whose linear probe fell far below the untrained encoder's 37 %, and no
    other. Only without any decay may projections lie on a line while the features before them
    learn: nothing takes away what is not used.
    """
    assert paths
    for path in paths:
        run = json.loads(path.read_text())
        columns = {"loss": run["loss"], "relative_spread": run["relative_spread"]}
        columns |= {
            "effective_rank": run["effective_rank"],
            "top_eigenvalue": run["correlation_eigenvalues"][0],
        }
        rows = {name: np.full(40, value) for name, value in columns.items()}
        rows["top_eigenvalue"][:5] = 15  # about where all of them begin
        dim = len(run["correlation_eigenvalues"])
        found = diagnose(
            rows | {"step": np.linspace(20, run["steps"], 40)}, FACTS._replace(dim=dim)
        )
        undecayed = path.parent.name.endswith("_nowd")
        assert (
            not found.collapsed or run["linear_accuracy"] < 0.32 or (undecayed and found.rank < 2.5)
        ), path
        # by all its rows, of which only the last is stored
        by_itself = run.get("state", "healthy") != "healthy"
        assert found.collapsed or by_itself or run["linear_accuracy"] > 0.28, path


def test_what_was_measured_counts_as_far_as_it_reaches():
    """dynamics.npz may end before metrics.csv does."""
    history = made_up(**ILL["complete collapse"])
    early = {"step": np.arange(0.0, 201, 10), "mean_share": np.full(21, 0.3)}
    assert diagnose(history | {"dynamics": early}, BARE).state == "complete collapse"


def test_large_weights_are_no_divergence_under_the_cosine():
    """As in table 3 without decay: the predictor runs to 80 times the identity, and the network
    learns.
    """
    assert diagnose(made_up(predictor_norm=(8, 640)), FACTS).state == "healthy"


# --- Advice ---------------------------------------------------------------------------------------


def advice_of(facts, state="dimensional collapse"):
    return advise(state, read_signs(made_up(), facts.dim), facts)


def number_after(text, words):
    """The number that follows `words`."""
    assert words in text, text
    return float(text.split(words)[1].split()[0].rstrip(":;,)"))


@pytest.mark.parametrize(
    "settings", [{}, {"decay": "decoupled"}, {"momentum": 0.0, "loss_scale": 2.0}]
)
def test_decay_is_lowered_to_where_the_theory_has_something_to_learn(settings):
    strong = EUCLIDEAN._replace(weight_decay=40.0, **settings)
    (line,) = [line for line in advice_of(strong) if "Lower optimizer.weight_decay" in line]
    border = number_after(line, "at ")
    names = {}
    for factor in (0.99, 1.01):
        flow, _ = flow_of(strong._replace(weight_decay=factor * border))
        points = theory.fixed_points(alpha_p=flow.alpha_p, eta_p=flow.eta_p, eta_s=flow.eta_s)
        names[factor] = [point.name for point in points]
    assert "learned" in names[0.99] and names[1.01] == ["collapsed"]
    assert number_after(line, f"from {strong.weight_decay:g} to ") < border
    assert not any("Lower optimizer.weight_decay" in line for line in advice_of(EUCLIDEAN))


def test_decay_on_the_predictor_alone_collapses_from_nowhere():
    (line,) = [
        line
        for line in advice_of(SYMMETRIC._replace(loss="euclidean"))
        if line.startswith("Decay the predictor alone")
    ]
    kept = number_after(line, "predictor.weight_decay=")
    flow, time = flow_of(SYMMETRIC._replace(weight_decay=0.0, predictor_weight_decay=kept))
    p, s = np.meshgrid(np.linspace(-2, 2, 9), np.geomspace(1e-6, 10, 9))
    numbers = {"alpha_p": flow.alpha_p, "eta_p": flow.eta_p}
    assert not theory.collapses(p=p, s=s, eta_s=0.0, **numbers).any()
    assert number_after(line, "grow by up to ") == pytest.approx(
        theory.asymptotic_growth(**numbers) * time, rel=0.05
    )


def test_a_quicker_predictor_widens_the_basin_by_what_is_said():
    (line,) = [line for line in advice_of(EUCLIDEAN) if line.startswith("A quicker predictor")]
    now, then = number_after(line, "above an eigenvalue of "), number_after(line, "this makes it ")
    rate = number_after(line, "from 0.05 to ")
    decay = number_after(line, "from 0.02 to ")
    for facts, told in (
        (EUCLIDEAN, now),
        (EUCLIDEAN._replace(predictor_learning_rate=rate, predictor_weight_decay=decay), then),
    ):
        flow = flow_of(facts)[0]
        points = theory.fixed_points(alpha_p=flow.alpha_p, eta_p=flow.eta_p, eta_s=flow.eta_s)
        assert [point.s for point in points if point.name == "saddle"] == [
            pytest.approx(told, rel=0.05)
        ]
    # The predictor's decay the other way: its saddle rises, and so it must not be advised.
    flow = flow_of(FACTS._replace(predictor_weight_decay=0.2))[0]
    assert theory.fixed_points(alpha_p=1.0, eta_p=flow.eta_p, eta_s=flow.eta_s)[1].s > 5 * now


def test_under_the_cosine_no_advice_is_of_the_squared_distance():
    strong = SYMMETRIC._replace(weight_decay=40.0, kind="linear")
    text = " ".join(advice_of(strong))
    assert "Lower optimizer.weight_decay" not in text  # of the critical decay, which it has not
    assert "theory:" not in text and text.count("theory of the cosine:") >= 3
    other = " ".join(advice_of(strong._replace(loss="euclidean")))
    assert "theory of the cosine" not in other and "critical tau" in other


def test_under_the_cosine_the_predictors_decay_is_no_less_than_the_rests():
    """The flow of the advised settings has α_eff = α e^(2 (η_p - η_s) t) that does not fall, where
    that of the run does."""
    slow = FACTS._replace(kind="linear", predictor_weight_decay=0.004)
    (line,) = [line for line in advice_of(slow) if line.startswith("A quicker predictor")]
    rate, decay = number_after(line, "from 0.05 to "), number_after(line, "from 0.004 to ")
    late = []
    for facts in (slow, slow._replace(predictor_weight_decay=decay)):
        flow = flow_of(facts)[0]
        numbers = {"alpha_p": flow.alpha_p, "eta_p": flow.eta_p, "eta_s": flow.eta_s}
        late.append(cosine.alpha_without_decay(100.0, **numbers) / flow.alpha_p)
    assert late[0] < 0.3 and late[1] == pytest.approx(1) and rate == 0.5
    (line,) = [line for line in advice_of(FACTS) if line.startswith("A quicker predictor")]
    assert "slows" not in line and "predictor.weight_decay" not in line


def test_long_steps_are_shortened_where_no_average_holds_them():
    """By the leading order's own steps, W_p = DirectPred of F: the mean's mode rises further in the
    steps of the run than in those of the advice."""
    direct = BARE._replace(kind="direct_pred", learning_rate=0.1)
    (line,) = [line for line in advice_of(direct) if "Lower optimizer.learning_rate" in line]
    advised = number_after(line, "from 0.1 to ")
    assert number_after(line, "a step is ") == pytest.approx(0.1 / (1 - 0.9) * 2)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(8, 32)) / 6
    x = np.diag(np.r_[8.0, np.full(31, 0.1)])  # shared by the views: the first is the mean's
    own = x + np.diag(np.r_[0.0, np.full(31, 0.4)])
    risen = []
    for rate in (0.1, advised):
        w, speed, top = start, 0 * start, []
        for _ in range(round(100 * 0.1 / rate)):
            f, v = np.linalg.eigh(w @ own @ w.T)
            u = (v * (np.sqrt(np.maximum(f, 0) / f.max()) + 0.1)) @ v.T
            a, b, z = (np.trace(y) for y in (u @ w @ x @ w.T, u @ w @ own @ w.T @ u, w @ own @ w.T))
            by = -2 * (u @ w @ x - a / b * u @ u @ w @ own) / np.sqrt(b * z)
            speed = 0.9 * speed + by
            w = w - rate * speed
            top.append(np.linalg.eigvalsh(w @ own @ w.T)[-1])
        risen.append(max(top) / np.linalg.eigvalsh(start @ own @ start.T)[-1])
    assert risen[0] > 1.5 * risen[1]
    for facts in (direct._replace(tau=0.99), direct._replace(loss="euclidean"), BARE):
        assert "optimizer.learning_rate from 0.1" not in " ".join(advice_of(facts))
    short = direct._replace(learning_rate=0.01)
    assert "Lower optimizer.learning_rate" not in " ".join(advice_of(short))


@pytest.mark.parametrize("norm, power", [("max", 0.5), ("frobenius", 1.0)])
def test_eps_is_lowered_where_the_flow_loses_modes_by_it(norm, power):
    """By the law's own flow: with the run's eps the modes below the threshold die, with the advised
    one those live that the advice says."""
    pytest.importorskip("diffrax")
    direct = FACTS._replace(dim=4, kind="direct_set", set_by=SetBy(power, 0.5, norm))
    c = np.array([1.0, 0.8, 0.3, 0.15])
    (line,) = [
        line
        for line in advise("dimensional collapse", read_signs(made_up(), 4), direct, c)
        if line.startswith("Lower predictor.eps")
    ]
    eps = number_after(line, "from 0.5 to ")
    now, then = number_after(line, "measured "), number_after(line, "with the smaller ")
    for value, told in ((0.5, now), (eps, then)):
        curves = cosine.simulate_direct(
            s=np.full(4, 0.5),
            c=c,
            eps=value,
            norm=norm,
            power=power,
            times=(0, 3000),
            order="leading",
        )
        s = curves.s[-1]
        assert (s > 1e-6 * s.max()).sum() == told
    every = advise("dimensional collapse", read_signs(made_up(), 4), direct, np.ones(4))
    assert "predictor.eps" not in " ".join(every)  # none dies by it
    assert "predictor.eps" not in " ".join(advice_of(FACTS))
    euclidean = direct._replace(loss="euclidean")
    assert "predictor.eps" not in " ".join(advice_of(euclidean))


def test_what_views_share_is_read_from_the_records():
    history = made_up(effective_rank=(5, 1))
    c = np.linspace(1, 0.02, 64)
    seen = np.stack([c / c, c, c * np.nan])
    records = {"step": np.array([0, 500, 1000]), "view_correlation": seen}
    facts = FACTS._replace(kind="direct_pred", set_by=SetBy(0.5, 0.1, "max"))
    blind, seeing = (
        " ".join(diagnose(history | {"dynamics": dynamics}, facts).advice)
        for dynamics in ({}, records)
    )
    alive = int((c > 0.1 / 1.1).sum())
    assert f"by what was measured {alive} of 64 modes live" in seeing
    assert "below 0.091 of what" in blind and "measured" not in blind.split("eps is a threshold")[1]


def test_nothing_is_advised_that_is_so_already_or_has_no_say():
    text = " ".join(advice_of(FACTS))
    assert "target.tau" not in text and "predictor.symmetric" not in text
    text = " ".join(advice_of(SYMMETRIC))
    assert "target.tau from 0 to 0.99" in text and "predictor.symmetric from True to False" in text
    text = " ".join(advice_of(BARE._replace(kind="direct_pred", symmetric=True)))
    assert (
        "optimizer.predictor" not in text
        and "predictor.symmetric" not in text
        and "'linear'" in text
    )
    adam = SYMMETRIC._replace(optimizer="adam", weight_decay=90.0)
    assert (
        flow_of(adam) is None and decay_time(adam) == 0 and "eta_s" not in " ".join(advice_of(adam))
    )
    still = FACTS._replace(optimizer="adam")
    assert advice_of(still) and advice_of(still, "healthy") == ()


def test_divergence_lowers_the_rate():
    assert (
        "optimizer.learning_rate from 9 to 0.1"
        in advice_of(FACTS._replace(learning_rate=9.0), "divergence")[0]
    )
    both = advice_of(FACTS._replace(predictor_learning_rate=2.0), "divergence")
    assert "optimizer.predictor.learning_rate from 2 to" in both[1]
    euclidean = FACTS._replace(loss="euclidean", learning_rate=3.0)
    line = advice_of(euclidean, "divergence")[0]
    border, s, mu = number_after(line, "unstable above "), read_signs(made_up(), 64).start, 0.9
    # heavy ball on a quadratic of curvature 2 s
    for rate, grows in ((0.98 * border, False), (1.02 * border, True)):
        w, before = 1.0, 1.0
        for _ in range(500):
            w, before = w - rate * 2 * s * w + mu * (w - before), w
        assert (abs(w) > 1) == grows


# --- Small runs made to fail ----------------------------------------------------------------------

DIM, BATCH, STEPS, EVERY = 8, 64, 400, 10
# One coordinate of the images varies twice as much as the others: variances 4 and 1 in the views,
# but for their noise.
IMAGES = (
    np.random.default_rng(0).normal(size=(1000, 1, 8, 1))
    * np.array([64] + [32] * 7)[None, None, :, None]
    + 127.5
)
IMAGES = np.clip(IMAGES, 0, 255).astype(np.uint8)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(DIM, use_bias=False, name="linear")(x.reshape(len(x), -1))


class Same(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return x


@functools.cache
def program(loss, kind, symmetric, noise):
    """run(rate, decay, indices) -> history: the real step on a linear network, for the cosine with
    a real projector.
    """
    projector = MLPHead(16, DIM) if loss == "cosine" else Same()
    network = make_network(Linear(), projector)
    predictor = make_predictor(
        kind, DIM, symmetric=symmetric, **({"hidden": 16} if kind == "mlp" else {})
    )

    def views(keys, image):
        def one(key, image):
            return (
                (image[None] - 127.5) / 32
                + 0.5 * (loss == "cosine")
                + noise * jax.random.normal(key, (2, 1, 8, 1))
            )

        pairs = jax.vmap(one)(keys, image.astype(jnp.float32))
        return pairs[:, 0], pairs[:, 1]

    @jax.jit
    def run(rate, decay, indices):
        optimizer = make_optimizer("momentum", rate, momentum=0.9, weight_decay=decay)
        step = make_pretrain_step(
            views=views,
            network=network,
            predictor=predictor,
            optimizer=optimizer,
            tau=None,
            objective=OBJECTIVES[loss],
        )

        def one(state, index):
            batch = {"image": jnp.asarray(IMAGES)[index], "position": jnp.arange(BATCH)}
            return step(state, batch, jax.random.key(0))

        def row(state, indices):
            state, metrics = jax.lax.scan(one, state, indices)
            signs = collapse_signs(
                state.memory["correlation"], predictor.matrix(state.params["predictor"])
            )
            return state, jax.tree.map(jnp.mean, metrics) | signs | {"step": state.step}

        state = init_state(
            jax.random.key(1), jnp.zeros((2, 1, 8, 1)), network, predictor, optimizer, False
        )
        return jax.lax.scan(row, state, indices)[1]

    return run


def trained(rate, decay, loss="euclidean", kind="linear", symmetric=False, noise=0.3):
    """(history, facts)"""
    indices = np.random.default_rng(0).integers(0, len(IMAGES), (STEPS // EVERY, EVERY, BATCH))
    history = program(loss, kind, symmetric, noise)(rate, decay, jnp.asarray(indices))
    facts = Facts(
        DIM, 0.0, symmetric, kind, rate, None, decay, None, 0.9, "coupled", "lr", 1.0, loss, STEPS
    )
    return {name: np.asarray(column, np.float64) for name, column in history.items()}, facts


@pytest.mark.parametrize(
    "rate, decay, state",
    [
        (0.01, 0.1, "healthy"),
        (0.01, 1.0, "dimensional collapse"),
        (0.01, 4.0, "complete collapse"),
        (2.0, 0.0, "divergence"),
    ],
)
def test_a_linear_network_fails_as_the_theory_says(rate, decay, state):
    """Of a direction with variance v the critical decay is v² / (4 (v + σ²)), here .98 and .23, and
    η_s = decay / 2.
    """
    found = diagnose(*trained(rate, decay))
    assert found.state == state, found
    assert (found.rank < 1.5) == (state == "dimensional collapse") or state == "divergence"
    if state == "complete collapse":
        assert "Lower optimizer.weight_decay from 4" in found.advice[0]


def test_symmetric_simsiam_runs_away_in_one_direction():
    found = diagnose(*trained(0.1, 0.1, "cosine", "mlp", True, noise=1.0))
    assert found.state == "rank-one explosion" and found.since < 200, found
    assert found.rank < 2, found  # in the limit 1; four seeds were between 1.0 and 1.9 on the way
    assert any("predictor.symmetric from True to False" in line for line in found.advice)


# --- The task -------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """The work directory of a made-up run; `rows(history)` writes its metrics.csv."""
    from configs import cifar10_small

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(cifar10_small.get_config("simsiam_sym").to_dict())
    )
    write_rows(folder, made_up(**ILL["rank-one explosion"]))
    return folder


def write_rows(folder, history, steps=1000):
    truncate_after(folder / "metrics.csv", 0)
    for row in rows_of(history):
        append_row(folder / "metrics.csv", row | {"epoch": row["step"] * 6 / steps})


def rows_of(history):
    return [
        dict(zip(history, values, strict=True)) for values in zip(*history.values(), strict=True)
    ]


def call(run, out):
    return launch.main(
        ["launch.py", "--config=configs/doctor.py", f"--config.run={run}", f"--workdir={out}"]
    )


def test_the_task_tells_and_draws(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert call(source, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "RANK-ONE EXPLOSION, since step" in text and "1. Average the target" in text
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["task"], result["state"], result["steps"]) == (
        "doctor",
        "rank-one explosion",
        1000,
    )
    assert result["collapsed"] and result["since"] > 0 and result["advice"] and result["dim"] == 64
    assert (tmp_path / "out" / "figures" / "doctor.png").stat().st_size > 20_000
    assert call(source, tmp_path / "out") == 0  # again, on the same directory
    rows = made_up(**ILL["rank-one explosion"])
    write_rows(source, rows | {"loss": np.append(rows["loss"][:-1], np.nan)})
    assert (
        call(source, tmp_path / "blank") == 0
        and "DIVERGENCE, since step 1000" in capsys.readouterr().out
    )


def spoil_header(folder):
    path = folder / "metrics.csv"
    path.write_text(path.read_text().replace("effective_rank", "efective_rank"))


def spoil_line(folder, line=5, text="7,1,2\n"):
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:line], text, *lines[line + 1 :]]))


def rename_loss(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": "cosin"}))


def supervised(folder):
    (folder / "config.json").write_text('{"task": "supervised"}')


SPOILT = {
    "config.json: not found": lambda folder: (folder / "config.json").unlink(),
    "config.json: damaged": lambda folder: (folder / "config.json").write_text('{"task": '),
    "config.json: loss: got 'cosin', did you mean 'cosine'?": rename_loss,
    "config.json: task: got 'supervised', takes 'pretrain'": supervised,
    "metrics.csv: not found": lambda folder: (folder / "metrics.csv").unlink(),
    "metrics.csv: no row yet": lambda folder: write_rows(folder, {"step": []}),
    "first line lacks effective_rank": spoil_header,
    "metrics.csv: damaged, line 6 has 3 columns": spoil_line,
    "metrics.csv: damaged, line 6 goes from step": lambda folder: spoil_line(
        folder, text="7" + "," * (len(COLUMNS) - 1) + "\n"
    ),
    "line 6 holds no number": lambda folder: spoil_line(
        folder, text="x" + "," * (len(COLUMNS) - 1) + "\n"
    ),
}


@pytest.mark.parametrize("message", SPOILT)
def test_what_cannot_be_read_is_one_line(message, source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    SPOILT[message](source)
    assert call(source, tmp_path / "out") == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("run", ["", "nowhere"])
def test_no_run(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert call(run, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: run: got ''" if not run else "error: nowhere/config.json: not found"
    )


def test_a_run_says_a_change_of_state_once():
    rows, watch = rows_of(made_up(**ILL["rank-one explosion"])), Watch(BARE)
    lines = [line for n in range(1, len(rows) + 1) if (line := watch.change(rows[:n]))]
    assert (
        len(lines) == 1 and "rank-one explosion since step" in lines[0] and "target.tau" in lines[0]
    )
    rows, watch = rows_of(made_up()), Watch(FACTS)
    assert not any(watch.change(rows[:n]) for n in range(1, 41))


def test_facts_are_those_of_the_configuration():
    from configs import cifar10_small

    config = cifar10_small.get_config("directpred-pwd").to_dict()
    facts = facts_of(config, 936)
    assert facts.kind == "direct_pred" and not facts.learned and facts.decay == "pre"
    assert (
        facts.weight_decay == pytest.approx(0.2)
        and facts.tau == 0.99
        and facts.predictor_learning_rate is None
    )
    assert facts.set_by == SetBy(0.5, config["predictor"]["eps"], "max")
    for fields, expected in (
        ({"centre": True}, None),
        ({"eps_mode": "literal"}, None),  # its eps is in units of F's size
        ({"kind": "direct_copy", "eps": 0.2}, SetBy(1.0, 0.2, "frobenius")),
        ({"kind": "direct_set", "power": 2.0, "norm": "trace"}, SetBy(2.0, 0.1, "trace")),
        ({"kind": "mlp"}, None),
    ):
        other = config | {"predictor": config["predictor"] | fields}
        assert facts_of(other, 936).set_by == expected
    config["optimizer"] |= {"name": "adamw", "decay": "auto"}
    assert facts_of(config, 936).decay == "decoupled"
    with pytest.raises(UserError, match="lacks effective_rank"):
        diagnose({"step": [], "loss": [], "relative_spread": [], "top_eigenvalue": []}, facts)
