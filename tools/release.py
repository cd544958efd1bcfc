"""Packs a checkpoint for others: float16 weights, configuration, checksums.

`python tools/release.py --help` says how.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.commands import run_script

if __name__ == "__main__":
    run_script("release")
