"""Packs a checkpoint for publication: float16 weights, configuration and checksums."""

import logging
from collections.abc import Sequence
from pathlib import Path

from easydict import EasyDict

from ..checkpoint import load_weights, save_weights
from ..checkpoint_file import CHECKSUMS, ENSEMBLE, RELEASED, write_ensemble
from ..config import CONFIG_NAME, config_path_of, save_config, vnet_cfg
from ..ensemble import Member
from ..utils import output_folder
from ..utils.errors import DataError
from ..utils.files import hash_file, write_files
from ..vnet import create_vnet

log = logging.getLogger(__name__)

NETWORK = "network"  # name of an ensemble's folders, before their number
# Keys that describe the machine of the training; a release has their defaults.
MACHINE_KEYS = (
    *("dirResult", "dirPredictionImage", "cache_dir", "num_workers"),
    *("fast_conv3d", "precision", "dataset_sink"),
)


def release_members(members: Sequence[Member], folder: str | Path) -> None:
    """Releases a network, or several as an ensemble: each in its own folder, and a list of them.

    Args:
        members: from `find_members`.
        folder: created if missing.

    Raises:
        DataError: see `release`; or the folder holds a release of one network and this one is of
            several, or the other way round, or of more networks.
    """
    folder = Path(folder)
    names = [f"{NETWORK}{number}" for number in range(len(members))]
    others = {RELEASED} | {path.name for path in folder.glob(f"{NETWORK}*")}.difference(names)
    if len(members) == 1:
        others = {ENSEMBLE}
    if mixed := sorted(name for name in others if (folder / name).exists()):
        raise DataError(
            f"{folder / mixed[0]}: of a release of another kind; choose another folder, or remove "
            "that release"
        )
    if len(members) == 1:
        release(*members[0], folder)
        return
    output_folder.claim(folder, [ENSEMBLE])
    (folder / ENSEMBLE).unlink(missing_ok=True)  # written last, when all networks are complete
    for member, name in zip(members, names, strict=True):
        release(*member, folder / name)
    write_ensemble(folder, [folder / name / RELEASED for name in names])
    log.info(f"{folder}: {len(members)} networks, listed in {ENSEMBLE}")


def release(checkpoint_path: str | Path, config: EasyDict, folder: str | Path) -> None:
    """Writes `vnet.ckpt` with float16 weights, `config.json` and `SHA256SUMS`.

    Args:
        checkpoint_path: the checkpoint to pack.
        config: its configuration.
        folder: created if missing.

    Raises:
        DataError: the checkpoint is missing, has no `config.json`, does not match `config` or has a
            weight beyond float16's range, or the folder cannot be written or holds files of these
            names that this program did not write.
    """
    if config_path_of(checkpoint_path) is None:
        raise DataError(
            f"{checkpoint_path}: no {CONFIG_NAME} found, which stores its variant and grid; "
            "copy the training run's beside it"
        )
    network = create_vnet(config)
    load_weights(network, checkpoint_path)
    folder = Path(folder)
    output_folder.claim(folder, [RELEASED, CONFIG_NAME, CHECKSUMS])
    (folder / CHECKSUMS).unlink(missing_ok=True)  # written last, when the files are complete
    save_weights(network, folder / RELEASED, half=True)
    save_config({**config, **{key: vnet_cfg[key] for key in MACHINE_KEYS}}, folder / CONFIG_NAME)
    sums = [f"{hash_file(folder / name)}  {name}\n" for name in (RELEASED, CONFIG_NAME)]
    write_files({folder / CHECKSUMS: "".join(sums).encode()})
    before, after = (
        path.stat().st_size / 1e6 for path in (Path(checkpoint_path), folder / RELEASED)
    )
    log.info(f"{folder}: {RELEASED} ({after:.1f} MB, was {before:.1f}), {CONFIG_NAME}, {CHECKSUMS}")
