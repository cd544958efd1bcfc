"""The way through the C++ program: volumes as files for it, its answers from files.

A volume or an answer is a file of float32 in the order of its (X, Y, Z) array, Z fastest, as in the
model zoo. A mirror image, with `flip_average`, is a volume of its own.
"""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict

from ..data_manager import Case, channel_of
from ..evaluation import evaluate_masks
from ..images.reading import read_image
from ..predictor import network_inputs, segment_outputs
from ..utils import output_folder
from ..utils.errors import DataError
from ..utils.files import write_files
from .description import CONFIGURATION

log = logging.getLogger(__name__)

INPUT_FOLDER = "results/bin_data"  # the zoo's, as are the names of the files


def _names(case, config):
    """File names, without suffix, of a case's volumes."""
    return [case.case_id, *[f"{case.case_id}_mirrored"] * config.flip_average]


def write_inputs(cases: list[Case], config: EasyDict, folder: str | Path = INPUT_FOLDER) -> None:
    """Writes NAME.bin of each case, the network's input.

    Args:
        cases: whose images to write.
        config: network grid, `flip_average`.
        folder: our own earlier .bin files there that are not of these cases are removed.

    Raises:
        DataError: an image is at fault, or the folder holds other people's .bin files, which the
            C++ program would take for volumes too.
    """
    folder = Path(folder)
    for case in cases:
        read_image(case.image_path, channel_of(config))
    names = [f"{name}.bin" for case in cases for name in _names(case, config)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{folder / twice}: of two cases, by their names; rename one of them")
    ours = output_folder.outputs_in(folder)
    others = {path.name for path in folder.glob("*.bin")}.difference(names)
    if others - ours:
        raise DataError(
            f"{folder / min(others - ours)}: not written by this program, and would be taken for a "
            "volume to segment; move it away"
        )
    output_folder.announce(folder, names)
    output_folder.remove(folder, others)
    with output_folder.writing(folder, names):
        for case in cases:
            volumes = network_inputs(read_image(case.image_path, channel_of(config)), config)
            for name, volume in zip(_names(case, config), volumes, strict=True):
                content = np.ascontiguousarray(volume, "<f4").tobytes()
                write_files({folder / f"{name}.bin": content})
    log.info(
        f"{folder}: {len(names)} volume(s) of {config.VolSize} voxels, of {len(cases)} case(s)"
    )


def evaluate_outputs(
    cases: list[Case], config: EasyDict, result_folder: str | Path, about: dict
) -> list[dict[str, str | float]]:
    """Masks and metrics, as `src.evaluation.evaluate` writes them, of the C++ program's answers.

    Args:
        cases: with reference masks.
        config: that of `write_inputs`, `threshold`, `dirPredictionImage`.
        result_folder: where NAME_0.bin of each lies.
        about: what metrics.json should say of the model.

    Raises:
        DataError: an answer is missing, of another size, or no probability.
    """
    answers = partial(_read_answers, config=config, folder=Path(result_folder))
    for case in cases:
        answers(case)  # a broken file stops the evaluation before anything is written

    def segmented(case: Case, image: sitk.Image) -> sitk.Image:
        return segment_outputs(answers(case), image, config)[0]

    about = {**about, "configuration": {key: config[key] for key in CONFIGURATION}}
    return evaluate_masks(segmented, cases, config, about)


def _read_answers(case, config, folder):
    return [_read_answer(folder / f"{name}_0.bin", config) for name in _names(case, config)]


def _read_answer(path, config):
    """One answer, (X, Y, Z) float32 in 0..1."""
    if not path.is_file():
        raise DataError(f"{path}: no such result; run the C++ program on {INPUT_FOLDER} first")
    size, expected = path.stat().st_size, 4 * int(np.prod(config.VolSize))
    if size != expected:
        raise DataError(
            f"{path}: {size} bytes, expected {expected} for {config.VolSize} voxels of float32; "
            "take the model, its description and the results of one export"
        )
    answer = np.fromfile(path, "<f4").reshape(config.VolSize)
    if not (answer.min() >= 0 and answer.max() <= 1):  # nor NaN
        raise DataError(
            f"{path}: values from {answer.min():g} to {answer.max():g}, expected probabilities "
            "of 0 to 1; is this the output of an exported V-Net?"
        )
    return answer
