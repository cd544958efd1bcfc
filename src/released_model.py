"""Released models that are not a folder here: a zip of one, or the address of such a zip.

`local_folder` unpacks them into the user's cache folder, where later calls find them:

models/<hash of the address>.zip    a downloaded zip, which stays current, see `local_folder`
models/<SHA-256 of a zip>/          its content

Only files that the SHA256SUMS in the zip lists are unpacked, and only if they match it.
"""

import hashlib
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urldefrag

from .utils.download import fetch, is_allowed, refresh
from .utils.errors import DataError, UsageError, reason_of
from .utils.files import LOCK_FILE, Lock, hash_file, temporary_folder, user_cache_folder

log = logging.getLogger(__name__)

RELEASED, CHECKSUMS = "vnet.ckpt", "SHA256SUMS"  # of a released folder, beside its config.json
ENSEMBLE = "ensemble.json"  # of a folder with the checkpoints of several networks
FOLDER = "models"
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
SHA256_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](\S.*)")
# A release of the largest network has 0.1 GB, and an ensemble of a cross-validation a few of them.
LARGEST_BYTES = 4_000_000_000
LARGEST_LIST = 100_000  # bytes of SHA256SUMS
LONGEST_NAME = 255  # bytes of a path; file systems allow this for one name
BLOCK = 1 << 20


def local_folder(path: str | Path) -> Path:
    """Returns the folder of a released model that a path or an address refers to.

    Args:
        path: an https address of a zip, with `#sha256=DIGEST` at its end if its digest is to be
            checked; without, each call asks the server whether the zip has changed. Or a zip file;
            or any other path, which is returned as it is.

    Returns:
        A path on this machine: of the unpacked release, or `path`.

    Raises:
        DataError: the download fails, the zip holds no release, is damaged or too large, or there
            is no cache folder.
        UsageError: an address that is not https, or has another fragment.
    """
    if isinstance(path, str) and ADDRESS.match(path):
        return _folder_of_address(path)
    path = Path(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return _unpacked(path, str(path))
    return path


def _cache() -> Path:
    cache = user_cache_folder()
    if cache is None:
        raise DataError(
            "no folder to keep the model in, since HOME and XDG_CACHE_HOME are not set; set one, "
            "or unpack the model and name its folder"
        )
    try:
        (cache / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{cache / FOLDER}: cannot be written ({reason_of(error)})") from None
    return cache / FOLDER


def _folder_of_address(address: str) -> Path:
    """Downloads and unpacks the zip at an address."""
    url, fragment = urldefrag(address)
    match = re.fullmatch(r"(?:sha256=([0-9a-fA-F]{64}))?", fragment)
    if match is None:
        raise UsageError(f"{address}: expected #sha256= and 64 hexadecimal digits, or no #")
    if not is_allowed(url):
        raise UsageError(
            f"{url}: expected an https address of a zipped release, spaces and non-ASCII letters "
            "in it as %XX, as browsers copy it"
        )
    path = _cache() / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.zip"
    with Lock(path.with_suffix(".lock")) as lock:
        lock.acquire()  # another process may be downloading it
        _download(url, match[1], path)
        try:
            return _unpacked(path, url)
        except _NotWritten:
            raise
        except DataError:
            path.unlink(missing_ok=True)  # the next call downloads it again
            raise


def _download(url: str, digest: str | None, path: Path) -> None:
    """Downloads a zip to a path: once if it has a digest, else whenever it may have changed."""
    remedy = "check the address, or download the model and name its file"
    if digest is None:
        refresh(url, path, remedy, LARGEST_BYTES, check=lambda new: _check_zip(new, url))
        return
    if path.is_file() and hash_file(path) != digest.lower():
        path.unlink()  # damaged since
    if not path.is_file():
        log.info(f"downloading {url}")
        fetch(url, path, sha256=digest, largest_bytes=LARGEST_BYTES, remedy=remedy)


# --- unpacking -----------------------------------------------------------------------------------


def _unpacked(archive_path: Path, origin: str) -> Path:
    """Unpacks a zip of a release, once; `origin` names it in messages."""
    folder = _cache() / hash_file(archive_path)
    if _is_whole(folder):
        return folder
    try:
        archive = zipfile.ZipFile(archive_path)
    except Exception as error:
        raise _damaged(origin, error) from None
    try:
        with archive, Lock(folder.with_name(LOCK_FILE)) as lock:
            lock.acquire()
            if _is_whole(folder):  # another process was faster
                return folder
            with temporary_folder(folder.parent) as scratch:
                _unpack(archive, scratch / folder.name, origin)
                shutil.rmtree(folder, ignore_errors=True)  # damaged since it was unpacked
                (scratch / folder.name).rename(folder)
    except OSError as error:
        raise _NotWritten(f"{folder.parent}: cannot be written ({reason_of(error)})") from None
    log.info(f"{origin}: unpacked to {folder}")
    return folder


class _NotWritten(DataError):
    """A zip could not be unpacked, which is no fault of the zip."""


def _check_zip(path: Path, origin: str) -> None:
    """Unpacks a zip, which raises a DataError if there is a fault in it."""
    with suppress(_NotWritten):  # raised again where it is used
        _unpacked(path, origin)


def _unpack(archive: zipfile.ZipFile, folder: Path, origin: str) -> None:
    """Writes the files that the archive's SHA256SUMS lists, and that list."""
    names = archive.namelist()
    lists = sorted((n for n in names if PurePosixPath(n).name == CHECKSUMS), key=_depth)
    if not lists or [_depth(name) for name in lists].count(_depth(lists[0])) > 1:
        found = "several of them" if lists else "none"
        raise DataError(
            f"{origin}: expected the zip of one release with its {CHECKSUMS}, found {found}; "
            "tools/release.py --zip makes it"
        )
    root = lists[0].removesuffix(CHECKSUMS)
    if archive.getinfo(lists[0]).file_size > LARGEST_LIST:
        raise DataError(f"{origin}: its {CHECKSUMS} is larger than {LARGEST_LIST} bytes")
    text = b"".join(_blocks(archive, lists[0], origin))
    digests = parse_checksums(text.decode("utf-8", "replace"))
    if not {RELEASED, ENSEMBLE} & digests.keys():
        raise DataError(
            f"{origin}: its {CHECKSUMS} lists neither {RELEASED} nor {ENSEMBLE}, so it is no "
            "release; tools/release.py --zip makes one"
        )
    folders = {str(parent) for name in digests for parent in PurePosixPath(name).parents}
    for name in digests:
        if fault := _fault_of_name(name, folders):
            raise DataError(f"{origin}: its {CHECKSUMS} names {name[:50]!r}, {fault}")
    for name in digests:
        if root + name not in names:
            raise DataError(f"{origin}: {name} is missing, but listed in its {CHECKSUMS}")
    size = sum(archive.getinfo(root + name).file_size for name in digests)
    if size > LARGEST_BYTES:
        raise DataError(f"{origin}: {size / 1e9:.1f} GB unpacked, more than a release may have")
    for name, digest in digests.items():
        _write_checked(archive, root + name, folder / name, digest, origin)
    (folder / CHECKSUMS).write_bytes(text)


def _fault_of_name(name: str, folders: set[str]) -> str:
    """What keeps a file of this name from being written; "" if nothing does.

    Args:
        name: listed in a SHA256SUMS.
        folders: of all names that it lists.
    """
    path = PurePosixPath(name)
    if "\\" in name or "\0" in name or ".." in path.parts or path.is_absolute():
        return "outside of the release"
    if len(name.encode()) > LONGEST_NAME:
        return f"a name of more than {LONGEST_NAME} bytes"
    if name in folders:
        return "once as a file, once as a folder of others"
    return "" if str(path) == name else f"expected {str(path)!r}"


def _write_checked(
    archive: zipfile.ZipFile, member: str, path: Path, digest: str, origin: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    with path.open("wb") as target:
        for block in _blocks(archive, member, origin):
            found.update(block)
            target.write(block)
    if found.hexdigest() != digest:
        raise DataError(f"{origin}: {member} differs from its {CHECKSUMS}; get the release again")


def _blocks(archive: zipfile.ZipFile, member: str, origin: str) -> Iterator[bytes]:
    try:
        with archive.open(member) as source:
            while block := source.read(BLOCK):
                yield block
    except Exception as error:
        raise _damaged(origin, error) from None


def _damaged(origin: str, error: Exception) -> DataError:
    """The error for what zipfile raises: exceptions of many types, OSError among them."""
    return DataError(f"{origin}: a damaged or encrypted zip ({reason_of(error)}); get it again")


def _depth(name: str) -> int:
    return len(PurePosixPath(name).parts)


def parse_checksums(text: str) -> dict[str, str]:
    """Returns the content of a SHA256SUMS, {file name: digest in lower case}; skips other lines."""
    lines = (SHA256_LINE.fullmatch(line.strip()) for line in text.splitlines())
    return {line[2]: line[1].lower() for line in lines if line}


def _is_whole(folder: Path) -> bool:
    """Whether all files of an unpacked release still match its SHA256SUMS."""
    try:
        digests = parse_checksums((folder / CHECKSUMS).read_text("utf-8", "replace"))
        # A power cut may leave the list empty.
        return bool(digests) and all(hash_file(folder / n) == d for n, d in digests.items())
    except OSError:
        return False
