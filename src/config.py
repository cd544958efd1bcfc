"""The configuration: a table of its keys, `vnet_cfg` with the defaults, overrides and files.

`python -m src.config` prints the table as docs/configuration.md has it.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from easydict import EasyDict

from .utils.errors import DataError, UsageError, nearest, reason_of
from .utils.files import write_json
from .utils.rules import (
    ANYTHING,
    Rule,
    above,
    at_least,
    at_least_and_below,
    between,
    distinct_labels,
    file_name_part,
    multiples_of,
    not_empty,
    one_of,
    positive_sizes,
)

log = logging.getLogger(__name__)


class Key(NamedTuple):
    """One key of the configuration.

    Attributes:
        name: of the key; the model zoo's keys keep their spelling.
        default: the value unless it is overridden.
        kind: type of the values.
        rule: condition on the values, in addition to their type.
        group: heading under which the documentation lists the key.
        help: what the key does, in one line.
    """

    name: str
    default: Any
    kind: Any
    rule: Rule
    group: str
    help: str


FILES, GRID, NETWORK = "Files", "Network grid and images", "Network"
TRAINING, AUGMENTATION, PREDICTION = "Training", "Augmentation", "Prediction"
GROUPS = (FILES, GRID, NETWORK, TRAINING, AUGMENTATION, PREDICTION)
AUTO_OR_OFF = one_of("auto", "off")
SHARE, PROBABILITY = at_least_and_below(0, 1), between(0, 1)
ZOO_LR, ZOO_LR_ON_GPU = 0.001, 0.0005

TABLE = (
    # The model zoo's keys.
    Key("task", "promise12", str, file_name_part(), FILES, "part of the run's name"),
    Key("fold", 0, int, at_least(0), FILES, "fold to take from a folder of splits"),
    Key("dirResult", "results/infer", str, not_empty("a path"), FILES, "folder of the runs"),
    Key("dirPredictionImage", "results/prediction", str, not_empty("a path"), FILES,
        "folder of masks, metrics and reports"),
    Key("normDir", False, bool, ANYTHING, GRID,
        "true: the grid follows the patient's axes; false: the image's"),
    Key("dstRes", [1.0, 1.0, 1.5], list[float], positive_sizes(3, "mm"), GRID,
        "voxel size of the network grid in mm: x, y, z"),
    Key("VolSize", [128, 128, 64], list[int], multiples_of(16, count=3), GRID,
        "voxels of the network grid: x, y, z; V-Net halves each side four times"),
    Key("batch_size", 4, int, at_least(1), TRAINING, "cases per step and device"),
    Key("epochs", 500, int, at_least(1), TRAINING, "epochs of the whole training"),
    Key("lr", ZOO_LR, float, above(0), TRAINING,
        f"highest learning rate; on a GPU {ZOO_LR_ON_GPU} unless set"),
    Key("weight_decay", 1e-4, float, at_least(0), TRAINING, "L2, on convolution weights only"),
    Key("momentum", 0.99, float, SHARE, TRAINING, "momentum of optimizer=momentum"),
    Key("warmup_step", 120, int, at_least(0), TRAINING,
        "steps of linear warm-up, at most half of the training; a cosine follows"),
    Key("warmup_ratio", 0.3, float, PROBABILITY, TRAINING,
        "learning rate at the start of the warm-up, as a share of lr"),
    # Keys that the zoo does not have.
    Key("intensity", "rescale", str, one_of("rescale", "equalize"), GRID,
        "rescale: darkest voxel to 0, brightest to 1; equalize: remove the coil's field and "
        "equalize the histogram"),
    Key("channel", -1, int, at_least(-1), GRID,
        "index of the T2 image in 4-D files, from 0; -1: files are 3-D"),
    Key("labels", [], list[int], distinct_labels(), GRID,
        "mask values that together are the prostate, such as 1,2; empty: masks hold 0 and 1"),
    Key("plane", "auto", str, one_of("auto", "sagittal", "coronal", "axial"), GRID,
        "acquisition plane of the training cases; images in another plane are listed; auto: that "
        "of most cases, saved with the run"),
    Key("variant", "zoo", str, one_of("zoo", "monai", "paper", "instance"), NETWORK,
        "architecture of the network"),
    Key("width", 16, int, at_least(1), NETWORK, "channels of the first stage"),
    Key("dropout", 0.5, float, SHARE, NETWORK,
        "share of the channels dropped in training, in the variants with dropout"),
    Key("fast_conv3d", "auto", str, one_of("auto", "on", "off"), NETWORK,
        "fast convolution on CPU; auto: if it can be built; on: fail if it cannot; off: never"),
    Key("accumulate_steps", 1, int, at_least(1), TRAINING,
        "batches whose mean gradient makes one step"),
    Key("sync_batch_norm", False, bool, ANYTHING, TRAINING,
        "batch norm over all devices' batches; Ascend only"),
    Key("seed", 1, int, at_least(0), TRAINING,
        "seed of weights, order of cases, augmentation and dropout"),
    Key("optimizer", "adam", str, one_of("adam", "momentum"), TRAINING, "optimizer"),
    Key("loss", "dice", str, one_of("dice", "dice_ce"), TRAINING, "dice_ce: plus cross-entropy"),
    Key("ema_decay", 0.0, float, SHARE, TRAINING,
        "moving average of the weights, updated once per epoch; 0: off"),
    Key("precision", "auto", str, one_of("auto", "float32", "mixed"), TRAINING,
        "auto: mixed on Ascend and GPU, float32 on CPU"),
    Key("loss_scale", 256.0, float, above(0), TRAINING,
        "initial value of the dynamic loss scale in mixed precision"),
    Key("dataset_sink", "auto", str, AUTO_OR_OFF, TRAINING,
        "auto: an Ascend or GPU gets a whole epoch at once; CPU has no sink"),
    Key("num_workers", 0, int, at_least(0), TRAINING,
        "threads that read and augment cases, never more than cores; 0: one per core, at most 8"),
    Key("val_interval", 10, int, at_least(1), TRAINING,
        "epochs between validations; there is one after the last epoch too"),
    Key("save_interval", 0, int, at_least(0), TRAINING,
        "epochs between checkpoints; 0: as often as takes at most 2 % of the training's time; "
        "there is one after the last epoch too"),
    Key("early_stop", 0, int, at_least(0), TRAINING,
        "validations without a better Dice after which training ends; 0: never"),
    Key("keep_checkpoint_max", 10, int, at_least(1), TRAINING, "number of checkpoints to keep"),
    Key("tensorboard", False, bool, ANYTHING, TRAINING,
        "write events for TensorBoard to the run's folder; needs tensorboardX"),
    Key("cache_dir", "auto", str, not_empty("a path"), FILES,
        "folder of preprocessed cases; auto: the user's cache folder; off: none"),
    # Probability of each transform of a training sample, see src/augment.py.
    Key("augment_flip", 0.0, float, PROBABILITY, AUGMENTATION, "flip left and right"),
    Key("augment_rotate", 0.0, float, PROBABILITY, AUGMENTATION, "rotate"),
    Key("augment_scale", 0.0, float, PROBABILITY, AUGMENTATION, "scale"),
    Key("augment_shift", 0.0, float, PROBABILITY, AUGMENTATION, "shift"),
    Key("augment_deform", 0.0, float, PROBABILITY, AUGMENTATION,
        "deform by B-splines, as the paper does"),
    Key("augment_histogram", 0.0, float, PROBABILITY, AUGMENTATION,
        "match the histogram of another training case, as the paper does"),
    Key("augment_gamma", 0.0, float, PROBABILITY, AUGMENTATION, "change the gamma"),
    Key("augment_bias", 0.0, float, PROBABILITY, AUGMENTATION,
        "multiply by a smooth bias field"),
    Key("augment_low_resolution", 0.0, float, PROBABILITY, AUGMENTATION, "lower the resolution"),
    Key("augment_blur", 0.0, float, PROBABILITY, AUGMENTATION, "blur"),
    Key("augment_noise", 0.0, float, PROBABILITY, AUGMENTATION, "add noise"),
    Key("augment_transplant", 0.0, float, PROBABILITY, AUGMENTATION,
        "put another training case's gland in the place of the gland"),
    Key("threshold", 0.5, float, SHARE, PREDICTION,
        "voxels with a probability above it are foreground"),
    Key("flip_average", False, bool, ANYTHING, PREDICTION,
        "average every prediction over a left-right flip, in validation and exported models too"),
    Key("recentre", False, bool, ANYTHING, PREDICTION,
        "predict again about a gland that is found more than 15 mm off the network grid's centre"),
)  # fmt: skip
KEYS = {key.name: key for key in TABLE}
vnet_cfg = EasyDict({key.name: key.default for key in TABLE})
AUGMENT_KEYS = tuple(key.name for key in TABLE if key.group == AUGMENTATION)

# Tested combinations of settings; docs/accuracy.md says how they were found.
PRESETS: dict[str, dict[str, Any]] = {
    "accurate": {
        "variant": "instance",
        "width": 4,
        "VolSize": [80, 80, 48],
        "dstRes": [1.4, 1.4, 2.0],
        "intensity": "equalize",
        "batch_size": 4,
        "epochs": 1200,
        "lr": 0.002,  # on a GPU too
        "dropout": 0.2,
        "loss": "dice_ce",
        "ema_decay": 0.9,
        "threshold": 0.45,
        "flip_average": True,
        "recentre": True,
        **dict.fromkeys(
            [f"augment_{name}" for name in ("flip", "rotate", "scale", "shift", "deform")], 0.5
        ),
        **dict.fromkeys([f"augment_{name}" for name in ("gamma", "bias", "noise")], 0.3),
        **dict.fromkeys([f"augment_{name}" for name in ("blur", "low_resolution")], 0.2),
        "augment_transplant": 0.4,
    },
}
PRESETS["compact"] = {
    **PRESETS["accurate"],
    "VolSize": [64, 64, 32],
    "dstRes": [1.75, 1.75, 3.0],
}

CONFIG_NAME = "config.json"
LARGEST_FILE = 100_000  # bytes of a file for --config, which has some thousand
GRID_KEYS = ("VolSize", "dstRes", "normDir", "intensity")  # decide what a network is given,
OUTPUT_KEYS = ("threshold", "flip_average", "recentre")  # and these what becomes of its output
MACHINE_KEYS = (  # places, and how the machine is used
    *("dirResult", "dirPredictionImage", "cache_dir", "num_workers"),
    *("fast_conv3d", "precision", "dataset_sink", "tensorboard"),
)
FIXED_BY_WEIGHTS = ("variant", "width", "intensity")
# What a training was, which a prediction with its network cannot change.
OF_TRAINING = (
    "dropout",
    *(
        key.name
        for key in TABLE
        if key.group in (TRAINING, AUGMENTATION) and key.name not in MACHINE_KEYS
    ),
)
# A resume must not change these keys: the steps already trained depend on them.
FIXED_BY_RUN = (
    *FIXED_BY_WEIGHTS,
    *("VolSize", "dstRes", "normDir", "channel", "labels", "fold"),
    *("batch_size", "accumulate_steps", "sync_batch_norm"),
    *("seed", "dropout", "optimizer", "loss", "ema_decay", *AUGMENT_KEYS),
    *OUTPUT_KEYS,  # of the validations, whose best Dice decides about best.ckpt
)

# Values -----------------------------------------------------------------------------------------

KIND_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list[int]: "a list of whole numbers",
    list[float]: "a list of numbers",
}
YAML_NULL = "tag:yaml.org,2002:null"
LARGEST_INT = 2**31 - 1  # MindSpore and NumPy take no seed above 2**32, for one
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _key(name: str) -> Key:
    if name not in KEYS:
        raise UsageError(f"unknown configuration key {name!r}{nearest(name, KEYS)}")
    return KEYS[name]


def _parse(key: Key, text: str) -> Any:
    """Converts a text such as "64,64,32" to a value of `key`.

    Raises:
        ValueError: not of the key's type.
    """
    if key.kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError
        return BOOLEANS[text.lower()]
    if items := get_args(key.kind):
        parts = text.strip("[]() ")
        return [items[0](part) for part in parts.split(",")] if parts else []
    return key.kind(text)


def value_text(value: object) -> str:
    """Returns a value of a key as `--set` takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _has_kind(value: Any, kind: Any) -> bool:
    """Whether a value, such as one of a JSON file, has a type of `KIND_WORDS`."""
    if items := get_args(kind):
        return isinstance(value, list) and all(_has_kind(part, items[0]) for part in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _check(key: Key, value: Any) -> None:
    """Raises a UsageError for a value of another type, or one that breaks the key's rule."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, int) and abs(part) > LARGEST_INT:
            raise UsageError(f"{key.name} is {value!r}, expected at most {LARGEST_INT}")
    if not _has_kind(value, key.kind):
        raise UsageError(
            f"{key.name} is {value!r}, expected {KIND_WORDS[key.kind]}, such as {key.default!r}"
        )
    if not key.rule.holds(value):
        raise UsageError(f"{key.name} is {value!r}, expected {key.rule.words}")


# Overrides --------------------------------------------------------------------------------------


def override_config(config: dict, overrides: list[str]) -> EasyDict:
    """Applies `key=value` overrides to a copy of `config`, and checks all of its values.

    Args:
        config: with the keys of `vnet_cfg`.
        overrides: such as ["VolSize=64,64,32", "lr=0.01"]; of several for one key the last
            counts.

    Raises:
        UsageError: unknown key (the nearest is named), a value of the wrong type or out of range.
    """
    result = EasyDict(json.loads(json.dumps(config)))
    for item in overrides:
        name, separator, text = item.partition("=")
        if not separator:
            raise UsageError(f"--set {item}: expected key=value")
        key = _key(name)
        try:
            result[name] = _parse(key, text)
        except ValueError:
            raise UsageError(
                f"--set {item}: expected {KIND_WORDS[key.kind]}"
                + (f", such as {value_text(key.default)}" if key.default != [] else "")
            ) from None
    for name, value in result.items():
        _check(KEYS[name], value)
    return result


def preset_overrides(name: str | None, resumes: bool = False) -> list[str]:
    """Returns the overrides of a preset; none without a name, or if a run is resumed.

    Args:
        name: one of `PRESETS`, or None.
        resumes: whether a run is resumed, which keeps its own settings.

    Raises:
        UsageError: no such preset.
    """
    if name is None:
        return []
    if name not in PRESETS:
        raise UsageError(f"--preset {name}: expected one of {', '.join(PRESETS)}")
    if resumes:
        log.info(f"--preset {name} is ignored: the resumed run keeps its own settings")
        return []
    return [f"{key}={value_text(value)}" for key, value in PRESETS[name].items()]


def with_preset(name: str | None, overrides: list[str], resumes: bool = False) -> list[str]:
    """Returns the overrides of a preset, then further ones; logs what these change of the preset.

    Args:
        name, resumes: see `preset_overrides`.
        overrides: see `override_config`; those of a whole config.json leave nothing of the preset.

    Raises:
        UsageError: see `preset_overrides` and `override_config`.
    """
    preset = preset_overrides(name, resumes)
    before, after = (override_config(vnet_cfg, texts) for texts in (preset, [*preset, *overrides]))
    keys = PRESETS[name] if name and preset else ()
    changed = [f"{key}={value_text(after[key])}" for key in keys if after[key] != before[key]]
    if changed:
        log.info(f"--preset {name}: not as it is, but with {' '.join(changed)}")
    return [*preset, *overrides]


def file_overrides(path: str | Path | None) -> list[str]:
    """Returns the overrides in a YAML or JSON file, such as a run's `config.json`.

    Args:
        path: of the file, JSON where it ends in .json; None for no overrides.

    Raises:
        DataError: the file cannot be read.
        UsageError: not a mapping of keys to values, an unknown key, a value of the wrong type or
            out of range; the message names the file, and of YAML the line.
    """
    if path is None:
        return []
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"--config {path}: cannot be read ({reason_of(error)})") from None
    except UnicodeDecodeError:
        raise DataError(
            f"--config {path}: cannot be read (not UTF-8 text); save it as UTF-8, YAML or JSON"
        ) from None
    if len(content) > LARGEST_FILE:
        raise DataError(
            f"--config {path}: larger than {LARGEST_FILE} bytes, expected a file of configuration "
            "keys"
        )
    try:
        is_json = path.suffix.lower() == ".json"
        return _json_overrides(path, text) if is_json else _yaml_overrides(path, text)
    except RecursionError:
        raise UsageError(f"--config {path}: nested too deeply; expected keys and values") from None


def _json_overrides(path: Path, text: str) -> list[str]:
    try:
        return [f"{name}={value_text(value)}" for name, value in _json_values(text).items()]
    except (ValueError, UsageError) as error:
        raise UsageError(f"--config {path}: {error}") from None


def _json_values(text: str) -> dict[str, Any]:
    """Returns the keys and values of a JSON text, all of them checked.

    Raises:
        ValueError: not JSON.
        UsageError: no object, an unknown key, a value of the wrong type or out of range.
    """
    values = json.loads(text, object_pairs_hook=_without_repeats)
    if not isinstance(values, dict):
        raise UsageError("expected an object of keys and values")
    for name, value in values.items():
        _check(_key(name), value)
    return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object as a dict; raises a UsageError for a key that appears twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise UsageError(f"{next(n for n in names if names.count(n) > 1)} appears twice")
    return values


def _yaml_overrides(path: Path, text: str) -> list[str]:
    """Parses every scalar as `--set` does: YAML would make `off` false and `1e-4` a string."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"--config {path}{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path}: {reason_of(error)}") from None
    if root is None:  # nothing but comments
        return []
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"--config {path}: expected lines such as `epochs: 100`")
    overrides: dict[str, str] = {}
    for name, value in root.value:
        where = f"--config {path}, line {name.start_mark.line + 1}"
        is_list = isinstance(value, yaml.SequenceNode)
        parts = value.value if is_list else [value]
        if not all(isinstance(part, yaml.ScalarNode) for part in (name, *parts)):
            raise UsageError(f"{where}: expected a key with a value or a list, such as epochs: 100")
        if name.value in overrides:
            raise UsageError(f"{where}: {name.value} appears twice")
        if any(part.tag == YAML_NULL for part in parts):  # not a folder called null
            raise UsageError(f"{where}: {name.value} has no value; give one or remove the line")
        text = ",".join(part.value for part in parts)
        overrides[name.value] = f"{name.value}=[{text}]" if is_list else f"{name.value}={text}"
        try:
            if is_list and _key(name.value).kind is str:
                raise UsageError(f"{name.value} is a list, expected text")
            override_config(vnet_cfg, [overrides[name.value]])
        except UsageError as error:
            raise UsageError(f"{where}: {str(error).removeprefix('--set ')}") from None
    return list(overrides.values())


def training_config(device_target: str, overrides: list[str]) -> EasyDict:
    """Returns `vnet_cfg` with overrides; a GPU has the zoo's lower `lr` unless one was chosen.

    Args:
        device_target: "Ascend", "GPU" or "CPU".
        overrides: see `override_config`.
    """
    config = override_config(vnet_cfg, overrides)
    if device_target == "GPU" and not _user_chose_lr(overrides):
        config.lr = ZOO_LR_ON_GPU
    return config


def _user_chose_lr(overrides: list[str]) -> bool:
    """Whether the learning rate comes from an override, or from a default edited in this file."""
    return vnet_cfg.lr != ZOO_LR or any(item.startswith("lr=") for item in overrides)


def _plain(value: Any) -> Any:
    """Converts a number of NumPy, in the digits that it prints, and a path; leaves the others."""
    if isinstance(value, Path):
        return str(value)
    number = value.item() if hasattr(value, "item") else value
    return float(str(value)) if isinstance(number, float) else number  # 0.45 of a float32, too


def mapping_overrides(values: Mapping[str, Any]) -> list[str]:
    """Returns the overrides of keys and values; a text is parsed as `--set` does.

    Raises:
        UsageError: an unknown key, or a value of another type.
    """
    overrides = []
    for name, value in values.items():
        if not isinstance(name, str):
            raise UsageError(f"{name!r}: expected the name of a configuration key")
        key = _key(name)
        is_list = isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1
        plain = list(map(_plain, value)) if is_list else _plain(value)
        if not isinstance(plain, str):
            _check(key, plain)
        overrides.append(f"{name}={value_text(plain)}")
    return overrides


# Files ------------------------------------------------------------------------------------------


def save_config(config: EasyDict, path: str | Path) -> None:
    """Writes `config` as JSON, whole or not at all.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    write_json(Path(path), config)


def load_config(path: str | Path) -> EasyDict:
    """Reads the file of `save_config`; keys added in later versions get their defaults.

    Raises:
        DataError: not JSON, an unknown key, or a value out of range.
    """
    try:
        saved = _json_values(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)})") from None
    except (ValueError, UsageError, RecursionError) as error:
        raise DataError(
            f"{path}: not a configuration of this version ({error}); restore it, or move it away"
        ) from None
    config = override_config({**vnet_cfg, **saved}, [])
    if "plane" not in saved and not config.normDir:
        log.info(
            f"note: {path} is of an earlier version, whose network saw the axes in the order of "
            "the files; train again unless the training images were stored left, posterior, "
            "superior"
        )
    return config


def config_path_of(checkpoint_path: str | Path) -> Path | None:
    """Returns the `config.json` beside a checkpoint or one folder up, None if there is none."""
    folder = Path(checkpoint_path).absolute().parent
    return next(
        (path for path in (folder / CONFIG_NAME, folder.parent / CONFIG_NAME) if path.is_file()),
        None,
    )


def config_of_checkpoint(checkpoint_path: str | Path, overrides: list[str]) -> EasyDict:
    """Returns the configuration that a checkpoint was trained with, changed by overrides.

    A checkpoint without `config.json` (the zoo's own) gets the defaults, which is logged.

    Args:
        checkpoint_path: of the checkpoint file.
        overrides: see `override_config`.

    Raises:
        UsageError: an override changes a key that the weights determine (variant, width,
            intensity), or one of the training that has no effect on a prediction.
    """
    path = config_path_of(checkpoint_path)
    if path is None:
        log.info(
            f"{checkpoint_path}: no {CONFIG_NAME} near it, using the defaults, --config and --set"
        )
        return override_config(vnet_cfg, overrides)
    return override_unfixed((*FIXED_BY_WEIGHTS, *OF_TRAINING), load_config(path), path, overrides)


def config_of_run(run_folder: str | Path, overrides: list[str]) -> EasyDict:
    """Returns the configuration to resume a run with: its own, changed by overrides.

    Args:
        run_folder: of the run.
        overrides: see `override_config`.

    Raises:
        UsageError: an override changes a key of `FIXED_BY_RUN`.
        DataError: not the folder of a run.
    """
    path = Path(run_folder, CONFIG_NAME)
    if not path.is_file():
        raise DataError(f"{run_folder}: not the folder of a run, which has a {CONFIG_NAME}")
    return override_unfixed(FIXED_BY_RUN, load_config(path), path, overrides)


def override_unfixed(
    fixed: tuple[str, ...], saved: EasyDict, path: str | Path, overrides: list[str]
) -> EasyDict:
    """Returns a saved configuration with overrides, which must not change some of its keys.

    Args:
        fixed: keys that must stay as they are.
        saved: the configuration.
        path: file that `saved` comes from, for the message.
        overrides: see `override_config`.

    Raises:
        UsageError: an override changes one of `fixed`.
    """
    config = override_config(saved, overrides)
    for key in fixed:
        if config[key] != saved[key]:
            raise UsageError(
                f"{key}={config[key]}: {path} has {key}={saved[key]}; leave it out of --set and "
                "--config"
            )
    return config


# Documentation ----------------------------------------------------------------------------------


def group_keys(group: str) -> list[Key]:
    """Returns the keys of one of `GROUPS`."""
    return [key for key in TABLE if key.group == group]


def markdown_table(group: str) -> str:
    """Returns the keys of a group as a Markdown table for docs/configuration.md."""
    rows = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key in group_keys(group):
        values = key.rule.words or KIND_WORDS[key.kind]
        rows.append(f"| `{key.name}` | {value_text(key.default)} | {values} | {key.help} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    for heading in GROUPS:
        print(f"## {heading}\n\n{markdown_table(heading)}")
