"""Exports a checkpoint for other runtimes, with a description of what surrounds it.

`python export.py --help` says how.
"""

from src.commands import run_script

if __name__ == "__main__":
    run_script("export")
