"""Packs checkpoints for publication: float16 weights, configuration, model card, checksums.

vnet.ckpt  config.json                        the network
network0/vnet.ckpt  network0/config.json ...  those of an ensemble, which ensemble.json lists
README.md  metadata.json                      the card, see src/export/model_card.py
SHA256SUMS                                    of all of them
"""

import json
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from easydict import EasyDict
from mindspore import nn

from ..checkpoint import load_vnet, save_weights
from ..checkpoint_file import CHECKSUMS, ENSEMBLE, RELEASED, write_ensemble
from ..config import (
    CONFIG_NAME,
    MACHINE_KEYS,
    config_of_checkpoint,
    config_path_of,
    save_config,
    vnet_cfg,
)
from ..ensemble import Member, check_agreement, check_unchanged
from ..utils import output_folder
from ..utils.errors import DataError, UsageError
from ..utils.files import hash_file, replace_file, write_files
from .model_card import (
    METADATA,
    README,
    SHARED,
    Packed,
    Statement,
    describe_release,
    render_card,
)

log = logging.getLogger(__name__)

NETWORK = "network"  # name of an ensemble's folders, before their number
OF_A_RELEASE = re.compile(
    rf"({NETWORK}\d+/)?({re.escape(RELEASED)}|{re.escape(CONFIG_NAME)}|{CHECKSUMS})"
    rf"|{re.escape(ENSEMBLE)}"
)
ZIP_MARK = b"vnet_mindspore release"  # the comment of our zips, which may be replaced
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # so that the same release gives the same zip


def release(
    members: Sequence[Member],
    folder: str | Path,
    statement: Statement = Statement(),  # noqa: B008, it is immutable
    metrics_path: str | Path | None = None,
    zipped: bool = False,
) -> None:
    """Writes a release; the checksums come last, when everything else is complete.

    Args:
        members: from `find_members`; several are released as an ensemble.
        folder: created if missing.
        statement: what the card says in the user's words.
        metrics_path: metrics.json of an evaluation of these networks, for the card.
        zipped: whether to write the release to FOLDER.zip, too.

    Raises:
        DataError: a checkpoint is missing, has no `config.json`, does not match it or has a weight
            beyond float16's range; the networks of an ensemble differ in grid or threshold; the
            metrics are of other networks; or the folder cannot be written or holds files of these
            names that this program did not write, or that were edited since.
    """
    folder = Path(folder)
    _check(members, folder)
    if zipped:
        _check_zip(_zip_path(folder))
    names = _network_names(len(members))
    networks, packed = [], []
    for name, member in zip(names, members, strict=True):
        network = load_vnet(member.checkpoint, member.config)
        networks.append(network)
        check_unchanged(member.checkpoint, member.sha256)
        count = sum(parameter.size for parameter in network.get_parameters())
        packed.append(Packed(*member, name, count))
    metadata = describe_release(packed, statement, metrics_path)  # may find fault with something
    before = sum(member.checkpoint.stat().st_size for member in members) / 1e6

    with _replacing_earlier(folder, names):
        files = []
        for network, entry, about in zip(networks, packed, metadata["networks"], strict=True):
            written = _write_network(network, entry, folder)
            about["sha256"] = hash_file(written[0])
            files += written
        if len(packed) > 1:
            write_ensemble(folder, [folder / name for name in names])
            files.append(folder / ENSEMBLE)
        text = json.dumps(metadata, indent=2, ensure_ascii=False)
        card = {METADATA: f"{text}\n", README: render_card(metadata)}
        write_files({folder / name: content.encode() for name, content in card.items()})
        files.append(folder / METADATA)
        files.append(_write_checksums(folder, [*files, folder / README]))
    after = sum((folder / name).stat().st_size for name in names) / 1e6
    log.info(f"{folder}: {', '.join(names)} ({after:.1f} MB, was {before:.1f}), card in {README}")
    if zipped:
        _write_zip(folder, [*files, folder / README])
    elif _is_our_zip(_zip_path(folder)):
        log.info(f"note: {_zip_path(folder)} is of an earlier release; --zip renews it")


def _network_names(count: int) -> list[str]:
    """The packed checkpoints, relative to the release."""
    return [RELEASED] if count == 1 else [f"{NETWORK}{n}/{RELEASED}" for n in range(count)]


@contextmanager
def _replacing_earlier(folder: Path, names: list[str]) -> Iterator[None]:
    """Registers the files of a release, and removes those of an earlier one.

    An end before the release is complete leaves none that can be read: the weights come after
    their configuration, and the checksums last.

    Args:
        folder: of the release.
        names: of the packed checkpoints.
    """
    beside = [CONFIG_NAME] if len(names) == 1 else [CONFIG_NAME, CHECKSUMS]
    files = {README, METADATA, CHECKSUMS, *names, *([ENSEMBLE] if len(names) > 1 else [])}
    files |= {Path(name).with_name(other).as_posix() for name in names for other in beside}
    output_folder.announce(folder, sorted(files))
    output_folder.remove(folder, _earlier_files(folder) - files)
    with output_folder.register(folder, sorted(files)):
        for name in (CHECKSUMS, *names):
            (folder / name).unlink(missing_ok=True)
        yield


def _earlier_files(folder: Path) -> set[str]:
    """The files of an earlier release in the folder."""
    return {name for name in output_folder.list_outputs(folder) if OF_A_RELEASE.fullmatch(name)}


def _write_network(network: nn.Cell, entry: Packed, folder: Path) -> list[Path]:
    """Writes weights and configuration; in an ensemble also checksums, so that it stands alone."""
    path = folder / entry.name
    path.parent.mkdir(exist_ok=True)
    config_path = path.with_name(CONFIG_NAME)
    # Of no particular machine: a release has the defaults of these keys.
    public = {**entry.config, **{key: vnet_cfg[key] for key in MACHINE_KEYS}}
    save_config(EasyDict(public), config_path)
    save_weights(network, path, half=True)
    files = [path, config_path]
    return files if path.parent == folder else [*files, _write_checksums(path.parent, files)]


def _check(members: Sequence[Member], folder: Path) -> None:
    """Raises an error for checkpoints that cannot be released, or not together, or not there."""
    names = {*_network_names(len(members)), *_earlier_files(folder)}
    replaced = {(folder / name).resolve() for name in names}
    for checkpoint, config, _ in members:
        if checkpoint.resolve() in replaced:
            raise DataError(
                f"{checkpoint}: would be replaced by the release of itself; choose another folder"
            )
        if config_path_of(checkpoint) is None:
            raise DataError(
                f"{checkpoint}: no {CONFIG_NAME} found, which stores its variant and grid; "
                "copy the training run's beside it"
            )
        trained = config_of_checkpoint(checkpoint, [])
        for key in sorted(trained.keys() - {*SHARED, *MACHINE_KEYS}):
            if config[key] != trained[key]:
                raise UsageError(
                    f"{key}={config[key]}: {checkpoint} was trained with {trained[key]}, which its "
                    "release says; leave it out"
                )
    check_agreement(members)


def _write_checksums(folder: Path, files: Sequence[Path]) -> Path:
    lines = [f"{hash_file(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_files({folder / CHECKSUMS: "".join(lines).encode()})
    return folder / CHECKSUMS


# --- zip -----------------------------------------------------------------------------------------


def _zip_path(folder: Path) -> Path:
    folder = folder.resolve() if folder.name in ("", "..") else folder.absolute()
    return folder.with_name(f"{folder.name}.zip")


def _check_zip(path: Path) -> None:
    """Raises a DataError for a file in the way that is no zip of ours."""
    if path.exists() and not _is_our_zip(path):
        raise DataError(
            f"{path}: there already, and not written by this program; move it away or choose "
            "another folder"
        )


def _is_our_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == ZIP_MARK
    except (OSError, zipfile.BadZipFile):
        return False


def _write_zip(folder: Path, files: Sequence[Path]) -> None:
    path = _zip_path(folder)
    with replace_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.comment = ZIP_MARK
        for file in files:
            name = f"{path.stem}/{file.relative_to(folder).as_posix()}"
            info = zipfile.ZipInfo(name, ZIP_DATE)
            info.external_attr = 0o644 << 16
            archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED)
    size = path.stat().st_size / 1e6
    log.info(f"{path}: {size:.1f} MB; behind its address, #sha256={hash_file(path)} proves it")
