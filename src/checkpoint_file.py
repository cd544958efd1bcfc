"""Which files of a run, a release or an ensemble are the checkpoints; needs no MindSpore."""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .config import CONFIG_NAME
from .released_model import CHECKSUMS, ENSEMBLE, RELEASED, local_folder, parse_checksums
from .utils.errors import DataError, list_few, reason_of
from .utils.files import hash_file, write_json

log = logging.getLogger(__name__)

PREFIX = "checkpoint_vnet"
NUMBERED = re.compile(rf"{PREFIX}-\d+_\d+\.ckpt")
BEST = "best.ckpt"
CROSS_VALIDATION = "cross_validation.json"  # of a cross-validation, which writes ENSEMBLE last


def is_numbered(path: Path) -> bool:
    """Whether a file has the name of an epoch's checkpoint."""
    return NUMBERED.fullmatch(path.name) is not None


def epoch_and_step(path: str | Path) -> tuple[int, int]:
    """Returns (epoch, step) of a checkpoint named `checkpoint_vnet-EPOCH_STEP.ckpt`.

    Raises:
        ValueError: another name.
    """
    if not NUMBERED.fullmatch(Path(path).name):
        raise ValueError(f"{path}: expected the name {PREFIX}-EPOCH_STEP.ckpt")
    epoch, step = Path(path).stem.rsplit("-", 1)[1].split("_")
    return int(epoch), int(step)


def find_checkpoints(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Returns the checkpoint files that one or several paths refer to.

    Args:
        paths: each as for `find_checkpoint`, or a folder with an `ensemble.json`, whose
            checkpoints are then all meant.

    Raises:
        DataError: see `find_checkpoint`; an ensemble is incomplete or was changed.
    """
    found = []
    for path in map(local_folder, [paths] if isinstance(paths, str | Path) else paths):
        is_ensemble = (path / ENSEMBLE).is_file()
        found += read_ensemble(path) if is_ensemble else [find_checkpoint(path)]
    return found


def write_ensemble(folder: Path, checkpoints: Iterable[Path]) -> None:
    """Writes the `ensemble.json` of a folder: the checkpoints in it, with their SHA-256."""
    hashes = {path.relative_to(folder).as_posix(): hash_file(path) for path in checkpoints}
    write_json(folder / ENSEMBLE, {"checkpoints": hashes})


def read_ensemble(folder: Path) -> list[Path]:
    """Returns the checkpoints that the `ensemble.json` of a folder lists.

    Raises:
        DataError: not such a list, or a checkpoint is missing or differs from its SHA-256.
    """
    listing = folder / ENSEMBLE
    try:
        hashes = json.loads(listing.read_text("utf-8"))["checkpoints"]
        files = {folder / name: str(digest) for name, digest in hashes.items()}
        if not files:
            raise ValueError("it names none")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{listing}: not a list of an ensemble's checkpoints ({reason_of(error)}); make the "
            "ensemble again, or name its checkpoints"
        ) from None
    remedy = "copy or make the ensemble again, or name the checkpoints you mean"
    for file, digest in files.items():
        _check_hash(file, digest, str(listing), remedy)
        check_release(file)
    log.info(f"{folder}: the mean of the {len(files)} networks in its {ENSEMBLE}")
    return list(files)


def find_checkpoint(path: str | Path) -> Path:
    """Returns the checkpoint file that a path refers to; logs which one of a folder it is.

    Args:
        path: a checkpoint file; a run's folder or its `ckpt/`, where `best.ckpt` is taken, or the
            newest numbered checkpoint if there is none; or a released folder with `vnet.ckpt`, a
            zip of it, or the https address of such a zip, see `local_folder`.

    Raises:
        DataError: nothing there, a folder without any of these, or a release whose files differ
            from its SHA256SUMS; see also `local_folder`.
        UsageError: see `local_folder`.
    """
    path = local_folder(path)
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such checkpoint or folder")
        check_release(path)
        return path
    folder = path / "ckpt" if (path / "ckpt").is_dir() else path
    numbered = sorted(filter(is_numbered, folder.iterdir()), key=epoch_and_step)
    candidates = [folder / BEST, *numbered[::-1], path / RELEASED]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None and (path / CROSS_VALIDATION).is_file():
        raise DataError(
            f"{path}: a cross-validation that has not ended; start it again with the same "
            "arguments, and it goes on where it was"
        )
    if found is None:
        shown = list_few(sorted(file.name for file in path.iterdir()), 5)
        raise DataError(
            f"{path}: no checkpoint in this folder, which holds {shown or 'nothing'}; expected "
            f"a run with ckpt/{BEST} or ckpt/{PREFIX}-EPOCH_STEP.ckpt, or a release with {RELEASED}"
        )
    check_release(found)
    log.info(f"{path}: using its {found.relative_to(path)}")
    return found


def check_release(checkpoint_path: Path) -> None:
    """Compares a released checkpoint and its configuration with the SHA256SUMS beside them.

    Args:
        checkpoint_path: any checkpoint; one that is not named as a release, or has no SHA256SUMS
            beside it, is not checked.

    Raises:
        DataError: a file is missing or differs.
    """
    sums = checkpoint_path.with_name(CHECKSUMS)
    if checkpoint_path.name != RELEASED or not sums.is_file():
        return
    expected = parse_checksums(sums.read_text(encoding="utf-8", errors="replace"))
    remedy = (
        "copy the release again, or if you changed it on purpose, run "
        f"sha256sum {RELEASED} {CONFIG_NAME} > {CHECKSUMS} there"
    )
    for name in (RELEASED, CONFIG_NAME):
        file = checkpoint_path.with_name(name)
        _check_hash(file, expected.get(name), f"{CHECKSUMS} beside it", remedy)


def _check_hash(file: Path, digest: str | None, listing: str, remedy: str) -> None:
    """Raises a DataError if a file is missing, or its SHA-256 is not that of a listing."""
    if not file.is_file():
        raise DataError(f"{file}: missing, but listed in {listing}; {remedy}")
    if hash_file(file) != digest:
        raise DataError(f"{file}: differs from {listing}; {remedy}")
