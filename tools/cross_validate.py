"""Trains and evaluates a network for each of K folds of all cases.

`python tools/cross_validate.py --help` says how.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.commands import run_script

if __name__ == "__main__":
    run_script("cross_validate")
