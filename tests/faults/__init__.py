"""Attacks on the program: damaged files, wrong numbers, odd names, full disks, stops.

Every module but `suite` adds groups of trials to `suite.GROUPS`. `python -m tests.faults` runs all
of them; `tests/test_faults.py` runs a sample.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:  # pytest has put it there
    sys.path.insert(0, str(TESTS))
