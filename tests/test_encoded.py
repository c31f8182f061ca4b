"""Images that stay encoded: the same pixels in the same order as decoded ones, from processes that
leave nothing behind.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from encoded_reader import Pixels, WhoAmI, same

from ssl_jax.data import encoded
from ssl_jax.data.batches import make_feed
from ssl_jax.data.encoded import EncodedImages, require_whole
from ssl_jax.data.records import Records, join, part
from ssl_jax.digests import array_digest, tree_digest
from ssl_jax.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (23, 4, 3, 1), np.uint8)
PLAN = [(0, 2), (2, 1), (3, 4)]  # 5 steps an epoch: the last request straddles two epochs
NAMES = [f"{i}.png" for i in range(23)]


def images(key="key", names=NAMES, **does) -> EncodedImages:
    return EncodedImages(Records(names, Pixels(IMAGE, **does), None), same, (4, 3, 1), key)


# --- as an array ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [slice(None), slice(3, 9), slice(-2, None), slice(5, 5), np.array([4, 0, 22, 4]), [1], 7, -1],
    ids=str,
)
def test_it_is_indexed_as_an_array(index):
    np.testing.assert_array_equal(images()[index], IMAGE[index])


def test_it_has_the_shape_of_an_array():
    own = images()
    assert (own.shape, own.dtype, own.nbytes, len(own)) == (IMAGE.shape, np.uint8, IMAGE.nbytes, 23)
    np.testing.assert_array_equal(np.asarray(own), IMAGE)
    with pytest.raises(IndexError):
        own[23]


def test_rows_are_selected_and_lists_joined_without_decoding():
    rows = np.array([2, 3, 11])
    own = images(damaged=5).select(rows)
    np.testing.assert_array_equal(np.asarray(own), IMAGE[rows])
    assert list(own.records.names) == ["2.png", "3.png", "11.png"]
    label = np.arange(23, dtype=np.int32)
    both = join(Records(NAMES, Pixels(IMAGE), label), Records(["x"], Pixels(IMAGE[:1] + 1), None))
    np.testing.assert_array_equal(both.read(23), IMAGE[0] + 1)
    np.testing.assert_array_equal(both.read(22), IMAGE[22])
    assert both.labels.tolist() == [*range(23), -1] and list(both.names) == [*NAMES, "x"]
    of_both = part(both, np.array([23, 1]))
    assert list(of_both.names) == ["x", "1.png"] and of_both.labels.tolist() == [-1, 1]


def test_its_digest_is_that_of_what_decides_about_the_pixels():
    own = [images(), images("other"), images(names=NAMES[::-1]), images().select(np.arange(22))]
    assert len({array_digest(each) for each in own}) == 4
    assert tree_digest([images()]) == tree_digest([images(damaged=3)]), "nothing is decoded"


# --- damaged images -------------------------------------------------------------------------------


def test_damaged_images_are_named_and_remembered(tmp_path):
    own = images(damaged=5)
    line = r"data.damaged: 1 images cannot be decoded: 5.png \(image file is truncated\)"
    with pytest.raises(UserError, match=line):
        require_whole(own, [tmp_path])
    assert [row for row, _ in own.damaged([tmp_path])] == [5]
    with pytest.raises(UserError, match=line):  # by the card: this reader would find none
        require_whole(images(), [tmp_path])
    require_whole(images("other"), [tmp_path])
    (card,) = [p for p in (tmp_path / "verified").iterdir() if "5" in p.read_text()]
    card.write_text("{")
    require_whole(images(), [tmp_path])


def test_an_image_of_another_shape_is_damaged(tmp_path):
    own = EncodedImages(Records(NAMES, Pixels(IMAGE), None), same, (3, 4, 1), "key")
    with pytest.raises(UserError, match=r"0.png: cannot be decoded \(\(4, 3, 1\) uint8, takes"):
        own[0]


# --- batches --------------------------------------------------------------------------------------


def taken(image, rows=slice(None), plan=PLAN, **more) -> list[dict]:
    return list(make_feed(image, 4, 1, False, label=np.arange(23), **more).batches(plan, rows))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)], ids=str)
def test_batches_are_those_of_the_streamed_feed(workers, rows, monkeypatch):
    monkeypatch.setattr(encoded, "ELEMENT", 24)  # two images at a time
    for plan in (PLAN, PLAN[1:], [(7, 3)]):  # from the beginning, and gone on in the middle
        found, expected = taken(images(), rows, plan, workers=workers), taken(IMAGE, rows, plan)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                assert one[name].dtype == other[name].dtype and type(one[name]) is np.ndarray
                np.testing.assert_array_equal(one[name], other[name])


def test_encoded_images_are_never_resident():
    assert make_feed(images(), 4, 1, True).data == make_feed(images(), 4, 1, "auto").data == {}


def test_a_plan_with_a_gap_is_a_defect():
    with pytest.raises(ValueError, match="a call begins at step 4, the one before it ended at 2"):
        taken(images(), plan=[(0, 2), (4, 1)], workers=0)
    assert taken(images(), plan=[], workers=0) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_ends_training_with_its_name(workers):
    with pytest.raises(UserError, match=r"^5.png: cannot be decoded \(image file is truncated\)$"):
        taken(images(damaged=5), workers=workers)


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(UserError, match="a process that decodes ended by itself .*code -9"):
        taken(images(deadly=5), workers=1)


def test_processes_have_no_jax_and_end_with_the_feed():
    own = EncodedImages(Records(NAMES, WhoAmI(), None), same, (1, 9, 1), "key")
    batches = make_feed(own, 4, 1, workers=2).batches((n, 1) for n in range(1000))
    first = [next(batches)["image"].reshape(4, 9) for _ in range(4)]
    numbers = {int.from_bytes(row[:8].tobytes(), "little") for image in first for row in image}
    assert len(numbers) == 2 and os.getpid() not in numbers
    assert not any(image[:, 8].any() for image in first), "they imported JAX"
    batches.close()
    assert gone(numbers, 0)


def gone(numbers, seconds: float) -> bool:
    """Whether none of these processes is there after so many seconds."""
    deadline = time.monotonic() + seconds
    while alive := [n for n in numbers if Path(f"/proc/{n}").exists()]:
        if time.monotonic() > deadline:
            return not alive
        time.sleep(0.05)
    return True


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(number, tmp_path):
    """The parent is killed; and Ctrl-C, which a terminal sends to all of them."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    numbers = {int(word) for word in process.stdout.readline().split()}
    assert len(numbers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert gone(numbers, 10)
    if number == signal.SIGINT:
        line = "interrupted: the same command goes on from what was last saved, if anything was"
        assert process.returncode == 130 and errors == f"{line}\n"


PROGRAM = """
import signal, sys, time
import numpy as np
from ssl_jax.runtime import stops

def main():
    from encoded_reader import WhoAmI, same
    from ssl_jax.data.batches import make_feed
    from ssl_jax.data.encoded import EncodedImages
    from ssl_jax.data.records import Records
    own = EncodedImages(Records([str(i) for i in range(8)], WhoAmI(), None), same, (1, 9, 1), "")
    batches = make_feed(own, 4, 1, workers=2).batches((n, 1) for n in range(10**6))
    first = [next(batches)["image"].reshape(4, 9) for _ in range(2)]
    print(*{int.from_bytes(image[0, :8].tobytes(), "little") for image in first}, flush=True)
    for batch in batches:
        time.sleep(0.01)
    return 0

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    stops.install()
    stops.run(main, lambda: True)
"""


# --- a run ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_takes_the_same_losses_and_goes_on_in_the_middle(tmp_path, monkeypatch):
    """Pretraining on a TFDS set: streamed, encoded, and encoded with a stop after three calls."""
    from test_continuation import assert_same_state, make_config, train
    from test_data_sources import labelled, random_images, usual_features, write_tfds

    from ssl_jax.workdir import metrics_csv

    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))
    label = np.tile([0, 1], 48)
    examples = labelled(random_images(96, (8, 8, 1)), label)
    folder = write_tfds(
        tmp_path / "data", {"train": examples, "test": examples[:8]}, usual_features((8, 8, 1))
    )
    fields = ["data.name=tiny", f"data.data_dir={folder}", "data.train_size=0"]
    outs = {}
    for name, resident, calls in (
        ("streamed", "no", [None]),
        ("encoded", "encoded", [None]),
        ("stopped", "encoded", [3, None]),
    ):
        outs[name] = tmp_path / name
        for call in calls:
            train(make_config(*fields, f"data.resident={resident}"), outs[name], monkeypatch, call)
    rows = {name: metrics_csv.read_rows(out / "metrics.csv") for name, out in outs.items()}
    losses = {name: [row["loss"] for row in of] for name, of in rows.items()}
    assert losses["encoded"] == losses["streamed"] and len(losses["encoded"]) > 3
    assert losses["stopped"][-3:] == losses["streamed"][-3:]
    for name in ("encoded", "stopped"):
        assert_same_state(outs[name], outs["streamed"])
    decoded = {path.parent.name for path in (tmp_path / "cache").rglob("*.image.npy")}
    assert len(decoded) == 1, "only the streamed run decodes to disk"
