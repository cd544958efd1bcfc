"""Evaluates a checkpoint on cases with reference masks.

`python eval.py --help` says how.
"""

from src.commands import run_script

if __name__ == "__main__":
    run_script("eval")
