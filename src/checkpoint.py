"""Checkpoints: written atomically, loaded strictly; the state from which a run resumes.

A run's `ckpt/` holds weights (`checkpoint_vnet-EPOCH_STEP.ckpt`, `best.ckpt`, `last.ckpt`) and
`last_state.ckpt`: optimizer, loss scale and progress. Sample order, augmentation and dropout depend
on seed and step only, so nothing else is needed. With `ema_decay` the weights are the moving
average, except in `last.ckpt`, from which training continues; the state then also holds the
average. `last.ckpt` and `last_state.ckpt`, and a better `best.ckpt`, are replaced in one
transaction:

1. all are written under temporary names,
2. `last.commit` is created: from now on the new files are valid,
3. all are renamed over the old ones, and `last.commit` is removed.

A process killed before step 2 leaves the old files, one killed after it the new ones; `recover`
completes or discards an interrupted transaction.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from easydict import EasyDict
from mindspore import nn

from .checkpoint_file import BEST, epoch_and_step, is_numbered
from .config import config_path_of
from .utils.errors import DataError, reason_of
from .utils.files import follow_umask, replace_file, sync
from .utils.log import without_log
from .utils.stopping import unhurried
from .vnet import VARIANTS, VNet, create_vnet

LAST, STATE, COMMIT = "last.ckpt", "last_state.ckpt", "last.commit"
MINDSPORE_TEMPORARY = ".tmp"  # suffix under which save_checkpoint writes before it renames
PROGRESS = "progress"  # entry of the state, JSON
# Not in the state: the learning rates, which follow from the configuration (a resume may ask for
# more epochs), and the accumulated gradients, which are 0 at the end of an epoch.
ACCUMULATED = "accumulated"
AVERAGE = "average."  # prefix of the moving average's parameters in the state
LEFT_OUT = re.compile(rf"learning_rate$|{ACCUMULATED}\.")


class TrainingCells(NamedTuple):
    """The cells whose parameters a training changes and saves."""

    network: nn.Cell
    training_cell: nn.Cell  # one step: `network`, loss, optimizer, loss scale
    average: nn.Cell | None = None  # a network with the moving average of the weights

    @property
    def scored(self) -> nn.Cell:
        """The network that is validated and saved as a checkpoint: `average` if there is one."""
        return self.network if self.average is None else self.average


def _pending(path):
    """Temporary path of the next version of a checkpoint; MindSpore requires the suffix."""
    return path.with_name(f".{path.stem}.new.ckpt")


def _write(entries, path, extra=None):
    """Writes parameters to `path` and waits until they are on the disk."""
    try:
        with without_log():  # MindSpore's only guesses at the cause that the exception names
            ms.save_checkpoint(entries, str(path), append_dict=extra, crc_check=False)
        follow_umask(path)  # MindSpore's mode is 0400
        sync(path)
    except (OSError, RuntimeError, ValueError) as error:
        for half_written in (path, path.with_suffix(MINDSPORE_TEMPORARY)):
            half_written.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({reason_of(error, -1)})") from None


def _parameters_by_name(network, prefix=""):
    return {prefix + parameter.name: parameter for parameter in network.get_parameters()}


def _state_parameters(cells):
    """Name -> parameter of everything that an epoch changes outside the network."""
    weights = _parameters_by_name(cells.network)
    return {
        name: parameter
        for name, parameter in _parameters_by_name(cells.training_cell).items()
        if name not in weights and not LEFT_OUT.match(name)
    } | ({} if cells.average is None else _parameters_by_name(cells.average, AVERAGE))


def _entries(parameters):
    return [{"name": name, "data": parameter} for name, parameter in parameters.items()]


@unhurried()
def save_weights(network: nn.Cell, path: str | Path, half: bool = False) -> None:
    """Writes a network's parameters to `path`, replacing an earlier file atomically.

    Args:
        network: the network.
        path: of the checkpoint.
        half: whether to store the convolutions' weights in float16; `load_weights` converts them
            to float32.

    Raises:
        DataError: the folder cannot be written, the disk is full, or a weight exceeds float16.
    """
    path = Path(path)
    parameters = _parameters_by_name(network)
    if half:
        parameters |= _to_float16(
            {n: p for n, p in parameters.items() if n.endswith(".weight")}, path
        )
    with replace_file(path) as temporary:
        _write(_entries(parameters), temporary)


def _to_float16(weights, path):
    with np.errstate(over="ignore"):
        halved = {name: weight.asnumpy().astype(np.float16) for name, weight in weights.items()}
    for name, values in halved.items():
        if not np.isfinite(values).all():
            raise DataError(f"{path}: {name} exceeds float16's 65,504; share the checkpoint itself")
    return {name: ms.Tensor(values) for name, values in halved.items()}


@unhurried()
def save_last(
    folder: str | Path,
    cells: TrainingCells,
    progress: dict[str, Any],
    best: nn.Cell | None = None,
) -> None:
    """Replaces `last.ckpt` (the network) and `last_state.ckpt` (the rest) in one transaction.

    Args:
        folder: the run's `ckpt/`.
        cells: the network, the step (optimizer, global step, loss scale), the average.
        progress: JSON values, which `load_last` returns.
        best: the network whose Dice is the best so far; replaces `best.ckpt` in the same
            transaction, so that a resume from `progress` knows its Dice.

    Raises:
        DataError: the folder cannot be written or the disk is full; the old files stay.
    """
    folder = Path(folder)
    last, state = folder / LAST, folder / STATE
    others = _state_parameters(cells)
    try:
        if best is not None:
            _write(_entries(_parameters_by_name(best)), _pending(folder / BEST))
        _write(_entries(_parameters_by_name(cells.network)), _pending(last))
        _write(_entries(others), _pending(state), {PROGRESS: json.dumps(progress)})
    except DataError:
        recover(folder)
        raise
    (folder / COMMIT).touch()
    sync(folder)
    recover(folder)


def recover(folder: str | Path) -> None:
    """Completes a transaction that was committed, discards one that was not."""
    folder = Path(folder)
    for name in (BEST, LAST, STATE):
        pending = _pending(folder / name)
        if (folder / COMMIT).exists() and pending.exists():
            pending.replace(folder / name)
    for leftover in folder.glob(".*.new.*"):
        leftover.unlink()
    sync(folder)
    (folder / COMMIT).unlink(missing_ok=True)


def load_last(folder: str | Path, cells: TrainingCells) -> dict[str, Any] | None:
    """Loads `last.ckpt` and `last_state.ckpt` into the cells, after `recover`.

    Returns:
        The progress that `save_last` was given; None if there is no state, and nothing is loaded.

    Raises:
        DataError: the files cannot be read, or do not match the cells.
    """
    folder = Path(folder)
    state = _read_state(folder)
    if state is None:
        return None
    load_weights(cells.network, folder / LAST)
    progress = state.pop(PROGRESS)
    expected = _state_parameters(cells)
    shapes = {name: parameter.shape for name, parameter in expected.items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        raise DataError(
            f"{folder / STATE}: not the state of this training's optimizer; resume with the run's "
            "own configuration, on the kind of device where it was started"
        )
    for name, parameter in expected.items():
        parameter.set_data(ms.Tensor(state[name].asnumpy(), parameter.dtype))
    return json.loads(progress)


def read_progress(folder: str | Path) -> dict[str, Any] | None:
    """Returns the progress that `load_last` would return; loads nothing.

    Raises:
        DataError: the state cannot be read.
    """
    state = _read_state(Path(folder))
    return None if state is None else json.loads(state[PROGRESS])


def _read_state(folder):
    """The entries of a run's state, after `recover`; None if there is none."""
    recover(folder)
    path = folder / STATE
    if not path.is_file():
        return None
    state = _read(path)
    if PROGRESS not in state:
        raise DataError(f"{path}: not the state of a run; move the run away")
    return state


def prune(folder: str | Path, keep: int) -> None:
    """Removes the numbered checkpoints except the newest `keep`; leaves other files alone.

    Raises:
        ValueError: `keep` below 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1")
    numbered = sorted(filter(is_numbered, Path(folder).iterdir()), key=epoch_and_step)
    for path in numbered[:-keep]:
        path.unlink()


def _read(path):
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint")
    try:
        with path.open("rb"):
            pass  # MindSpore would call an unreadable file damaged
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)})") from None
    try:
        with without_log():
            entries = ms.load_checkpoint(str(path))
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        raise DataError(
            f"{path}: not a complete MindSpore checkpoint ({reason_of(error)}); copy it again or "
            "use another"
        ) from None
    return entries


def load_vnet(path: str | Path, config: EasyDict) -> VNet:
    """Creates a configuration's network with the weights of a checkpoint, see `load_weights`."""
    network = create_vnet(config)
    load_weights(network, path)
    return network


def load_weights(network: nn.Cell, path: str | Path) -> None:
    """Loads a checkpoint into a network; names and shapes must match exactly.

    Raises:
        DataError: the file is missing or truncated, of another variant, width or program, or has
            NaN or infinity.
    """
    found = _read(path)
    if PROGRESS in found:
        raise DataError(f"{path}: the state of an optimizer, not weights; use {LAST} beside it")
    found = {name: value for name, value in found.items() if isinstance(value, ms.Parameter)}
    expected = {parameter.name: parameter for parameter in network.get_parameters()}
    wrong = next(
        (
            name
            for name in (*expected, *found)
            if name not in found
            or name not in expected
            or found[name].shape != expected[name].shape
        ),
        None,
    )
    if wrong is not None:
        raise DataError(f"{path}: {_mismatch(wrong, expected, found, config_path_of(path))}")
    for name, parameter in expected.items():
        values = found[name].asnumpy()
        if not np.isfinite(values).all():
            raise DataError(
                f"{path}: {name} has NaN or infinity: damaged, or its training diverged; take "
                "another checkpoint"
            )
        parameter.set_data(ms.Tensor(values, parameter.dtype))


def _mismatch(name, expected, found, config_path):
    """Describes how a checkpoint differs from the network."""
    fitting = fitting_architecture({key: tuple(value.shape) for key, value in found.items()})
    if fitting:
        variant, width = fitting
        remedy = (
            "copy its run's config.json beside it; if that is lost, --set variant="
            f"{variant} --set width={width} and the grid, intensities and threshold of its training"
        )
        if config_path:  # which `--set` may not contradict
            remedy = f"restore {config_path}"
        return (
            f"holds a V-Net of variant={variant}, width={width}, not of this configuration; "
            f"{remedy}"
        )
    if name not in found:
        return (
            f"has no parameter {name}; expected a V-Net checkpoint, whole and of this configuration"
        )
    if name not in expected:
        return f"has a parameter {name} that this V-Net does not have; expected a V-Net checkpoint"
    return f"{name} has shape {found[name].shape}, expected {expected[name].shape}"


def fitting_architecture(shapes: dict[str, tuple[int, ...]]) -> tuple[str, int] | None:
    """Returns (variant, width) of the V-Net with exactly these parameters, None if there is none.

    Args:
        shapes: parameter name -> shape.
    """
    width = shapes.get("in_tr.conv.weight", (0,))[0]
    for name, variant in VARIANTS.items():
        if width and {p.name: p.shape for p in VNet(variant, width).get_parameters()} == shapes:
            return name, width
    return None
