"""The journey of docs/journey.md, its own commands in small, in an empty folder: from unlabelled
pictures to an encoder in other programs.
"""

import csv
import importlib.util
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ROOT
from event_reader import read_events
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from test_export import features_elsewhere

import ssl_jax
from ssl_jax import launch
from ssl_jax.data.fitted import fit_pictures
from ssl_jax.workdir import embeddings, lock
from ssl_jax.workdir.metrics_csv import read_rows

COUNT, SIDE = 560, 32  # more pictures than a part of the embedding holds
BAD = {"0009.png": b"", "0301.png": b"<!DOCTYPE html>", "0555.png": b"\x89PNG\r\n\x1a\n"}
# What makes a command small, by its configuration. The network stays one that timm builds.
SMALL = {
    "own_images": """
        devices=1 data.image_size=32 encoder.stem=imagenet batch_size=32 epochs=2
        projector.hidden=16 projector.out=8 predictor.hidden=16 log_every=2 checkpoint_every=1
    """,
    "finetune": """
        devices=1 epochs=2 log_every=1 checkpoint_every=0 data.labelled_share=0.6
    """,
    "supervised": """
        devices=1 data.image_size=32 epochs=2 log_every=1 checkpoint_every=0 data.labelled_share=0.6
    """,
    "probe": "probe.epochs=1 probe.few_label_draws=2 data.train_size=200",
}
# One thing typed wrong at each command, and what the line names.
WRONG = {
    "views": ("data.data_dir=nowhere", "nowhere"),
    "mine": ("batch_size=5000", "batch_size"),
    "doctor": ("run=runs/mime", "runs/mime"),
    "fifty": ("data.labels=label.csv", "label.csv"),
    "tuned": ("weights=runs/mime", "runs/mime"),
    "scratch": ("encoder.name=resnet19", "resnet18"),
    "page": ("runs=runs/mime", "runs/mime"),
    "mine-export": ("step=7", "7"),
    "mine-features": ("format=cvs", "csv"),
    "mine-digits": ("data.name=digit", "digits"),
}
TIMM = """
import sys, numpy, timm, torch
folder, images, out = sys.argv[1:]
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
images = torch.from_numpy(numpy.load(images)).permute(0, 3, 1, 2) / 255
with torch.no_grad():
    numpy.save(out, model((images - mean) / std).numpy())
"""


def page_commands() -> dict[str, list[str]]:
    """The words of each command of the page, by the name of its work directory."""
    text = (ROOT / "docs" / "journey.md").read_text()
    lines = [shlex.split(line) for line in re.findall(r"^ssl-jax .*$", text, re.MULTILINE)]
    return {Path(words[words.index("--workdir") + 1]).name: words for words in lines}


COMMANDS = page_commands()


def words_of(name: str, pictures: Path, *fields: str) -> list[str]:
    words = [word.replace("=DIR", f"={pictures}") for word in COMMANDS[name]]
    name, _, _ = words[words.index("--config") + 1].partition(":")
    small = SMALL.get(name, "").split()
    return [*words, *(f"--config.{field}" for field in (*small, *fields))]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Stripes and discs of several sizes and kinds, three of them damaged."""
    base, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(COUNT):
        h, w = rng.integers(SIDE, 2 * SIDE, 2)
        y, x = np.mgrid[:h, :w]
        disc = (y - h / 2) ** 2 + (x - w / 2) ** 2 < (h * rng.uniform(0.2, 0.4)) ** 2
        shape = (x // rng.integers(3, 9)) % 2 if number % 2 else disc
        colours = rng.integers(0, 256, (2, 3))
        noise = rng.normal(0, 8, (h, w, 3))
        array = np.clip(colours[shape.astype(int)] + noise, 0, 255).astype(np.uint8)
        mode = ("RGB", "L", "RGBA", "CMYK")[number % 8 // 2]
        end = "jpg" if mode == "CMYK" else "png"
        Image.fromarray(array).convert(mode).save(base / f"{number:04}.{end}")
    for name, content in BAD.items():
        (base / name).unlink(missing_ok=True)
        (base / name).write_bytes(content)
    return base


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    """An empty folder, in which all commands are given; fifty labels lie there."""
    folder = tmp_path_factory.mktemp("empty")
    sound = sorted(path.name for path in pictures.iterdir() if path.name not in BAD)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = [(name, ("disc", "stripes")[int(name[:4]) % 2]) for name in sound[:350:7]]
        csv.writer(file).writerows([("path", "label"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.chdir(folder)
        yield folder


def times() -> dict[Path, int]:
    """When each file was written last, but for what a killed process leaves behind."""
    files = (path for path in Path().rglob("*") if path.is_file() and path.name != lock.NAME)
    return {path: path.stat().st_mtime_ns for path in files}


def labels() -> list[list[str]]:
    """Name and class of each labelled picture."""
    with open("labels.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def is_refused(name: str, pictures: Path, capfd) -> None:
    """The command with one thing wrong ends in one line, and leaves what is there as it was."""
    capfd.readouterr()
    wrong, named = WRONG[name]
    before = times()
    assert launch.main(words_of(name, pictures, wrong)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0], lines
    assert times() == before


def start(name: str, pictures: Path) -> subprocess.Popen:
    """Start the command as a process of its own, both streams in one pipe."""
    words = [sys.executable, "-m", "ssl_jax", *words_of(name, pictures)[1:]]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, text=True, **streams)


def wait_for(process: subprocess.Popen, pattern: str) -> None:
    """Until a file is there."""
    end = time.monotonic() + 240
    while not list(Path().glob(pattern)):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.005)


def result_of(name: str) -> dict:
    return json.loads((Path("runs") / name / "result.json").read_text())


def chain(provenance: dict | None) -> list[str]:
    """The work directories that each generation's command names, youngest first."""
    names = []
    while provenance:
        words = shlex.split(provenance["command"])
        assert {"commit", "changed", "version"} <= provenance.keys()
        names.append(Path(words[words.index("--workdir") + 1]).name)
        parents = provenance["parents"]
        assert all(len(parent["sha256"]) == 64 for parent in parents)
        provenance = parents[0]["provenance"] if parents else None
    return names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lbfgs failed to converge")
def test_the_journey(pictures, place, capfd, tmp_path):
    assert COMMANDS.keys() == WRONG.keys() and len(COMMANDS) == 10

    def run(name: str, *fields: str) -> str:
        is_refused(name, pictures, capfd)
        begin = time.perf_counter()
        assert launch.main(words_of(name, pictures, *fields)) == 0, capfd.readouterr().err
        with capfd.disabled():
            print(f"\n{name}: {time.perf_counter() - begin:.1f} s", end="")
        return capfd.readouterr().out

    # pretraining, stopped by SIGTERM and gone on
    assert "views.png" in run("views")
    is_refused("mine", pictures, capfd)
    process = start("mine", pictures)
    wait_for(process, "runs/mine/checkpoints/[0-9]*")
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 75 and "the same command goes on" in said, said
    assert not Path("runs/mine/result.json").exists()
    said = run("mine")
    assert "going on from step" in said and "3 damaged pictures are left out" in said
    assert not re.search(r"accuracy\s+\d", said), "there are no labels"
    assert "accuracy" not in " ".join(result_of("mine"))
    listed = Path("runs/mine/damaged.txt").read_text().splitlines()
    assert {line.split(":")[0] for line in listed} == BAD.keys()
    figures = {path.stem for path in Path("runs/mine/figures").iterdir()}
    assert {"views", "neighbours", "features", "training", "spectrum"} <= figures
    rows = read_rows(Path("runs/mine/metrics.csv"))
    losses = {
        event.step: value.simple_value
        for event in read_events(Path("runs/mine"))
        for value in event.summary.value
        if value.tag == "loss"
    }
    assert losses == {int(row["step"]): np.float32(row["loss"]) for row in rows}
    run("doctor")

    # fifty labels
    said = run("fifty")
    assert re.search(r"5 labels a class, pretrained +0\.\d+ ± 0\.\d+ over 2 draws", said)
    assert "3 damaged pictures are left out" in said
    assert result_of("fifty")["few_label"].keys() >= {"pretrained", "random_init", "raw_pixels"}
    run("mine-export")
    assert result_of("mine-export")["built_by"] == "timm"
    run("tuned")
    folder = ["weights=runs/mine-export", "tensorboard=False"]
    again = [*words_of("tuned", pictures), *(f"--config.{field}" for field in folder)]
    again[again.index("--workdir") + 1] = "runs/tuned-export"
    assert launch.main(again) == 0
    run("scratch")
    tuned, exported, scratch = (
        [row["loss"] for row in read_rows(Path("runs") / name / "metrics.csv")]
        for name in ("tuned", "tuned-export", "scratch")
    )
    assert tuned == exported != scratch
    assert result_of("tuned")["steps"] == result_of("scratch")["steps"] == 2
    run("page")
    assert "runs/mine" in Path("runs/page/compare.md").read_text()
    assert Path("runs/page/compare.html").stat().st_size > 1000

    # features: embed, killed and gone on; encoder(); plain jax; timm; scikit-learn
    process = start("mine-features", pictures)
    wait_for(process, "runs/mine-features/parts/*.npz")
    process.kill()
    process.communicate()
    assert not Path("runs/mine-features", embeddings.NAME).exists()
    said = run("mine-features")
    assert "computed again" not in said and said.count("3 damaged pictures are left out") == 1
    table = pq.read_table(f"runs/mine-features/{embeddings.NAME}")
    assert table.num_rows == COUNT - len(BAD)
    expected = np.array(table["feature"].to_pylist()[:17], np.float32)
    largest = np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0.01 * largest
    encoder = ssl_jax.open_run("runs/mine").encoder()
    shown = [pictures / path for path in table["path"].to_pylist()[:17]]
    images = np.concatenate(list(fit_pictures(shown, encoder.image, 17, *encoder.fit)))
    found = {"encoder()": encoder(shown)}
    np.save("images.npy", images)
    found["stablehlo"] = features_elsewhere(Path("runs/mine-export").resolve(), images)[17]
    if importlib.util.find_spec("torch") and importlib.util.find_spec("timm"):
        words = [sys.executable, "-I", "-c", TIMM, "runs/mine-export", "images.npy", "timm.npy"]
        subprocess.run(words, check=True)
        found["timm"] = np.load("timm.npy")
    for name, features in found.items():
        difference = np.abs(features - expected).max() / largest
        with capfd.disabled():
            print(f"\n{name}: {difference:.1e} of the largest feature", end="")
        assert difference < 1e-5, name
    model = make_pipeline(ssl_jax.sklearn.Encoder("runs/mine"), LogisticRegression())
    labelled, classes = [pictures / row[0] for row in labels()], [row[1] for row in labels()]
    assert model.fit(labelled, classes).score(labelled, classes) > 0.8

    # elsewhere
    run("mine-digits")
    result = result_of("mine-digits")
    assert (result["dataset"], result["trained_on"]) == ("digits", "folder")

    # where all of it comes from
    assert chain(result_of("mine-features")["provenance"]) == ["mine-features", "mine"]
    assert chain(result_of("mine-digits")["provenance"]) == ["mine-digits", "mine"]
    assert chain(result_of("tuned")["provenance"]) == ["tuned", "mine"]
    assert chain(result_of("tuned-export")["provenance"]) == ["tuned-export", "mine-export", "mine"]
    assert chain(result_of("scratch")["provenance"]) == ["scratch"]
