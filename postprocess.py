"""Masks and metrics from the outputs of the C++ program (ascend310_infer/), as eval.py writes them.

`python postprocess.py --help` says how.
"""

from src.commands import run_script

if __name__ == "__main__":
    run_script("postprocess")
