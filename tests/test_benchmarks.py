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
