"""What a run records: its epochs in history.csv; its cases, machine and times in training.json."""

import json
import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .config import config_path_of
from .data_manager import Case
from .utils.errors import DataError, reason_of
from .utils.files import write_files, write_json
from .utils.process import core_count

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

RECORD = "training.json"
HISTORY = "history.csv"
HISTORY_TYPES = {
    **{"epoch": int, "step": int, "learning_rate": float, "train_loss": float},
    **{"epoch_time_s": float, "val_dice": float},
}


def read_history(run_folder: str | Path) -> "pd.DataFrame":
    """Reads a run's history.csv.

    Returns:
        A row per epoch with the columns `HISTORY_TYPES`; `val_dice` is NaN without a validation. No
        row if there is no history.

    Raises:
        DataError: it is damaged.
    """
    import pandas as pd  # takes 0.3 s

    path = Path(run_folder, HISTORY)
    if not path.is_file():
        return pd.DataFrame(columns=[*HISTORY_TYPES]).astype(HISTORY_TYPES)
    try:
        return pd.read_csv(
            path, usecols=[*HISTORY_TYPES], dtype=HISTORY_TYPES, float_precision="round_trip"
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not the history of a training ({reason_of(error)}); restore it, or move it "
            "away"
        ) from None


def write_history(run_folder: str | Path, rows: list[dict[str, float]]) -> None:
    """Writes a run's history.csv."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=[*HISTORY_TYPES])
    write_files({Path(run_folder, HISTORY): table.to_csv(index=False).encode()})


def record_session(
    run_folder: Path,
    cases: Sequence[Case],
    val_cases: Sequence[Case],
    device_target: str,
    device_num: int,
    epoch: int,
) -> None:
    """Adds the start or the resume of a training to the record of its run.

    The record is not needed for the training: if it cannot be written, a line says so.

    Args:
        run_folder: of the run.
        cases, val_cases: of the training and the validation.
        device_target: "Ascend", "GPU" or "CPU".
        device_num: number of processes that train together.
        epoch: number of epochs already trained.
    """
    import mindspore as ms

    session = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "epochs_before": epoch,
        "version": __version__,
        "mindspore": ms.__version__,
        "device": device_target,
        "devices": device_num,
        "processor": processor(),
        "cores": core_count(),
    }
    content = {
        "training_cases": [case.case_id for case in cases],
        "validation_cases": [case.case_id for case in val_cases],
        "sessions": [*read_record(run_folder).get("sessions", []), session],
    }
    try:
        write_json(run_folder / RECORD, content)
    except DataError as error:
        log.info(f"note: {error}; a release of this run will not say where it was trained")


def read_record(run_folder: str | Path) -> dict[str, Any]:
    """Returns the record of a run; empty if there is none, or it is damaged."""
    try:
        record = json.loads(Path(run_folder, RECORD).read_text("utf-8"))
        return record if isinstance(record["sessions"], list) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def record_of(checkpoint: Path) -> dict[str, Any]:
    """Returns the record of the run that a checkpoint is of; empty if that is not known."""
    config_path = config_path_of(checkpoint)
    return {} if config_path is None else read_record(config_path.parent)


def processor() -> str:
    """Returns the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
