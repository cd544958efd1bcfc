"""How long a training still takes, in words; the history is in test_epoch_end.py."""

import pytest

from src.training.progress import TimeLeft, duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "1 min"),
        (89, "1 min"),
        (3599, "1 h 0 min"),
        (5100, "1 h 25 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations_in_words(seconds, text):
    assert duration_text(seconds) == text


def test_the_time_left_is_that_of_the_epochs_after_the_first():
    """The first one compiles; a slower epoch later counts with the others."""
    left = TimeLeft(epochs=101)
    said = [left.text(epoch, end_s) for epoch, end_s in ((1, 1000), (2, 1060), (3, 1240))]
    assert said == ["", "1 h 39 min left", "3 h 16 min left"]
    assert left.text(100, 1000 + 99 * 59.5) == "under 1 min left"
    assert left.text(101, 9000) == ""


def test_a_resumed_training_measures_its_own_epochs():
    left = TimeLeft(epochs=50)
    assert [left.text(31, 5), left.text(32, 125)] == ["", "36 min left"]
