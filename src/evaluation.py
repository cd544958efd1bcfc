"""A checkpoint at work: masks, with metrics where there is a reference, and pictures."""

import logging
import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from itertools import chain
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
import SimpleITK as sitk
from easydict import EasyDict
from mindspore import nn

from .checkpoint import load_weights
from .config import config_path_of
from .data_manager import Case, read_case, xyz
from .devices.device import apply_precision
from .devices.ranks import Ranks
from .fast_conv3d.network import to_fast_vnet
from .images.writing import write_volume
from .metrics import case_metrics, dice
from .predictor import segment
from .report.figures import OverlayCase, plot_overlays, write_metrics, zoo_lines
from .report.findings import metric_findings, plane_findings
from .report.page import write_report
from .utils import output_folder
from .vnet import create_vnet

log = logging.getLogger(__name__)

REPORT = "report.html"
EVALUATION_FILES = ("metrics.csv", "metrics.json", "overlays.png", REPORT)


def load_network(checkpoint_path: str | Path, config: EasyDict, device_target: str) -> nn.Cell:
    """The network of a checkpoint, ready to predict.

    Raises:
        DataError: missing, truncated, of another variant, width or program; `fast_conv3d` is "on"
            and cannot be built.
        UsageError: `fast_conv3d` is "on" for another device than CPU.
    """
    network = create_vnet(config)
    load_weights(network, checkpoint_path)
    apply_precision(network, config, device_target)
    return to_fast_vnet(network, config, device_target).set_train(False)


def mean_dice(
    network: nn.Cell,
    cases: list[Case],
    config: EasyDict,
    ranks: Ranks = Ranks(),  # noqa: B008, it is frozen
) -> float:
    """Mean Dice of some cases on their own grids, each scored by one of the ranks.

    The network must be in evaluation mode.
    """
    scores = []
    for case in ranks.share(cases):
        image, reference = read_case(case, config)
        mask, _ = segment(network, image, config)
        scores.append(dice(xyz(reference) > 0, xyz(mask) > 0))
    return float(np.mean(ranks.gather(scores, len(cases))))


def evaluate(
    network: nn.Cell, cases: list[Case], config: EasyDict, about: dict
) -> list[dict[str, str | float]]:
    """`evaluate_masks` of what a network, from `load_network`, makes of the cases."""

    def segmented(_, image):
        return segment(network, image, config)[0]

    about = {**about, "configuration": dict(config)}
    return evaluate_masks(segmented, cases, config, about)


def evaluate_masks(
    segmented: Callable[[Case, sitk.Image], sitk.Image],
    cases: list[Case],
    config: EasyDict,
    about: dict,
) -> list[dict[str, str | float]]:
    """Compares the masks of cases with their references, and writes all of it.

    `dirPredictionImage` gets NAME_test.mhd of each case, metrics.csv, metrics.json, overlays.png,
    report.html.

    Args:
        segmented: returns the mask of a case, given also its image.
        cases: with reference masks.
        config: `dirPredictionImage`, `labels`, `channel`, `plane`.
        about: what else metrics.json and the report should say. The training curves are drawn of
            the run that a "checkpoint" comes from.

    Returns:
        Of each case its name, `src.metrics.case_metrics`, and the codes and words of
        `src.report.findings`.

    Raises:
        DataError: a file is at fault, the folder holds other people's files of these names, or
            another process writes results there.
    """
    folder = Path(config.dirPredictionImage)
    for case in cases:
        read_case(case, config)  # a broken file stops the evaluation before anything is written
    masks = [folder / f"{case.case_id}_test.mhd" for case in cases]
    files = [(mask.name, mask.with_suffix(".zraw").name) for mask in masks]
    rows = []

    def drawn():
        for case, mask in zip(cases, masks, strict=True):
            image, reference = read_case(case, config)
            yield OverlayCase(case.case_id, image, sitk.ReadImage(str(mask)), reference)

    output_folder.check(folder, [*chain(*files), *EVALUATION_FILES])
    with output_folder.running(folder):
        output_folder.announce(folder, [*chain(*files), *EVALUATION_FILES])
        log.info(f"evaluating {len(cases)} cases")
        for case, mask, names in zip(cases, masks, files, strict=True):
            image, reference = read_case(case, config)
            prediction = segmented(case, image)
            with output_folder.writing(folder, names):
                write_volume(prediction, mask)
            log.info(f"save predicted label for test '{case.case_id}'")
            rows.append(_row(case, image, reference, prediction, config))
        with output_folder.writing(folder, EVALUATION_FILES):
            write_metrics(rows, folder, about)
            draw_results(folder, rows, drawn, about)
    for line in zoo_lines(rows):
        log.info(line)
    log.info(f"predictions and metrics, shown in {folder / REPORT}")
    return rows


def _row(case, image, reference, prediction, config):
    """Metrics and findings of a case; standard error gets the findings."""
    metrics = case_metrics(reference, prediction)
    found = metric_findings(metrics) | plane_findings(image, config)
    if found:
        with suppress(OSError, ValueError):  # where nobody listens, in silence
            log.warning(f"warning: {case.case_id}: {'; '.join(found.values())}")
    texts = {"findings": list(found), "findings_text": list(found.values())}
    return {"case": case.case_id, **metrics, **texts}


def draw_results(
    folder: Path, rows: list[dict], drawn: Callable[[], Iterable[OverlayCase]], about: dict
) -> None:
    """overlays.png and report.html; `drawn` reads the cases anew for each."""
    if not all(row.get("problem") for row in rows):
        plot_overlays(drawn(), folder / "overlays.png")
    origin = {
        "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        "Python": platform.python_version(),
        "MindSpore": ms.__version__,
        "NumPy": np.__version__,
        "SimpleITK": sitk.__version__,
    }
    history = training_history(about["checkpoint"]) if "checkpoint" in about else None
    write_report(folder / REPORT, rows, drawn(), {**about, **origin}, history)


def training_history(checkpoint_path: str | Path) -> pd.DataFrame | None:
    """What to draw of the training that a checkpoint comes from, beside whose config.json it lies.

    Returns:
        The columns that `src.report.figures.plot_progress` takes; None where there are none.
    """
    config_path = config_path_of(checkpoint_path)
    if config_path is None:
        return None
    columns = ["epoch", "learning_rate", "train_loss", "val_dice"]
    try:
        return pd.read_csv(config_path.with_name("history.csv"), usecols=columns, dtype=float)
    except (OSError, ValueError):  # results need no history, least of all a broken one
        return None
