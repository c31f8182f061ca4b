"""A benchmark that reaches into a run still finds what it takes the place of. (The peer has a file
of its own.)
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_start_times_both_starts(tmp_path):
    command = [sys.executable, "benchmarks/start.py", "--quick", f"--out={tmp_path / 'start.json'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (row,) = json.loads((tmp_path / "start.json").read_text())["rows"]
    assert row["setting"] == "quickstart" and row["kept_MB"] > 0
    assert len(row["first"]) == len(row["second"]) == 1 and 0 < row["import_s"] < row["second_s"]


@pytest.mark.slow
def test_feed_times_every_way_of_the_images(tmp_path):
    small = "--images=40 --paths=1500 --side=32 --batch=8 --seconds=0 --step=1".split()
    command = [sys.executable, "benchmarks/feed.py", *small, f"--work={tmp_path}"]
    command.append(f"--out={tmp_path / 'feed.json'}")
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = {row["part"]: row for row in json.loads((tmp_path / "feed.json").read_text())["rows"]}
    assert rows["decode into the cache"]["mb_on_disk"] >= 40 * 32 * 32 * 3 / 1e6
    # no more of the clock: some reads take less processor time than it counts
    for part in ("feed, streamed", "feed, encoded, threads"):
        assert rows[part]["images_per_s"] > 0
    assert rows["index of 1500 empty files, second"]["paths_per_s"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["feed.json"]
