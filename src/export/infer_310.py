"""Files for the C++ program in ascend310_infer: writes its inputs, evaluates its outputs.

Each file holds one (X, Y, Z) array of float32, Z fastest, as in the model zoo. With `flip_average`
the mirrored volume has its own file.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict

from ..data_manager import Case, channel_of
from ..evaluation import evaluate_masks
from ..images.reading import read_image
from ..predictor import network_inputs, segment_outputs
from ..promise12.splits import split_cases
from ..utils import output_folder
from ..utils.errors import DataError, UsageError
from ..utils.files import write_files
from .description import CONFIGURATION, config_of_model, ensemble_models

log = logging.getLogger(__name__)

INPUT_FOLDER = "results/bin_data"  # folder and file names are the zoo's


def _volume_names(case, config):
    """The file names, without suffix, of the volumes of a case."""
    return [case.case_id, *[f"{case.case_id}_mirrored"] * config.flip_average]


def write_inputs(cases: list[Case], config: EasyDict, folder: str | Path = INPUT_FOLDER) -> None:
    """Writes the network input of each case as NAME.bin.

    Args:
        cases: the cases.
        config: network grid, `flip_average`.
        folder: to write to. Files of an earlier call that belong to other cases are removed.

    Raises:
        DataError: an image is invalid, or the folder holds .bin files that this program did not
            write, which the C++ program would also segment.
    """
    folder = Path(folder)
    for case in cases:
        read_image(case.image_path, channel_of(config))
    names = [f"{name}.bin" for case in cases for name in _volume_names(case, config)]
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{folder / duplicate}: two cases have this name; rename one of them")
    ours = output_folder.list_outputs(folder)
    others = {path.name for path in folder.glob("*.bin")}.difference(names)
    if others - ours:
        raise DataError(
            f"{folder / min(others - ours)}: not written by this program, but the C++ program "
            "would segment it; move it away"
        )
    output_folder.announce(folder, names)
    output_folder.remove(folder, others)
    with output_folder.register(folder, names):
        for case in cases:
            volumes = network_inputs(read_image(case.image_path, channel_of(config)), config)
            for name, volume in zip(_volume_names(case, config), volumes, strict=True):
                content = np.ascontiguousarray(volume, "<f4").tobytes()
                write_files({folder / f"{name}.bin": content})
    log.info(
        f"{folder}: {len(names)} volume(s) of {config.VolSize} voxels, of {len(cases)} case(s)"
    )


def preprocess(
    data_path: str | Path, split: str | Path, model_path: str | Path, overrides: list[str]
) -> None:
    """Writes the volumes of the cases of a split, see `write_inputs`.

    Args:
        data_path, split: see `split_cases`.
        model_path: exported model, whose description has grid and intensities.
        overrides: see `config_of_model`.

    Raises:
        DataError, UsageError: see `config_of_model`, `split_cases` and `write_inputs`.
    """
    config = config_of_model(model_path, overrides)
    write_inputs(split_cases(data_path, split, "val", config.fold), config)


def postprocess(
    data_path: str | Path,
    split: str | Path,
    model_path: str | Path,
    result_folders: Sequence[str | Path],
    overrides: list[str],
    language: str = "en",
) -> list[dict[str, str | float]]:
    """Evaluates the outputs for the cases of a split, see `evaluate_outputs`.

    Args:
        data_path, split, model_path, overrides: see `preprocess`; of an ensemble one of its models.
        result_folders, language: see `evaluate_outputs`.

    Raises:
        DataError, UsageError: see `preprocess`, `ensemble_models` and `evaluate_outputs`.
    """
    config = config_of_model(model_path, overrides)
    cases = split_cases(data_path, split, "val", config.fold)
    models = ensemble_models(model_path)
    is_ensemble = len(models) > 1
    origin = {"models": [str(path) for path in models]} if is_ensemble else {"model": model_path}
    return evaluate_outputs(cases, config, result_folders, origin, len(models), language)


def evaluate_outputs(
    cases: list[Case],
    config: EasyDict,
    result_folders: str | Path | Sequence[str | Path],
    metadata: dict,
    models: int = 1,
    language: str = "en",
) -> list[dict[str, str | float]]:
    """Writes masks and metrics from the C++ program's outputs, as `src.evaluation.evaluate` does.

    Args:
        cases: cases with reference masks.
        config: that of `write_inputs`, `threshold`, `dirPredictionImage`.
        result_folders: hold the outputs, NAME_0.bin, of each model of an ensemble one folder; their
            mean counts.
        metadata: entries about the model for metrics.json.
        models: number of models in the ensemble.
        language: of the report, one of `src.report.texts.LANGUAGES`.

    Returns:
        The metrics of each case.

    Raises:
        DataError: an output is missing, has the wrong size, or is not a probability.
        UsageError: more or fewer folders than models, or one of them twice.
    """
    if isinstance(result_folders, str | Path):
        result_folders = [result_folders]
    folders = list(map(Path, result_folders))
    if len({folder.resolve() for folder in folders}) != len(folders) or len(folders) != models:
        raise UsageError(
            f"--result_path {' '.join(map(str, folders))}: expected {models} different folder(s), "
            f"one for each of the {models} model(s) of which the mean counts"
        )
    read_outputs = partial(_read_outputs, config=config, folders=folders)
    for case in cases:
        read_outputs(case)  # check all files before anything is written

    def segment(case: Case, image: sitk.Image) -> sitk.Image:
        return segment_outputs(read_outputs(case), image, config)[0]

    metadata = {**metadata, "configuration": {key: config[key] for key in CONFIGURATION}}
    return evaluate_masks(segment, cases, config, metadata, language)


def _read_outputs(case, config, folders):
    """The output for each volume of a case, of several models their mean."""
    outputs = []
    for name in _volume_names(case, config):
        each = [_read_output(folder / f"{name}_0.bin", config) for folder in folders]
        outputs.append(sum(each[1:], each[0]) / np.float32(len(each)))
    return outputs


def _read_output(path, config):
    """Reads an output, (X, Y, Z) float32 in 0..1."""
    if not path.is_file():
        raise DataError(f"{path}: no such result; run the C++ program on {INPUT_FOLDER} first")
    size, expected = path.stat().st_size, 4 * int(np.prod(config.VolSize))
    if size != expected:
        raise DataError(
            f"{path}: {size} bytes, expected {expected} for {config.VolSize} voxels of float32; "
            "use model, description and results of the same export"
        )
    output = np.fromfile(path, "<f4").reshape(config.VolSize)
    if not (output.min() >= 0 and output.max() <= 1):  # also true for NaN
        raise DataError(
            f"{path}: values from {output.min():g} to {output.max():g}, expected probabilities "
            "from 0 to 1; is this the output of an exported V-Net?"
        )
    return output
