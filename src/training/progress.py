"""The progress of a training and the time that it still takes."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The state of a training besides its parameters, and what the training is of.

    Saved with the checkpoint: a resume goes on from the one, and must be of the other.
    """

    epoch: int = 0  # epochs done
    step: int = 0  # global steps done
    best_dice: float = -1.0
    validations_since_best: int = 0
    case_ids: list[str] = field(default_factory=list)  # training cases in the order of the split
    device_num: int = 1
    val_case_ids: list[str] = field(default_factory=list)  # those that best_dice is of
    fixed: dict[str, Any] = field(default_factory=dict)  # keys of FIXED_BY_RUN, for a resume
    digests: dict[str, str] = field(default_factory=dict)  # case ID -> its `content_digest`
    processing: dict[str, int] = field(default_factory=dict)  # `processing_versions`; {}: unknown

    def has_stalled(self, patience: int) -> bool:
        """Whether the last `patience` validations brought no better Dice; 0: never."""
        return 0 < patience <= self.validations_since_best


class TimeLeft:
    """Estimates the rest of a training from its epochs so far, without the first, which compiles.

    Args:
        epochs: number of epochs of the training, or of several.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.first: tuple[int, float] | None = None  # epochs done, and when that was first seen
        self.last: tuple[int, float] | None = None

    def seconds(self, done: int, now_s: float) -> float | None:
        """Returns the rest in seconds; None if unknown, or nothing is left.

        Args:
            done: number of epochs that have ended, of a resumed training also those before.
            now_s: the time; also between the ends of epochs.
        """
        if self.first is None or self.last is None:
            self.first = self.last = done, now_s
        elif done > self.last[0]:
            self.last = done, now_s
        if self.first == self.last or done >= self.epochs:
            return None
        (first, first_s), (last, last_s) = self.first, self.last
        epoch_s = (last_s - first_s) / (last - first)
        return max(0.0, last_s + (self.epochs - last) * epoch_s - now_s)

    def text(self, epoch: int, now_s: float) -> str:
        """Returns the rest in words, such as "1 h 23 min left"; "" if unknown, or nothing is left.

        Args:
            epoch: that has ended, counted from 1.
            now_s: the time.
        """
        left_s = self.seconds(epoch, now_s)
        if left_s is None:
            return ""
        return f"{duration_text(left_s) if left_s >= 60 else 'under 1 min'} left"


def duration_text(seconds: float) -> str:
    """Returns a time in words: "2 min", "1 h 25 min"."""
    minutes = max(1, round(seconds / 60))
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
