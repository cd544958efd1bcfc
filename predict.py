"""Segments images without reference masks.

`python predict.py --help` says how.
"""

from src.commands import run_script

if __name__ == "__main__":
    run_script("predict")
