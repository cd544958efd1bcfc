"""Writes the volumes that the C++ program (ascend310_infer/) segments, to results/bin_data.

`python preprocess.py --help` says how.
"""

from src.commands import run_script

if __name__ == "__main__":
    run_script("preprocess")
