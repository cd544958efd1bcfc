"""Runs a command in a process of its own, with a time-out."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..utils.errors import last_error
from ..utils.process import PACKAGE, module_command
from .table import Table

NO_CHECKOUT = "only in a checkout of the repository, which has scripts/"
TIMEOUT_S = 240
QUERY_S = 60  # for the tools of a driver, which may hang


def run_command(
    words: Sequence[str | Path], table: Table, check: str, timeout_s: int = TIMEOUT_S
) -> bool:
    """Runs a command; adds a failed check with its last line where it fails.

    Returns:
        Whether it succeeded.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"GLOG_v": "3", "PYTHONUNBUFFERED": "1", "PATH": path}
    try:
        ended = subprocess.run(
            words, env=os.environ | variables, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        table.add(check, f"ends within {timeout_s} s", "hangs", False)
        return False
    if ended.returncode != 0:
        reason = last_error(ended.stdout + ended.stderr)
        table.add(check, "exit code 0", f"exit code {ended.returncode}, {reason}", False)
    return ended.returncode == 0


def run_program(
    words: Sequence[str | Path], table: Table, check: str, timeout_s: int = TIMEOUT_S
) -> bool:
    """Runs a command; adds a check that its exit code is 0, and returns whether it is."""
    succeeded = run_command(words, table, check, timeout_s)
    if succeeded:
        table.add(check, "exit code 0", "exit code 0", True)
    return succeeded


def output_of(*command: str) -> str:
    """Returns what a command of the driver or compiler prints, or why it printed nothing."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return ended.stdout or ended.stderr


def group_command(
    group: str, target: str, folder: Path, small: bool, device_num: int = 1
) -> list[str]:
    """Returns the command of a group of checks, see __main__.py."""
    size = "small" if small else "full"
    words = group, target, str(device_num), size, str(folder)
    return module_command(f"{PACKAGE}.acceptance", *words, ends_with_parent=True)
