"""The replication's tables and claims, from the results of sweeps.

    python launch.py --config configs/report.py --config.runs=results --workdir runs/report

report.md, report.html (one page, readable offline) and result.json. Nothing is trained.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.task = "report"
    # folders that hold SWEEP/SCALE/CELL/seed-N.json, with commas between them
    config.runs = "results"
    return config
