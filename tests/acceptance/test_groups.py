"""Groups of checks in their own processes, compared with a CPU's."""

import numpy as np

from src.acceptance import groups
from src.acceptance.table import Table


def test_a_device_that_is_not_there_fails_each_group(tmp_path):
    table = Table(quiet=True)
    groups.start_group("scale", "Ascend", table, True, tmp_path)
    (row,) = table.rows
    assert row["verdict"] == "failed"
    assert row["found"].startswith(
        "exit code 1, error: device Ascend is not available to MindSpore"
    )


def test_a_volume_on_a_cpu_is_a_row_of_one_line(tmp_path, monkeypatch):
    volumes = {"a float32": np.linspace(0, 1, 5000), "b float32": np.array([1, np.nan])}
    monkeypatch.setattr(groups, "start_group", lambda *_: volumes)
    table = Table(quiet=True)
    groups.check_against_cpu("network", "CPU", table, True, tmp_path)
    assert [(row["found"], row["verdict"]) for row in table.rows] == [
        ("0 to 1", "passed"),
        ("nan to nan", "failed"),
    ]


def test_other_losses_than_the_cpus_fail(tmp_path, monkeypatch):
    answers = {"GPU": np.array([0.9, 0.8, 0.7]), "CPU": np.array([0.9, 0.8, 0.6])}
    monkeypatch.setattr(
        groups, "start_group", lambda name, target, *_: {"losses float32": answers[target]}
    )
    table = Table(quiet=True)
    groups.check_against_cpu("steps", "GPU", table, True, tmp_path)
    assert {row["check"]: row["verdict"] for row in table.rows} == {
        "losses float32 against the CPU's float32": "failed"
    }
    answers["CPU"] = answers["GPU"] * 1.001
    groups.check_against_cpu("steps", "GPU", table, True, tmp_path)
    answers["GPU"] = np.array([0.9, 0.8, np.nan])
    groups.check_against_cpu("steps", "GPU", table, True, tmp_path)
    assert [row["verdict"] for row in table.rows] == ["failed", "passed", "failed"]
