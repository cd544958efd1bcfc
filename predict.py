"""Segments images without reference masks.

`python predict.py --help` says how.
"""

from src.commands.predict import main
from src.utils.command_line import run

if __name__ == "__main__":
    run(main)
