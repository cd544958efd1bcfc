"""Several trained networks as one: the mean of their probabilities on the network grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from easydict import EasyDict

from .checkpoint_file import find_checkpoints
from .config import GRID_KEYS, OUTPUT_KEYS, config_of_checkpoint
from .utils.errors import DataError, UsageError, reason_of
from .utils.files import hash_file

if TYPE_CHECKING:
    import mindspore as ms
    from mindspore import nn

# Keys in which the networks must agree, besides `OUTPUT_KEYS`. Variant and width may differ, and so
# may all that only mattered to the training.
INPUT_KEYS = (*GRID_KEYS, "channel", "labels", "plane")


class Member(NamedTuple):
    """One of the networks, or the only one."""

    checkpoint: Path
    config: EasyDict
    sha256: str  # of the checkpoint when it was found


def find_members(
    paths: str | Path | Sequence[str | Path], overrides: list[str]
) -> tuple[Member, ...]:
    """Returns the checkpoints at one or several paths, with their configurations.

    Args:
        paths: see `find_checkpoints`.
        overrides: see `config_of_checkpoint`; for all of them.

    Raises:
        DataError: a checkpoint is missing or damaged, the same is named twice, or they do not go
            together, see `check_agreement`.
        UsageError: see `config_of_checkpoint`; or no path.
    """
    members = tuple(
        Member(path, config_of_checkpoint(path, overrides), hash_checkpoint(path))
        for path in find_checkpoints(paths)
    )
    if not members:
        raise UsageError("no checkpoint is named, expected at least one")
    check_agreement(members)
    _check_distinct(members)
    return members


def check_agreement(members: Sequence[Member]) -> None:
    """Raises a DataError if networks differ in their inputs or in what becomes of their mean."""
    first = members[0]
    for other in members[1:]:
        for key in (*INPUT_KEYS, *OUTPUT_KEYS):
            if other.config[key] != first.config[key]:
                remedy = "average only networks that agree in it"
                if key in OUTPUT_KEYS:
                    remedy = f"give --set {key}=VALUE for all"
                raise DataError(
                    f"{first.checkpoint} has {key}={first.config[key]}, {other.checkpoint} "
                    f"{key}={other.config[key]}; {remedy}"
                )


def _check_distinct(members: Sequence[Member]) -> None:
    """Raises a DataError if two checkpoints have the same content, which would count twice."""
    paths: dict[str, Path] = {}
    for path, _, sha256 in members:
        first = paths.setdefault(sha256, path)
        if first is not path:
            twice = "named twice" if first == path else f"the same network as {first}"
            raise DataError(f"{path}: {twice}, which would count double; name each network once")


def origin_of(hashes: Mapping[Path, str]) -> dict[str, str | dict[str, str]]:
    """Returns what results say about the networks that they are of, for JSON.

    A path alone would not do: a training that goes on replaces its best.ckpt.

    Args:
        hashes: checkpoint -> its SHA-256.

    Returns:
        "checkpoint" with its path, and "checkpoint_sha256"; of several "checkpoints", a dict of
        paths and SHA-256.
    """
    named = {str(path): sha256 for path, sha256 in hashes.items()}
    if len(named) > 1:
        return {"checkpoints": named}
    [(checkpoint, sha256)] = named.items()
    return {"checkpoint": checkpoint, "checkpoint_sha256": sha256}


def origin_of_members(members: Sequence[Member]) -> dict[str, str | dict[str, str]]:
    """`origin_of` of networks that were found."""
    return origin_of({member.checkpoint: member.sha256 for member in members})


def check_unchanged(checkpoint: Path, sha256: str) -> None:
    """Raises a DataError if a checkpoint has been replaced since its hash was taken.

    To be called once it is loaded: its weights are then those of the hash.
    """
    if hash_checkpoint(checkpoint) != sha256:
        raise DataError(
            f"{checkpoint}: replaced while it was read, perhaps by a training that goes on; start "
            "again"
        )


def hash_checkpoint(checkpoint: Path) -> str:
    """Returns the SHA-256 of a checkpoint; raises a DataError if it cannot be read."""
    try:
        return hash_file(checkpoint)
    except OSError as error:
        raise DataError(f"{checkpoint}: cannot be read ({reason_of(error)})") from None


class LoadedMember(NamedTuple):
    """A network of an ensemble, with its weights."""

    checkpoint: Path
    cell: "nn.Cell"  # in evaluation mode; networks of one architecture and precision share it
    weights: list[tuple["ms.Parameter", "ms.Tensor"]]  # of the cell, and their values


class Ensemble:
    """Networks that are called as if they were one.

    A cell is compiled once for all networks that share it, which takes seconds; it is then
    pointed to the weights of one after the other, which takes less than a millisecond.

    Args:
        members: the networks.
    """

    training = False

    def __init__(self, members: Sequence[LoadedMember]) -> None:
        self.members = members

    def __call__(self, batch: "ms.Tensor") -> "ms.Tensor":
        """Returns the mean of the networks' probabilities, (batch, X, Y, Z) float32 in 0..1.

        Args:
            batch: (batch, 1, X, Y, Z).

        Raises:
            DataError: NaN or infinity in the output of a network, which is named.
        """
        import mindspore as ms

        total = np.float32(0)
        for member in self.members:
            for parameter, value in member.weights:
                parameter.set_data(value)
            probability = member.cell(batch).asnumpy()
            if not np.isfinite(probability).all():
                raise DataError(
                    f"{member.checkpoint}: the network's output has NaN or infinity; leave it out"
                )
            total = total + probability
        return ms.Tensor(total / np.float32(len(self.members)))
