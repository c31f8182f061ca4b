"""metrics.csv is read as it was written, and survives being cut off anywhere."""

import math

import pytest

from ssl_jax.workdir.metrics_csv import COLUMNS, append_row, as_written, read_rows, truncate_after


def row(step, **more):
    return {
        "step": step,
        "loss": -1.25,
        "images_per_second": 1234567.0,
        "seconds": 0.5 * step,
        **more,
    }


@pytest.fixture
def path(tmp_path):
    truncate_after(tmp_path / "metrics.csv", 0)
    for step in (2, 4, 6):
        append_row(tmp_path / "metrics.csv", row(step))
    return tmp_path / "metrics.csv"


def steps(rows):
    return [r["step"] for r in rows]


def test_round_trip(path):
    append_row(path, row(8, knn_validation=0.75, effective_rank=float("nan"), unknown=3.0))
    *_, last = read_rows(path)
    assert tuple(last) == COLUMNS
    assert (
        last["step"] == 8
        and last["loss"] == -1.25
        and last["knn_validation"] == 0.75
        and last["seconds"] == 4.0
    )
    assert math.isclose(last["images_per_second"], 1234567, rel_tol=1e-5)
    assert math.isnan(last["effective_rank"]) and math.isnan(last["epoch"])
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_rows_that_will_come_again_are_dropped(path):
    assert steps(truncate_after(path, 5)) == steps(read_rows(path)) == [2, 4]
    append_row(path, row(6))
    assert steps(read_rows(path)) == [2, 4, 6]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.csv"]


def test_numbers_stay_through_a_restart(path):
    before = path.read_bytes()
    truncate_after(path, 6)
    assert path.read_bytes() == before


def test_a_file_that_is_not_there(tmp_path):
    assert read_rows(tmp_path / "metrics.csv") == []
    assert truncate_after(tmp_path / "metrics.csv", 9) == []
    assert (tmp_path / "metrics.csv").read_text().strip() == ",".join(COLUMNS)


def test_a_line_cut_off_anywhere_is_left_out(path):
    append_row(path, row(8, seconds=1.5e7))
    whole = path.read_bytes()
    start = whole.rstrip().rindex(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert steps(truncate_after(path, 9)) == [2, 4, 6], whole[start:end]
        append_row(path, row(8))
        assert steps(read_rows(path)) == [2, 4, 6, 8]


def test_a_header_cut_off(path):
    path.write_bytes(path.read_bytes()[:20])
    assert truncate_after(path, 9) == []


def test_terms_of_a_loss_have_columns_after_the_others(path):
    """From the first row on that has them; rows before it stay blank there, and so do rows that
    lack them.
    """
    columns = (*COLUMNS, "loss_prediction", "loss_variance")
    append_row(path, row(8, loss_prediction=-1.5, loss_variance=0.25))
    append_row(path, row(10))
    append_row(path, row(12, loss_prediction=-1.75, loss_variance=0.125))
    assert path.read_text().splitlines()[0] == ",".join(columns)
    rows = truncate_after(path, 12)
    assert steps(rows) == [2, 4, 6, 8, 10, 12] and all(tuple(r) == columns for r in rows)
    blank = [math.isnan(r["loss_variance"]) for r in rows]
    assert blank == [True, True, True, False, True, False]
    assert (rows[3]["loss_prediction"], rows[5]["loss_variance"]) == (-1.5, 0.125)
    assert truncate_after(path, 8)[-1]["loss_variance"] == 0.25
    assert as_written(row(8, loss_variance=0.25))["loss_variance"] == 0.25
