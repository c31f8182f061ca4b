"""Embeddings: features of the run's own encoder, the same in every file, whatever interrupts."""

import csv
import functools
import json
import re
import sys
import tracemalloc
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ROOT, finish_command, start_command
from doors import write_doors
from nasty import NASTY, random_texts
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from test_archives import cifar_files, random_splits, small, store  # noqa: F401  a fixture
from test_decode import damage
from test_end_to_end import TINY, command, result_of
from test_folder import photo
from test_pictures import encoded

import ssl_jax
from ssl_jax.data.fitted import fit_pictures
from ssl_jax.data.splits import draw_test
from ssl_jax.errors import UserError
from ssl_jax.probes.knn import nearest_in_pieces
from ssl_jax.reports import embedding_map
from ssl_jax.runs import Encoder
from ssl_jax.tasks import embed
from ssl_jax.text import in_html, printable, shortened
from ssl_jax.workdir import embeddings
from ssl_jax.workdir.embeddings import Columns, Embeddings, Parts

NAMES = [f"{c}/{n:02}.png" for c in ("cats", "dogs & co") for n in range(15)]
BAD = ["cats/03.png", "cats/04.png", "dogs & co/00.png"]
SMALL = ["probe.random_init=False", "probe.few_labels=0", "probe.ridge=False"]
SMALL += ["encoder.name=mlp", "encoder.depth=1", "encoder.width=12"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a finished run on the grey 8x8 digits, in float32."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert command("quickstart", out, *TINY, *SMALL) == 0
    return out


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Its own cache, parts of eight pictures, and row groups of two parts."""
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(embeddings, "PART", 8)
    monkeypatch.setattr(embeddings, "GROUP", 2)
    monkeypatch.setattr(embed, "draw_neighbours", lambda *_: None)  # takes seconds


@pytest.fixture
def pictures(tmp_path):
    """Coloured pictures of several sizes, in folders of two classes."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 20 + number)[:, : 15 + number], "PNG"))
    return tmp_path / "set"


@pytest.fixture
def start(finished, pictures):
    """start(workdir, *fields): the exit status of the command on those pictures."""

    def begin(workdir, *fields) -> int:
        own = ["data.name=folder", f"data.data_dir={pictures}", f"checkpoint={finished}"]
        return command("embed", workdir, *own, *fields)

    return begin


def table_of(workdir) -> dict[str, list]:
    return pq.read_table(workdir / "embeddings.parquet").to_pydict()


# --- Features and columns -------------------------------------------------------------------------


def test_the_features_are_those_of_the_runs_own_encoder(start, finished, pictures, tmp_path):
    assert start(tmp_path / "out") == 0
    stored = pq.read_table(tmp_path / "out" / "embeddings.parquet")
    kind = stored.schema.field("feature").type
    encoder = ssl_jax.open_run(finished).encoder()
    assert (kind.list_size, str(kind.value_type)) == (encoder.dim, "float")
    table = stored.to_pydict()
    expected = encoder([pictures / path for path in table["path"]])
    np.testing.assert_allclose(table["feature"], expected, rtol=0, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.01, "the pictures differ"
    # the splits that a run would have drawn, and the classes
    kept, drawn = draw_test(np.repeat([0, 1], 15), 0.1)
    assert table["path"] == [NAMES[row] for row in [*kept, *drawn]]
    assert table["split"] == ["train"] * len(kept) + ["test"] * len(drawn)
    assert table["label"] == [path.partition("/")[0] for path in table["path"]]
    result = result_of(tmp_path / "out")
    named = {"task": "embed", "dataset": "folder", "trained_on": "digits", "method": "byol"}
    assert named.items() <= result.items()
    assert (result["images"], result["features"]) == (30, encoder.dim)
    assert result["classes"] == ["cats", "dogs & co"] and result["steps"] == encoder.step


def test_every_door_gives_the_same_features(finished, tmp_path):
    shown = {f"{'ab'[n % 2]}/{n:02}.png": encoded(photo(n, 20), "PNG") for n in range(12)}
    found = {}
    for name, place in write_doors(tmp_path, shown).items():
        fields = [f"checkpoint={finished}", f"data.name={name}", f"data.data_dir={place}"]
        assert command("embed", tmp_path / name / "out", *fields, "data.test_share=0") == 0
        table = table_of(tmp_path / name / "out")
        found[name] = np.array(table["feature"])
        assert len(set(table["path"])) == 12 and sorted(set(table["label"])) == ["a", "b"]
        # a tar shard has its members in the order in which they were written
        order = (
            np.argsort([int(re.search(r"(\d+)(?:\.png)?$", path)[1]) for path in table["path"]])
            if name != "parquet"
            else np.arange(12)
        )
        found[name] = found[name][order]
    for name in ("parquet", "tar"):
        np.testing.assert_array_equal(found[name], found["folder"])


def test_the_run_s_own_set(finished, tmp_path, monkeypatch):
    """With the images that its probes see, by the features that they keep."""
    monkeypatch.setattr(embeddings, "PART", 500)
    assert command("embed", tmp_path / "out", f"checkpoint={finished}") == 0
    table = table_of(tmp_path / "out")
    with np.load(finished / "features" / "step-6.npz") as kept:
        expected = np.concatenate([kept["train_x"], kept["test_x"]])
        labels = np.concatenate([kept["train_y"], kept["test_y"]])
    np.testing.assert_allclose(table["feature"], expected, rtol=0, atol=1e-6)
    assert list(map(int, table["label"])) == labels.tolist()
    assert table["path"][:2] == ["train#0", "train#1"] and table["path"][-1] == "test#499"


@pytest.mark.usefixtures("small")
def test_an_archive_of_its_authors(finished, tmp_path):
    """CIFAR-100's, by names of classes; colour becomes grey, 32x32 becomes 8x8."""
    splits = random_splits("cifar100")
    files = cifar_files("cifar100", "binary", splits)
    store(tmp_path / "data", "cifar-100-binary", "", files, packed=False)
    fields = [f"checkpoint={finished}", "data.name=cifar100", f"data.data_dir={tmp_path}/data"]
    assert command("embed", tmp_path / "out", *fields) == 0
    table, images = table_of(tmp_path / "out"), np.concatenate([splits[s][0] for s in splits])
    expected = ssl_jax.open_run(finished).encoder()(images)
    np.testing.assert_allclose(table["feature"], expected, rtol=0, atol=1e-6)
    assert table["split"] == ["train"] * 4 + ["test"] * 4


def test_pictures_without_labels_have_none(start, tmp_path):
    assert start(tmp_path / "out", "data.labels=none", "data.train_size=9", "format=npz") == 0
    assert set(table_of(tmp_path / "out")["label"]) == {None}
    with np.load(tmp_path / "out" / "embeddings.npz") as arrays:
        assert arrays["label"].tolist() == [""] * 9


# --- Files ----------------------------------------------------------------------------------------


@pytest.fixture
def nasty(tmp_path):
    """A finished file of 30 rows, whose names and classes other people chose."""
    names, rng = [*NASTY, *random_texts(20)][:30], np.random.default_rng(0)
    parts = Parts(tmp_path / "parts", "x", 30)
    for number in range(4):
        rows = np.arange(8 * number, min(8 * number + 8, 30))
        rows = rows[rows != 17]
        feature = rng.normal(size=(len(rows), 5)).astype(np.float32) * 10.0 ** rng.integers(-20, 20)
        damaged = [(17, "cut off")] if number == 2 else []
        parts.write(number, embeddings.Part(rows, feature.astype(np.float32), damaged))
    labels = rng.integers(-1, len(NASTY), 30).astype(np.int32)
    columns = Columns(names, labels, [("train", 20), ("test", 10)], NASTY)
    embeddings.join(tmp_path / "e.parquet", parts, columns, 5, {"identity": "x"})
    return Embeddings(tmp_path / "e.parquet"), parts, columns


def test_every_form_holds_the_same(nasty, tmp_path):
    stored, parts, columns = nasty
    whole = pq.read_table(stored.path).to_pydict()
    sound = np.delete(np.arange(30), 17)
    expected = np.concatenate([parts.whole(n).feature for n in range(4)])
    np.testing.assert_array_equal(np.float32(whole["feature"]), expected)
    assert whole["split"] == ["train"] * 19 + ["test"] * 10
    # bytes of a name that are no text are escapes; all else is as it was
    plain = [(row, columns.names[row]) for row in sound if columns.names[row].isprintable()]
    assert len(plain) > 10
    assert all(whole["path"][sound.tolist().index(row)] == name for row, name in plain)
    assert [label is None for label in whole["label"]] == (columns.labels[sound] < 0).tolist()

    embeddings.write_npz(stored, tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as arrays:
        assert set(arrays) == {"path", "split", "label", "feature"}
        np.testing.assert_array_equal(arrays["feature"], expected)
        assert arrays["split"].tolist() == whole["split"]
        # NumPy's texts end before their last NUL
        assert arrays["path"].tolist() == [path.rstrip("\0") for path in whole["path"]]

    embeddings.write_csv(stored, tmp_path / "e.csv")
    with open(tmp_path / "e.csv", newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(line.replace("\0", "") for line in file)
    assert header == ["path", "split", "label", *(f"feature_{i}" for i in range(5))]
    assert [line[0] for line in lines] == [path.replace("\0", "") for path in whole["path"]]
    np.testing.assert_array_equal(np.float32([line[3:] for line in lines]), expected)


def test_some_rows(nasty):
    stored, *_ = nasty
    whole = pq.read_table(stored.path).to_pydict()
    rows = np.array([0, 3, 16, 17, 28])
    texts, feature = stored.take(rows)
    np.testing.assert_array_equal(feature, np.float32(whole["feature"])[rows])
    assert texts["path"] == [whole["path"][row] for row in rows]
    assert max(len(piece) for piece in stored.features()) <= 16


# --- Interrupted, and again -----------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch):
    """The number of pictures in every call of an encoder."""
    calls, call = [], Encoder.__call__

    def counted(self, images):
        calls.append(len(images))
        return call(self, images)

    monkeypatch.setattr(Encoder, "__call__", counted)
    return calls


@pytest.mark.parametrize("stop", ["before the third part", "before the file is joined"])
def test_a_start_that_was_stopped_goes_on_to_the_same_bits(
    stop, start, computed, tmp_path, monkeypatch
):
    assert start(tmp_path / "whole") == 0
    assert computed == [8, 8, 8, 6]
    computed.clear()
    with monkeypatch.context() as patch:
        if stop == "before the file is joined":
            patch.setattr(embeddings, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        else:
            write = Parts.write

            def killed(self, number, part):
                if number == 2:
                    raise KeyboardInterrupt
                write(self, number, part)

            patch.setattr(Parts, "write", killed)
        assert start(tmp_path / "out") == 130
    assert not (tmp_path / "out" / "embeddings.parquet").exists()
    computed.clear()
    assert start(tmp_path / "out") == 0
    assert computed == ([] if stop == "before the file is joined" else [8, 6])
    for name in ("embeddings.parquet", "map.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out" / "parts").exists()


def test_a_damaged_part_is_computed_again(start, computed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert start(tmp_path / "out") == 130
    path = tmp_path / "out" / "parts" / "000001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    computed.clear()
    assert start(tmp_path / "out") == 0 and computed == [8]


def test_the_same_command_again_computes_nothing_and_may_ask_for_more(start, computed, tmp_path):
    assert start(tmp_path / "out", "map=none") == 0
    before = (tmp_path / "out" / "embeddings.parquet").stat().st_mtime_ns
    assert not (tmp_path / "out" / "map.html").exists()
    computed.clear()
    assert start(tmp_path / "out", "format=csv,npz", "map_images=5") == 0
    assert not computed
    assert (tmp_path / "out" / "embeddings.parquet").stat().st_mtime_ns == before
    files = ["embeddings.parquet", "embeddings.csv", "embeddings.npz"]
    assert result_of(tmp_path / "out")["files"] == files
    assert all((tmp_path / "out" / file).exists() for file in files)
    assert (tmp_path / "out" / "map.html").read_text().count("<img src=") == 5
    assert result_of(tmp_path / "out")["images_per_second"] is None


def test_other_pictures_are_computed_anew(start, pictures, computed, tmp_path):
    """Of the same names: the contents decide."""
    assert start(tmp_path / "out") == 0
    before = table_of(tmp_path / "out")
    (pictures / NAMES[4]).write_bytes(encoded(photo(77, 30), "PNG"))
    computed.clear()
    assert start(tmp_path / "out") == 0 and computed == [8, 8, 8, 6]
    after = table_of(tmp_path / "out")
    rows = zip(before["path"], before["feature"], after["feature"], strict=True)
    assert [path for path, old, new in rows if old != new] == [NAMES[4]]


def test_another_checkpoint_takes_another_work_directory(start, finished, tmp_path, capfd):
    assert start(tmp_path / "out", "step=3") == 0
    assert result_of(tmp_path / "out")["steps"] == 3
    assert start(tmp_path / "out", "step=6") == 2
    assert "step '3' -> '6'" in capfd.readouterr().err
    three = ssl_jax.open_run(finished).encoder(3)
    table = table_of(tmp_path / "out")
    expected = three([tmp_path / "set" / path for path in table["path"]])
    np.testing.assert_allclose(table["feature"], expected, rtol=0, atol=1e-6)


# pixels of 8 x 8 are small: 8000 features of 250 numbers would be 8 MB
def test_features_are_not_held_in_memory(tmp_path):
    names = [f"{n}.png" for n in range(1000)]
    records = embed.Records(names, functools.partial(_pixels, 8), None)
    pictures = embed.Pictures("set", records, Columns(names, None, [("train", 1000)], ()), "")

    class Fake:
        image, fit = (8, 8, 1), ("crop", (0, 0, 0))

        def __call__(self, images):
            return np.ones((len(images), 2000), np.float32)

    parts = Parts(tmp_path / "parts", "x", 1000)
    tracemalloc.start()
    try:
        damaged, count = embed.compute(parts, pictures, Fake(), "error")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (damaged, count) == ([], 1000)
    assert peak < 2e6, "all features take 8 MB"


def _pixels(side: int, row: int) -> np.ndarray:
    return np.full((side, side), row % 256, np.uint8)


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(finished, tmp_path):
    words = [f"--config.checkpoint={finished}", "--config.map=none"]
    finish_command(start_command(tmp_path / "whole", *words, config="embed"))
    process = start_command(tmp_path / "out", *words, config="embed")
    while process.poll() is None and not list((tmp_path / "out").glob("parts/*.npz")):
        pass
    process.kill()
    process.communicate()
    finish_command(start_command(tmp_path / "out", *words, config="embed"))
    name = "embeddings.parquet"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# --- Damaged pictures -----------------------------------------------------------------------------


def test_damaged_pictures_are_an_error_that_loses_nothing(
    start, finished, pictures, computed, tmp_path, capfd
):
    damage(pictures, BAD)
    assert start(tmp_path / "out") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: data.damaged: 3 of 30 pictures cannot be decoded (")
    assert str(tmp_path / "out" / "damaged.txt") in error and "data.damaged=skip" in error
    listed = (tmp_path / "out" / "damaged.txt").read_text().splitlines()
    assert sorted(line.split(": ")[0] for line in listed) == BAD
    assert not (tmp_path / "out" / "embeddings.parquet").exists()
    computed.clear()
    assert start(tmp_path / "out", "data.damaged=skip") == 0 and not computed
    assert capfd.readouterr().out.count("3 damaged pictures are left out") == 1
    table = table_of(tmp_path / "out")
    assert sorted(table["path"]) == sorted(set(NAMES) - set(BAD))
    expected = ssl_jax.open_run(finished).encoder()([pictures / p for p in table["path"]])
    np.testing.assert_allclose(table["feature"], expected, rtol=0, atol=1e-6)
    result = result_of(tmp_path / "out")
    assert (result["damaged"], result["images"]) == (3, 27)
    assert result["splits"] == {split: table["split"].count(split) for split in ("train", "test")}
    assert start(tmp_path / "out") == 2, "and it stays one, as long as it is asked for"


def test_nothing_but_damaged_pictures(start, pictures, tmp_path, capfd):
    damage(pictures, NAMES)
    assert start(tmp_path / "out", "data.damaged=skip") == 2
    assert "none of the 30 pictures can be decoded" in capfd.readouterr().err


# --- Neighbours and the map -----------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
def test_neighbours_are_scikit_learns(piece):
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 1.0, (300, 12)).astype(np.float32)
    own = np.array([0, 6, 7, 150, 299])
    model = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute")
    expected = model.fit(x.astype(np.float64)).kneighbors(x[own].astype(np.float64))[1]
    assert (expected[:, 0] == own).all()
    pieces = (x[start : start + piece] for start in range(0, 300, piece))
    np.testing.assert_array_equal(nearest_in_pieces(pieces, x[own], own, 8), expected[:, 1:])


def test_the_neighbours_that_are_drawn(start, finished, pictures, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(embed, "draw_neighbours", lambda *given: drawn.append(given))
    damage(pictures, BAD)  # places among the sound ones are not those among all
    assert start(tmp_path / "out", "data.damaged=skip", "data.test_share=0", "map=none") == 0
    [(query, others, path)] = drawn
    sound = sorted(set(NAMES) - set(BAD))
    images = np.concatenate(list(fit_pictures([pictures / n for n in sound], (8, 8, 1), 100)))
    x = ssl_jax.open_run(finished).encoder()(images).astype(np.float64)
    rows = np.linspace(0, len(x) - 1, 12).round().astype(int)
    model = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(x)
    np.testing.assert_array_equal(query, images[rows])
    np.testing.assert_array_equal(others, images[model.kneighbors(x[rows])[1][:, 1:]])
    assert path == tmp_path / "out" / "figures" / "neighbours.png"


def test_fewer_pictures_than_neighbours():
    x = np.eye(3, 4, dtype=np.float32)
    found = nearest_in_pieces([x], x, np.arange(3), 8)
    assert found.shape == (3, 2) and all(row not in found[row] for row in range(3))
    assert nearest_in_pieces([x[:1]], x[:1], np.arange(1), 8).shape == (1, 0)


def test_the_map_s_axes_are_the_principal_components():
    x = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    where = embedding_map.place(x, "pca", 0)
    expected = PCA(2, svd_solver="full").fit_transform(x.astype(np.float64))
    scale = np.ptp(where[:, 0]) / np.ptp(expected[:, 0])
    for own, theirs in zip((where - where.mean(0)).T, expected.T * scale, strict=True):
        sign = np.sign(own @ theirs)
        np.testing.assert_allclose(own, sign * theirs, atol=1e-6)
    assert where.min() >= 0 and where.max() <= 1
    assert embedding_map.place(x[:1], "pca", 0).tolist() == [[0.5, 0.5]]
    np.testing.assert_array_equal(embedding_map.place(np.ones((4, 3)), "pca", 0), 0.5)


class Seen(HTMLParser):
    """The elements of a page, and the text of its paragraphs and list items."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.images, self.text, self.inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        if tag == "img" and "data-x" in dict(attrs):
            self.images.append(dict(attrs))
        assert not any(name.startswith("on") for name, _ in attrs)
        places = [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert all(str(place).startswith("data:image/") for place in places)

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


def test_the_page_shows_what_others_wrote_and_does_not_run_it():
    names = [*NASTY, *random_texts(30)]
    shapes = [(8, 8, 1), (30, 64, 3), (64, 20, 3)]
    points = [
        embedding_map.Point(name, None if i % 5 == 0 else name, np.zeros(shapes[i % 3], np.uint8))
        for i, name in enumerate(names)
    ]
    where = np.random.default_rng(0).uniform(size=(len(points), 2))
    page = embedding_map.page(points, where, NASTY[0], NASTY[1])
    page.encode()
    seen = Seen(page)
    assert seen.tags.count("script") == 1 and seen.tags.count("svg") == 0
    assert len(seen.images) == len(points)
    for image, point, (x, y) in zip(seen.images, points, where, strict=True):
        assert image["data-path"] == printable(shortened(point.path, embedding_map.LONGEST))
        assert image.get("data-label") == (None if point.label is None else printable(point.label))
        assert float(image["data-x"]) == pytest.approx(x, abs=1e-5)
        assert float(image["data-y"]) == pytest.approx(1 - y, abs=1e-5)
    assert printable(NASTY[0]) in seen.text and in_html(NASTY[1]) in page
    assert "url(" not in page and "import" not in page.split("<script>")[1]
    assert "default-src 'none'" in page and "script-src 'unsafe-inline'" in page
    assert "innerHTML" not in page


def test_thumbnails_are_the_pictures():
    import base64
    import io

    for picture, most in ((photo(3, 200), 12), (photo(4, 16), 0)):
        uri = embedding_map.thumbnail(picture)
        kind, _, data = uri.partition(";base64,")
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == f"data:image/{'jpeg' if most else 'png'}"
        side = min(len(picture), embedding_map.THUMBNAIL)
        assert shown.size == (side, side)
        expected = Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
        error = np.abs(np.asarray(shown, float) - np.asarray(expected, float)).mean()
        assert error <= most


def test_the_map_is_drawn_by_the_seed(start, tmp_path):
    pages = []
    for seed in (0, 0, 1):
        assert start(tmp_path / f"out{len(pages)}", "map_images=6", f"seed={seed}") == 0
        pages.append((tmp_path / f"out{len(pages)}" / "map.html").read_text())
    paths = [[image["data-path"] for image in Seen(page).images] for page in pages]
    assert paths[0] == paths[1] != paths[2] and set(paths[0]) <= set(NAMES)


def test_umap_where_it_is_installed(start, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert start(tmp_path / "out", "map=umap") == 2
    assert "map: got 'umap', takes umap-learn: pip install" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    asked = {}

    class UMAP:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, x):
            return x[:, :2].astype(np.float32)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: "there")
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    where = embedding_map.place(np.arange(20, dtype=np.float32).reshape(5, 4), "umap", 7)
    assert (asked["random_state"], asked["n_neighbors"], asked["metric"]) == (7, 4, "cosine")
    np.testing.assert_allclose(where[:, 0], np.linspace(0, 1, 5))


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "format=parquett": "format: got 'parquett', did you mean 'parquet'",
    "format=": "format: got ''",
    "map=tsne": "map: got 'tsne', did you mean 'none'? It takes: none, pca, umap",
    "map_images=1": "map_images: got 1, takes a number from 2",
    "step=last": "step: got 'last', takes newest, best or the number of a step",
    "step=5": "step: got 5, ",
    "data.name=foldr": "data.name: got 'foldr'",
    "data.name=": "for the run's own set digits, which lies in no directory",
    "data.data_dir=/no/where": "data.data_dir: got /no/where",
    "data.damaged=drop": "data.damaged: got 'drop', it takes: error, skip",
    "data.train_size=400": "data.train_size: got 400, takes 1 to 27",
    "data.fit=pad": "data.fit: no such field",
    "checkpoint=": "checkpoint: got '', takes the work directory of a run",
    "checkpoint=/no/run": "/no/run/config.json: not found",
}


@pytest.mark.parametrize("field", MISTAKES)
def test_a_mistake_is_one_line_before_any_work(field, start, computed, tmp_path, capfd):
    assert start(tmp_path / "out", field) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and MISTAKES[field] in lines[0], lines
    assert not computed and not (tmp_path / "out").exists()


def test_fields_of_another_set_without_its_name(finished, tmp_path, capfd):
    fields = [f"checkpoint={finished}", "data.labels=none"]
    assert command("embed", tmp_path / "out", *fields) == 2
    assert "data.labels: got 'none' for the run's own set" in capfd.readouterr().err


def test_a_configuration_of_another_task(finished, tmp_path, capfd):
    for config, task in (("embed", "probe"), ("probe", "embed"), ("quickstart", "embed")):
        assert command(config, tmp_path / "out", f"task={task}") == 2
        assert f"task: got '{task}' in a configuration of another" in capfd.readouterr().err


def test_a_damaged_file_is_made_anew(start, computed, tmp_path):
    assert start(tmp_path / "out") == 0
    (tmp_path / "out" / "embeddings.parquet").write_bytes(b"PAR1")
    computed.clear()
    assert start(tmp_path / "out") == 0 and computed == [8, 8, 8, 6]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["images"] == 30


@pytest.mark.slow
def test_the_encoder_of_a_supervised_run(tmp_path):
    fields = "encoder.name=mlp encoder.width=4 encoder.depth=1 data.name=digits data.train_size=64 "
    fields += "batch_size=16 epochs=1 data.validation_size=16 devices=1 augment.mean=0.3 "
    fields += "augment.std=0.4"
    assert command("supervised", tmp_path / "run", *fields.split()) == 0
    own = [f"checkpoint={tmp_path}/run", "data.name=digits", "data.train_size=20"]
    assert command("embed", tmp_path / "out", *own) == 0
    expected = ssl_jax.open_run(tmp_path / "run").encoder()
    assert pq.read_table(tmp_path / "out" / "embeddings.parquet").num_rows == 520
    assert result_of(tmp_path / "out")["features"] == expected.dim


def test_errors_of_a_part_that_vanished(nasty, tmp_path):
    stored, parts, columns = nasty
    (tmp_path / "parts" / "000001.npz").unlink()
    with pytest.raises(UserError, match="000001.npz: damaged; the same command computes it again"):
        embeddings.join(tmp_path / "f.parquet", parts, columns, 5, {"identity": "x"})
    assert not (tmp_path / "f.parquet").exists()


def test_parts_of_something_else_are_deleted(tmp_path, capfd):
    part = embeddings.Part(np.arange(3), np.ones((3, 2), np.float32), [])
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / ".killed.tmp").touch()  # before a part was there
    Parts(tmp_path / "parts", "one", 3).write(0, part)
    assert Parts(tmp_path / "parts", "one", 3).read(0) is not None
    assert not capfd.readouterr().out
    assert Parts(tmp_path / "parts", "another", 3).read(0) is None
    assert "computed again" in capfd.readouterr().out
    assert Parts(tmp_path / "parts", "one", 3).read(0) is None


def test_parts_that_are_no_folder_are_one_line(tmp_path):
    (tmp_path / "parts").write_text("mine")
    with pytest.raises(UserError, match=f"^{tmp_path}/parts: "):
        Parts(tmp_path / "parts", "one", 3)
    assert (tmp_path / "parts").read_text() == "mine"
