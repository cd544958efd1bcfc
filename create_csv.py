"""Splits the cases into training and validation files, one image file name a line.

`python create_csv.py --help` says how.
"""

from src.commands import run_script

if __name__ == "__main__":
    run_script("split")
