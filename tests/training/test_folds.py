"""A fold: when its training has ended, and what counts of its evaluation."""

import math

import pytest

from src.config import load_config, save_config
from src.report.painter import Painter
from src.training.folds import Fold, write_pooled_results
from src.utils.errors import DataError
from tests.runs import write_run


@pytest.mark.parametrize(
    ("epochs", "early_stop", "scores", "checkpoint", "ended"),
    [
        (4, 0, [0.5, 0.4, 0.3], 3, False),
        (4, 0, [0.5, 0.4, 0.3, 0.2], 3, False),  # killed before the last was written
        (4, 0, [0.5, 0.4, 0.3, 0.2], 4, True),
        (4, 0, [math.nan] * 4, 4, True),
        (4, 2, [0.5, 0.4, 0.3], 3, True),
        (4, 2, [0.5, 0.5, 0.4], 3, True),  # as good is not better
        (4, 2, [0.4, 0.5, 0.3], 3, False),
        (4, 2, [0.5, 0.4, 0.3], 2, False),
        (9, 2, [0.5, math.nan, 0.4], 3, False),  # not validated is not worse
        (9, 2, [0.5, math.nan, 0.4, math.nan, 0.3], 5, True),
    ],
)
def test_when_a_training_has_ended(
    tmp_path, small_config, epochs, early_stop, scores, checkpoint, ended
):
    config = small_config(f"epochs={epochs}", f"early_stop={early_stop}")
    fold = Fold(0, tmp_path / "fold0", config)
    assert fold.final_checkpoint() is None
    write_run(fold, *scores, checkpoint=checkpoint)
    assert (fold.final_checkpoint() is not None) == ended


@pytest.mark.parametrize("text", ["", "{}", "[]"])
def test_damaged_metrics_of_a_fold_do_not_count(tmp_path, small_config, text):
    fold = Fold(0, tmp_path / "fold0", small_config("epochs=1"))
    write_run(fold, 0.5, checkpoint=1)
    assert fold.final_checkpoint()
    fold.results.mkdir()
    (fold.results / "metrics.json").write_text(text)
    assert fold.metrics() is None


def test_a_fold_without_metrics_is_not_pooled(tmp_path, small_config):
    fold = Fold(0, tmp_path / "fold0", small_config())
    with pytest.raises(DataError, match=r"fold0/evaluation: no complete evaluation of its last"):
        write_pooled_results(tmp_path / "evaluation", [fold], [], Painter())
    assert not (tmp_path / "evaluation").exists()


def test_a_run_keeps_what_it_was_started_with(tmp_path, small_config):
    fold = Fold(0, tmp_path / "fold0", small_config("seed=3"))
    fold.create()
    save_config(small_config("seed=3", "plane=sagittal"), fold.folder / "config.json")
    fold.create()
    assert load_config(fold.folder / "config.json").plane == "sagittal"
