"""Trains a V-Net.

`python train.py --help` says how.
"""

from src.commands.train import main
from src.utils.command_line import run

if __name__ == "__main__":
    run(main)
