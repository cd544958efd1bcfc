"""Paths, files and processes: what tests of many modules use."""

import csv
import json
import time
from importlib import import_module
from pathlib import Path
from unittest import mock

from src.commands import command_parser

ROOT = Path(__file__).resolve().parents[1]  # of the repository


# Files -------------------------------------------------------------------------------------------


def tree(folder):
    """Path relative to the folder -> bytes of each file below it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names_in(folder):
    """Sorted names of what lies directly in a folder."""
    return sorted(path.name for path in folder.iterdir())


def touch(folder, *names):
    """Makes empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def write_executable(path, text):
    """Writes an executable file, with its folder; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def strict_json(path):
    """Reads a JSON file that may hold no NaN or infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# Damaged bytes -----------------------------------------------------------------------------------


def rows_of(folder):
    """The rows of volumes.csv, {case: {column: text}}."""
    with (folder / "volumes.csv").open(encoding="utf-8", newline="") as table:
        return {row.pop("case"): row for row in csv.DictReader(table)}


def cut(count):
    """A function that takes bytes off the end."""
    return lambda content: content[:-count]


def flip_middle(content):
    """Inverts four bytes in the middle."""
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 ^ byte for byte in content[middle : middle + 4])
        + content[middle + 4 :]
    )


def replaced(old, new):
    """A function that replaces bytes, which must be there."""

    def change(content):
        assert old in content
        return content.replace(old, new)

    return change


# Processes ---------------------------------------------------------------------------------------


def alive(pid):
    """Whether the process is still there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_program(command, *arguments):
    """Runs a command of src/commands in this process, on the CPU; its exceptions arrive here.

    It draws here too: each process that it would start for that imports Matplotlib.
    """
    words = ["--device_target", "CPU", *map(str, arguments)]
    args = command_parser(command, f"{command}.py").parse_args(words)
    module = import_module(f"src.commands.{command}")
    with mock.patch.object(module, "PROCESSES", 0, create=command not in ("eval", "predict")):
        module.execute(args)


def wait_until(condition, timeout_s=120):
    """Waits for a condition; the time-out only ends a test that hangs."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not so after {timeout_s} s"
        time.sleep(0.02)
