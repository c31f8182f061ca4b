"""The replication's report over result files: sound, damaged, doubled, of several scales."""

import base64
import json
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from commands import ROOT
from scipy import stats

from ssl_jax import launch
from ssl_jax.reports.compare.runs import Group, Run
from ssl_jax.reports.replication import claims
from ssl_jax.reports.replication.claims import CLAIMS, FAILS, HOLDS, OPEN, UNTESTED, evaluate_claims
from ssl_jax.reports.replication.page import page
from ssl_jax.reports.replication.published import PUBLISHED, TITLES
from ssl_jax.reports.replication.results import gather
from ssl_jax.reports.replication.tables import markdown, table_of


def write_run(folder, sweep="table1", scale="mini", cell="byol", seed=0, accuracy=0.4, **fields):
    """One result file of a store."""
    run = {"sweep": sweep, "scale": scale, "cell": cell, "seed": seed, "linear_accuracy": accuracy}
    run |= {
        "ridge_accuracy": accuracy,
        "knn_accuracy": accuracy,
        "random_init_linear_accuracy": 0.36,
    }
    run |= {
        "effective_rank": 5.0,
        "collapsed": accuracy < 0.3,
        "command": f"train {cell}",
        "device": "1 x cpu",
    }
    run |= {"config": {"epochs": 6, "seed": seed, "optimizer": {"name": "momentum"}}} | fields
    path = folder / sweep / scale / cell / f"seed-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run))
    return path


@pytest.fixture
def store(tmp_path):
    """All cells of tables 1 to 3 at mini scale, three seeds each, collapsed as in the papers."""
    rng = np.random.default_rng(0)
    for sweep in ("table1", "table2", "table3"):
        for published in PUBLISHED[sweep]:
            for seed in range(3):
                accuracy = published.accuracy / 200 + 0.002 * rng.normal()
                write_run(tmp_path, sweep, "mini", published.cell, seed, float(accuracy))
    return tmp_path


def verdicts(gathered, scale="mini"):
    return {
        claim.statement: verdict for claim, verdict, _ in evaluate_claims(gathered.cells[scale])
    }


# --- What is gathered, and what is left out -------------------------------------------------------


def test_everything_sound_is_gathered(store):
    gathered = gather([store])
    assert gathered.left_out == [] and gathered.cells.keys() == {"mini"}
    assert {key: len(one.runs) for key, one in gathered.cells["mini"].items()} == {
        (sweep, p.cell): 3 for sweep in ("table1", "table2", "table3") for p in PUBLISHED[sweep]
    }


def cut(path):
    path.write_text(path.read_text()[:40])


def without(path, name):
    run = json.loads(path.read_text())
    del run[name]
    path.write_text(json.dumps(run))


def change(**fields):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | fields))


SPOILED = {
    "lacks effective_rank": lambda path: without(path, "effective_rank"),
    "config: got None, takes a section": change(config=None),
    "damaged": cut,
    "lacks config": lambda path: without(path, "config"),
    "says scale 'full'": change(scale="full"),
    "linear_accuracy: got nan, takes a number from 0 to 1": change(linear_accuracy=float("nan")),
    "epochs is 9, and 6": change(config={"epochs": 9}),
}


@pytest.mark.parametrize("words", SPOILED)
def test_what_is_left_out_is_told_and_nothing_else(store, words):
    path = store / "table1" / "mini" / "byol" / "seed-1.json"
    SPOILED[words](path)
    gathered = gather([store])
    assert (
        len(gathered.left_out) == 1
        and words in gathered.left_out[0]
        and str(path) in gathered.left_out[0]
    )
    assert [run.seed for run in gathered.cells["mini"]["table1", "byol"].runs] == [0, 2]
    assert len(gathered.cells["mini"]["table1", "simsiam"].runs) == 3
    assert words in page(gathered).replace("&#x27;", "'")


FREE = [
    "devices",
    "steps_per_call",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "tensorboard",
    "data.resident",
    "data.data_dir",
]


@pytest.mark.parametrize("field", [*FREE, "dynamics.every", "seed"])
def test_seeds_of_a_cell_may_differ_in_what_starts_of_a_run_may(store, field):
    for value, seed in enumerate((0, 1)):
        path = store / "table1" / "mini" / "byol" / f"seed-{seed}.json"
        config = json.loads(path.read_text())["config"] | {field: value}
        change(config=config)(path)
    assert not gather([store]).left_out


def test_seeds_of_a_cell_have_one_probe(store):
    for value, seed in enumerate((0, 1)):
        path = store / "table1" / "mini" / "byol" / f"seed-{seed}.json"
        change(config=json.loads(path.read_text())["config"] | {"probe": {"knn_k": value}})(path)
    (line,) = gather([store]).left_out
    assert "probe.knn_k is 1, and 0" in line


def test_a_seed_that_is_there_twice_counts_once(store, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_run(other, seed=0, accuracy=0.9)
    gathered = gather([store, other])
    assert "seed 0 is there already, with another accuracy" in gathered.left_out[0]
    assert len(gathered.cells["mini"]["table1", "byol"].runs) == 3


def test_scales_are_never_mixed(store):
    write_run(store, scale="full", accuracy=0.84)
    gathered = gather([store])
    assert len(gathered.cells["full"]["table1", "byol"].runs) == 1
    assert "84.00" not in markdown(gathered, "mini") and "84.00" in markdown(gathered, "full")


# --- Numbers --------------------------------------------------------------------------------------


def rows_of(folder, scale):
    """The rows of table 1, by the titles of their columns."""
    table = table_of("table1", gather([folder]).cells[scale], scale)
    assert table.texts == 3
    return [dict(zip(["row", "column", *table.header[2:]], row, strict=True)) for row in table.rows]


def test_what_says_nothing_at_a_scale_has_no_column(store):
    """Published numbers are of the full scale: nothing is subtracted from them at another."""
    (row, *_) = rows_of(store, "mini")
    assert list(row)[3:] == ["published", "ours", "ridge, %", "kNN, %", RANK, "state"]
    write_run(store, scale="full", accuracy=0.84)
    assert "within interval" in rows_of(store, "full")[0]


RANK = "effective rank of projections"


def test_mean_and_interval_are_scipy_s(tmp_path):
    values = [0.80, 0.82, 0.85]
    for seed, value in enumerate(values):
        write_run(tmp_path, scale="full", seed=seed, accuracy=value)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    row = next(row for row in rows_of(tmp_path, "full") if row["column"] == "regular")
    assert row["ours"] == f"{100 * np.mean(values):.2f} ± {50 * (high - low):.2f}"
    assert row["seeds"] == "0, 1, 2" and row["published"] == "84.2*"
    assert row["ours - published"] == f"{100 * np.mean(values) - 84.2:+.2f}"
    assert row["within interval"] == ("yes" if 100 * low <= 84.2 <= 100 * high else "no")


@pytest.mark.parametrize(
    "accuracies, mark", [([0.5, 0.51], "no"), ([0.83, 0.85], "yes"), ([0.5], "one seed")]
)
def test_the_mark(tmp_path, accuracies, mark):
    for seed, value in enumerate(accuracies):
        write_run(tmp_path, scale="full", seed=seed, accuracy=value)
    rows = rows_of(tmp_path, "full")
    assert [row["within interval"] for row in rows if row["ours"]] == [mark]
    assert len(rows) == 4 and sum(row["seeds"] == "not run" for row in rows) == 3


def test_difference_is_welch_s(tmp_path):
    a, b = [0.40, 0.42, 0.47], [0.31, 0.35, 0.36]
    ours, theirs = (
        Group({}, [Run(None, i, {}, {"linear_accuracy": x}, {}, {}) for i, x in enumerate(values)])
        for values in (a, b)
    )
    found = claims.difference(ours, theirs)
    va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 3
    degrees = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    np.testing.assert_allclose(found.mean, 100 * (np.mean(a) - np.mean(b)))
    np.testing.assert_allclose(
        found.width, 100 * stats.t.ppf(0.975, degrees) * np.sqrt(va + vb), rtol=1e-9
    )


# --- Claims ---------------------------------------------------------------------------------------


def test_claims_that_accuracies_decide(store):
    found = verdicts(gather([store]))
    assert found["SimSiam with a symmetric predictor collapses"] == HOLDS
    assert found["Weight decay of a fast predictor rescues it"] == HOLDS
    assert found["DirectPred beats a one-layer predictor trained by SGD"] in (HOLDS, OPEN)
    # nothing was recorded
    assert found["Eigenspaces of predictor and correlation align"] == UNTESTED


def test_claims_of_a_world_turned_round(store):
    for seed in range(3):
        write_run(store, "table1", cell="simsiam_sym", seed=seed, accuracy=0.7 + 0.001 * seed)
        write_run(store, "table2", cell="directpred", seed=seed, accuracy=0.1 + 0.001 * seed)
        write_run(store, "table2", cell="directpred5", seed=seed, accuracy=0.2 + 0.001 * seed)
    found = verdicts(gather([store]))
    for words in (
        "A target average helps",
        "SimSiam with a symmetric predictor collapses",
        "DirectPred beats a one-layer predictor trained by SGD",
        "Setting it every 5 steps only is no better",
    ):
        assert found[words] == FAILS, words


def test_what_collapses_is_not_rescued(store):
    assert verdicts(gather([store]))["Weight decay of a fast predictor rescues it"] == HOLDS
    write_run(store, "table3", cell="simsiam_sym_wdp", seed=0, accuracy=0.38, collapsed=True)
    assert verdicts(gather([store]))["Weight decay of a fast predictor rescues it"] == FAILS


def test_one_seed_or_noise_decides_no_comparison(tmp_path):
    for seed, (a, b) in enumerate([(0.4001, 0.40)]):
        write_run(tmp_path, "table2", cell="directpred", seed=seed, accuracy=a)
        write_run(tmp_path, "table2", cell="linear", seed=seed, accuracy=b)
    assert (
        verdicts(gather([tmp_path]))["DirectPred beats a one-layer predictor trained by SGD"]
        == OPEN
    )
    for seed, (a, b) in enumerate([(0.5, 0.4), (0.3, 0.45), (0.45, 0.4)]):
        write_run(tmp_path, "table2", cell="directpred5", seed=seed, accuracy=a)
        write_run(tmp_path, "table2", cell="directpred", seed=seed, accuracy=b)
    assert verdicts(gather([tmp_path]))["Setting it every 5 steps only is no better"] == OPEN


def test_a_difference_within_its_interval_decides_nothing(store):
    for seed, (a, b) in enumerate(((0.40, 0.41), (0.44, 0.40), (0.42, 0.44))):
        write_run(store, "table2", cell="directpred", seed=seed, accuracy=a)
        write_run(store, "table2", cell="linear", seed=seed, accuracy=b)
    assert (
        verdicts(gather([store]))["DirectPred beats a one-layer predictor trained by SGD"] == OPEN
    )


def test_nothing_run_is_not_tested(tmp_path):
    assert {verdict for _, verdict, _ in evaluate_claims({})} == {UNTESTED}


@pytest.mark.parametrize("last, aligned, expected", [(0.2, 0.99, HOLDS), (1.3, 0.2, FAILS)])
def test_claims_that_dynamics_decide(store, last, aligned, expected):
    record = {
        "first": {"asymmetry_l1": 1.41},
        "last": {"asymmetry_l1": last, "alignment": [aligned] * 60 + [0.0] * 4},
    }
    for cell in ("byol", "byol_sym", "simsiam"):
        write_run(store, cell=cell, dynamics=record)
    found = verdicts(gather([store]))
    assert found["The learned predictor becomes symmetric by itself"] == expected
    assert found["Eigenspaces of predictor and correlation align"] == expected


# --- The page -------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Anchors, links and sources of a document."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.sources, self.depth = set(), [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in ("meta", "img", "br"):
            self.depth.append(tag)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []

    def handle_endtag(self, tag):
        assert self.depth.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(store):
    text = page(gather([store]))
    links = Links()
    links.feed(text)
    assert links.depth == []
    assert len(links.links) == 17 and all(
        link.startswith("#") and link[1:] in links.ids for link in links.links
    )
    assert links.sources and all(
        source.startswith("data:image/svg+xml;base64,") for source in links.sources
    )
    figure = base64.b64decode(links.sources[0].partition(",")[2]).decode()
    assert figure.count("<svg") == 1 and "simsiam_sym_nowd" in re.sub(
        r"<!--\s*(.*?)\s*-->", r"\1", figure
    )
    assert "http:" not in text and "https:" not in text
    assert text == page(gather([store]))
    assert "&lt;script&gt;" in page(gather([_with_script(store)])) and "<script>" not in page(
        gather([store])
    )


def _with_script(store):
    write_run(store, command="<script>alert(1)</script>")
    return store


def test_markdown_has_every_published_cell(store):
    text = markdown(gather([store]), "mini")
    assert all(
        f"{p.accuracy:g}" in text
        for sweep in ("table1", "table2", "table3")
        for p in PUBLISHED[sweep]
    )
    assert (
        TITLES["original_table8"] in text.partition("Not run at this scale")[2].partition("\n")[0]
    )
    assert all(claim.statement in text for claim in CLAIMS)


# --- The command ----------------------------------------------------------------------------------


def command(tmp_path, *words):
    return launch.main(
        [
            "launch.py",
            "--config",
            str(ROOT / "configs/report.py"),
            "--workdir",
            str(tmp_path),
            *words,
        ]
    )


def test_the_command(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    cut(store / "table1" / "mini" / "byol" / "seed-1.json")
    assert command(out, f"--config.runs={store}") == 0
    result = json.loads((out / "result.json").read_text())
    assert result["scales"]["mini"]["runs"] == 50 and len(result["left_out"]) == 1
    assert (
        "<html" in (out / "report.html").read_text()
        and "## Mini scale" in (out / "report.md").read_text()
    )


def test_one_process_only(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert command(tmp_path / "out", f"--config.runs={store}") == 2
    assert "--processes: got 2, the task report runs in one" in capsys.readouterr().err


@pytest.mark.parametrize("runs", ["", "/nowhere/at/all", "EMPTY"])
def test_no_results(tmp_path, capsys, runs):
    (tmp_path / "empty").mkdir()
    given = runs.replace("EMPTY", str(tmp_path / "empty"))
    assert command(tmp_path / "out", f"--config.runs={given}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: runs:") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
