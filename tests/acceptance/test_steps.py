"""Training steps: their losses differ, and an overflow that a device misses does not pass."""

import mindspore as ms
import numpy as np
import pytest

from src.acceptance import steps
from src.acceptance.table import Table
from src.training.step import LossScaledStep


def misses_it(self, status, compute_output):
    return ms.Tensor(False)


def test_a_device_that_misses_an_overflow_fails(monkeypatch):
    table = Table(quiet=True)
    steps.check_loss_scale(table)
    monkeypatch.setattr(LossScaledStep, "get_overflow_status", misses_it)
    steps.check_loss_scale(table)
    assert [row["verdict"] for row in table.rows] == ["passed", "failed"]


@pytest.mark.full
def test_three_steps_are_three_different_losses(monkeypatch):
    configuration = steps.configuration
    monkeypatch.setattr(steps, "configuration", lambda *words: configuration(*words, "width=1"))
    table = Table(quiet=True)
    losses = steps.check_steps("CPU", table)["losses float32"]
    assert len(set(losses.tolist())) == 3 and np.isfinite(losses).all()
    assert table.count("failed") == 0
