"""The history of a run; its record is in test_model_card.py and test_trainer.py."""

import pandas as pd
import pytest

from src.run_record import read_history, write_history
from src.utils.errors import DataError


def test_a_history_is_read_as_it_was_written(tmp_path):
    assert read_history(tmp_path).empty
    rows = [
        {"epoch": 1, "step": 9, "learning_rate": 0.1, "train_loss": 1 / 3, "epoch_time_s": 2.5},
        {"epoch": 2, "step": 18, "learning_rate": 0.0, "train_loss": 0.2, "epoch_time_s": 2.0},
    ]
    rows[1]["val_dice"] = 0.13436424411240122
    write_history(tmp_path, rows)
    found = read_history(tmp_path)
    pd.testing.assert_frame_equal(found, pd.DataFrame(rows), check_exact=True)
    assert {*found.columns} == {*read_history(tmp_path / "other").columns}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "epoch,val_dice\nx,1\n", "epoch,step\n1,2\n"])
def test_a_damaged_history_is_told(tmp_path, text):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(DataError, match="history.csv: not the history of a training") as error:
        read_history(tmp_path)
    assert "\n" not in str(error.value)
