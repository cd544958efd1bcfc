"""Brings PROMISE12, or volumes of your own, into img/ and gt/, and checks them.

`python prepare_data.py --help` says how.
"""

from src.commands.prepare import main
from src.utils.command_line import run

if __name__ == "__main__":
    run(main)
