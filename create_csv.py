"""Splits the cases into training and validation files, one image file name a line.

`python create_csv.py --help` says how.
"""

from src.commands.split import main
from src.utils.command_line import run

if __name__ == "__main__":
    run(main)
