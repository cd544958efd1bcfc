"""Evaluation on cases with reference masks: predicted masks, metrics, report."""

import logging
from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk
from easydict import EasyDict
from mindspore import nn

from .checkpoint import load_weights
from .data_manager import Case, read_case
from .devices.device import apply_precision
from .fast_conv3d.network import to_fast_vnet
from .metrics import case_metrics
from .predictor import segment
from .report.album import Album
from .report.findings import finding_fields, metric_findings, plane_findings
from .report.overlays import OverlayCase
from .report.results import (
    OVERLAYS,
    REPORT,
    volume_files,
    warn_about_case,
    write_pictures,
    write_volumes,
)
from .report.tables import METRICS_CSV, METRICS_JSON, write_metrics, zoo_lines
from .utils import output_folder
from .utils.status import write_status
from .vnet import create_vnet

log = logging.getLogger(__name__)

EVALUATION_FILES = (METRICS_CSV, METRICS_JSON, OVERLAYS, REPORT)


def load_network(checkpoint_path: str | Path, config: EasyDict, device_target: str) -> nn.Cell:
    """Creates the network of a configuration with the weights of a checkpoint, for prediction.

    Args:
        checkpoint_path: of a `.ckpt` file.
        config: `variant`, `width`, `precision`, `fast_conv3d`.
        device_target: "Ascend", "GPU" or "CPU".

    Returns:
        The network in evaluation mode.

    Raises:
        DataError: the checkpoint is missing, truncated, or of another variant, width or program;
            `fast_conv3d` is "on" and cannot be built.
        UsageError: `fast_conv3d` is "on" for another device than the CPU.
    """
    network = create_vnet(config)
    load_weights(network, checkpoint_path)
    apply_precision(network, config, device_target)
    return to_fast_vnet(network, config, device_target).set_train(False)


def _read_pair(case: Case, config: EasyDict) -> tuple[sitk.Image, sitk.Image]:
    """Reads image and reference of a case."""
    image, reference = read_case(case, config)
    if reference is None:
        raise ValueError(f"{case.case_id} without a mask, expected a case with a reference")
    return image, reference


def evaluate(
    network: nn.Cell, cases: list[Case], config: EasyDict, metadata: dict
) -> list[dict[str, str | float]]:
    """Segments cases with a network and evaluates the masks; see `evaluate_masks`.

    Args:
        network: from `load_network`.
        cases: with reference masks.
        config: see `segment` and `evaluate_masks`.
        metadata: see `evaluate_masks`; the configuration is added.

    Returns:
        See `evaluate_masks`.
    """

    def predict_mask(_: Case, image: sitk.Image) -> sitk.Image:
        return segment(network, image, config)[0]

    return evaluate_masks(predict_mask, cases, config, {**metadata, "configuration": dict(config)})


def evaluate_masks(
    predict_mask: Callable[[Case, sitk.Image], sitk.Image],
    cases: list[Case],
    config: EasyDict,
    metadata: dict,
) -> list[dict[str, str | float]]:
    """Compares predicted masks with the references, and writes masks, metrics and report.

    `dirPredictionImage` gets NAME_test.mhd of each case, metrics.csv, metrics.json, overlays.png
    and report.html.

    Args:
        predict_mask: called once per case, with the case and its image; returns its mask.
        cases: with reference masks.
        config: `dirPredictionImage`, `labels`, `channel`, `plane`.
        metadata: origin of the masks, for metrics.json and the report, such as "checkpoint".

    Returns:
        A dict per case: "case", `src.metrics.case_metrics`, "findings", "findings_text".

    Raises:
        DataError: an image or mask cannot be read, a file of one of these names is there and was
            not written by this program, or another process writes results to the folder.
    """
    folder = Path(config.dirPredictionImage)
    for case in cases:
        _read_pair(case, config)  # a broken file stops the evaluation before anything is written
    files = [*volume_files(map(_mask_name, cases)), *EVALUATION_FILES]

    album = Album()
    case_of = {case.case_id: case for case in cases}

    def read_again(row: dict) -> OverlayCase:
        case = case_of[row["case"]]
        image, reference = _read_pair(case, config)
        mask = sitk.ReadImage(str(folder / _mask_name(case)))
        return OverlayCase(case.case_id, image, mask, reference)

    output_folder.check(folder, files)
    with output_folder.acquire(folder):
        output_folder.announce(folder, files)
        log.info(f"evaluating {len(cases)} cases")
        write_status("running", results=str(folder.absolute()))
        rows = [_evaluate_case(predict_mask, case, config, folder, album) for case in cases]
        with output_folder.register(folder, EVALUATION_FILES):
            write_metrics(rows, folder, metadata)
            write_pictures(folder, rows, album, read_again, metadata)
    for line in zoo_lines(rows):
        log.info(line)
    log.info(f"predictions and metrics, shown in {folder / REPORT}")
    return rows


def _mask_name(case: Case) -> str:
    return f"{case.case_id}_test.mhd"


def _evaluate_case(
    predict_mask: Callable[[Case, sitk.Image], sitk.Image],
    case: Case,
    config: EasyDict,
    folder: Path,
    album: Album,
) -> dict:
    """Writes the mask of a case and draws it; returns metrics and findings, also logged."""
    image, reference = _read_pair(case, config)
    mask = predict_mask(case, image)
    write_volumes(folder, {_mask_name(case): mask})
    log.info(f"save predicted label for test '{case.case_id}'")
    metrics = case_metrics(reference, mask)
    findings = finding_fields(metric_findings(metrics) | plane_findings(image, config))
    warn_about_case(case.case_id, findings["findings_text"])
    row = {"case": case.case_id, **metrics, **findings}
    album.add(row, OverlayCase(case.case_id, image, mask, reference))
    return row
