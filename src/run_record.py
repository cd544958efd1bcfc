"""training.json of a run: what it was trained on, where and when, for the card of its release."""

import json
import logging
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .data_manager import Case
from .utils.errors import DataError
from .utils.files import write_files

log = logging.getLogger(__name__)

RECORD = "training.json"


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
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }
    content = {
        "training_cases": [case.case_id for case in cases],
        "validation_cases": [case.case_id for case in val_cases],
        "sessions": [*read_record(run_folder).get("sessions", []), session],
    }
    text = f"{json.dumps(content, indent=2)}\n"
    try:
        write_files({run_folder / RECORD: text.encode()})
    except DataError as error:
        log.info(f"note: {error}; a release of this run will not say where it was trained")


def read_record(run_folder: str | Path) -> dict[str, Any]:
    """Returns the record of a run; empty if there is none, or it is damaged."""
    try:
        record = json.loads(Path(run_folder, RECORD).read_text("utf-8"))
        return record if isinstance(record["sessions"], list) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def processor() -> str:
    """Returns the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
