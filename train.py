"""Trains a V-Net.

`python train.py --help` says how.
"""

from src.commands import run_script

if __name__ == "__main__":
    run_script("train")
