"""Checkpoints: written whole or not at all, loaded strictly, and all that a resume needs.

A run's `ckpt/` holds weights (`checkpoint_vnet-EPOCH_STEP.ckpt`, `best.ckpt`, `last.ckpt`) and
`last_state.ckpt`: the optimizer, the loss scale, the progress. Order, augmentation and dropout
follow from seed and step, so that is all. With `ema_decay` all weights are the moving average's,
but for `last.ckpt`, with which a resume goes on; the state then holds the average too. `last.ckpt`
and `last_state.ckpt` are replaced as one transaction:

1. both are written under other names,
2. `last.commit` appears: from now on the new pair counts,
3. both are renamed over the old pair, and `last.commit` goes.

A process that dies before step 2 leaves the old pair, one that dies after it leaves the new pair;
`recover` finishes or forgets what was under way.
"""

import json
import logging
import re
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from .utils.errors import DataError, reason_of
from .utils.files import follow_umask, replace_file, sync
from .vnet import VARIANTS, VNet

log = logging.getLogger(__name__)

PREFIX = "checkpoint_vnet"
NUMBERED = re.compile(rf"{PREFIX}-\d+_\d+\.ckpt")
BEST, LAST, STATE, COMMIT = "best.ckpt", "last.ckpt", "last_state.ckpt", "last.commit"
RELEASED = "vnet.ckpt"  # of a released folder
MINDSPORE_TEMPORARY = ".tmp"  # suffix under which save_checkpoint writes before it renames
PROGRESS = "progress"  # entry of the state, JSON
# Not in the state. The optimizer's rates follow from the configuration, where a resume may ask for
# more epochs; accumulated gradients are 0 at the end of an epoch.
ACCUMULATED = "accumulated"
AVERAGE = "average."  # prefix of the moving average's parameters in the state
LEFT_OUT = re.compile(rf"learning_rate$|{ACCUMULATED}\.")


def _pending(path):
    """Where the next version of a checkpoint is written; MindSpore insists on the suffix."""
    return path.with_name(f".{path.stem}.new.ckpt")


@contextmanager
def _without_log():
    """MindSpore logs a guess at what is wrong, and then raises what is."""
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(disabled)


def _write(entries, path, extra=None):
    """Writes parameters to `path` for good: data and name are on the disk when this returns."""
    try:
        with _without_log():
            ms.save_checkpoint(entries, str(path), append_dict=extra, crc_check=False)
        follow_umask(path)  # MindSpore's mode is 0400
        sync(path)
    except (OSError, RuntimeError, ValueError) as error:
        for half_written in (path, path.with_suffix(MINDSPORE_TEMPORARY)):
            half_written.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({reason_of(error, -1)})") from None


def _named(network, prefix=""):
    return {prefix + parameter.name: parameter for parameter in network.get_parameters()}


def _state_parameters(network, training_cell, average):
    """Name -> parameter, of all that an epoch changes besides the network."""
    weights = _named(network)
    return {
        name: parameter
        for name, parameter in _named(training_cell).items()
        if name not in weights and not LEFT_OUT.match(name)
    } | ({} if average is None else _named(average, AVERAGE))


def _entries(parameters):
    return [{"name": name, "data": parameter} for name, parameter in parameters.items()]


def save_weights(network: nn.Cell, path: str | Path, half: bool = False) -> None:
    """Writes a network's parameters to `path`, replacing what was there in one step.

    Args:
        network: whose parameters.
        path: of the checkpoint.
        half: the convolutions' weights in float16; `load_weights` brings them back to float32.

    Raises:
        DataError: the folder cannot be written, the disk is full, or a weight is beyond float16.
    """
    path = Path(path)
    parameters = _named(network)
    if half:
        parameters |= _halved({n: p for n, p in parameters.items() if n.endswith(".weight")}, path)
    with replace_file(path) as temporary:
        _write(_entries(parameters), temporary)


def _halved(weights, path):
    with np.errstate(over="ignore"):
        halved = {name: weight.asnumpy().astype(np.float16) for name, weight in weights.items()}
    for name, values in halved.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"{path}: {name} goes beyond float16's 65,504; share the checkpoint itself"
            )
    return {name: ms.Tensor(values) for name, values in halved.items()}


def save_last(
    folder: str | Path,
    network: nn.Cell,
    training_cell: nn.Cell,
    progress: dict[str, int | float | list[str]],
    average: nn.Cell | None = None,
) -> None:
    """Replaces `last.ckpt` and `last_state.ckpt` as one transaction.

    Args:
        folder: the run's `ckpt/`.
        network: its parameters become `last.ckpt`.
        training_cell: every further parameter in it (optimizer, global step, loss scale) becomes
            `last_state.ckpt`.
        progress: what to go on from.
        average: the network of the weights' moving average, which goes into the state too.
    """
    folder = Path(folder)
    last, state = folder / LAST, folder / STATE
    others = _state_parameters(network, training_cell, average)
    try:
        _write(_entries(_named(network)), _pending(last))
        _write(_entries(others), _pending(state), {PROGRESS: json.dumps(progress)})
    except DataError:
        recover(folder)
        raise
    (folder / COMMIT).touch()
    sync(folder)
    recover(folder)


def recover(folder: str | Path) -> None:
    """Finishes a transaction that was committed, forgets one that was not."""
    folder = Path(folder)
    for name in (LAST, STATE):
        pending = _pending(folder / name)
        if (folder / COMMIT).exists() and pending.exists():
            pending.replace(folder / name)
    for leftover in folder.glob(".*.new.*"):
        leftover.unlink()
    sync(folder)
    (folder / COMMIT).unlink(missing_ok=True)


def can_resume(folder: str | Path) -> bool:
    """Whether a run's `ckpt/` holds a whole state; a transaction under way is settled first."""
    recover(folder)
    return Path(folder, STATE).is_file()


def load_last(
    folder: str | Path, network: nn.Cell, training_cell: nn.Cell, average: nn.Cell | None = None
) -> dict[str, int | float | list[str]]:
    """Puts `last.ckpt` and `last_state.ckpt` back.

    Returns:
        The progress that `save_last` was given.

    Raises:
        DataError: there is nothing to resume from, or it does not fit.
    """
    folder = Path(folder)
    recover(folder)
    load_weights(network, folder / LAST)
    state = _read(folder / STATE)
    progress = state.pop(PROGRESS, None)
    expected = _state_parameters(network, training_cell, average)
    shapes = {name: parameter.shape for name, parameter in expected.items()}
    if progress is None or shapes != {name: value.shape for name, value in state.items()}:
        raise DataError(
            f"{folder / STATE}: not the state of this optimizer; resume with the run's own "
            "configuration"
        )
    for name, parameter in expected.items():
        parameter.set_data(ms.Tensor(state[name].asnumpy(), parameter.dtype))
    return json.loads(progress)


def prune(folder: str | Path, keep: int) -> None:
    """Removes all numbered checkpoints but the newest `keep`; other files stay.

    Raises:
        ValueError: `keep` below 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1")
    numbered = sorted(filter(_is_numbered, Path(folder).iterdir()), key=epoch_and_step)
    for path in numbered[:-keep]:
        path.unlink()


def epoch_and_step(path: str | Path) -> tuple[int, int]:
    """(epoch, step) of a checkpoint called `checkpoint_vnet-EPOCH_STEP.ckpt`.

    Raises:
        ValueError: another name.
    """
    if not NUMBERED.fullmatch(Path(path).name):
        raise ValueError(f"{path}: expected the name {PREFIX}-EPOCH_STEP.ckpt")
    epoch, step = Path(path).stem.rsplit("-", 1)[1].split("_")
    return int(epoch), int(step)


def find_checkpoint(path: str | Path) -> Path:
    """Returns the checkpoint that a path means; of a folder, the log says which.

    Args:
        path: a checkpoint; a run's folder or its `ckpt/`, of which `best.ckpt` is taken, or without
            it the newest numbered checkpoint; or a released folder, of which `vnet.ckpt` is taken.

    Raises:
        DataError: nothing there, or a folder without any of these.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such checkpoint or folder")
        return path
    folder = path / "ckpt" if (path / "ckpt").is_dir() else path
    numbered = sorted(filter(_is_numbered, folder.iterdir()), key=epoch_and_step)
    candidates = [folder / BEST, *numbered[::-1], path / RELEASED]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        names = sorted(file.name for file in path.iterdir())
        shown = ", ".join(names[:5]) + (", ..." if names[5:] else "")
        raise DataError(
            f"{path}: no checkpoint in this folder, which holds {shown or 'nothing'}; expected "
            f"a run with ckpt/{BEST} or ckpt/{PREFIX}-EPOCH_STEP.ckpt, or a release with {RELEASED}"
        )
    log.info(f"{path}: taking its {found.relative_to(path)}")
    return found


def _is_numbered(path):
    return NUMBERED.fullmatch(path.name) is not None


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
        with _without_log():
            entries = ms.load_checkpoint(str(path))
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        raise DataError(
            f"{path}: not a whole MindSpore checkpoint ({reason_of(error)}); copy it again or take "
            "another"
        ) from None
    return entries


def load_weights(network: nn.Cell, path: str | Path) -> None:
    """Loads a checkpoint into a network: exactly its parameters, with their shapes.

    Raises:
        DataError: missing, truncated, of another variant or width, or of another program.
    """
    found = _read(path)
    if PROGRESS in found:
        raise DataError(f"{path}: the state of an optimizer, not weights; take {LAST} beside it")
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
        raise DataError(f"{path}: {_mismatch(wrong, expected, found)}")
    for name, parameter in expected.items():
        parameter.set_data(ms.Tensor(found[name].asnumpy(), parameter.dtype))


def _mismatch(name, expected, found):
    """In words, what a checkpoint is instead of what was expected."""
    fitting = fitting_architecture({key: tuple(value.shape) for key, value in found.items()})
    if fitting:
        variant, width = fitting
        return (
            f"holds a V-Net of variant={variant}, width={width}, not of this configuration; "
            f"use --set variant={variant} --set width={width}"
        )
    if name not in found:
        return (
            f"has no parameter {name}; expected a V-Net checkpoint, whole and of this configuration"
        )
    if name not in expected:
        return f"has a parameter {name} that this V-Net has not; expected a V-Net checkpoint"
    return f"{name} has shape {found[name].shape}, expected {expected[name].shape}"


def fitting_architecture(shapes: dict[str, tuple[int, ...]]) -> tuple[str, int] | None:
    """(variant, width) of the V-Net with exactly these parameters, None if there is none.

    Args:
        shapes: parameter name -> shape.
    """
    width = shapes.get("in_tr.conv.weight", (0,))[0]
    for variant, options in VARIANTS.items():
        if width and {p.name: p.shape for p in VNet(width, **options).get_parameters()} == shapes:
            return variant, width
    return None
