"""The description of an exported model, NAME.json: input, output, pre- and postprocessing.

Outside this repository a model is easily used with another grid or other intensities than it was
trained with, so both are stored beside it.

    python -m src.export.description NAME.mindir --runtime native|lite

prints the path of the model that the C++ program runs: NAME.vnet on a CPU; for MindSpore Lite
NAME.mindir itself or NAME_lite.mindir. Of an ensemble it prints a line for each model.
"""

import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from easydict import EasyDict

from ..config import GRID_KEYS, OUTPUT_KEYS, override_config, override_unfixed, vnet_cfg
from ..images.intensity import (
    AIR_BOUNDS,
    AIR_FACTOR,
    AIR_SIGMA_MM,
    FIELD_SIGMA_MM,
    HISTOGRAM_STEPS,
    LOG_OFFSET,
    MAX_AIR_SHARE,
    MIN_NONNEGATIVE_SHARE,
    MIN_PADDING_SHARE,
)
from ..predictor import CORE_DEPTH_MM, MOST_RECENTRINGS, REACH_MM, RECENTRE_BEYOND_MM
from ..utils.command_line import new_parser, run
from ..utils.errors import DataError, UsageError
from ..utils.files import check_name, hash_file

log = logging.getLogger(__name__)

VERSION = 2  # of the description; increase it when the meaning of an entry changes
# Keys of the configuration that are stored with the model. FIXED cannot be overridden.
FIXED = ("variant", "width", *GRID_KEYS)
# Keys that older descriptions do not have; their defaults apply.
ADDED = ("intensity", "plane", "labels", "channel", "recentre")
CONFIGURATION = tuple(dict.fromkeys((*FIXED, *ADDED, *OUTPUT_KEYS)))
LITE_SUFFIX = "_lite"  # of the file name of the model for MindSpore Lite
LITE_MINDIR_VERSION = 1
# The properties of models that MindSpore Lite 2.0 can load on every device.
LITE: dict[str, str | int] = {"operators": "2-D", "mindir_version": LITE_MINDIR_VERSION}
NATIVE: dict[str, str | int] = {"format": "VNET"}  # of those for the C++ program's own kernels


WEIGHTS_SUFFIX = ".vnet"  # of the C++ program's model for CPUs
RUNTIMES = ("native", "lite")  # of the C++ program

# The step of `src.images.intensity.without_padding`.
PADDING = (
    f"a value of at least {MIN_PADDING_SHARE * 100:g} % of the voxels is padding, if it is the "
    "lowest and negative, or the highest and further above the others than these are apart; if "
    "there is one: the floor is the lowest of the others, or 0 if that is negative although more "
    f"than {MIN_NONNEGATIVE_SHARE * 100:g} % of them are not, and the padding lower than minus the "
    "highest of them; "
    "replace padding and what is below the floor by it"
)
# The steps of `src.images.intensity.equalize`.
EQUALIZATION = (
    f"m is the mean of the intensities around each voxel, weighted with a Gaussian of "
    f"{AIR_SIGMA_MM:g} mm (standard deviation, here and below; the array's border voxels go on "
    "beyond it); if the lowest m is below 0, subtract it from m and from the intensities",
    f"the floor is {AIR_FACTOR} times the lowest m, at least {AIR_BOUNDS[0]} and at most "
    f"{AIR_BOUNDS[1]} times the 90th percentile of m; then once more, with the median of the m "
    "above that floor in the percentile's place",
    "voxels with m above the floor are tissue, without those of intensities up to the floor around "
    f"which more than {MAX_AIR_SHARE:g} of that Gaussian lies on the other voxels",
    f"rescale the tissue to 0..1, take v = log(intensity + {LOG_OFFSET}), and subtract the mean of "
    f"v over the tissue, weighted with a Gaussian of {FIELD_SIGMA_MM:g} mm",
    "replace each by the share of the tissue that has less, linear between its "
    f"{HISTOGRAM_STEPS + 1} quantiles 0, 1/{HISTOGRAM_STEPS} .. 1; the rest becomes 0",
)


def description_path(model_path: str | Path) -> Path:
    """The path of the description of a model."""
    return Path(model_path).with_suffix(".json")


def export_command(model_path: Path) -> str:
    """The command that writes a MINDIR and the lite model beside it."""
    name = model_path.with_name(model_path.stem.removesuffix(LITE_SUFFIX))
    return (
        "python export.py --ckpt_file CKPT --file_format MINDIR "
        f"--file_name {shlex.quote(str(name))}"
    )


def _preprocessing(config: EasyDict) -> list[str]:
    axes = (
        "the patient's"
        if config.normDir
        else "the image's, in whichever order and direction comes nearest to the patient's"
    )
    equalizes = config.intensity == "equalize"
    return [
        PADDING,
        *([] if equalizes else ["rescale the intensities of the whole image to 0..1"]),
        "along each axis of the image where the voxels of the next step are larger, blur with a "
        "Gaussian whose variance is (larger^2 - own^2) / (8 ln 2) of the voxel sizes",
        f"resample linearly to {list(config.VolSize)} voxels of {config.dstRes} mm (x, y, z) about "
        f"the image's centre, along {axes} axes: x to the left, y to the back, z to the head; what "
        "lies beyond the border voxels' edges " + ("does not count below" if equalizes else "is 0"),
        *(EQUALIZATION if equalizes else []),
        "subtract the mean and divide by the standard deviation of the voxels above 0",
    ]


def _postprocessing(config: EasyDict, ensemble: Mapping[str, str]) -> list[str]:
    mirror = "average with the output for the input mirrored left-right (along X), mirrored back"
    mean = f"take the mean of what {' and '.join(ensemble)} give for the same input"
    recentre = (
        f"if its centre of mass lies more than {RECENTRE_BEYOND_MM:g} mm from the centre of the "
        "model's grid: repeat all steps with the grid's centre there (to 0.1 mm), at most "
        f"{MOST_RECENTRINGS} times; the last result with any prostate counts"
    )
    return [
        *([mirror] if config.flip_average else []),
        *([mean] if ensemble else []),
        "resample linearly, with 0 beyond the border voxels' edges, to the image's own voxels",
        f"the prostate is where the probability is above {config.threshold}",
        "keep its largest component (26 neighbours)",
        f"the core is the largest component of its voxels that lie more than {CORE_DEPTH_MM:g} mm "
        "(Euclidean distance of voxel centres) from those outside, among which are those beyond "
        f"the image's border; if there is one, keep what lies at most {REACH_MM:g} mm from it, and "
        "of that the largest component",
        "fill the background that it encloses on all sides (6 neighbours)",
        *([recentre] if config.recentre else []),
    ]


def describe(
    config: EasyDict,
    batch_size: int,
    files: dict[str, dict],
    ensemble: Mapping[str, str] | None = None,
) -> dict:
    """Returns the description of a model, for JSON.

    Args:
        config: the configuration of its checkpoint.
        batch_size: volumes per call of the model.
        files: file name -> properties of the file, such as its hash and that of its checkpoint
            (`sha256`, `checkpoint_sha256`).
        ensemble: of a model that is one of several, {model: SHA-256 of its checkpoint} of all.
    """
    sides = list(config.VolSize)
    return {
        "description_version": VERSION,
        "files": files,
        "input": {
            "type": "float32",
            "shape": [batch_size, 1, *sides],
            "axes": "batch, channel, X, Y, Z; in memory Z runs fastest",
        },
        "output": {
            "type": "float32",
            "shape": [batch_size, *sides],
            "axes": "batch, X, Y, Z; in memory Z runs fastest",
            "meaning": "probability of the prostate, 0 to 1",
        },
        "preprocessing": _preprocessing(config),
        "postprocessing": _postprocessing(config, ensemble or {}),
        "configuration": {key: config[key] for key in CONFIGURATION},
        **({"ensemble": dict(ensemble)} if ensemble else {}),
    }


def _load(path, model_path):
    """Reads and checks a description.

    Raises:
        DataError: wrong version, or an entry that this module needs is missing or invalid.
    """
    try:
        description = json.loads(path.read_text())
        version = description["description_version"]
        if version != VERSION:
            raise ValueError(f"version {version}, expected {VERSION}")
        defaults = {key: vnet_cfg[key] for key in ADDED}
        description["configuration"] = defaults | description["configuration"]
        if set(description["configuration"]) != set(CONFIGURATION):
            raise ValueError(
                f"a configuration with the keys {', '.join(description['configuration'])}"
            )
        override_config({**vnet_cfg, **description["configuration"]}, [])
        batch, *sides = description["input"]["shape"]
        if not isinstance(batch, int) or sides != [1, *description["configuration"]["VolSize"]]:
            raise ValueError(f"an input of shape {[batch, *sides]}, which is not that of VolSize")
        if not all(
            {"format", "sha256", "checkpoint_sha256"} <= f.keys()
            for f in description["files"].values()
        ):
            raise ValueError("a file without format or hashes")
        for name, digest in _ensemble(description).items():
            if not name or Path(name).name != name or not isinstance(digest, str):
                raise ValueError("an ensemble that is no list of models and hashes")
    except (ValueError, LookupError, TypeError, AttributeError, UsageError) as error:
        raise DataError(
            f"{path}: not a valid model description ({error!r}); export again: "
            f"{export_command(model_path)}"
        ) from None
    return description


def _ensemble(description: dict) -> dict[str, str]:
    return description.get("ensemble", {})


def ensemble_models(model_path: str | Path) -> list[Path]:
    """Returns the models whose mean counts: of an ensemble all of them, else the model itself.

    Args:
        model_path: of one of the models.

    Raises:
        DataError: a model is missing or of another ensemble; also see `read_description`.
    """
    model_path = Path(model_path)
    description, _ = read_description(model_path)
    hashes = _ensemble(description)
    if not hashes:
        return [model_path]
    lite = "" if model_path.stem in hashes else LITE_SUFFIX
    models = {model_path.with_name(f"{n}{lite}{model_path.suffix}"): h for n, h in hashes.items()}
    for path, digest in models.items():
        other, file = read_description(path)
        if _ensemble(other) != hashes or file["checkpoint_sha256"] != digest:
            raise DataError(
                f"{path}: of another ensemble than {model_path.name}; export again, all of its "
                f"checkpoints at once: {export_command(model_path)}"
            )
    return list(models)


def merge_description(description: dict, path: Path) -> dict:
    """Adds the files of an earlier description of the same model.

    So `vnet.mindir` and `vnet.onnx` of one checkpoint share `vnet.json`. Files of another
    checkpoint, grid or batch size are not added, which is logged.

    Args:
        description: the new description.
        path: of the earlier one, if any.

    Returns:
        The merged description.
    """
    try:
        earlier = _load(path, path)
    except (DataError, OSError):
        return description
    files = description["files"]
    checkpoints = {file["checkpoint_sha256"] for file in files.values()}
    same = {**earlier, "files": {}} == {**description, "files": {}}
    kept = {
        name: file
        for name, file in earlier["files"].items()
        if same and file["checkpoint_sha256"] in checkpoints
    }
    for name in earlier["files"].keys() - kept.keys() - files.keys():
        if path.with_name(name).exists():
            log.info(
                f"{path.with_name(name)}: of another export, no longer described by {path.name}"
            )
    return {**description, "files": {**kept, **files}}


def read_description(model_path: str | Path) -> tuple[dict, dict]:
    """Reads the description of a model.

    Returns:
        The description, and its entry for this file.

    Raises:
        DataError: model or description is missing or damaged, or they do not belong together.
    """
    model_path, path = Path(model_path), description_path(model_path)
    export = export_command(model_path)
    for file, what in ((model_path, "no such model"), (path, f"missing beside {model_path.name}")):
        if not file.is_file():
            raise DataError(f"{file}: {what}; export it: {export}")
    description = _load(path, model_path)
    file = description["files"].get(model_path.name)
    if file is None:
        check_name(model_path)
    if file is None or file["sha256"] != hash_file(model_path):
        raise DataError(f"{path}: describes another {model_path.name}; export again: {export}")
    return description, file


def config_of_model(model_path: str | Path, overrides: list[str]) -> EasyDict:
    """Returns the configuration stored with a model, completed with defaults and `overrides`.

    Raises:
        DataError: the model takes more than one volume per call; also see `read_description`.
        UsageError: an override of a key that the model determines.
    """
    description, _ = read_description(model_path)
    count = description["input"]["shape"][0]
    if count != 1:
        raise DataError(
            f"{description_path(model_path)}: the model takes {count} volumes per call, the C++ "
            f"program passes 1; export with --batch_size 1: {export_command(Path(model_path))}"
        )
    saved = EasyDict({**vnet_cfg, **description["configuration"]})
    return override_unfixed(FIXED, saved, description_path(model_path), overrides)


def lite_path(model_path: Path) -> Path:
    """The path of the model for MindSpore Lite that belongs to a plain model."""
    return model_path.with_name(f"{model_path.stem}{LITE_SUFFIX}.mindir")


def weights_path(model_path: Path) -> Path:
    """The path of the C++ program's model for CPUs that belongs to a plain or lite model."""
    return model_path.with_name(model_path.stem.removesuffix(LITE_SUFFIX) + WEIGHTS_SUFFIX)


def model_for_runtime(model_path: str | Path, runtime: str) -> Path:
    """Returns the model itself if the runtime can load it, else the one for it beside it.

    That is NAME_lite.mindir for MindSpore Lite, NAME.vnet for the C++ program's own kernels.

    Args:
        model_path: of a MINDIR, or of a model for the runtime.
        runtime: one of `RUNTIMES`.

    Raises:
        DataError: another format, or no model for the runtime of the same checkpoint, grid and
            threshold; also see `read_description`.
    """
    model_path = Path(model_path)
    description, model = read_description(model_path)
    properties, expected, path = {
        "lite": (LITE, "MINDIR", lite_path(model_path)),
        "native": (NATIVE, "MINDIR or VNET", weights_path(model_path)),
    }[runtime]
    if properties.items() <= model.items():
        return model_path
    if model["format"] != "MINDIR":
        raise DataError(f"{model_path}: is {model['format']}, expected {expected}")
    other_description, other = read_description(path)
    same = {**description, "files": {}} == {**other_description, "files": {}}
    same = same and other["checkpoint_sha256"] == model["checkpoint_sha256"]
    if not same or not properties.items() <= other.items():
        raise DataError(
            f"{path}: of another checkpoint than {model_path.name}, of another grid or threshold, "
            f"or not for the runtime {runtime}; export both: {export_command(model_path)}"
        )
    return path


def main() -> None:
    """Prints the path of the model for a runtime of the C++ program; of an ensemble, of each."""
    parser = new_parser("Print the path of the C++ program's model")
    parser.add_argument("mindir_path")
    parser.add_argument("--runtime", choices=RUNTIMES, required=True)
    args = parser.parse_args()
    for model in ensemble_models(args.mindir_path):
        # As bytes: `print` would escape letters that the terminal's encoding does not have.
        sys.stdout.buffer.write(os.fsencode(model_for_runtime(model, args.runtime)) + b"\n")


if __name__ == "__main__":
    run(main)
