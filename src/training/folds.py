"""The folds of a cross-validation: what each has done, and the results of all of them.

OUT_PATH/
    cross_validation.json   what a later call must ask for, too
    split/                  train_foldN.csv, val_foldN.csv
    foldN/                  the run of a fold, with train.log, eval.log
    foldN/evaluation/       what eval.py writes about the fold's cases
    evaluation/             metrics and report of all cases
    ensemble.json           the networks of all folds; written last
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from easydict import EasyDict

from ..checkpoint_file import epoch_and_step, is_numbered
from ..config import CONFIG_NAME, save_config
from ..data_manager import PREPROCESSING, Case, edited_cases, read_case
from ..ensemble import hash_checkpoint, origin_of
from ..evaluation import EVALUATION_FILES, mask_name
from ..images.reading import read_volume
from ..predictor import processing_versions
from ..report.album import Album
from ..report.painter import Painter
from ..report.planes import OverlayCase
from ..report.results import REPORT, write_pictures
from ..report.tables import METRICS_JSON, write_metrics
from ..run_record import read_history
from ..utils import output_folder
from ..utils.errors import DataError, list_few
from ..utils.files import hash_file

EVALUATION = "evaluation"


class Fold(NamedTuple):
    """A fold.

    Attributes:
        number: of the fold, from 0.
        folder: of its run.
        config: of its run, as it was started.
    """

    number: int
    folder: Path
    config: EasyDict

    @property
    def results(self) -> Path:
        """The folder of its evaluation."""
        return self.folder / EVALUATION

    def create(self) -> None:
        """Makes the run's folder; a run without a checkpoint is resumed from its beginning."""
        (self.folder / "ckpt").mkdir(parents=True, exist_ok=True)
        if not (self.folder / CONFIG_NAME).is_file():
            save_config(self.config, self.folder / CONFIG_NAME)

    def epochs_done(self) -> int:
        """The number of epochs in the run's history."""
        return max(read_history(self.folder)["epoch"], default=0)

    def final_checkpoint(self) -> Path | None:
        """The checkpoint of the last epoch; None if the training has not ended.

        It is the one to evaluate: best.ckpt was chosen on the very cases of the fold.
        """
        history = read_history(self.folder)
        if history.empty:
            return None
        last = history["epoch"].iloc[-1]
        scores = history["val_dice"].dropna().tolist()
        since_best = len(scores) - 1 - scores.index(max(scores)) if scores else 0
        if last < self.config.epochs and not 0 < self.config.early_stop <= since_best:
            return None
        numbered = filter(is_numbered, (self.folder / "ckpt").iterdir())
        return next((path for path in numbered if epoch_and_step(path)[0] == last), None)

    def metrics(self) -> dict | None:
        """The metrics.json of the final checkpoint's evaluation; None if that has not ended."""
        checkpoint = self.final_checkpoint()
        return _evaluation(self.results, [checkpoint]) if checkpoint else None


def _evaluation(folder: Path, checkpoints: Sequence[Path]) -> dict | None:
    """The metrics.json of a complete evaluation, unless of other networks or another version."""
    try:
        content = json.loads((folder / METRICS_JSON).read_text("utf-8"))
        evaluated = content.get("checkpoints") or {"": content["checkpoint_sha256"]}
        is_current = (
            list(evaluated.values()) == [hash_file(path) for path in checkpoints]
            and content["processing"] == processing_versions()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return content if is_current and (folder / REPORT).is_file() else None


def final_checkpoints(folds: Sequence[Fold]) -> list[Path]:
    """The checkpoints of the last epochs of the folds whose training has ended."""
    return [path for fold in folds if (path := fold.final_checkpoint())]


def pooled_metrics(folder: Path, folds: Sequence[Fold]) -> dict | None:
    """The metrics.json of all cases; None if it is not that of the folds' final checkpoints."""
    return _evaluation(folder, final_checkpoints(folds))


def _progress(fold: Fold) -> dict:
    """What the last checkpoint of a fold says about its training; {} before the first."""
    from ..checkpoint import read_progress  # MindSpore takes a second to import
    from .run_folder import lock_run

    folder = fold.folder / "ckpt"
    if not folder.is_dir():
        return {}
    try:
        with lock_run(fold.folder):  # reading completes a checkpoint that was being written
            return read_progress(folder) or {}
    except DataError:
        if fold.final_checkpoint() is None:
            raise
        return {}  # a trained fold does not need its last state


def check_unedited(folds: Sequence[Fold], cases: Sequence[Case]) -> None:
    """Raises a DataError if a fold was trained with another image or mask of a case than is there.

    Or with a version of this program that prepares images in another way.

    Args:
        folds: of which some may not have begun.
        cases: of all folds.
    """
    digests: dict[str, str] = {}
    edited = set()
    for fold in folds:
        progress = _progress(fold)
        if progress.get("processing", {}).get("preprocessing") not in (None, PREPROCESSING):
            raise DataError(
                f"{fold.folder}: was trained with a version of this program that prepares images "
                "in another way; go on with that version, or choose another --out_path"
            )
        for name, digest in progress.get("digests", {}).items():
            if digests.setdefault(name, digest) != digest:
                edited.add(name)
    edited.update(edited_cases(digests, cases, folds[0].config))
    if edited:
        raise DataError(
            f"{cases[0].image_path.parents[1]}: image or mask of {list_few(sorted(edited))} was "
            "edited since the training of a fold; restore the files, or choose another --out_path"
        )


def write_pooled_results(
    folder: Path,
    folds: Sequence[Fold],
    cases: Sequence[Case],
    painter: Painter,
    language: str = "en",
) -> list[dict]:
    """Writes metrics.csv, metrics.json, overlays.png and report.html of the cases of all folds.

    Args:
        folder: of the files.
        folds: all trained and evaluated.
        cases: of all folds.
        painter: draws the pictures.
        language: of the report, one of `src.report.texts.LANGUAGES`.

    Returns:
        The rows of `src.evaluation.evaluate`, by case, each with its "fold".

    Raises:
        DataError: a fold is not evaluated, a file is missing, or the folder cannot be written.
    """
    found = []
    for fold in folds:
        metrics = fold.metrics()
        if metrics is None:
            raise DataError(f"{fold.results}: no complete evaluation of its last checkpoint")
        found.append(metrics)
    rows = [
        {"case": row["case"], "fold": fold.number, **row}
        for fold, metrics in zip(folds, found, strict=True)
        for row in metrics["cases"]
    ]
    rows.sort(key=lambda row: row["case"])
    by_id = {case.case_id: case for case in cases}

    def read(row: dict) -> OverlayCase:
        return _overlay_case(by_id[row["case"]], folds[row["fold"]])

    configurations = [metrics["configuration"] for metrics in found]
    shared = {
        key: value
        for key, value in configurations[0].items()
        if all(other[key] == value for other in configurations)
    }
    metadata = {
        **origin_of({path: hash_checkpoint(path) for path in final_checkpoints(folds)}),
        "processing": processing_versions(),
        "folds": {
            fold.number: metrics["summary"]["dice"]
            for fold, metrics in zip(folds, found, strict=True)
        },
        "configuration": shared,
    }
    with output_folder.acquire(folder), output_folder.register(folder, EVALUATION_FILES):
        write_metrics(rows, folder, metadata)
        write_pictures(folder, rows, Album(painter, language=language), metadata, read)
    return rows


def _overlay_case(case: Case, fold: Fold) -> OverlayCase:
    image, reference = read_case(case, fold.config)
    mask = read_volume(fold.results / mask_name(case.case_id))
    return OverlayCase(case.case_id, image, mask, reference)
