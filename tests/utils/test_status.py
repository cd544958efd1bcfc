"""What a command says of itself to launchers and schedulers."""

import json
import os
import subprocess
import sys

import pytest

from src.utils.status import STATUS_FILE, write_status
from tests.helpers import ROOT

COMMAND = """
from src.utils.command_line import run
from src.utils.errors import DataError, UsageError
from src.utils.status import write_status

def main():
    print(open("status.json").read())
    write_status("running", run_folder="results")
    print(open("status.json").read())
    {ending}

run(main)
"""


@pytest.mark.parametrize(
    ("ending", "last"),
    [
        ("pass", {"state": "finished"}),
        (
            "raise DataError('a.mhd:\\n  truncated')",
            {"state": "failed", "exit_code": 1, "error": "a.mhd: truncated"},
        ),
        (
            "raise UsageError('no such key')",
            {"state": "failed", "exit_code": 2, "error": "no such key"},
        ),
        (
            "import argparse; argparse.ArgumentParser().error('no such argument')",
            {"state": "failed", "exit_code": 2, "error": "wrong arguments, see standard error"},
        ),
    ],
)
def test_a_command_says_how_far_it_is(tmp_path, ending, last):
    command = subprocess.run(
        [sys.executable, "-c", COMMAND.format(ending=ending)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), STATUS_FILE: "status.json"},
        capture_output=True,
        text=True,
    )
    assert command.returncode == last.get("exit_code", 0)
    states = [json.loads(line) for line in command.stdout.split("\n") if line]
    states.append(json.loads((tmp_path / "status.json").read_text()))
    (pid,) = {state.pop("pid") for state in states}
    assert pid != os.getpid()
    assert states == [{"state": "starting"}, {"state": "running", "run_folder": "results"}, last]
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_nothing_is_written_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STATUS_FILE, raising=False)
    write_status("running")
    monkeypatch.setenv(STATUS_FILE, "")
    write_status("running")
    monkeypatch.setenv(STATUS_FILE, "gone/status.json")  # whose reader has left
    write_status("running")
    assert list(tmp_path.iterdir()) == []


def test_a_status_that_cannot_be_written_does_not_end_the_work(tmp_path, monkeypatch):
    (tmp_path / "status.json").mkdir()
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status.json"))
    write_status("running")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_what_is_not_known_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status.json"))
    write_status("running", run_folder=None)
    entries = json.loads((tmp_path / "status.json").read_text())
    assert entries == {"state": "running", "pid": os.getpid()}


def test_names_are_written_as_they_are(tmp_path, monkeypatch):
    """The launchers' shell would not read escapes such as JSON's of an emoji."""
    path = tmp_path / "status.json"
    monkeypatch.setenv(STATUS_FILE, str(path))
    for name in ("l\u00e4uft \U0001f600", os.fsdecode(b"not UTF-8 \xe9")):
        write_status("running", run_folder=name)
        assert json.loads(path.read_text())["run_folder"] == name
        assert (r"\u" in path.read_text()) == (name[0] == "n")
