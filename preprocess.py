"""Writes the volumes that the C++ program (ascend310_infer/) segments, to results/bin_data.

`python preprocess.py --help` says how.
"""

from src.commands.preprocess import main
from src.utils.command_line import run

if __name__ == "__main__":
    run(main)
