"""Any runs, of any task that trains, on one page: what differs between them, and what came of it.

    python launch.py --config configs/compare.py --config.runs='runs/tau/*' --workdir runs/page

compare.html (one page, readable offline), compare.md and result.json. Seeds are grouped. Nothing is
trained.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.task = "compare"
    # work directories, or folders above them, with * and ? and with commas between them
    config.runs = ""
    return config
