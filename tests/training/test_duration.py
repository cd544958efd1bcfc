"""The estimate of a training's time: its formula, and that a step is really measured."""

import pytest

from src.api import estimate_training
from src.config import override_config
from src.training import duration
from src.training.duration import START_S, measure_step_s, training_s
from src.utils.errors import UsageError


@pytest.mark.parametrize(
    ("overrides", "cases", "val_cases", "done", "steps"),
    [
        (["epochs=10", "batch_size=1"], 40, 0, 0, 400),
        (["epochs=10", "batch_size=4"], 41, 0, 0, 110),
        (["epochs=10", "batch_size=2", "accumulate_steps=2"], 40, 0, 0, 100),
        (["epochs=10", "batch_size=1", "val_interval=4"], 40, 7, 0, 400 + 3 * 7),
        (["epochs=10", "batch_size=1", "val_interval=4"], 40, 7, 6, 160 + 7),
        (["epochs=10", "batch_size=1"], 40, 7, 12, 0),
    ],
)
def test_the_formula(small_config, overrides, cases, val_cases, done, steps):
    found = training_s(small_config(*overrides), 0.5, cases, val_cases, done)
    assert found == pytest.approx(steps * 0.5 + START_S)


def test_a_step_is_measured(small_config, monkeypatch):
    monkeypatch.setattr(duration, "MEASURED_STEPS", 3)
    config = small_config("augment_noise=1.0", "batch_size=1", "dropout=0.2")
    with pytest.raises(UsageError, match="batch_size=1: the lowest level has one voxel"):
        measure_step_s(config, "CPU")
    assert 0 < measure_step_s(override_config(config, ["VolSize=32,16,16"]), "CPU") < 60


def test_the_estimate_in_words(monkeypatch, tmp_path):
    monkeypatch.setattr(duration, "measure_step_s", lambda config, target: 0.3)
    own = [f"dirResult={tmp_path}", "epochs=100", "batch_size=1"]
    line = estimate_training(40, 10, "CPU", 0, "accurate", own, True)
    assert line.startswith("100 epochs of 40 cases will take about 21 min") and "0.30 s" in line
    for cases, val_cases in ((0, 1), (1, -1)):
        with pytest.raises(UsageError, match="expected at least"):
            estimate_training(cases, val_cases, "CPU", 0, None, own, False)
