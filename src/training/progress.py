"""The progress of a training and the history of its epochs."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..utils.files import write_files

HISTORY_COLUMNS = ("epoch", "step", "learning_rate", "train_loss", "epoch_time_s", "val_dice")


@dataclass
class Progress:
    """The state of a training besides its parameters; saved with the checkpoint for a resume."""

    epoch: int = 0  # epochs done
    step: int = 0  # global steps done
    best_dice: float = -1.0
    validations_since_best: int = 0
    case_ids: list[str] = field(default_factory=list)  # training cases in the order of the split
    device_num: int = 1

    def has_stalled(self, patience: int) -> bool:
        """Whether the last `patience` validations brought no better Dice; 0: never."""
        return 0 < patience <= self.validations_since_best


def read_history(run_folder: str | Path, epochs: int) -> list[dict[str, float]]:
    """Reads the rows of the first `epochs` epochs of a run's history.csv, none if it is missing."""
    path = Path(run_folder, "history.csv")
    if not epochs or not path.is_file():
        return []
    history = pd.read_csv(path)
    return history[history["epoch"] <= epochs].to_dict("records")


def write_history(run_folder: str | Path, rows: list[dict[str, float]]) -> None:
    """Writes a run's history.csv."""
    table = pd.DataFrame(rows, columns=list(HISTORY_COLUMNS))
    write_files({Path(run_folder, "history.csv"): table.to_csv(index=False).encode()})
