"""NAME.json beside an exported model: what it takes, what it returns, what surrounds it.

Away from this repository a model is easily fed with another grid or other intensities than it was
trained with; so all of it travels along.

    python -m src.export.description NAME.mindir

prints the path of the file that MindSpore Lite reads: NAME.mindir itself or its twin.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from pathlib import Path

from easydict import EasyDict

from ..config import keeping, overridden, vnet_cfg
from ..images.intensity import FIELD_SIGMA_MM, HISTOGRAM_STEPS, LOG_OFFSET
from ..utils.command_line import run
from ..utils.errors import DataError, UsageError
from ..utils.files import check_name, hash_file

log = logging.getLogger(__name__)

VERSION = 1  # of the description; raise it when its entries change their meaning
# Keys of the configuration that come with the model.
FIXED = ("variant", "width", "VolSize", "dstRes", "normDir", "intensity")
ADDED = ("intensity", "plane", "labels", "channel")  # older descriptions have the defaults of these
CONFIGURATION = tuple(dict.fromkeys((*FIXED, *ADDED, "flip_average", "threshold")))
LITE_ENDING = "_lite"  # of the twin's name
LITE = {"operators": "2-D", "mindir_version": 1}  # what MindSpore Lite 2.0 reads on every device


def path_of(model_path: str | Path) -> Path:
    """Where the description of a model lies."""
    return Path(model_path).with_suffix(".json")


def export_command(model_path: Path) -> str:
    """The command that writes a MINDIR, and with it its twin for MindSpore Lite."""
    name = model_path.with_name(model_path.stem.removesuffix(LITE_ENDING))
    return (
        "python export.py --ckpt_file CKPT --file_format MINDIR "
        f"--file_name {shlex.quote(str(name))}"
    )


def describe(config: EasyDict, batch_size: int, files: dict[str, dict]) -> dict:
    """The description of a model, for JSON.

    Args:
        config: what its checkpoint was trained with.
        batch_size: volumes per call.
        files: file name -> what there is to say of the file, such as its hash and that of its
            checkpoint (`sha256`, `checkpoint_sha256`).
    """
    sides = list(config.VolSize)
    axes = (
        "the patient's"
        if config.normDir
        else "the image's, in whichever order and direction comes nearest to the patient's"
    )
    unit_interval = [
        "rescale the intensities of the whole image to 0..1",
        *[
            f"of the voxels above 0 take v = log(intensity + {LOG_OFFSET}), and subtract the mean "
            f"of v over the voxels above 0, weighted with a Gaussian of {FIELD_SIGMA_MM:g} mm "
            "(standard deviation; the image's border voxels go on beyond it)",
            "replace each by the share of the voxels above 0 that have less, linear between their "
            f"{HISTOGRAM_STEPS + 1} quantiles 0, 1/{HISTOGRAM_STEPS} .. 1; the others stay 0",
        ]
        * (config.intensity == "equalize"),
    ]
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
        "preprocessing": [
            *unit_interval,
            f"resample linearly, with 0 beyond the border voxels' edges, to {sides} voxels of "
            f"{config.dstRes} mm (x, y, z) about the image's centre, along {axes} axes: x to the "
            "left, y to the back, z to the head",
            "subtract the mean and divide by the standard deviation of the voxels above 0",
        ],
        "postprocessing": [
            *["average with the output for the input mirrored left-right, along X"]
            * config.flip_average,
            "resample linearly, with 0 beyond the border voxels' edges, to the image's own voxels",
            f"the prostate is where the probability is above {config.threshold}",
            "keep its largest component (26 neighbours)",
        ],
        "configuration": {key: config[key] for key in CONFIGURATION},
    }


def _load(path, model_path):
    """A description of the right version, with what the others here rely on."""
    try:
        description = json.loads(path.read_text())
        version = description["description_version"]
        if version != VERSION:
            raise ValueError(f"version {version}, expected {VERSION}")
        defaults = {key: vnet_cfg[key] for key in ADDED}
        description["configuration"] = defaults | description["configuration"]
        if set(description["configuration"]) != set(CONFIGURATION):
            raise ValueError(f"a configuration of {', '.join(description['configuration'])}")
        overridden({**vnet_cfg, **description["configuration"]}, [])
        int(description["input"]["shape"][0])
        if not all(
            {"format", "sha256", "checkpoint_sha256"} <= set(f)
            for f in description["files"].values()
        ):
            raise ValueError("a file without its format and hashes")
    except (ValueError, LookupError, TypeError, AttributeError, UsageError) as error:
        raise DataError(
            f"{path}: no description of a model ({error!r}); export again: "
            f"{export_command(model_path)}"
        ) from None
    return description


def with_other_formats(description: dict, path: Path) -> dict:
    """`description` with the files that an earlier one, at `path`, has of the same model.

    So `vnet.mindir` and `vnet.onnx` of one checkpoint share `vnet.json`. Files of another
    checkpoint, grid or batch size lose theirs, and a line says so.
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
            log.info(f"{path.with_name(name)}: of another export, {path.name} describes it no more")
    return {**description, "files": {**kept, **files}}


def read_description(model_path: str | Path) -> tuple[dict, dict]:
    """What comes with a model.

    Returns:
        The description, and its entry of this very file.

    Raises:
        DataError: model or description are missing, damaged, or do not belong together.
    """
    model_path, path = Path(model_path), path_of(model_path)
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
    """The configuration that comes with a model, the rest from the defaults and `overrides`.

    Raises:
        DataError: it takes more than one volume per call; see `read_description`.
        UsageError: an override of what the model fixes.
    """
    description, _ = read_description(model_path)
    count = description["input"]["shape"][0]
    if count != 1:
        raise DataError(
            f"{path_of(model_path)}: the model takes {count} volumes per call, the C++ program "
            f"gives it 1; export with --batch_size 1: {export_command(Path(model_path))}"
        )
    saved = EasyDict({**vnet_cfg, **description["configuration"]})
    return keeping(FIXED, saved, path_of(model_path), overrides)


def lite_path_of(model_path: Path) -> Path:
    """Where the twin of a model lies that MindSpore Lite reads."""
    return model_path.with_name(f"{model_path.stem}{LITE_ENDING}.mindir")


def lite_model(model_path: str | Path) -> Path:
    """The model itself where MindSpore Lite reads it, else its twin, NAME_lite.mindir beside it.

    Raises:
        DataError: no MINDIR, or there is no such twin of the same checkpoint, grid and threshold;
            see `read_description`.
    """
    model_path = Path(model_path)
    description, model = read_description(model_path)
    if model["format"] != "MINDIR":
        raise DataError(f"{model_path}: is {model['format']}, expected a MINDIR")
    if LITE.items() <= model.items():
        return model_path
    twin_path = lite_path_of(model_path)
    twin_description, twin = read_description(twin_path)
    wanted = {**LITE, "checkpoint_sha256": model["checkpoint_sha256"]}
    same = {**description, "files": {}} == {**twin_description, "files": {}}
    if not same or not wanted.items() <= twin.items():
        raise DataError(
            f"{twin_path}: of another checkpoint than {model_path.name}, of another grid or "
            "threshold, or nothing that MindSpore Lite reads; export both: "
            f"{export_command(model_path)}"
        )
    return twin_path


def main() -> None:
    """Prints where the model lies that MindSpore Lite reads."""
    parser = argparse.ArgumentParser(description="Find the model that MindSpore Lite reads")
    parser.add_argument("mindir_path")
    path = lite_model(parser.parse_args().mindir_path)
    # As bytes: `print` would make escapes of letters that the terminal has not.
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")


if __name__ == "__main__":
    run(main)
