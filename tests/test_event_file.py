"""TensorBoard's event file has the numbers of metrics.csv, once each, however a run was stopped."""

import errno
import json
import os
import time

import numpy as np
import pytest

pytest.importorskip("tensorboardX")
from event_reader import as_text, crc32c, read_events, scalars, spelled
from test_supervised import train

from ssl_jax.errors import UserError
from ssl_jax.workdir import event_file, metrics_csv

CONFIG = {"method": "byol \udcff", "data": {"name": "digits"}, "views": {"size": None}}
TIMES = ("seconds", "images_per_second")
# signature, length and name of the first part, width 7, height 5, 8 bits of RGBA
PICTURE = bytes.fromhex("89504e470d0a1a0a 0000000d 49484452 00000007 00000005 0806") + b"rest"


def row(step: int, **more: float) -> metrics_csv.Row:
    numbers = np.random.default_rng(step).normal(size=3)
    own = {
        "step": step,
        "loss": numbers[0],
        "rankme": 10 ** (9 * numbers[1]),
        "seconds": 0.5 * step,
    }
    return metrics_csv.as_written(own | {"learning_rate": 10 ** (9 * numbers[2])} | more)


def record(out, rows, before=()):
    """Write `rows` as a start that goes on from the rows `before`."""
    recorder = event_file.recorder(out, list(before))
    recorder.open(CONFIG)
    for each in rows:
        recorder.write(int(each["step"]), each)
    return recorder


def without_times(found):
    return [(step, {n: v for n, v in row.items() if n not in TIMES}) for step, row in found]


def test_the_reader_of_these_tests_has_the_checksum_of_its_standard():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720's CRC-32C


def test_a_float32_has_the_digits_of_metrics_csv(tmp_path):
    rows = [row(step) for step in range(1, 300)]
    record(tmp_path, rows)
    (tmp_path / "metrics.csv").write_text(metrics_csv.table(rows))
    assert as_text(scalars(tmp_path)) == spelled(tmp_path / "metrics.csv")


def test_a_blank_is_no_number(tmp_path):
    record(tmp_path, [row(1, loss=float("nan")), row(2, loss_variance=0.25)])
    (first, second) = (numbers for _, numbers in scalars(tmp_path))
    assert "loss" not in first and "step" not in first and second["loss_variance"] == 0.25


def test_what_stands_before_the_rows(tmp_path):
    begin = time.time()
    record(tmp_path, [row(5)], before=[row(2), row(4)])
    version, start, text, *rows = read_events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == start.session_log.START and start.step == 0
    (value,) = text.summary.value
    assert value.metadata.plugin_data.plugin_name == "text"
    lines = value.tensor.string_val[0].decode().splitlines()
    assert all(line.startswith("    ") for line in lines), "Markdown takes it for code"
    assert json.loads("\n".join(lines)) == CONFIG
    assert [event.step for event in rows] == [2, 4, 5]
    # rows of an earlier start: as long before this one as training took
    assert begin <= start.wall_time <= rows[2].wall_time <= time.time()
    assert rows[1].wall_time - rows[0].wall_time == pytest.approx(1.0, abs=1e-3)
    assert rows[1].wall_time == pytest.approx(start.wall_time, abs=1e-3)


def test_a_start_leaves_one_file_with_each_step_once(tmp_path):
    rows = [row(step) for step in range(1, 9)]
    (tmp_path / "events.out.tfevents.1.1").write_bytes(b"of an earlier start, damaged")
    record(tmp_path, rows[:6])
    record(tmp_path, rows[4:], before=rows[:4])  # the checkpoint was of step 4
    assert [step for step, _ in scalars(tmp_path)] == list(range(1, 9))
    (tmp_path / "metrics.csv").write_text(metrics_csv.table(rows))
    assert as_text(scalars(tmp_path)) == spelled(tmp_path / "metrics.csv")


def test_figures_that_were_drawn_in_this_start(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").write_bytes(PICTURE)
    recorder = record(tmp_path, [row(3)])
    (tmp_path / "figures" / "training.png").write_bytes(PICTURE)
    (tmp_path / "figures" / "text.png").write_bytes(b"no picture")
    recorder.close()
    last = read_events(tmp_path)[-1]
    (value,) = last.summary.value
    assert (value.tag, last.step) == ("figures/training", 3)
    assert (value.image.width, value.image.height, value.image.colorspace) == (7, 5, 4)
    assert value.image.encoded_image_string == PICTURE
    assert len(read_events(tmp_path)) == 5


def test_a_recorder_that_was_never_opened_writes_nothing(tmp_path):
    recorder = event_file.recorder(tmp_path, [])
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "training.png").write_bytes(PICTURE)
    recorder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "events.out.tfevents.2").symlink_to(tmp_path / "precious")
    record(tmp_path, [row(1)])
    assert (tmp_path / "precious").read_text() == "kept" and len(read_events(tmp_path)) == 4


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    recorder = record(tmp_path, [row(1)])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="tfevents.*cannot be written.*needs"):
        recorder.write(2, row(2))
    monkeypatch.undo()
    assert [step for step, _ in scalars(tmp_path)] == [1]


def test_tensorboard_s_own_reader(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = [row(step, loss_variance=float("nan" if step % 2 else 1)) for step in range(1, 40)]
    (tmp_path / "figures").mkdir()
    recorder = record(tmp_path, rows[20:], before=rows[:20])
    (tmp_path / "figures" / "training.png").write_bytes(PICTURE)
    recorder.close()
    sizes = dict.fromkeys(("scalars", "tensors", "images"), 0)  # keep all
    read = accumulators.EventAccumulator(str(tmp_path), sizes).Reload()
    known = {"loss", "rankme", "learning_rate", "seconds", "loss_variance"}
    assert set(read.Tags()["scalars"]) == known
    for name in known:
        found = [(event.step, f"{event.value:.6g}") for event in read.Scalars(name)]
        assert found == [(r["step"], f"{r[name]:.6g}") for r in rows if r[name] == r[name]], name
    assert "config/text_summary" in read.Tags()["tensors"]
    assert read.Images("figures/training")[0].encoded_image_string == PICTURE


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["from the first start on", "from then on"])
def test_a_run_that_was_stopped_ends_with_the_events_of_one_in_one_piece(tmp_path, first):
    train(tmp_path / "whole", tensorboard=True)
    out = tmp_path / "stopped"
    train(out, stop_after=2, tensorboard=first)
    rows = metrics_csv.read_rows(out / "metrics.csv")
    late = [row(step) for step in (3, 4)]  # it went on, and was killed before the next checkpoint
    for each in late:
        metrics_csv.append_row(out / "metrics.csv", each)
    if first:
        record(out, late, before=rows)
    train(out, tensorboard=True)
    assert as_text(scalars(out)) == spelled(out / "metrics.csv")
    assert [step for step, _ in scalars(out)] == list(range(1, 9))
    assert without_times(scalars(out)) == without_times(scalars(tmp_path / "whole"))
