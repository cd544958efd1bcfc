"""Files for the C++ program in ascend310_infer: writes its inputs, evaluates its outputs.

Each file holds one (X, Y, Z) array of float32, Z fastest, as in the model zoo. With `flip_average`
the mirrored volume has its own file. With `recentre` the program runs again for the cases whose
gland lies far from the grid's centre: their volumes on a grid about the place X, Y, Z in mm are
NAME_about_X_Y_Z, so that no result can be taken for that of another grid.

Beside each volume, NAME.json has its network grid, which the program checks, and the hash of its
image. The program copies it to NAME_0.json beside the result, so that no result can be taken for
that of another image.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict

from ..config import GRID_KEYS, vnet_cfg
from ..data_manager import PREPROCESSING, Case, channel_of
from ..earlier_masks import image_hash
from ..evaluation import evaluate_masks
from ..images.reading import read_image
from ..predictor import Segmentation, network_inputs, segment_on_grids
from ..promise12.splits import split_cases
from ..utils import output_folder
from ..utils.errors import DataError, UsageError, naming, reason_of
from ..utils.files import write_files
from .description import CONFIGURATION, config_of_model, ensemble_models, read_description

log = logging.getLogger(__name__)

INPUT_FOLDER = "results/bin_data"  # folder and file names are the zoo's
RECENTRED_FOLDER = f"{INPUT_FOLDER}_recentred"
MODEL_RECORD = "model.json"  # the model's description, which the C++ program adds to its outputs


class Attempt(NamedTuple):
    """A case on a network grid."""

    case: Case
    centre_mm: Sequence[float] | None = None  # see `src.data_manager.network_grid`

    def volume_names(self, config: EasyDict) -> list[str]:
        """Returns the file names, without suffix, of the volumes."""
        name = self.case.case_id
        if self.centre_mm is not None:
            name += "_about_" + "_".join(f"{place:.1f}" for place in self.centre_mm)
        return [name, *[f"{name}_mirrored"] * config.flip_average]


class _NotRunYet(DataError):
    """There is no result of the image for an attempt on a moved grid."""

    def __init__(self, found: str, attempt: Attempt) -> None:
        super().__init__(
            f"{found}; the gland lies far from the grid's centre (key recentre): "
            f"run preprocess.py with --result_path, then the C++ program on {RECENTRED_FOLDER}"
        )
        self.attempt = attempt


def write_attempts(attempts: list[Attempt], config: EasyDict, folder: str | Path) -> None:
    """Writes the network input of each case on its grid as NAME.bin, and NAME.json about it.

    Args:
        attempts: the cases.
        config: network grid, `flip_average`.
        folder: to write to. Files of an earlier call that belong to other cases are removed.

    Raises:
        DataError: an image is invalid, a file was edited since an earlier call, or the folder holds
            .bin files that this program did not write, which the C++ program would also segment.
    """
    folder = Path(folder)
    for attempt in attempts:
        read_image(attempt.case.image_path, channel_of(config))
    names = [name for attempt in attempts for name in attempt.volume_names(config)]
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{folder / duplicate}.bin: two cases have this name; rename one of them")
    files = [f"{name}{suffix}" for name in names for suffix in (".json", ".bin")]
    ours = output_folder.list_outputs(folder)
    volumes = {path.name for path in folder.glob("[!.]*.bin") if not path.is_dir()}
    foreign = volumes.difference(files, ours)
    if foreign:
        raise DataError(
            f"{folder / min(foreign)}: not written by this program, but the C++ program "
            "would segment it; move it away"
        )
    output_folder.announce(folder, files)
    output_folder.remove(folder, ours.difference(files))
    grid = {key: config[key] for key in GRID_KEYS}
    with output_folder.register(folder, files):
        for file in files:  # none of another grid or image stays where this call ends early
            (folder / file).unlink(missing_ok=True)
        for attempt in attempts:
            image = read_image(attempt.case.image_path, channel_of(config))
            known = {"preprocessing": PREPROCESSING, "image_sha256": image_hash(image)}
            text = json.dumps({"configuration": grid, **known}, indent=2).encode()
            with naming(attempt.case.image_path):
                volumes = network_inputs(image, config, attempt.centre_mm)
            for name, volume in zip(attempt.volume_names(config), volumes, strict=True):
                content = np.ascontiguousarray(volume, "<f4").tobytes()
                write_files({folder / f"{name}.json": text, folder / f"{name}.bin": content})
    log.info(
        f"{folder}: {len(names)} volume(s) of {config.VolSize} voxels, of {len(attempts)} case(s)"
    )


def preprocess(
    data_path: str | Path,
    split: str | Path,
    model_path: str | Path,
    overrides: list[str],
    result_folders: Sequence[str | Path] = (),
) -> None:
    """Writes the volumes of the cases of a split, see `write_attempts`.

    Args:
        data_path, split: see `split_cases`.
        model_path: exported model, whose description has grid and intensities.
        overrides: see `config_of_model`.
        result_folders: see `Results`; if there are any, the volumes of the cases whose grid is to
            be moved are written instead, to `RECENTRED_FOLDER`.

    Raises:
        DataError, UsageError: see `config_of_model`, `split_cases`, `Results` and `write_attempts`.
    """
    config = config_of_model(model_path, overrides)
    cases = split_cases(data_path, split, "val", config.fold)
    if not result_folders:
        write_attempts([Attempt(case) for case in cases], config, INPUT_FOLDER)
        if config.recentre:
            log.info(
                "recentre: once the C++ program has run, preprocess.py --result_path FOLDER writes "
                "the volumes to run it on again"
            )
        return
    models = ensemble_models(model_path)
    check_model(result_folders, models)
    results = Results(result_folders, config, len(models))
    pending = [attempt for attempt in map(results.next_attempt, cases) if attempt]
    if pending:
        write_attempts(pending, config, RECENTRED_FOLDER)
    else:
        log.info("no case has to be segmented again on a moved grid")


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
        result_folders: see `Results`.
        language: see `evaluate_outputs`.

    Raises:
        DataError, UsageError: see `preprocess`, `ensemble_models` and `evaluate_outputs`.
    """
    config = config_of_model(model_path, overrides)
    cases = split_cases(data_path, split, "val", config.fold)
    models = ensemble_models(model_path)
    check_model(result_folders, models)
    is_ensemble = len(models) > 1
    origin = {"models": [str(path) for path in models]} if is_ensemble else {"model": model_path}
    return evaluate_outputs(cases, Results(result_folders, config, len(models)), origin, language)


def evaluate_outputs(
    cases: list[Case],
    results: "Results",
    metadata: dict,
    language: str = "en",
) -> list[dict[str, str | float]]:
    """Writes masks and metrics from the C++ program's outputs, as `src.evaluation.evaluate` does.

    Args:
        cases: cases with reference masks.
        results: with a configuration that has `threshold` and `dirPredictionImage`, too.
        metadata: entries about the model for metrics.json.
        language: of the report, one of `src.report.texts.LANGUAGES`.

    Returns:
        The metrics of each case.

    Raises:
        DataError: see `Results.of`, `Results.segment` and `src.evaluation.evaluate_masks`.
    """
    for case in cases:
        results.of(Attempt(case))  # none is missing or no probability, before anything is written

    def segment(case: Case, image: sitk.Image) -> sitk.Image:
        return results.segment(case, image).mask

    config = {key: results.config[key] for key in CONFIGURATION}
    metadata = {**metadata, "configuration": config}
    return evaluate_masks(segment, cases, results.config, metadata, language)


def check_model(result_folders: Sequence[str | Path], models: Sequence[Path]) -> None:
    """Raises a DataError if the C++ program's outputs are of another model, or not known of which.

    Another model is another checkpoint, or the same with another network grid.

    Args:
        result_folders: see `Results`.
        models: the exported models.
    """
    descriptions = [read_description(model) for model in models]
    expected = {file["checkpoint_sha256"] for _, file in descriptions}
    grid = _grid_of(descriptions[0][0])  # the same for all of an ensemble
    for record in (Path(folder, MODEL_RECORD) for folder in result_folders):
        if not record.is_file():
            raise DataError(
                f"{record}: no such file, expected the model's description: run the C++ program on "
                f"{INPUT_FOLDER}, with the model's .json beside the model"
            )
        try:
            description = json.loads(record.read_text("utf-8"))
            found = {file["checkpoint_sha256"] for file in description["files"].values()}
            found_grid = _grid_of(description)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{record}: cannot be read ({reason_of(error)}), expected the description of the "
                f"model; run the C++ program on {INPUT_FOLDER} again"
            ) from None
        if not found & expected or found_grid != grid:
            raise DataError(
                f"{record}: these results are not of {' or '.join(map(str, models))}, which is of "
                "another checkpoint or network grid, or were given twice; run preprocess.py and "
                "the C++ program again"
            )
        expected -= found


def _grid_of(description: dict) -> list:
    """The network grid; older descriptions lack keys, whose defaults apply."""
    return [description["configuration"].get(key, vnet_cfg[key]) for key in GRID_KEYS]


class Results:
    """The outputs of the C++ program.

    Args:
        folders: hold the outputs, NAME_0.bin, of each model of an ensemble one folder; their mean
            counts.
        config: that of `write_attempts`, and `recentre`.
        models: number of models in the ensemble.

    Raises:
        UsageError: more or fewer folders than models, or one of them twice.
    """

    def __init__(self, folders: Sequence[str | Path], config: EasyDict, models: int) -> None:
        self.folders, self.config = list(map(Path, folders)), config
        if not len({folder.resolve() for folder in self.folders}) == len(self.folders) == models:
            raise UsageError(
                f"--result_path {' '.join(map(str, folders))}: expected {models} different "
                f"folder(s), one for each of the {models} model(s) of which the mean counts"
            )

    def of(self, attempt: Attempt, image_sha256: str | None = None) -> list[np.ndarray]:
        """Returns the output for each volume of a case, of several models their mean.

        Args:
            attempt: the case on its grid.
            image_sha256: `image_hash` of its image; None: not compared.

        Returns:
            Each (X, Y, Z) float32 in 0..1.

        Raises:
            DataError: an output is missing, of another image or not known of which, has the wrong
                size, or is not a probability.
        """
        outputs = []
        for name in attempt.volume_names(self.config):
            paths = [folder / f"{name}_0.bin" for folder in self.folders]
            for path in paths:
                fault = _fault_of(path, attempt.case, image_sha256)
                if fault and attempt.centre_mm is not None:
                    raise _NotRunYet(fault, attempt)
                if fault:
                    raise DataError(
                        f"{fault}; run preprocess.py, then the C++ program on {INPUT_FOLDER}"
                    )
            each = [_read_output(path, self.config) for path in paths]
            outputs.append(sum(each[1:], each[0]) / np.float32(len(each)))
        return outputs

    def segment(self, case: Case, image: sitk.Image) -> Segmentation:
        """Segments an image from its outputs, see `src.predictor.segment_on_grids`.

        Raises:
            DataError: see `of`.
        """
        image_sha256 = image_hash(image)

        def run(centre_mm: Sequence[float] | None) -> list[np.ndarray]:
            return self.of(Attempt(case, centre_mm), image_sha256)

        return segment_on_grids(run, image, self.config)

    def next_attempt(self, case: Case) -> Attempt | None:
        """Returns a case on the moved grid for which there is no result yet, None if on none.

        Raises:
            DataError: see `of`; or the image cannot be read.
        """
        if not self.config.recentre:
            return None
        try:
            self.segment(case, read_image(case.image_path, channel_of(self.config)))
        except _NotRunYet as error:
            return error.attempt
        return None


def _fault_of(path, case, image_sha256):
    """Says what is missing or wrong if there is no output of this image, "" if there is one."""
    if not path.is_file():
        return f"{path}: no such result"
    if image_sha256 is None:
        return ""
    record = path.with_suffix(".json")
    try:
        content = json.loads(record.read_text("utf-8"))
        version, found = content["preprocessing"], content["image_sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"{record}: missing or damaged, expected the hash of the image of {path.name}"
    if version != PREPROCESSING:
        return f"{record}: {path.name} is of a volume of another version of preprocess.py"
    if found != image_sha256:
        return (
            f"{record}: {path.name} is of an image with the hash {found}, expected {image_sha256}, "
            f"that of {case.image_path}"
        )
    return ""


def _read_output(path, config):
    """Reads an output, (X, Y, Z) float32 in 0..1."""
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
