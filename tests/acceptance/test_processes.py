"""Commands of the acceptance test: what fails or hangs does not pass."""

import sys

import pytest

from src.acceptance import processes
from src.acceptance.processes import output_of, run_command, run_program
from src.acceptance.table import Table


def test_a_command_that_hangs_fails(tmp_path):
    table = Table(quiet=True)
    assert not run_command(["sleep", "60"], table, "a sleeper", timeout_s=1)
    assert table.rows[0]["found"] == "hangs"


def test_what_a_driver_says_or_why_it_says_nothing(tmp_path, monkeypatch):
    python = sys.executable
    assert output_of(python, "-c", "print('Ascend 310\\n')") == "Ascend 310\n\n"
    assert output_of(python, "-c", "exit('no driver')") == "no driver\n"
    assert output_of("npu-smi-of-nobody", "info").startswith("npu-smi-of-nobody: [Errno 2]")
    monkeypatch.setattr(processes, "QUERY_S", 0.1)
    assert "timed out" in output_of("sleep", "60")


@pytest.mark.parametrize(
    ("code", "found", "verdict"),
    [
        ("pass", "exit code 0", "passed"),
        (
            "print('error: no data'); print('later'); exit(1)",
            "exit code 1, error: no data",
            "failed",
        ),
        ("print('first'); print('last\\n'); exit(3)", "exit code 3, last", "failed"),
        ("exit(4)", "exit code 4, ", "failed"),
    ],
)
def test_a_program_has_one_check_with_its_message(code, found, verdict):
    table = Table(quiet=True)
    assert run_program([sys.executable, "-c", code], table, "a") == (verdict == "passed")
    assert table.rows == [
        {"check": "a", "expected": "exit code 0", "found": found, "verdict": verdict}
    ]
