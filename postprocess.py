"""Masks and metrics from the answers of the C++ program (ascend310_infer/), as eval.py writes them.

`python postprocess.py --help` says how.
"""

from src.commands.postprocess import main
from src.utils.command_line import run

if __name__ == "__main__":
    run(main)
