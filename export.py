"""Exports a checkpoint for other runtimes, with a description of what surrounds it.

`python export.py --help` says how.
"""

from src.commands.export import main
from src.utils.command_line import run

if __name__ == "__main__":
    run(main)
