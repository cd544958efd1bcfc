"""The acceptance test as users start it: it passes on a CPU."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT


def check(folder, *words):
    return subprocess.run(
        ["bash", ROOT / "scripts" / "check_device.sh", *words],
        cwd=folder,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )


@pytest.mark.launchers
def test_a_cpu_passes(tmp_path):
    (tmp_path / "src").mkdir()  # another program's, which must not be taken for this one
    (tmp_path / "src" / "__init__.py").touch()
    ended = check(tmp_path, "CPU", "2", "--small")
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    lines = ended.stdout.splitlines()
    assert re.fullmatch(r"\d{2} passed, 0 failed", lines[-1])
    report = tmp_path / "check_device_CPU.json"
    assert lines[-2] == f"the table for a bug report: {report}"
    rows = json.loads(report.read_text())["checks"]
    assert all(row.keys() == {"check", "expected", "found", "verdict"} for row in rows)
    assert [row["check"] for row in rows if row["verdict"] == "skipped"] == [
        "C++ program on an Ascend 310",
        "step at 128x128x64, batch 4, ms",
    ]
    passed = {row["check"] for row in rows if row["verdict"] == "passed"}
    for name in (
        "convolution 5x5x5, float32, forward",
        "network zoo, float32, probability",
        "losses float32 on the CPU",
        "weight and loss scale around an overflow",
        "its resume",
        "its export, loaded back",
        "weights after three steps on different batches",
    ):
        assert name in passed
    assert sorted(path.name for path in tmp_path.iterdir()) == [report.name, "src"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "usage: bash scripts/check_device.sh TARGET [DEVICE_NUM]"),
        (["TPU"], "error: TARGET 'TPU' is not Ascend, GPU or CPU"),
        (["CPU", "0"], "error: DEVICE_NUM '0' is not a number from 1"),
        (["CPU", "two"], "error: DEVICE_NUM 'two' is not a number from 1"),
    ],
)
def test_bad_arguments(tmp_path, words, complaint):
    ended = check(tmp_path, *words)
    assert (ended.returncode, ended.stderr) == (2, f"{complaint}\n")
