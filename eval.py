"""Evaluates a checkpoint on cases with reference masks.

`python eval.py --help` says how.
"""

from src.commands.eval import main
from src.utils.command_line import run

if __name__ == "__main__":
    run(main)
