"""Names and results of other people: in every figure, table and page, as text or left out."""

import errno
import json
import os
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from commands import ROOT
from ml_collections import ConfigDict
from nasty import NASTY, SCRIPT, random_texts
from PIL import Image

from ssl_jax import files, launch
from ssl_jax.diagnosis.signs import NEEDED
from ssl_jax.errors import UserError
from ssl_jax.experiments.harness import experiment
from ssl_jax.reports import doctor, figure, front_figure, render_documents, run_figures
from ssl_jax.reports import pyplot as plt
from ssl_jax.reports.compare.page import section
from ssl_jax.reports.experiments import registry
from ssl_jax.reports.replication import page as pages
from ssl_jax.reports.replication.page import page
from ssl_jax.reports.replication.results import gather
from ssl_jax.reports.replication.tables import markdown
from ssl_jax.tasks import pretrain, report
from ssl_jax.text import MOST, everywhere, in_figure, in_markdown, printable
from ssl_jax.workdir import metrics_csv

TEXTS = [*NASTY, *random_texts(60, seed=1)]
STORED = sorted((ROOT / "results" / "experiments").glob("*.json"))
BAD = [None, True, "1", "<b>", -1e308, 10**400, float("nan"), [], [[]], {}, [1, [2]], "x" * 5000]


def open_picture(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


# --- One function that saves figures --------------------------------------------------------------


def curve(title="a"):
    made, axis = plt.subplots(figsize=(2, 2))
    axis.plot([0, 1])
    axis.set_title(title)
    return made


def test_saved_figures_are_whole_pictures_of_their_size(tmp_path):
    path = figure.save(curve(), tmp_path / "new" / "a.png", 50)
    assert open_picture(path).shape == (100, 100) and open_picture(path).std() > 5
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert not plt.get_fignums()


def test_a_figure_is_never_written_through_a_link(tmp_path):
    other = tmp_path / "other.png"
    other.write_text("mine")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").symlink_to(other)
    figure.save(curve(), tmp_path / "figures" / "a.png")
    assert other.read_text() == "mine" and not (tmp_path / "figures" / "a.png").is_symlink()
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="is a link"):
        figure.save(curve(), tmp_path / "linked" / "a.png")
    assert not list((tmp_path / "elsewhere").iterdir())


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_figure_that_was_there(tmp_path, monkeypatch):
    path = figure.save(curve(), tmp_path / "a.png")
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        figure.save(curve("b"), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_drawn_is_never_half_a_file(tmp_path):
    with pytest.raises(ValueError):
        figure.save(curve(r"$\frac{$"), tmp_path / "a.png")
    assert not list(tmp_path.iterdir()) and not plt.get_fignums()


@pytest.mark.parametrize("error", [ValueError("no\nglyph"), MemoryError(), UserError("disk: full")])
def test_an_optional_figure_costs_a_warning(tmp_path, capfd, error):
    kept = curve()
    with figure.optional(tmp_path / "a\x1b.png"):
        curve()
        raise error
    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and err.startswith(f"warning: {tmp_path}/a\\x1b.png: not drawn (")
    assert not out and " ".join(str(error).split()) in err
    assert plt.get_fignums() == [kept.number]
    plt.close(kept)


def test_an_optional_figure_lets_a_stop_through(tmp_path):
    with pytest.raises(KeyboardInterrupt), figure.optional(tmp_path):
        raise KeyboardInterrupt


def test_a_required_figure_ends_in_one_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot be shown \(ZeroDivisionError: x y\)"):
        with figure.required(tmp_path / "a.png"):
            raise ZeroDivisionError("x\ny")
    with pytest.raises(UserError, match="^as it is$"), figure.required(tmp_path / "a.png"):
        raise UserError("as it is")


def test_an_unknown_backend_draws_all_the_same(tmp_path):
    program = (
        "import sys, os; from pathlib import Path; "
        "from ssl_jax.reports import figure, pyplot as plt; "
        "figure.save(plt.figure(), Path(sys.argv[1])); print(os.environ['MPLBACKEND'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.png")],
        env=os.environ | {"MPLBACKEND": "no-such-backend", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout == "no-such-backend\n", done.stderr
    assert (tmp_path / "a.png").exists()


# --- Tasks whose figures fail ---------------------------------------------------------------------


@pytest.fixture
def no_figures(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no figure today")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)


def write_run(directory, **result):
    metrics_csv.truncate_after(directory / "metrics.csv", 0)
    for i in (1, 2):
        row = {name: 1.0 / i for name in metrics_csv.COLUMNS} | {"step": i, "epoch": float(i)}
        metrics_csv.append_row(directory / "metrics.csv", row)
    content = {"method": "byol", "dataset": "digits", "seed": 0, "correlation_eigenvalues": [1.0]}
    (directory / "result.json").write_text(json.dumps(content | result))


def test_a_run_outlives_its_figures(tmp_path, no_figures, capfd):
    write_run(tmp_path)
    dataset = SimpleNamespace(
        pretrain=SimpleNamespace(image=np.zeros((4, 8, 8, 3), np.uint8)),
        label_names=("a", "b"),
        side=8,
    )
    features = {"test_x": np.eye(4), "test_y": np.array([0, 1, 0, 1])}
    recipe = SimpleNamespace(mean=0, std=1)  # not even this is a recipe
    config, parts = SimpleNamespace(seed=0), SimpleNamespace(recipe=recipe)
    session = SimpleNamespace(out=tmp_path, dataset=dataset, config=config, parts=parts)
    pretrain.draw_all(session, features)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("warning: ") for line in lines)
    assert not list((tmp_path / "figures").iterdir()) if (tmp_path / "figures").exists() else True
    assert not plt.get_fignums()


def test_an_experiment_outlives_its_figures(tmp_path, no_figures, capfd):
    stored = json.loads((ROOT / "results" / "experiments" / "zero_shot.json").read_text())
    config = ConfigDict({"experiment": "zero_shot"})
    experiment.finish(tmp_path, config, stored, 1.0)
    out, err = capfd.readouterr()
    assert err.startswith("warning: ") and err.count("\n") == 1 and "results in" in out
    assert (tmp_path / "result.json").exists() and (tmp_path / "table.md").exists()


def test_a_task_that_draws_only_ends_in_one_error(tmp_path, no_figures, capfd):
    words = [f"--workdir={tmp_path / 'a'}", "--config.figure=phase_diagram"]
    status = launch.main(["launch.py", "--config", str(ROOT / "configs" / "theory.py"), *words])
    err = capfd.readouterr().err
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "phase_diagram.png: cannot be shown (RuntimeError: no figure today)" in err


# --- Foreign texts in figures ---------------------------------------------------------------------


@pytest.mark.parametrize("start", range(0, len(TEXTS), 25))
def test_every_text_is_drawn_as_text(start):
    """As title, tick, legend and axis; no glyph is missing, no formula is read."""
    texts = TEXTS[start : start + 25]
    made, axis = plt.subplots(figsize=(6, 12))
    for i, text in enumerate(texts):
        axis.plot([i, i + 1], label=figure.label(text))
        for drawn in (axis.set_title, axis.set_xlabel):
            words = drawn(figure.label(text))
            assert words._preprocess_math(words.get_text())[1] is False
    axis.set_yticks(range(len(texts)), [figure.label(text) for text in texts])
    legend = axis.legend()
    named = sum(bool(figure.label(text)) for text in texts)
    assert len(legend.get_texts()) in (named, len(texts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure.render(made)


def test_a_label_is_what_was_called_so():
    shown = {"byol": "byol", "$x$": r"\$x\$", "_a": " _a", "中": r"\u4e2d", "Käfer": "Käfer"}
    assert {text: figure.label(text) for text in shown} == shown
    assert len(figure.label("x" * 300)) == MOST
    assert in_figure("a\nb") == r"a\nb"


@pytest.mark.parametrize("start", range(0, len(TEXTS), 20))
def test_class_names(tmp_path, start):
    names = tuple(TEXTS[start : start + 20])
    y = np.arange(40) % len(names)
    x = np.random.default_rng(0).normal(size=(40, 5))
    run_figures.draw_features({"test_x": x, "test_y": y}, names, tmp_path / "f.png")
    assert open_picture(tmp_path / "f.png").std() > 5


@pytest.mark.parametrize("text", [*NASTY[::4], "x" * 300], ids=ascii)
def test_methods_and_data_sets(tmp_path, text):
    write_run(tmp_path, method=text, dataset=text)
    run_figures.draw_run(tmp_path)
    assert open_picture(tmp_path / "figures" / "training.png").std() > 5
    rows = {name: np.linspace(1, 2, 30) for name in (*NEEDED, "predictor_norm", "step")}
    diagnosis = SimpleNamespace(since=None)
    doctor.draw(rows, diagnosis, SimpleNamespace(dim=4), f"{text}: healthy", tmp_path / "d.png")
    assert open_picture(tmp_path / "d.png").std() > 5


# --- Experiments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_results_pass_their_schema(path):
    assert registry.read(path)["experiment"] == path.stem


@pytest.mark.parametrize(
    "path", [path for path in STORED if path.stem != "signal"], ids=lambda path: path.stem
)
def test_names_in_an_experiment_are_text(path, tmp_path):
    """Values that are text become nasty; names of fields stay, by which the report finds them."""
    result = json.loads(path.read_text())
    if "dataset" in result:
        result["dataset"] = f"{SCRIPT} $\\frac$ | \x1b[2J"
    changed = tmp_path / "result.json"
    changed.write_text(json.dumps(result))
    text = registry.report_stored(changed)
    assert "<img" not in text and "\x1b" not in text
    registry.draw_stored(changed, tmp_path / "figures")
    assert list((tmp_path / "figures").glob("*.png"))


@pytest.mark.parametrize("text", NASTY[::5], ids=ascii)
def test_foreign_names_of_fields(tmp_path, text):
    """Networks of zero_shot have any name: each is a row and a curve."""
    result = json.loads((ROOT / "results" / "experiments" / "zero_shot.json").read_text())
    result["networks"][text] = next(iter(result["networks"].values()))
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    rows = [line for line in registry.report_stored(path).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(result["networks"]) and len({row.count("|") for row in rows}) == 1
    assert any(row.startswith(f"| {in_markdown(text)} |") for row in rows)
    registry.draw_stored(path, tmp_path)


def places(value, here=()):
    """Every place in parsed JSON, outer ones too; only the first of a list."""
    yield here
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*here, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*here, 0))


def replaced(value, place, other):
    if not place:
        return other
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], other)
    return copy


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_wrong_result_of_an_experiment_is_one_error(path, tmp_path):
    """Fifty faults each: one line, or a report; nothing else is raised."""
    result, rng = json.loads(path.read_text()), np.random.default_rng(0)
    everywhere_in = [p for p in places(result) if p and p[0] not in ("config", "versions")]
    changed, refused = tmp_path / "result.json", 0
    for i in range(50):
        place = everywhere_in[rng.integers(len(everywhere_in))]
        changed.write_text(json.dumps(replaced(result, place, BAD[i % len(BAD)])))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of numbers near the largest
                assert registry.report_stored(changed)
        except UserError as error:
            refused += 1
            assert str(error).count("\n") == 0 and len(str(error)) < 400 + len(str(changed))
    assert refused >= 10


def test_commands_on_stored_results_end_in_one_error(tmp_path, capfd, monkeypatch):
    path = tmp_path / "result.json"
    for content in ("[]", "{", '{"experiment": ["x"]}', '{"experiment": "ridge"}', "[" * 5000):
        path.write_text(content)
        monkeypatch.setattr(sys, "argv", ["registry", str(path)])
        assert registry.main() == 2
        err = capfd.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
    with pytest.raises(UserError, match="lacks"):
        (tmp_path / "quickstart.json").write_text("{}")
        front_figure.draw(tmp_path, tmp_path / "front.png")
    with pytest.raises(UserError, match="lacks"):
        folder = tmp_path / "results" / "x" / "m"
        folder.mkdir(parents=True)
        (folder / "seed-0.json").write_text("{}")
        render_documents.read_results("x", tmp_path)


# --- The page -------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Elements with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


# every element of a page and its attributes
OURS = {
    "html": {"lang"},
    "meta": {"charset", "name", "content", "http-equiv"},
    "p": {"class"},
    "pre": {"class"},
    "ul": {"class"},
    "li": {"class"},
    "tr": {"class"},
    "div": {"class", "id"},
    "a": {"href"},
    "img": {"alt", "src"},
    **dict.fromkeys("th td summary".split(), {"class"}),
    **dict.fromkeys("head title style body h1 h2 h3 table thead tbody".split(), set()),
    **dict.fromkeys("b i small br details".split(), set()),
}


def write_cell(store, sweep="table1", cell="byol", seed=0, **fields):
    run = {"sweep": sweep, "scale": "mini", "cell": cell, "seed": seed, "linear_accuracy": 0.4}
    run |= {"effective_rank": 5.0, "config": {"epochs": 6}, "state": "healthy"} | fields
    path = store / sweep / "mini" / cell / f"seed-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run))
    return path


def check_page(text):
    parsed = Elements(text)
    for tag, attributes in parsed.found:
        assert tag in OURS and attributes.keys() <= OURS[tag], (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        source = attributes.get("src", "data:image/png;base64,")
        assert source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,"))
    targets = [attributes["id"] for _, attributes in parsed.found if "id" in attributes]
    links = {attributes["href"][1:] for tag, attributes in parsed.found if tag == "a"}
    assert len(set(targets)) == len(targets) and links <= set(targets)
    (policy,) = (a["content"] for tag, a in parsed.found if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return parsed


def encodable(text):
    try:
        return 0 < len(os.fsencode(text)) <= 200 and not set(text) & {"/", "\0"}
    except UnicodeEncodeError:
        return False


def test_folders_with_any_name_are_text_on_the_page(tmp_path):
    names = [text for text in dict.fromkeys(TEXTS) if encodable(text)]
    assert len(names) > 40 and SCRIPT in names
    for name in names:
        write_cell(tmp_path, sweep=name, cell=name)
        write_cell(tmp_path, cell=name)
    gathered = gather([tmp_path])
    assert not gathered.left_out and len(gathered.cells["mini"]) == 2 * len(names)
    parsed = check_page(page(gathered))
    assert all(printable(name) in parsed.text for name in names)
    text = report.text_of(gathered)
    text.encode()
    assert "<img" not in text and "<script" not in text and "\x1b" not in text


@pytest.mark.parametrize("field", ["state", "verdict", "command", "device", "config", "extra"])
def test_fields_with_any_text_are_text_on_the_page(tmp_path, field):
    value = {text: [text] for text in NASTY} if field == "config" else "; ".join(NASTY)
    write_cell(tmp_path, **{field: value})
    gathered = gather([tmp_path])
    assert not gathered.left_out
    check_page(page(gathered))
    assert "<img" not in markdown(gathered, "mini")


def test_what_is_left_out_is_text_too(tmp_path):
    write_cell(tmp_path)
    write_cell(tmp_path, cell=SCRIPT, linear_accuracy=SCRIPT)
    write_cell(tmp_path, seed=1, **{"seed-name": 1}, effective_rank=None)
    gathered = gather([tmp_path])
    assert len(gathered.left_out) == 2
    parsed = check_page(page(gathered))
    assert "takes a number from 0 to 1" in parsed.text
    assert "<img" not in report.text_of(gathered)


HISTORY = {"step": [0, 1], "epoch": [0, 1], "corr_eigenvalues": [[None, None], [2.0, 1.0]]}
LAST = {"asymmetry_l1": 0.1, "alignment": [1.0, 0.5]}
WHOLE_RUN = {
    "ridge_accuracy": 0.4,
    "knn_accuracy": 0.4,
    "random_init_linear_accuracy": 0.3,
    "collapsed": False,
    "verdict": "healthy",
    "command": "python",
    "device": "cpu",
    "seconds": 3.0,
    "dynamics": {"first": {"asymmetry_l1": 1.4}, "last": LAST, "history": HISTORY},
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: ascii(bad)[:20])
def test_a_wrong_result_is_named_and_left_out_or_harmless(tmp_path, bad):
    """Each field of a result by itself, with a sound seed of the same cell beside it."""
    write_cell(tmp_path, **WHOLE_RUN)
    sound = json.loads(write_cell(tmp_path, seed=1, **WHOLE_RUN).read_text())
    for place in [place for place in places(sound) if place]:
        path = tmp_path / "table1" / "mini" / "byol" / "seed-1.json"
        path.write_text(json.dumps(replaced(sound, place, bad)))
        gathered = gather([tmp_path])
        cells = gathered.cells["mini"]
        assert len(cells["table1", "byol"].runs) + len(gathered.left_out) == 2, place
        assert all(str(path) in line and "\n" not in line for line in gathered.left_out)
        text = markdown(gathered, "mini")
        text += "".join(section("x", "y", one) for one in cells.values())
        assert "<b>" not in text and "nan" not in text
    check_page(page(gathered))


@pytest.mark.parametrize(
    "wrong", [{"epoch": [0]}, {"epoch": None}, {"corr_eigenvalues": [[1.0], [2.0, 1.0]]}]
)
def test_spectra_that_do_not_fit_their_epochs_are_left_out(tmp_path, wrong):
    history = {"history": HISTORY | wrong}
    write_cell(tmp_path, **WHOLE_RUN | {"dynamics": history})
    assert "dynamics.history" in gather([tmp_path]).left_out[0]
    write_cell(tmp_path, **WHOLE_RUN)
    assert pages.draw_spectra(gather([tmp_path]).cells["mini"]) is not None
    plt.close("all")


def test_the_only_result_wrong_is_one_error(tmp_path, capfd):
    write_cell(tmp_path / "store", linear_accuracy="0.4")
    words = [f"--workdir={tmp_path / 'out'}", f"--config.runs={tmp_path / 'store'}"]
    status = launch.main(["launch.py", "--config", str(ROOT / "configs" / "report.py"), *words])
    err = capfd.readouterr().err
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "linear_accuracy: got '0.4', takes a number from 0 to 1" in err


def test_a_page_whose_figures_fail_is_written_without_them(tmp_path, no_figures, capfd):
    write_cell(tmp_path, **WHOLE_RUN)
    parsed = check_page(page(gather([tmp_path])))
    assert "could not be drawn" in parsed.text and "img" not in dict(parsed.found)
    assert all(line.startswith("warning: ") for line in capfd.readouterr().err.splitlines())


def test_shapes_of_names_change_nothing_in_plain_results():
    for path in STORED:
        result = json.loads(path.read_text())
        result.pop("config"), result.pop("versions", None)
        assert everywhere(result, in_markdown) == result
