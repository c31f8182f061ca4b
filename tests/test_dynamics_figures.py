"""Recorded runs drawn and counted, and the theory laid over them: held against runs that the theory
itself made.
"""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from configs import defaults
from configs import dynamics as configuration
from ssl_jax import launch
from ssl_jax.dynamics import theory, theory_fit
from ssl_jax.dynamics.cosine import direct_spectrum
from ssl_jax.errors import UserError
from ssl_jax.losses import OBJECTIVES
from ssl_jax.reports.dynamics import cosine_law, figures, table, theory_fit_figure
from ssl_jax.reports.dynamics import theory_fit as words
from ssl_jax.tasks.dynamics import dynamics, named, read_run
from ssl_jax.workdir import metrics_csv
from ssl_jax.workdir.dynamics_npz import NAME

D, T = 6, 251
TAU, SIGMA2, RATE = 0.8, 0.5, 0.05  # the made run's truth
A = 1 + SIGMA2
# Gradients of the sum over both directions: c = 2, so that the flow's decays are half of the
# configured ones.
DECAY_S, DECAY_P, ALPHA_P = 0.06, 0.08, 2.0
FLOW = theory.Flow(ALPHA_P, DECAY_P / 2 * ALPHA_P, DECAY_S / 2, None)
P0, S0 = np.array([0.4, 0.2, 0.3, 0.05, 0.02, -0.3]), np.array([0.4, 0.2, 0.05, 0.02, 2e-3, 0.01])
STEPS = 4000


def euclidean_modes(times):
    """p and the measured s = a * (eigenvalue of W Wᵀ), both (T, D), by the theory's own
    integration.
    """
    curves = theory.simulate(p=P0, s=S0, tau=TAU, sigma2=SIGMA2, times=times, **FLOW._asdict())
    return curves.p.T, A * curves.s.T


def cosine_modes(times, rho=0.9, k=1.3):
    """p, s (T, D) and cosθ (T,) under the cosine loss: the gradient -(ẑ - cosθ û)/|u| of linear,
    isotropic maps, with E z·f = rho E f·f in every mode, written out from the loss and not as
    `overlay` has it.
    """

    def norms(p, s):
        u, z = np.sqrt(np.sum(s * p**2)), np.sqrt(np.sum(s))
        return u, z, rho * np.sum(s * p) / (u * z)

    def rates(t, y):
        p, s = y.reshape(2, -1)
        u, z, cosine = norms(p, s)
        pull = (rho / z - cosine * p / u) / u
        decayed = FLOW.eta_p * p, 2 * FLOW.eta_s * s
        return np.concatenate([ALPHA_P * s * pull - decayed[0], 2 * k * s * p * pull - decayed[1]])

    start = np.concatenate([np.abs(P0), S0])
    found = solve_ivp(
        rates, (times[0], times[-1]), start, "LSODA", t_eval=times, rtol=1e-9, atol=1e-14
    )
    p, s = found.y.reshape(2, D, -1).transpose(0, 2, 1)
    return p, s, np.array([norms(*row)[2] for row in zip(p, s, strict=True)])


@pytest.fixture
def make(tmp_path):
    """make(name, **changes) -> work directory of a finished run whose modes the theory made; before
    training and in its first record nothing but W_p is known.
    """

    def write(name, size=D, modes=euclidean_modes, without=(), **fields):
        config = defaults.get_config()
        config.update_from_flattened_dict(
            {
                "method": name.split("/")[-1],
                "loss": "euclidean",
                "projector.out": D,
                "optimizer.name": "sgd",
            }
            | {
                "optimizer.learning_rate": RATE,
                "optimizer.weight_decay": DECAY_S,
                "predictor.kind": "linear",
            }
            | {
                "optimizer.predictor.learning_rate": ALPHA_P * RATE,
                "optimizer.predictor.weight_decay": DECAY_P,
            }
            | {"projector.out": size, "data.name": "digits", "target.tau": 0.0}
            | fields
        )
        out = tmp_path / name
        out.mkdir(parents=True)
        (out / "config.json").write_text(json.dumps(config.to_dict()))
        step = np.linspace(0, STEPS, T).round()
        p, s, *cosine = modes(step * 2 * config.optimizer.learning_rate)
        order = np.argsort(-s[-1])
        p, s = (np.tile(array[:, order], (1, -(-size // D)))[:, :size] for array in (p, s))
        values = {
            "corr_eigenvalues": s,
            "mode_predictor": p,
            "alignment": np.where(p > 0, 0.99, -0.99),
        }
        values |= {
            n: np.linspace(1, 2, T) for n in ("effective_rank", "relative_spread", "mean_share")
        }
        values |= {
            n: np.linspace(1, 0, T)
            for n in ("commutator_relative", "online_target_cosine", "weight_cosine")
        }
        values |= {"loss": -2 * cosine[0] if cosine else np.ones(T)}
        for array in values.values():
            array[0] = np.nan
        norms = {f"{n}_norm": np.ones((T, 3)) for n in ("parameter", "gradient", "update")}
        known = {"asymmetry": np.linspace(1.4, 0.1, T), "asymmetry_l1": np.linspace(1.3, 0.2, T)}
        known |= {"predictor_eigenvalues": np.sort(p)[:, ::-1], "step": step, "epoch": step / 100}
        arrays = {k: v for k, v in (values | norms | known).items() if k not in without}
        np.savez(out / NAME, allow_pickle=False, **arrays)
        metrics_csv.truncate_after(out / "metrics.csv", 0)
        for n in (0, STEPS):
            metrics_csv.append_row(
                out / "metrics.csv",
                {"step": n, "epoch": n / 100, "learning_rate": config.optimizer.learning_rate},
            )
        return out

    return write


@pytest.fixture
def shown(monkeypatch):
    """Every figure as it was when saved."""
    found = []
    monkeypatch.setattr(plt, "close", found.append)
    yield found
    monkeypatch.undo()
    plt.close("all")


def ask(*paths):
    config = configuration.get_config()
    config.runs = ",".join(map(str, paths))
    return config


# --- The theory over a run ------------------------------------------------------------------------


def test_units_and_fates_of_a_run_that_the_theory_made(make):
    """tau / a, the rate of growth and every mode's fate are found from what was measured and
    config.json alone.
    """
    run = read_run(make("linear"))
    fit = words.fit_run(run, True)
    assert fit.reason is None and fit.units.start == 1
    assert fit.units.p == pytest.approx(TAU / A, rel=1e-3)
    assert fit.units.k == pytest.approx(A, rel=1e-2) and fit.units.fit > 0.999
    scale = A * (TAU / A) ** 2
    assert fit.units.s == pytest.approx(scale / ALPHA_P, rel=1e-2)
    assert (fit.units.eta_p, fit.units.eta_s) == pytest.approx(
        (FLOW.eta_p / scale, FLOW.eta_s / scale), rel=2e-2
    )
    dies = theory.collapses(p=P0, s=S0, tau=TAU, sigma2=SIGMA2, **FLOW._asdict())
    assert 0 < dies.sum() < D
    lived = np.sort(~dies)[::-1]  # the run's modes are in the order of what became of them
    for fate in (fit.outcome.alive, fit.outcome.survives, fit.outcome.lived):
        np.testing.assert_array_equal(fate, lived)
    assert fit.outcome.agreement() == dict.fromkeys(
        ("aligned", "all", "aligned_for_ever", "all_for_ever"), 1.0
    )
    learned = theory.fixed_points(tau=TAU, sigma2=SIGMA2, **FLOW._asdict())[-1]
    np.testing.assert_allclose(fit.outcome.measured[lived], learned.p * A / TAU, rtol=1e-3)
    np.testing.assert_allclose(fit.outcome.p[lived], learned.p * A / TAU, rtol=1e-2)


def test_a_run_that_the_cosine_made():
    """k is found though every unit moves, and the modes end where they are forecast to."""
    times = np.linspace(0, 60, 1201)
    p, s, cosine = cosine_modes(times)
    units = theory_fit.calibrate(times, p, s, np.ones_like(p), FLOW, cosine)
    assert units.k == pytest.approx(1.3, rel=1e-2) and units.fit > 0.999
    np.testing.assert_allclose(units.p, np.sum(s * p**2, axis=1) / np.sum(s * p, axis=1))
    found = theory_fit.forecast(times, p, s, np.ones_like(p), units, scale_free=True)
    # q falls by all of the decay and more, so that in its
    assert np.log(units.p[-1] / units.p[0]) / 60 < -FLOW.eta_p
    assert units.eta_p == units.eta_s == 0  # units no decay is left
    # records without a loss are passed over
    holes = np.where(np.arange(len(times)) % 100 == 50, np.nan, cosine)
    again = theory_fit.calibrate(times, p, s, np.ones_like(p), FLOW, holes)
    assert again.k == pytest.approx(1.3, rel=1e-2)
    fates = theory_fit.forecast(times, p, s, np.ones_like(p), again, scale_free=True)
    np.testing.assert_allclose(fates.p, found.p, rtol=1e-2)
    large = s[-1] > 0.01 * s[-1].sum()
    np.testing.assert_allclose(found.p[large], found.measured[large], atol=0.15)
    assert found.agreement()["all"] >= 5 / 6


@pytest.mark.parametrize("unit", [0.01, 100.0])
def test_who_lived_depends_on_no_unit_of_s(unit):
    """Two modes keep their p. The second one's s falls to 0.04 of the even share at the start."""
    ones, time = np.ones(3), np.arange(3.0)
    s = unit * np.array([[1.0, 1.0], [0.9, 0.3], [0.8, 0.04]])
    units = theory_fit.Calibration(0, ones, unit * ones, ones, 0.0, 0.0, 1.0, 1.0)
    found = theory_fit.forecast(time, np.ones((3, 2)), s, np.ones((3, 2)), units, scale_free=False)
    np.testing.assert_array_equal(found.lived, [True, False])


def test_prediction_begins_once_modes_have_aligned():
    alignment = np.array(
        [[0.99] * 6, [0.0] * 6, [0.99] + [0.0] * 5, [0.99] * 3 + [0.9] * 3, [0.99] * 6]
    )
    known = np.array([False, True, True, True, True])
    assert theory_fit.alignment_record(alignment, known) == 3
    with pytest.raises(theory_fit.UnfitError, match="at most 1 of 6 modes are aligned"):
        theory_fit.alignment_record(alignment[:3], known[:3])


def test_time_of_the_flow_follows_the_learning_rate():
    """∫ rate d step, by the trapezoid rule: exact where the rate is linear."""
    step = np.array([0.0, 10, 40, 100])
    np.testing.assert_allclose(
        theory_fit.flow_time(step, 1 - step / 100, 0.3), 0.3 * (step - step**2 / 200)
    )


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"predictor.kind": "direct_pred"}, "writes W_p down"),
        ({"predictor.kind": "direct_copy"}, "writes W_p down"),
        ({"optimizer.name": "adam"}, "optimizer is adam"),
        ({"optimizer.layerwise": "mean"}, "decay of its own"),
        ({"regularisers.variance": 0.5}, "this run adds regularisers.variance"),
        ({"without": ("mode_predictor",)}, "damaged, without mode_predictor"),
    ],
)
def test_what_the_theory_is_not_laid_over(make, fields, says):
    assert says in words.fit_run(read_run(make("run", **fields)), True).reason


def test_diffrax_is_not_needed_for_the_rest(make):
    assert "pip install" in words.fit_run(read_run(make("run")), False).reason


def test_overlay_draws_the_portrait_in_the_units_of_the_run(make, tmp_path, shown):
    run = read_run(make("linear"))
    fit = words.fit_run(run, True)
    theory_fit_figure.draw(run, fit, tmp_path / "o.png")
    assert (tmp_path / "o.png").stat().st_size > 20_000
    left, right = plt.figure().subplots(1, 2)
    theory_fit_figure.trajectories(left, run, fit)
    lines = {line.get_label(): line for line in left.lines if not line.get_label().startswith("_")}
    assert {
        "invariant parabola",
        "separatrix",
        "collapsed",
        "saddle",
        "learned",
        "end of the run",
    } <= set(lines)
    canonical = theory.fixed_points(alpha_p=1.0, eta_p=fit.units.eta_p, eta_s=fit.units.eta_s)
    assert lines["learned"].get_xdata() == pytest.approx(canonical[-1].p)
    drawn = [line for line in left.lines if len(line.get_xdata()) == T - 1]
    assert len(drawn) == D
    ends = sorted(line.get_xdata()[-1] for line in drawn)
    # the living modes end on the learned point
    np.testing.assert_allclose(ends[-1], canonical[-1].p, rtol=1e-2)
    theory_fit_figure.outcomes(right, fit.outcome)
    labels = right.get_legend_handles_labels()[1]
    assert sum(int(label.rsplit(" ", 1)[1]) for label in labels) == D


# --- Figures and table ----------------------------------------------------------------------------


def test_figures_hold_every_mode_of_every_run(make, tmp_path, shown):
    runs = [read_run(make("byol", **{"predictor.kind": "mlp"})), read_run(make("simsiam"))]
    for name, draw in figures.FIGURES.items():
        draw(runs, tmp_path / f"{name}.png")
    two, three, four, signs = shown
    for figure in (two, three):
        words = " ".join(figure._suptitle.get_text().split())
        assert "without bias, BatchNorm and ReLU" in words
        assert [axis.get_title() for axis in figure.axes[:2]] == ["byol", "simsiam"]
    for axis in two.axes[:2]:
        assert axis.get_yscale() == "log" and len(axis.lines) == D
        assert len(axis.lines[0].get_xdata()) == T - 1  # before training there is no F
    assert [len(axis.lines) for axis in two.axes[2:4]] == [D + 1, D + 1]  # and the axis at 0
    colours = [line.get_color() for line in two.axes[0].lines]
    assert len(set(colours)) == D and colours[-1] == figures.ranks()(0.0)
    assert [len(axis.collections) for axis in three.axes[2:4]] == [1, 1]
    np.testing.assert_allclose(
        np.ravel(three.axes[2].collections[0].get_array()),
        runs[0].arrays["alignment"][1:].T.ravel(),
    )
    for axis, name in zip(four.axes, ("asymmetry_l1", "asymmetry"), strict=True):
        assert [line.get_xdata()[0] for line in axis.lines[:2]] == [0, 0]  # from before training on
        np.testing.assert_array_equal(axis.lines[0].get_ydata(), runs[0].arrays[name])
    assert [len(axis.lines) for axis in signs.axes] == [2] * 6 + [6] * 3
    assert len({line.get_linestyle() for line in signs.axes[0].lines}) == 2  # not by colour alone


def test_features_are_counted_at_the_last_record(make):
    run = read_run(make("simsiam_sym"))
    run.arrays["predictor_eigenvalues"][-1] = np.array([2, 0.1, 0.05, 0.02, 0.005, -1])
    found = table.features(run)
    assert found["aligned"] == sum(run.arrays["alignment"][-1] > 0.95)
    assert (found["large"], found["large_share"], found["top_predictor"]) == (4, 2, 2)
    assert found["asymmetry_l1"] == [1.3, 0.2] and found["asymmetry"] == [1.4, 0.1]
    assert found["top_eigenvalue_steps"] == [16, 400, 800, 2000, 4000]
    np.testing.assert_allclose(
        found["top_eigenvalue"], run.arrays["corr_eigenvalues"][[1, 25, 50, 125, 250], 0]
    )


def test_table_stands_beside_the_replication(make):
    runs = named([read_run(make("simsiam_sym")), read_run(make("mine"))])
    text = table.report({run.name: table.run_record(run) for run in runs})
    header, _, scale, *rows = (
        line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()
    )
    assert [word for word in header if word] == ["simsiam_sym", "simsiam_sym, replication", "mine"]
    assert (
        "digits, 12800 images, 40 epochs" in scale[1]
        and "D = 128" in scale[2]
        and "D = 6" in scale[1]
    )
    cells = {row[0]: row[1:] for row in rows}
    assert cells["effective rank of F at the end"] == ["2", "1.02", "2"]
    assert cells["asymmetry of W_p, entrywise, before → end"] == [
        "1.3 → 0.2",
        "1.4 → 0",
        "1.3 → 0.2",
    ]
    assert cells["eigenvalues of W_p > 4% of the largest"][1] == "–"
    assert "two-layer" not in text  # of linear predictors alone
    two_layers = read_run(make("byol", **{"predictor.kind": "mlp"}))
    assert "* W_p of a two-layer predictor: product" in table.report(
        {"byol": table.run_record(two_layers)}
    )


def test_the_whole_command(make, tmp_path, capfd, monkeypatch):
    slow = {
        "optimizer.learning_rate": RATE / 10,
        "optimizer.predictor.learning_rate": ALPHA_P * RATE / 10,
    }
    one, two = (
        make("linear"),
        make("deep/linear", modes=cosine_modes, loss="cosine", seed=1, **slow),
    )
    monkeypatch.setattr(launch, "run", lambda v: dynamics(v["config"].value, v["workdir"].value))
    words_ = (
        f"launch.py --config configs/dynamics.py --config.runs={one},{two} --workdir {tmp_path}/out"
    )
    assert launch.main(words_.split()) == 0
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    drawn = {"overlay-linear-seed-0.png", "overlay-linear-seed-1.png"}
    assert names == {"figure2.png", "figure3.png", "figure4.png", "signs.png"} | drawn
    result = json.loads((tmp_path / "out" / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["task"] == "dynamics" and list(result["runs"]) == [
        "linear, seed 0",
        "linear, seed 1",
    ]
    told = result["runs"]["linear, seed 0"]
    assert told["dim"] == D and told["theory"]["agreement"]["all"] == 1 and told["damaged"] == []
    assert result["published"]["byol"]["aligned"] == 57
    text = (tmp_path / "out" / "overlay.md").read_text()
    assert (
        text.count("| survives | survives |") >= 3
        and "The cosine loss does not see the scale" in text
    )
    assert (tmp_path / "out" / "table.md").read_text() in capfd.readouterr().out


def test_one_run_and_the_same_run_twice(make, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {})
    run = make("byol")
    dynamics(ask(run), str(tmp_path / "one"))
    assert (tmp_path / "one" / "figures" / "overlay.png").exists()
    twice = [read_run(run), read_run(make("again/byol"))]
    assert all(str(run.path) in run.name for run in named(twice))


# --- What cannot be drawn -------------------------------------------------------------------------


def test_a_record_from_before_training_only(make, tmp_path, shown):
    """A run that has only begun: everything is drawn, with nothing on it."""
    out = make("young")
    with np.load(out / NAME) as file:
        arrays = {name: file[name][:1] for name in file.files}
    np.savez(out / NAME, allow_pickle=False, **arrays)
    dynamics(ask(out), str(tmp_path / "out"))
    assert "none recorded" in [text.get_text() for text in shown[0].axes[0].texts]
    told = json.loads((tmp_path / "out" / "result.json").read_text())["runs"]["young"]
    assert told["aligned"] is None and "aligned" in told["theory"]["reason"]


def test_what_is_damaged_is_said_and_the_rest_drawn(make, tmp_path):
    out = make("byol", without=("alignment", "epoch"))
    dynamics(ask(out), str(tmp_path / "out"))
    assert (
        "byol: damaged, left out: alignment, epoch" in (tmp_path / "out" / "table.md").read_text()
    )
    told = json.loads((tmp_path / "out" / "result.json").read_text())["runs"]["byol"]
    assert (
        told["damaged"] == ["alignment", "epoch"]
        and told["aligned"] is None
        and told["large"] is not None
    )
    np.testing.assert_allclose(read_run(out).arrays["epoch"], read_run(out).arrays["step"] / 100)


def test_a_mistake_is_one_line_and_leaves_nothing(make, tmp_path):
    good, small = make("byol"), make("small", size=4)
    other, empty, broken = tmp_path / "other", tmp_path / "empty", make("broken")
    for folder, text in ((other, '{"task": "theory"}'), (empty, None)):
        folder.mkdir()
        if text:
            (folder / "config.json").write_text(text)
    (broken / NAME).write_bytes(b"no archive")
    unrecorded = make("unrecorded")
    (unrecorded / NAME).unlink()
    for paths, says in {
        (): "^runs: got '', takes work directories",
        (good, tmp_path / "nowhere"): "^runs: no directory .*nowhere",
        (empty,): "empty/config.json: not found",
        (other,): "other/config.json: task: got 'theory', takes 'pretrain'",
        (good, unrecorded): "unrecorded/dynamics.npz: .*dynamics.every",
        (good, small): "^runs: .*byol has 6, .*small has 4 modes .*takes runs of one size",
        (broken,): "broken/dynamics.npz: damaged",
    }.items():
        with pytest.raises(UserError, match=says) as error:
            dynamics(ask(*paths), str(tmp_path / "out"))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_the_theory_has_not(make, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "third", OBJECTIVES["euclidean"])
    assert "this run's is third" in words.fit_run(read_run(make("run", loss="third")), True).reason


def test_a_run_of_before_there_were_regularisers(make):
    folder = make("old")
    config = json.loads((folder / "config.json").read_text())
    del config["regularisers"]
    (folder / "config.json").write_text(json.dumps(config))
    assert words.fit_run(read_run(folder), True).reason is None


@pytest.mark.parametrize("field, value", [("loss", "cosin"), ("predictor.kind", "mpl")])
def test_a_run_of_what_this_program_does_not_know(make, field, value):
    with pytest.raises(
        UserError, match=f"config.json: {field}: got '{value}', .*takes: .*(cosine|direct_pred)"
    ):
        read_run(make("run", **{field: value}))


@pytest.mark.parametrize("size", [D + 1, 10**9])
def test_another_size_of_projection_than_the_records(make, size):
    """Nothing is allocated by the number in config.json."""
    folder = make("run")
    config = json.loads((folder / "config.json").read_text())
    config["projector"]["out"] = size
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"config.json: projector.out: got {size}, .* {D} modes"):
        read_run(folder)
    config["projector"]["out"] = D
    (folder / "config.json").write_text(json.dumps(config))
    assert read_run(folder).size == D


def test_damaged_files_beside(make):
    spoilt, garbled = make("spoilt"), make("garbled")
    config = json.loads((spoilt / "config.json").read_text())
    (spoilt / "config.json").write_text(json.dumps(config | {"data": "digits"}))
    with pytest.raises(UserError, match="config.json: data: got 'digits', takes a section"):
        read_run(spoilt)
    (garbled / "metrics.csv").write_text("step,epoch,learning_rate\n1,0.1,many\n")
    with pytest.raises(UserError, match="metrics.csv: damaged"):
        read_run(garbled)


def test_runs_of_any_name_are_drawn_and_named_apart(make, tmp_path, capfd):
    """Methods are text of other people; long ones that differ in the middle stay two."""
    middle = ["x" * 100 + letter + "y" * 100 for letter in "ab"]
    names = ["<img src=x onerror=alert(1)>", "$\\frac{$", "_hidden", "a|b", "\x1b[2J", *middle]
    paths = [make(f"run-{i}", method=name) for i, name in enumerate(names)]
    assert launch.main(command(paths, tmp_path / "out")) == 0
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    overlays = {name for name in figures if name.startswith("overlay")}
    assert len(overlays) == len(names) and all(len(name) < 100 for name in overlays)
    for name in ("table.md", "overlay.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "<img" not in text and "\x1b" not in text
    lines = (tmp_path / "out" / "table.md").read_text(encoding="utf-8").splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "\x1b" not in capfd.readouterr().out


def command(paths, out):
    runs = f"--config.runs={','.join(map(str, paths))}"
    return ["launch.py", "--config", configuration.__file__, f"--workdir={out}", runs]


# --- The law of the cosine loss -------------------------------------------------------------------


def at_rest(make, path, kind, c, f, p, **fields):
    """A recorded run whose modes are (c, f, p) at every record, with noise in c."""
    out = make(path, **{"loss": "cosine", "predictor.kind": kind, **fields})
    arrays = dict(np.load(out / NAME))
    noise = np.random.default_rng(0).normal(scale=0.02, size=(T, D))
    arrays["view_correlation"] = np.where(np.arange(T)[:, None] > 0, c + noise, np.nan)
    arrays |= {"corr_eigenvalues": np.tile(f, (T, 1)), "mode_predictor": np.tile(p, (T, 1))}
    np.savez(out / NAME, allow_pickle=False, **arrays)
    return out


def test_runs_at_rest_lie_on_the_law_of_the_cosine_loss(make, tmp_path, shown):
    c = np.linspace(0.95, 0.3, D)
    runs = []
    for kind, law, norm in (
        ("direct_pred", {"power": 0.5, "eps": 0.2}, np.max),
        ("direct_set", {"power": 2.0, "eps": 0.1, "norm": "trace"}, np.sum),
        ("direct_copy", {"power": 1.0, "eps": 0.3, "norm": "frobenius"}, np.linalg.norm),
    ):
        f = direct_spectrum(c, **law)
        p = (f / norm(f)) ** law["power"] + law["eps"]
        own = law if kind == "direct_set" else {"eps": law["eps"]}
        fields = {f"predictor.{name}": value for name, value in own.items()}
        runs.append(read_run(at_rest(make, kind, kind, c, 3 * f, p, **fields)))
    runs.append(read_run(at_rest(make, "linear", "linear", c, f, 2.5 * c)))
    for run in runs:
        found = cosine_law.compare(run)
        np.testing.assert_allclose(found.c, c, atol=0.02)
        np.testing.assert_allclose(found.p[found.seen], c[found.seen], atol=0.03)
        if run.config["predictor"]["kind"] == "linear":
            assert found.law is None and "spectrum" not in found.summary()
        else:
            np.testing.assert_allclose(found.f, found.law, atol=0.06)
            assert found.summary()["modes_of_the_law"] == np.sum(found.law > 0)
    cosine_law.draw(runs, tmp_path / "law.png")
    (figure,) = shown
    assert [axis.get_title() for axis in figure.axes[: len(runs)]] == [run.name for run in runs]
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1], cosine_law.compare(runs[0]).p)


def test_the_law_is_asked_only_of_what_it_is_about(make):
    c = np.linspace(0.95, 0.3, D)
    one = read_run(at_rest(make, "direct_pred", "direct_pred", c, c, c, loss="euclidean"))
    clipped = {"predictor.eps_mode": "clipped"}
    two = read_run(at_rest(make, "clipped/direct_pred", "direct_pred", c, 0.5 * c, c, **clipped))
    assert cosine_law.compare(one) is None and cosine_law.compare(two).law is None
    long = read_run(at_rest(make, "long", "direct_pred", c, c, c, **{"predictor.rho": 0.9}))
    assert cosine_law.compare(long).law is None  # written from an F that is not recorded
    centred = {"predictor.centre": True, "loss": "iso_cosine"}
    three = read_run(at_rest(make, "centred/direct_pred", "direct_pred", c, c, c, **centred))
    assert cosine_law.compare(three).law is None
    old = read_run(make("byol"))  # of before there was a view_correlation
    assert cosine_law.compare(old) is None and old.lost == ()
