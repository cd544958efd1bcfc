"""The configuration: the zoo's keys and defaults, ours, and how a run keeps and returns them."""

import difflib
import json
import logging
import math
import re
from pathlib import Path

from easydict import EasyDict

from .images.orientation import PLANES
from .loss import LOSSES
from .utils.errors import DataError, UsageError
from .utils.files import write_files
from .vnet import SIDE_MULTIPLE, VARIANTS

log = logging.getLogger(__name__)

vnet_cfg = EasyDict(
    {
        # The model zoo's.
        "task": "promise12",
        "fold": 0,  # which of create_csv.py's --folds files a split folder means
        "dirResult": "results/infer",  # runs are made here
        "dirPredictionImage": "results/prediction",  # masks and metrics are written here
        "normDir": False,  # align the network grid with the patient axes
        # Network grid, whose axes x, y, z run to the patient's left, back, head: voxel size in mm,
        # and voxels.
        "dstRes": [1.0, 1.0, 1.5],
        "VolSize": [128, 128, 64],
        "batch_size": 4,
        "epochs": 500,
        "lr": 0.001,  # on a GPU 0.0005, unless set
        "weight_decay": 1e-4,  # L2, not on batch norm and biases
        "momentum": 0.99,  # of optimizer 'momentum'
        "warmup_step": 120,
        "warmup_ratio": 0.3,
        # Ours: image.
        "intensity": "rescale",  # darkest to brightest; or equalize: no coil's field, by histogram
        "channel": -1,  # which volume of a 4-D file is the image, from 0; -1: files are 3-D
        "labels": [],  # mask values that are the prostate; none: masks hold 0 and 1
        # Plane of acquisition of the training's stacks; another's are listed. auto: of most cases.
        "plane": "auto",
        # Ours: network.
        "variant": "zoo",
        "width": 16,  # channels of the first stage
        "dropout": 0.5,  # share of the channels dropped in training, where the variant drops any
        "fast_conv3d": "auto",  # on CPU: auto: where it can be built; on: or fail; off: never
        # Ours: training.
        "accumulate_steps": 1,  # batches whose mean gradient makes one step of the optimizer
        "sync_batch_norm": False,  # statistics over all devices' batches; on Ascend only
        "seed": 1,  # rules weights, order, augmentation and dropout
        "optimizer": "adam",
        "loss": "dice",  # or dice_ce: plus cross-entropy
        "ema_decay": 0.0,  # moving average of the weights, a step an epoch; 0: off
        "precision": "auto",  # auto: mixed on Ascend and GPU, float32 on CPU
        "loss_scale": 256.0,  # start of the dynamic loss scale in mixed precision
        "dataset_sink": "auto",  # auto: on for Ascend and GPU, off on CPU
        "num_workers": 0,  # threads that read and augment cases; 0: one per core, at most 8
        "val_interval": 10,  # epochs between validations
        "save_interval": 1,  # epochs between checkpoints
        "early_stop": 0,  # validations without a better Dice after which training ends; 0: never
        "keep_checkpoint_max": 10,  # numbered checkpoints that are kept
        "cache_dir": "auto",  # preprocessed cases; auto: the user's cache folder; off: none
        # Ours: probability of each transform of a training sample (src/augment.py).
        "augment_flip": 0.0,  # left and right
        "augment_rotate": 0.0,
        "augment_scale": 0.0,
        "augment_shift": 0.0,
        "augment_deform": 0.0,  # the paper's B-splines
        "augment_histogram": 0.0,  # the paper's matching to another training case
        "augment_gamma": 0.0,
        "augment_bias": 0.0,  # a smooth field, as of a coil
        "augment_low_resolution": 0.0,
        "augment_blur": 0.0,
        "augment_noise": 0.0,
        # Ours: prediction.
        "threshold": 0.5,  # foreground is where the probability is above it
        "flip_average": False,  # average the prediction over a left-right flip
    }
)
CHOICES = {
    "intensity": ("rescale", "equalize"),
    "plane": ("auto", *PLANES),
    "variant": tuple(VARIANTS),
    "optimizer": ("adam", "momentum"),
    "loss": tuple(LOSSES),
    "precision": ("auto", "float32", "mixed"),
    "dataset_sink": ("auto", "off"),
    "fast_conv3d": ("auto", "on", "off"),
}
AUGMENT_KEYS = tuple(key for key in vnet_cfg if key.startswith("augment_"))
# Key -> (what holds, in words). Checked whenever a configuration is made.
RULES = {
    "dstRes": (lambda v: len(v) == 3 and all(r > 0 for r in v), "three positive sizes in mm"),
    "VolSize": (
        lambda v: len(v) == 3 and all(s > 0 and s % SIDE_MULTIPLE == 0 for s in v),
        f"three multiples of {SIDE_MULTIPLE}, since V-Net halves each side four times",
    ),
    "channel": (lambda v: v >= -1, "at least -1"),
    "labels": (
        lambda v: len(set(v)) == len(v) and all(label > 0 for label in v),
        "different whole numbers above 0",
    ),
    "dropout": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "momentum": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "ema_decay": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "task": (lambda v: re.fullmatch(r"[\w -]+", v) is not None, "letters, digits, space, _ and -"),
    "threshold": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    **dict.fromkeys(("warmup_ratio", *AUGMENT_KEYS), (lambda v: 0 <= v <= 1, "between 0 and 1")),
    **dict.fromkeys(
        (
            "batch_size",
            "accumulate_steps",
            "epochs",
            "width",
            "val_interval",
            "save_interval",
            "keep_checkpoint_max",
        ),
        (lambda v: v >= 1, "at least 1"),
    ),
    **dict.fromkeys(
        ("fold", "weight_decay", "warmup_step", "seed", "num_workers", "early_stop"),
        (lambda v: v >= 0, "at least 0"),
    ),
    **dict.fromkeys(("lr", "loss_scale"), (lambda v: v > 0, "above 0")),
}
# Settings that serve together; docs/accuracy.md says how they were found.
PRESETS = {
    "accurate": {
        "variant": "instance",
        "width": 8,
        "VolSize": [80, 80, 32],
        "dstRes": [1.4, 1.4, 3.25],
        "intensity": "equalize",
        "batch_size": 1,
        "epochs": 500,
        "lr": 0.002,  # on a GPU too
        "dropout": 0.2,
        "loss": "dice_ce",
        "ema_decay": 0.9,
        "threshold": 0.45,
        "flip_average": True,
        **dict.fromkeys(
            [f"augment_{name}" for name in ("flip", "rotate", "scale", "shift", "deform")], 0.5
        ),
        **dict.fromkeys([f"augment_{name}" for name in ("gamma", "bias", "noise")], 0.3),
        **dict.fromkeys([f"augment_{name}" for name in ("blur", "low_resolution")], 0.2),
    },
}
PRESETS["compact"] = {
    **PRESETS["accurate"],
    "width": 4,
    "VolSize": [64, 64, 32],
    "dstRes": [1.75, 1.75, 3.25],
}
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "numbers with commas",
}
CONFIG_NAME = "config.json"
FIXED_BY_WEIGHTS = ("variant", "width", "intensity")
# What a resumed run must not change: its later steps would not be those of the run it continues.
FIXED_BY_RUN = (
    *FIXED_BY_WEIGHTS,
    *("VolSize", "dstRes", "normDir", "channel", "labels"),
    *("batch_size", "accumulate_steps", "sync_batch_norm"),
    *("seed", "dropout", "optimizer", "loss", "ema_decay", *AUGMENT_KEYS),
)
GPU_LEARNING_RATE = 0.0005


def _parsed(key, text, default):
    """`text` as a value of the default's type."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, list):
            parts = [part for part in text.strip("[]() ").split(",") if part or default]
            return [_kind(default)(part) for part in parts]
        return type(default)(text)
    except (KeyError, ValueError):
        raise UsageError(
            f"--set {key}={text}: expected {KINDS[type(default)]}, such as {_as_text(default)}"
        ) from None


def _kind(default):
    """The type of the numbers of a list; those of an empty one are whole."""
    return type(default[0]) if default else int


def _as_text(value):
    """A value as `_parsed` reads it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_like(value, default):
    """Whether a value, such as one of a `config.json`, has the default's type."""
    if isinstance(default, list):
        return isinstance(value, list) and all(_is_like(part, _kind(default)()) for part in value)
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)


def _checked(key, value):
    if not _is_like(value, vnet_cfg[key]):
        raise UsageError(f"{key} is {value!r}, expected something like {vnet_cfg[key]!r}")
    if key in CHOICES and value not in CHOICES[key]:
        raise UsageError(f"{key} is {value!r}, expected one of {', '.join(CHOICES[key])}")
    holds, words = RULES.get(key, (lambda _: True, ""))
    if not holds(value):
        raise UsageError(f"{key} is {value}, expected {words}")
    return value


def _known(key):
    if key not in vnet_cfg:
        nearest = difflib.get_close_matches(key, vnet_cfg, n=1, cutoff=0.3)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(vnet_cfg)}"
        raise UsageError(f"unknown configuration key {key!r}{hint}")
    return key


def overridden(config: dict, overrides: list[str]) -> EasyDict:
    """A copy of `config` with `key=value` texts applied, all of it checked.

    Args:
        config: with the keys of `vnet_cfg`.
        overrides: such as ["VolSize=64,64,32", "lr=0.01"].

    Raises:
        UsageError: unknown key (the nearest is named), a value of the wrong type or out of range.
    """
    result = EasyDict(json.loads(json.dumps(config)))
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise UsageError(f"--set {item}: expected key=value")
        result[key] = _parsed(key, text, vnet_cfg[_known(key)])
    for key, value in result.items():
        _checked(key, value)
    return result


def preset(name: str | None, resumes: bool = False) -> list[str]:
    """The `--set` texts of one of `PRESETS`; none without a name, or for a run that goes on.

    Raises:
        UsageError: no such preset.
    """
    if name is None:
        return []
    if name not in PRESETS:
        raise UsageError(f"--preset {name}: expected one of {', '.join(PRESETS)}")
    if resumes:
        log.info(f"the run keeps its own settings, --preset {name} is left out")
        return []
    return [f"{key}={_as_text(value)}" for key, value in PRESETS[name].items()]


def training_config(device_target: str, overrides: list[str]) -> EasyDict:
    """`vnet_cfg` with `overrides`; on a GPU the zoo's lower rate, unless one was chosen."""
    config = overridden(vnet_cfg, overrides)
    chosen = vnet_cfg.lr != 0.001 or any(item.startswith("lr=") for item in overrides)
    if device_target == "GPU" and not chosen:
        config.lr = GPU_LEARNING_RATE
    return config


def save_config(config: EasyDict, path: str | Path) -> None:
    """Writes `config` as JSON, whole or not at all.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    write_files({Path(path): f"{json.dumps(config, indent=2)}\n".encode()})


def load_config(path: str | Path) -> EasyDict:
    """The configuration that `save_config` wrote; keys that came later get their defaults.

    Raises:
        DataError: not JSON, an unknown key, or a value out of range.
    """
    try:
        saved = json.loads(Path(path).read_text())
        unknown = [key for key in saved if key not in vnet_cfg]
        if unknown:
            raise UsageError(f"unknown key {unknown[0]!r}, written by another version?")
        config = overridden({**vnet_cfg, **saved}, [])
    except (ValueError, AttributeError, TypeError, UsageError) as error:
        raise DataError(
            f"{path}: no configuration of this program ({error}); restore it, or move it away"
        ) from None
    if "plane" not in saved and not config.normDir:
        log.info(
            f"note: {path} is of an earlier version, whose network saw the axes as the files store "
            "them; if those of its training were not left, posterior, superior, train it anew"
        )
    return config


def config_path_of(checkpoint_path: str | Path) -> Path | None:
    """The `config.json` of a checkpoint: beside it or one folder up, None if there is none."""
    folder = Path(checkpoint_path).absolute().parent
    return next(
        (path for path in (folder / CONFIG_NAME, folder.parent / CONFIG_NAME) if path.is_file()),
        None,
    )


def config_of_checkpoint(checkpoint_path: str | Path, overrides: list[str]) -> EasyDict:
    """The configuration that fits a checkpoint's weights, with `overrides` on top.

    A checkpoint without `config.json` (the zoo's own) gets the defaults, and a line says so.

    Raises:
        UsageError: an override of what the weights fix (variant, width, intensity).
    """
    path = config_path_of(checkpoint_path)
    if path is None:
        log.info(f"{checkpoint_path}: no {CONFIG_NAME} near it, taking the defaults and --set")
        return overridden(vnet_cfg, overrides)
    return keeping(FIXED_BY_WEIGHTS, load_config(path), path, overrides)


def config_of_run(run_folder: str | Path, overrides: list[str]) -> EasyDict:
    """The configuration to resume a run with: its own, with `overrides` on top.

    Raises:
        UsageError: an override of what the run's earlier steps fix.
        DataError: not the folder of a run.
    """
    path = Path(run_folder, CONFIG_NAME)
    if not path.is_file():
        raise DataError(f"{run_folder}: no {CONFIG_NAME}, not the folder of a run")
    return keeping(FIXED_BY_RUN, load_config(path), path, overrides)


def keeping(
    keys: tuple[str, ...], saved: EasyDict, path: str | Path, overrides: list[str]
) -> EasyDict:
    """A saved configuration with `overrides`, which must leave `keys` as they are.

    Args:
        keys: that are fixed.
        saved: the configuration.
        path: of the file that it comes from, for the message.
        overrides: see `overridden`.

    Raises:
        UsageError: an override of one of `keys`.
    """
    config = overridden(saved, overrides)
    for key in keys:
        if config[key] != saved[key]:
            raise UsageError(
                f"--set {key}={config[key]}: {path} has {key}={saved[key]}; leave it out"
            )
    return config
