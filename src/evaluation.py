"""Evaluation on cases with reference masks: predicted masks, metrics, report."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict

from .data_manager import Case, read_case
from .ensemble import Ensemble, LoadedMember, Member, check_unchanged
from .images.grid import grid_difference
from .images.orientation import reorder_like
from .images.reading import foreground, read_label_map
from .images.writing import check_volume_name, move_volumes, volume_files, write_volume
from .mask_folders import has_image
from .metrics import case_metrics
from .predictor import (
    LazyNetwork,
    loaded,
    network_inputs,
    processing_versions,
    segment_inputs,
)
from .report.album import Album
from .report.findings import finding_fields, metric_findings, plane_findings
from .report.nnunet_summary import SUMMARY_JSON, NnunetSummary
from .report.painter import Painter
from .report.planes import OverlayCase
from .report.results import OVERLAYS, REPORT, warn_about_case, write_pictures
from .report.tables import (
    METRICS_CSV,
    METRICS_JSON,
    VOLUMES_JSON,
    write_metrics,
    zoo_lines,
)
from .run_record import record_of
from .utils import output_folder
from .utils.errors import DataError, naming
from .utils.files import temporary_folder
from .utils.prefetch import Prefetch
from .utils.status import write_status

if TYPE_CHECKING:
    from mindspore import nn

    from .vnet import VNet

log = logging.getLogger(__name__)

EVALUATION_FILES = (METRICS_CSV, METRICS_JSON, SUMMARY_JSON, OVERLAYS, REPORT)


def load_network(checkpoint_path: str | Path, config: EasyDict, device_target: str) -> "nn.Cell":
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
    from .checkpoint import load_vnet

    return set_up_prediction(load_vnet(checkpoint_path, config), config, device_target)


def set_up_prediction(network: "VNet", config: EasyDict, device_target: str) -> "nn.Cell":
    """Returns a network with a configuration's precision and fast layers, in evaluation mode."""
    from .devices.device import apply_precision
    from .fast_conv3d.network import to_fast_vnet

    apply_precision(network, config, device_target)
    return to_fast_vnet(network, config, device_target).set_train(False)


def load_members(members: Sequence[Member], device_target: str) -> "nn.Cell | Ensemble":
    """Loads a network, or several as one.

    Args:
        members: from `find_members`.
        device_target: "Ascend", "GPU" or "CPU".

    Returns:
        The network of the only member, as `load_network` makes it; or the `Ensemble` of several.

    Raises:
        DataError: a checkpoint was replaced meanwhile, or see `load_network`.
        UsageError: see `load_network`.
    """
    import mindspore as ms

    from .checkpoint import load_vnet

    if len(members) == 1:
        checkpoint, config, sha256 = members[0]
        network = load_network(checkpoint, config, device_target)
        check_unchanged(checkpoint, sha256)
        return network
    cells: dict[tuple, nn.Cell] = {}
    loaded_members = []
    for path, config, sha256 in members:
        network = load_vnet(path, config)
        check_unchanged(path, sha256)
        values = {one.name: ms.Tensor(one.asnumpy()) for one in network.get_parameters()}
        kind = tuple(config[key] for key in ("variant", "width", "precision", "fast_conv3d"))
        if kind not in cells:
            cells[kind] = set_up_prediction(network, config, device_target)
        cell = cells[kind]
        weights = [(parameter, values[parameter.name]) for parameter in cell.get_parameters()]
        loaded_members.append(LoadedMember(path, cell, weights))
    return Ensemble(loaded_members)


def trained_on(checkpoints: Iterable[Path], cases: Iterable[Case]) -> list[str] | None:
    """Returns the IDs that cases share with the training cases of networks; logs how many.

    Args:
        checkpoints: of the networks, whose runs know their training cases.
        cases: to evaluate.

    Returns:
        In the order of `cases`; None if a run is not known.
    """
    found = [record_of(checkpoint).get("training_cases") for checkpoint in checkpoints]
    trained = {name for names in found if names is not None for name in names}
    ids = [case.case_id for case in cases]
    both = [name for name in ids if name in trained]
    if both:
        log.info(
            f"note: {len(both)} of {len(ids)} cases have names of the network's training cases, "
            f"such as {both[0]}; if they are these, their metrics say nothing about other images"
        )
    return None if None in found else both


def evaluate(
    network: "nn.Cell | Ensemble | LazyNetwork",
    cases: list[Case],
    config: EasyDict,
    metadata: dict,
    painter: Painter | None = None,
    language: str = "en",
) -> list[dict[str, str | float]]:
    """Segments cases with a network and evaluates the masks; see `evaluate_masks`.

    Args:
        network: from `load_network` or `load_members`; a `LazyNetwork` is loaded while the first
            case is read.
        cases: with reference masks.
        config: see `segment_inputs` and `evaluate_masks`.
        metadata: see `evaluate_masks`; configuration and `processing_versions` are added.
        painter: draws the pictures; None: one that does so in this process.
        language: of the report, one of `src.report.texts.LANGUAGES`.

    Returns:
        See `evaluate_masks`.
    """
    with Prefetch(lambda case: _LoadedCase.of(case, config, with_inputs=True), cases) as ready:
        cell = loaded(network)

        def predict_mask(read: _LoadedCase) -> sitk.Image:
            with naming(read.case.image_path):
                return segment_inputs(cell, read.inputs, read.image, config).mask

        made_by = {"processing": processing_versions(), "configuration": dict(config)}
        metadata = {**metadata, **made_by}
        return _evaluate(predict_mask, cases, ready, config, metadata, painter, language)


def evaluate_masks(
    predict_mask: Callable[[Case, sitk.Image], sitk.Image],
    cases: list[Case],
    config: EasyDict,
    metadata: dict,
    language: str = "en",
) -> list[dict[str, str | float]]:
    """Compares predicted masks with the references, and writes masks, metrics and report.

    `dirPredictionImage` gets NAME_test.mhd of each case, metrics.csv, metrics.json, summary.json,
    overlays.png and report.html; it does so at the end, once all cases could be read and segmented.

    Args:
        predict_mask: called once per case, with the case and its image; returns its mask.
        cases: with reference masks.
        config: `dirPredictionImage`, `labels`, `channel`, `plane`.
        metadata: origin of the masks, for metrics.json and the report, such as "checkpoint".
        language: of the report, one of `src.report.texts.LANGUAGES`.

    Returns:
        A dict per case: "case", `src.metrics.case_metrics`, "findings", "findings_text".

    Raises:
        DataError: an image or mask cannot be read, a file of one of these names is there and was
            not written by this program or edited since, or another process writes results to the
            folder.
    """
    with Prefetch(lambda case: _LoadedCase.of(case, config), cases) as ready:

        def predict(read: _LoadedCase) -> sitk.Image:
            return predict_mask(read.case, read.image)

        return _evaluate(predict, cases, ready, config, metadata, None, language)


def compare_masks(
    cases: list[Case],
    masks: dict[str, Path],
    config: EasyDict,
    metadata: dict,
    painter: Painter | None = None,
    language: str = "en",
) -> list[dict[str, str | float]]:
    """Compares masks that are there as files with the references; see `evaluate_masks`.

    The masks stay where they are. A case whose image is not known is drawn on a black one.

    Args:
        cases: with references, such as `src.mask_folders.reference_cases`.
        masks: of `src.mask_folders.masks_for`.
        config: `dirPredictionImage`, `labels` (of masks and references), `channel`.
        metadata: see `evaluate_masks`.
        painter, language: see `evaluate`.

    Returns:
        See `evaluate_masks`.
    """

    lacking: list[Path] = []  # masks of other labels only

    def read_prediction(read: _LoadedCase) -> sitk.Image:
        path, reference_path = masks[read.case.case_id], read.case.mask_path
        volume = reorder_like(read_label_map(path), read.reference)
        difference = grid_difference(read.reference, volume)
        if difference:
            raise DataError(
                f"{path}: not on the grid of its reference {reference_path}: {difference}; "
                "resample it onto the reference"
            )
        mask = foreground(volume, path, config.labels, may_lack=True)
        mask.CopyInformation(read.reference)
        values, found = map(sitk.GetArrayViewFromImage, (volume, mask))
        if values.any() and not found.any():
            labels = ",".join(map(str, config.labels))
            log.info(f"{path}: none of the labels {labels}, so an empty mask")
            lacking.append(path)
            if len(lacking) == len(cases):
                raise DataError(
                    f"{path}: neither this mask nor any other has a voxel of --labels {labels}; "
                    "name those of the prostate in masks and references"
                )
        return mask

    with Prefetch(lambda case: _LoadedCase.of(case, config), cases) as ready:
        return _evaluate(read_prediction, cases, ready, config, metadata, painter, language, masks)


class _LoadedCase(NamedTuple):
    """A case with its voxels."""

    case: Case
    image: sitk.Image
    reference: sitk.Image
    inputs: list[np.ndarray]  # `network_inputs` of the image, or nothing

    @classmethod
    def of(cls, case: Case, config: EasyDict, with_inputs: bool = False) -> "_LoadedCase":
        image, reference = read_case(case, config) if has_image(case) else _no_image(case, config)
        with naming(case.image_path):
            inputs = network_inputs(image, config) if with_inputs else []
        return cls(case, image, reference, inputs)


def _no_image(case: Case, config: EasyDict) -> tuple[sitk.Image, sitk.Image]:
    """A black image on the grid of a reference, and the reference."""
    reference = foreground(read_label_map(case.mask_path), case.mask_path, config.labels)
    return sitk.Cast(reference * 0, sitk.sitkFloat32), reference


def _evaluate(
    predict_mask: Callable[[_LoadedCase], sitk.Image],
    cases: list[Case],
    ready: Prefetch[Case, _LoadedCase],
    config: EasyDict,
    metadata: dict,
    painter: Painter | None,
    language: str,
    masks: dict[str, Path] | None = None,
) -> list[dict[str, str | float]]:
    """`evaluate_masks` of cases that are read in another thread; `masks` are those of files."""
    folder = Path(config.dirPredictionImage)
    files = _files_to_write(folder, [] if masks is not None else cases)
    ready.peek()  # a broken first case stops before the folder is made
    with output_folder.acquire(folder), temporary_folder(folder) as unfinished:
        output_folder.announce(folder, files)
        log.info(f"evaluating {len(cases)} cases")
        write_status("running", results=str(folder.absolute()))
        album = Album(painter, metadata.get("checkpoint"), language)
        summary, rows = NnunetSummary(), []
        for future in ready:
            read = future.result()
            mask = predict_mask(read)
            if masks is None:
                _write_mask(mask, read.case, unfinished)
            rows.append(_evaluate_case(mask, read, config, album, masks is None))
            path = (masks or {}).get(read.case.case_id, folder / mask_name(read.case.case_id))
            summary.add(str(read.case.mask_path), path, read.reference, mask)
        with output_folder.register(folder, files):
            write_metrics(rows, unfinished, metadata)
            summary.write(unfinished)
            write_pictures(unfinished, rows, album, metadata)
            move_volumes(unfinished, folder)
    for line in zoo_lines(rows):
        log.info(line)
    log.info(f"predictions and metrics, shown in {folder / REPORT}")
    return rows


def _files_to_write(folder: Path, predicted: list[Case]) -> list[str]:
    """Names the files of an evaluation that writes the masks of these cases.

    Raises:
        DataError: the folder holds others of these names, or a prediction.
    """
    names = [mask_name(case.case_id) for case in predicted]
    for name in names:
        check_volume_name(name)
    files = [*volume_files(names), *EVALUATION_FILES]
    output_folder.check(folder, files)
    if VOLUMES_JSON in output_folder.list_outputs(folder):
        raise DataError(
            f"{folder / VOLUMES_JSON}: of a prediction; choose another folder for the evaluation, "
            "dirPredictionImage"
        )
    return files


def mask_name(case_id: str) -> str:
    """Returns the name of the file of a case's predicted mask."""
    return f"{case_id}_test.mhd"


def _write_mask(mask: sitk.Image, case: Case, folder: Path) -> None:
    write_volume(mask, folder / mask_name(case.case_id))
    log.info(f"save predicted label for test '{case.case_id}'")


def _evaluate_case(
    mask: sitk.Image, read: _LoadedCase, config: EasyDict, album: Album, is_ours: bool
) -> dict:
    """Draws a mask; returns metrics and findings, also logged.

    Args:
        mask: of the case.
        read: the case.
        config: `plane`, of the training of our own masks.
        album: gets the drawing.
        is_ours: whether this program made the mask.
    """
    case_id = read.case.case_id
    metrics = case_metrics(read.reference, mask)
    found = metric_findings(metrics) | (plane_findings(read.image, config) if is_ours else {})
    findings = finding_fields(found)
    warn_about_case(case_id, findings["findings_text"])
    row = {"case": case_id, **metrics, **findings}
    album.add(row, OverlayCase(case_id, read.image, mask, read.reference))
    return row
