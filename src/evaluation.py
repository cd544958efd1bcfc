"""A checkpoint at work: masks, with metrics where there is a reference, and pictures."""

import platform
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
import SimpleITK as sitk
from easydict import EasyDict
from mindspore import nn
from scipy import ndimage
from tqdm import tqdm

from src import output_folder
from src.atomic import write_files
from src.checkpoint import load_weights
from src.config import config_path_of
from src.data_manager import (
    Case,
    channel_of,
    probability_to_case_grid,
    read_case,
    xyz,
)
from src.device import apply_precision
from src.errors import DataError
from src.fast_conv3d.network import accelerated
from src.html_report import write_report
from src.images.formats import MASK_SUFFIX, images_in, stem, suffix_of
from src.images.reading import read_image
from src.images.writing import write_volume
from src.metrics import case_metrics, dice, volume_ml
from src.predictor import segment
from src.ranks import Ranks
from src.report import OverlayCase, plot_overlays, write_metrics, zoo_lines
from src.vnet import create_vnet

REPORT = "report.html"
EVALUATION_FILES = ("metrics.csv", "metrics.json", "overlays.png", REPORT)
PREDICTION_FILES = ("volumes.csv", "overlays.png", REPORT)


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
    return accelerated(network, config, device_target).set_train(False)


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
        config: `dirPredictionImage`, `labels`, `channel`.
        about: what else metrics.json and the report should say. The training curves are drawn of
            the run that a "checkpoint" comes from.

    Returns:
        Of each case its name and `src.metrics.case_metrics`.

    Raises:
        DataError: a file is at fault, or the folder holds other people's files of these names.
    """
    folder = Path(config.dirPredictionImage)
    for case in cases:
        read_case(case, config)  # a broken file stops the evaluation before anything is written
    masks = [f"{case.case_id}_test.mhd" for case in cases]
    voxels = [f"{case.case_id}_test.zraw" for case in cases]
    output_folder.claim(folder, [*masks, *voxels, *EVALUATION_FILES])
    print(f"evaluating {len(cases)} cases", flush=True)
    rows = []
    for case, name in zip(cases, masks, strict=True):
        image, reference = read_case(case, config)
        mask = segmented(case, image)
        write_volume(mask, folder / name)
        print(f"save predicted label for test '{case.case_id}'", flush=True)
        rows.append({"case": case.case_id, **case_metrics(reference, mask)})
    write_metrics(rows, folder, about)

    def drawn():
        for case, name in zip(cases, masks, strict=True):
            image, reference = read_case(case, config)
            yield OverlayCase(case.case_id, image, sitk.ReadImage(str(folder / name)), reference)

    _draw(folder, rows, drawn, about)
    for line in zoo_lines(rows):
        print(line)
    print(f"predictions and metrics, shown in {folder / REPORT}", flush=True)
    return rows


def find_images(inputs: Iterable[str | Path]) -> dict[str, Path]:
    """The images that a command line names.

    Args:
        inputs: image files, folders of image files, folders of one DICOM series each.

    Returns:
        {name: path}; reference masks (NAME_segmentation) and our own earlier results are left out.

    Raises:
        DataError: nothing there, or two of the same name.
    """
    found = {}
    for item in map(Path, inputs):
        paths = [item]
        if item.is_dir():
            ours = output_folder.outputs_in(item)
            images = [path for group in images_in(item).values() for path in group]
            paths = [
                path
                for path in images
                if not stem(path).endswith(MASK_SUFFIX) and path.name not in ours
            ] or [item]
        for path in paths:
            name = stem(path.resolve() if path.is_dir() else path)  # "." has no name of its own
            if name in found:
                raise DataError(f"{path}: also called {name}, like {found[name]}; rename one")
            found[name] = path
    return found


def predict(
    network: nn.Cell,
    images: dict[str, Path],
    config: EasyDict,
    about: dict,
    save_probability: bool = False,
) -> pd.DataFrame:
    """Segments images without references, each in its own geometry and format.

    `dirPredictionImage` gets NAME_test.<ext> (`.nii.gz` for DICOM), with `save_probability` also
    NAME_probability.<ext>, volumes.csv, overlays.png and report.html.

    Args:
        network: from `load_network`.
        images: from `find_images`.
        config: network grid, threshold, flip averaging, `dirPredictionImage`.
        about: what else the report should say, such as the checkpoint (see `evaluate_masks`).
        save_probability: also write the float32 probability.

    Returns:
        A row per image: case, prostate_ml, mask.

    Raises:
        DataError: a file is at fault, or the folder holds other people's files of these names.
    """
    folder = Path(config.dirPredictionImage)
    for path in images.values():
        read_image(path, channel_of(config))
    suffixes = {name: suffix_of(path) or ".nii.gz" for name, path in images.items()}
    kinds = ("test", "probability") if save_probability else ("test",)
    names = [f"{name}_{kind}{suffixes[name]}" for name in images for kind in kinds]
    voxels = [f"{name[:-4]}.zraw" for name in names if name.endswith(".mhd")]
    output_folder.claim(folder, [*names, *voxels, *PREDICTION_FILES])
    rows = []
    for name, path in tqdm(images.items(), desc="predicting", disable=None):
        mask, probability = segment(network, read_image(path, channel_of(config)), config)
        target = folder / f"{name}_test{suffixes[name]}"
        write_volume(mask, target)
        if save_probability:
            write_volume(probability, folder / f"{name}_probability{suffixes[name]}")
        rows.append(
            {
                "case": name,
                "prostate_ml": round(volume_ml(mask), 3),
                "mask": target.name,
                "at_border": _at_border(mask, config),
            }
        )
    table = pd.DataFrame(rows).drop(columns="at_border")
    write_files({folder / "volumes.csv": table.to_csv(index=False).encode()})

    def drawn():
        for row, path in zip(rows, images.values(), strict=True):
            mask = sitk.ReadImage(str(folder / row["mask"]))
            yield OverlayCase(row["case"], read_image(path, channel_of(config)), mask)

    _draw(folder, rows, drawn, {**about, "configuration": dict(config)})
    print(table.to_string(index=False))
    print(f"masks and volumes, shown in {folder / REPORT}", flush=True)
    return table


def _at_border(mask: sitk.Image, config: EasyDict) -> bool:
    """Whether a mask reaches a face of the image or of what the network saw of it."""
    seen = xyz(probability_to_case_grid(np.ones(config.VolSize), mask, config)) > 0
    return bool((xyz(mask) > 0)[~ndimage.binary_erosion(seen)].any())


def _draw(
    folder: Path, rows: list[dict], drawn: Callable[[], Iterable[OverlayCase]], about: dict
) -> None:
    """overlays.png and the report; `drawn` reads the cases anew for each."""
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
        The columns that `src.report.plot_progress` takes; None where there are none.
    """
    config_path = config_path_of(checkpoint_path)
    if config_path is None:
        return None
    columns = ["epoch", "learning_rate", "train_loss", "val_dice"]
    try:
        return pd.read_csv(config_path.with_name("history.csv"), usecols=columns, dtype=float)
    except (OSError, ValueError):  # results need no history, least of all a broken one
        return None
