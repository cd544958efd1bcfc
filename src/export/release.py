"""A checkpoint to share: half the bytes, with the configuration that fits it, and checksums."""

import logging
from pathlib import Path

from easydict import EasyDict

from ..checkpoint import RELEASED, load_weights, save_weights
from ..config import CONFIG_NAME, config_path_of, save_config, vnet_cfg
from ..utils import output_folder
from ..utils.errors import DataError
from ..utils.files import hash_file, write_files
from ..vnet import create_vnet

log = logging.getLogger(__name__)

CHECKSUMS = "SHA256SUMS"
OF_ONE_MACHINE = (
    *("dirResult", "dirPredictionImage", "cache_dir", "num_workers"),
    *("fast_conv3d", "precision", "dataset_sink"),
)


def release(checkpoint_path: str | Path, config: EasyDict, folder: str | Path) -> None:
    """Writes `vnet.ckpt` with float16 weights, `config.json` and `SHA256SUMS`.

    The configuration keeps the defaults where it would tell of the machine of the training.

    Args:
        checkpoint_path: what is packed.
        config: its configuration.
        folder: created if absent.

    Raises:
        DataError: no such checkpoint, no `config.json` near it, of another network, with a weight
            beyond float16, or the folder cannot be written or holds other people's files of these
            names.
    """
    if config_path_of(checkpoint_path) is None:
        raise DataError(
            f"{checkpoint_path}: no {CONFIG_NAME} near it, without which nobody knows its grid; "
            "put the run's beside it"
        )
    network = create_vnet(config)
    load_weights(network, checkpoint_path)
    folder = Path(folder)
    output_folder.claim(folder, [RELEASED, CONFIG_NAME, CHECKSUMS])
    (folder / CHECKSUMS).unlink(missing_ok=True)  # until all is new again
    save_weights(network, folder / RELEASED, half=True)
    save_config({**config, **{key: vnet_cfg[key] for key in OF_ONE_MACHINE}}, folder / CONFIG_NAME)
    sums = [f"{hash_file(folder / name)}  {name}\n" for name in (RELEASED, CONFIG_NAME)]
    write_files({folder / CHECKSUMS: "".join(sums).encode()})
    before, after = (
        path.stat().st_size / 1e6 for path in (Path(checkpoint_path), folder / RELEASED)
    )
    log.info(f"{folder}: {RELEASED} ({after:.1f} MB, was {before:.1f}), {CONFIG_NAME}, {CHECKSUMS}")
