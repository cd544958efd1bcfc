"""Brings PROMISE12, or volumes of your own, into img/ and gt/, and checks them.

`python prepare_data.py --help` says how.
"""

from src.commands import run_script

if __name__ == "__main__":
    run_script("prepare")
