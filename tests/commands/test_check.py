"""The acceptance test for a machine: it passes on a CPU, and faults of a machine do not pass."""

import json
import os
import re
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

from src.commands import check as device_check
from src.commands.check import (
    Table,
    check_layers,
    check_scale,
    check_steps,
    compare_ranks,
)
from src.commands.golden import GOLDEN
from src.training.step import LossScaledStep
from tests.helpers import ROOT


def verdicts(table):
    return {row["check"]: row["verdict"] for row in table.rows}


def check(folder, *words, python=sys.executable):
    return subprocess.run(
        ["bash", ROOT / "scripts" / "check_device.sh", *words],
        cwd=folder,
        env=os.environ | {"PYTHON": python},
        capture_output=True,
        text=True,
    )


@pytest.mark.launchers
def test_a_cpu_passes(tmp_path):
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
        "losses float32 against the CPU's float32",
        "weight and loss scale around an overflow",
        "its resume",
        "its export, loaded back",
        "weights after three steps on different batches",
    ):
        assert name in passed
    assert [path.name for path in tmp_path.iterdir()] == [report.name]


def test_a_device_that_is_not_there_fails_each_group(tmp_path):
    table = Table(quiet=True)
    device_check.start_group("scale", "Ascend", table, True, tmp_path)
    (row,) = table.rows
    assert row["verdict"] == "failed"
    assert row["found"].startswith(
        "exit code 1, error: device Ascend is not available to MindSpore"
    )


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


# Faults of a machine --------------------------------------------------------------------------


def golden_of_layers(*numbers):
    """The golden values of some layers alone, since each takes a second to compile."""
    with np.load(GOLDEN / "layers.npz") as file:
        golden = {"names": file["names"][list(numbers)]}
        for key in file:
            number, _, array = key.partition(" ")
            if array and int(number) in numbers:
                golden[f"{numbers.index(int(number))} {array}"] = file[key]
    return golden


@pytest.mark.parametrize(
    ("key", "failing"),
    [
        ("0 y", "convolution 5x5x5, float32, forward"),
        ("3 gradient0", "transposed convolution 2x2x2, float32, gradient of its input"),
        ("4 gradient1", "batch norm, float32, gradient of its parameter 1"),
    ],
)
def test_a_wrong_value_of_a_layer_fails(tmp_path, monkeypatch, key, failing):
    number, _, array = key.partition(" ")
    golden = golden_of_layers(int(number))
    golden[f"0 {array}"].flat[7 % golden[f"0 {array}"].size] += 0.01
    np.savez(tmp_path / "layers.npz", **golden)
    table = Table(quiet=True)
    check_layers("CPU", table, tmp_path / "layers.npz")
    assert [name for name, verdict in verdicts(table).items() if verdict == "failed"] == [failing]


def test_a_layer_that_raises_fails_alone(tmp_path, monkeypatch):
    np.savez(tmp_path / "layers.npz", **golden_of_layers(2, 6, 8))
    made = device_check.create_layer

    def without_elu(name, shapes):
        if name == "ELU":
            raise RuntimeError("\n- Cuda error:\n---\nno kernel for Elu\n- C++ Call Stack: (x)\n")
        return made(name, shapes)

    monkeypatch.setattr(device_check, "create_layer", without_elu)
    table = Table(quiet=True)
    check_layers("CPU", table, tmp_path / "layers.npz")
    assert {row["check"].partition(",")[0] for row in table.rows} == {
        "convolution 1x1x1",
        "ELU",
        "softmax",
    }
    failed = [row for row in table.rows if row["verdict"] == "failed"]
    assert [(row["check"], row["found"]) for row in failed] == [
        ("ELU, float32", "no kernel for Elu")
    ]


def misses_it(self, status, compute_output):
    return ms.Tensor(False)


def test_a_device_that_misses_an_overflow_fails(monkeypatch):
    table = Table(quiet=True)
    check_scale("CPU", table)
    monkeypatch.setattr(LossScaledStep, "get_overflow_status", misses_it)
    check_scale("CPU", table)
    assert [row["verdict"] for row in table.rows] == ["passed", "failed"]


def test_other_losses_than_the_cpus_fail(tmp_path, monkeypatch):
    answers = {"GPU": np.array([0.9, 0.8, 0.7]), "CPU": np.array([0.9, 0.8, 0.6])}
    monkeypatch.setattr(
        device_check, "start_group", lambda name, target, *_: {"losses float32": answers[target]}
    )
    table = Table(quiet=True)
    device_check.check_against_cpu("steps", "GPU", table, True, tmp_path)
    assert verdicts(table) == {"losses float32 against the CPU's float32": "failed"}
    answers["CPU"] = answers["GPU"] * 1.001
    device_check.check_against_cpu("steps", "GPU", table, True, tmp_path)
    answers["GPU"] = np.array([0.9, 0.8, np.nan])
    device_check.check_against_cpu("steps", "GPU", table, True, tmp_path)
    assert [row["verdict"] for row in table.rows] == ["failed", "passed", "failed"]


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (None, None),
        ("a weight of another bit", "weights after three steps on different batches"),
        ("a sum", "all-reduce of ones"),
        ("no file", "rank 1"),
    ],
)
def test_a_rank_that_differs_fails(tmp_path, fault, failing):
    weights = np.arange(5, dtype=np.float32)
    for rank in range(2):
        own = {"sum": np.array([2.0, 2.0]), "all-reduce ms": 3.0, "size": 9, "weight a": weights}
        if rank == 1 and fault == "a weight of another bit":
            own["weight a"] = np.nextafter(weights, 9, dtype=np.float32)
        if rank == 1 and fault == "a sum":
            own["sum"] = np.array([2.0, 1.0])
        if not (rank == 1 and fault == "no file"):
            np.savez(tmp_path / f"rank_{rank}.npz", **own)
    table = Table(quiet=True)
    compare_ranks(tmp_path, 2, table)
    failed = [name for name, verdict in verdicts(table).items() if verdict == "failed"]
    assert failed == ([failing] if failing else [])


def test_a_command_that_hangs_fails(tmp_path):
    table = Table(quiet=True)
    assert not device_check.run_command(["sleep", "60"], "CPU", table, "a sleeper", 1)
    assert table.rows[0]["found"] == "hangs"


def test_three_steps_are_three_different_losses(monkeypatch):
    configuration = device_check.configuration
    monkeypatch.setattr(
        device_check, "configuration", lambda *words: configuration(*words, "width=1")
    )
    table = Table(quiet=True)
    losses = check_steps("CPU", table)["losses float32"]
    assert len(set(losses.tolist())) == 3 and np.isfinite(losses).all()
    assert table.count("failed") == 0
