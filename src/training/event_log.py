"""The events of a run for TensorBoard, in its folder tensorboard/.

Written with tensorboardX, an optional package (requirements-tensorboard.txt).
"""

import importlib.util
import math
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from easydict import EasyDict

from ..report.overlays import overlays_png
from ..report.planes import OverlayCase, orient_to_lps, overlay_row
from ..utils.errors import DataError, UsageError, reason_of
from .validation import ValidationSet

FOLDER = "tensorboard"
OVERLAYS = 3  # validation cases with pictures
SCALARS = ("train_loss", "val_dice", "learning_rate", "epoch_time_s")  # columns of history.csv


def check_tensorboard(config: EasyDict) -> None:
    """Raises a UsageError if `tensorboard` is on and tensorboardX is not installed."""
    if config.tensorboard and not importlib.util.find_spec("tensorboardX"):
        raise UsageError(
            "tensorboard=True needs tensorboardX: pip install -r requirements-tensorboard.txt"
        )


class EventLog:
    """Writes the rows of history.csv, and pictures of some validation cases, as events.

    Their step is the epoch. Each start of a training adds a file, which says from which epoch on it
    replaces what the earlier ones have.

    tensorboardX's `SummaryWriter` is not used: it writes in a thread, and once the disk is full its
    callers wait for that forever.

    Args:
        run_folder: of the run; the events go to its folder `FOLDER`.
        validation: has the cases to draw.
    """

    def __init__(self, run_folder: Path, validation: ValidationSet) -> None:
        self.folder = run_folder / FOLDER
        self.validation = validation

    def open(self, history: list[dict[str, float]]) -> None:
        """Adds a file of events; the first one gets the epochs that were trained before.

        Args:
            history: a row per trained epoch, see `src.run_record.HISTORY_TYPES`.

        Raises:
            DataError: the file cannot be written.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        epoch = int(history[-1]["epoch"]) if history else 0
        with self._report_errors():
            self.folder.mkdir(exist_ok=True)
            is_first = not any(self.folder.iterdir())
            # tensorboardX's name has the time in seconds, and would replace a file of the same one.
            suffix = f".{time.time_ns()}"
            try:
                self.writer = EventsWriter(str(self.folder / "events"), suffix)
                self._write(epoch + 1, session_log=SessionLog(status=SessionLog.START))
                for row in history if is_first else ():
                    self._write(int(row["epoch"]), summary=_summary(row, []))
                self.writer.flush()
            except OSError:  # a later resume must not take the folder for one that has the history
                for file in self.folder.glob(f"*{suffix}"):
                    file.unlink()
                raise

    def add(self, row: dict[str, float]) -> None:
        """Writes the events of an epoch, after a validation with pictures.

        Args:
            row: of the epoch, see `open`.

        Raises:
            DataError: the file cannot be written.
        """
        cases = [] if math.isnan(row["val_dice"]) else self.validation.overlays
        summary = _summary(row, cases)
        with self._report_errors():
            self._write(int(row["epoch"]), summary=summary)
            self.writer.flush()

    def _write(self, epoch: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.writer.write_event(Event(wall_time=time.time(), step=epoch, **content))

    @contextmanager
    def _report_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder}: no events can be written ({reason_of(error)}); or train with "
                "--set tensorboard=false"
            ) from None


def _summary(row: dict[str, float], cases: list[OverlayCase]) -> Any:
    """tensorboardX's `Summary` of an epoch; NaN, no validation, is left out."""
    from tensorboardX.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=f"history/{name}", simple_value=row[name])
        for name in SCALARS
        if not math.isnan(row[name])
    ]
    for case in cases:
        png = overlays_png([overlay_row(case, orient_to_lps(case))], count=1)
        width, height = struct.unpack(">II", png[16:24])
        picture = Summary.Image(
            width=width,
            height=height,
            colorspace=4,  # RGBA
            encoded_image_string=png,
        )
        values.append(Summary.Value(tag=f"overlays/{case.case}", image=picture))
    return Summary(value=values)
