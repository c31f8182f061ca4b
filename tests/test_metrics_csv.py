"""metrics.csv is read as it was written, and survives being cut off anywhere."""

import math

import pytest

from ssl_jax.errors import UserError
from ssl_jax.workdir.metrics_csv import (
    COLUMNS,
    append_row,
    as_written,
    parse,
    read_rows,
    restore,
    table,
    truncate_after,
)


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


DAMAGES = {
    "deleted": lambda text: None,
    "empty": lambda text: "",
    "header alone": lambda text: text.splitlines(keepends=True)[0],
    "a row less": lambda text: "".join(text.splitlines(keepends=True)[:2]),
    "a row twice": lambda text: text + text.splitlines(keepends=True)[-1],
    "all rows twice": lambda text: text + "".join(text.splitlines(keepends=True)[1:]),
    "another number": lambda text: text.replace("-1.25", "-1.26", 1),
    "semicolons": lambda text: text.replace(",", ";"),
    "text": lambda text: text.replace("-1.25", "minus one", 1),
    "nul": lambda text: text[:-20] + "\0" * 20 + "\n",
    "columns": lambda text: text.replace("-1.25,", "", 1),
    "another file": lambda text: "name,age\nx,1\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_the_checkpoint_knows_is_written_again(path, damage, capsys):
    whole = path.read_text()
    append_row(path, row(8))  # taken after the checkpoint
    damaged = damage(path.read_text())
    if damaged is None:
        path.unlink()
    else:
        path.write_text(damaged)
    rows = restore(path, 6, whole)
    assert table(rows) == path.read_text() == whole and steps(rows) == [2, 4, 6]
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {path}: ") and told.count("\n") == 1 and "checkpoint" in told
    kept = path.with_name("metrics.damaged.csv")
    assert kept.exists() == (damaged is not None)
    if damaged is not None:
        assert kept.read_text() == damaged


def test_a_sound_file_is_cut_back_without_a_word(path, capsys):
    whole = path.read_text()
    append_row(path, row(8))
    assert steps(restore(path, 6, whole)) == [2, 4, 6] and path.read_text() == whole
    assert capsys.readouterr().err == "" and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in DAMAGES
        if n not in ("deleted", "empty", "header alone", "a row less", "another number")
    ],
)
def test_a_reader_is_told_of_damage_in_one_line(path, name):
    path.write_text(DAMAGES[name](path.read_text()))
    with pytest.raises(UserError, match="metrics.csv: damaged, "):
        read_rows(path)


def test_the_table_is_what_the_rows_were(path):
    append_row(path, row(8, loss_variance=0.25))
    text = path.read_text()
    assert table(parse(text)) == text and text.splitlines()[0].endswith(",loss_variance")
