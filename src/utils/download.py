"""Downloads a file over HTTPS: continues where it stopped, checks size and checksum."""

import hashlib
import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from .errors import DataError, reason_of
from .files import hash_file

log = logging.getLogger(__name__)

TIMEOUT_S = 60
CHECK_TIMEOUT_S = 10  # whether a kept file has changed, without which it can be used
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def is_allowed(url: str) -> bool:
    """Whether an address is https, or http of this machine, where nobody can change the answer.

    Spaces and other letters than ASCII's must be written as %XX, a host's name in its ASCII form.
    """
    if not re.fullmatch(r"[!-~]+", url):
        return False
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # a ValueError if it is no number
        is_local = parts.scheme == "http" and parts.hostname in THIS_MACHINE
        return (parts.scheme == "https" or is_local) and bool(parts.hostname)
    except ValueError:  # such as a bracket without its counterpart
        return False


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to where the first address could have been."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not is_allowed(newurl):
            raise DataError(
                f"{req.full_url}: the server sends to {newurl}, expected an https address; get "
                "the file by hand"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _ConnectionLost(Exception):
    """The transfer was interrupted; another attempt may continue it."""


def fetch(
    url: str,
    path: Path,
    md5: str | None = None,
    attempts: int = 5,
    pause_s: float = 2.0,
    sha256: str | None = None,
    largest_bytes: int | None = None,
    remedy: str = "check the address",
    keeps_validator: bool = False,
) -> Path:
    """Downloads a file; continues `PATH.part` of an earlier call with an HTTP Range request.

    Args:
        url: of the file, see `is_allowed`.
        path: of the complete and checked file; an existing file is kept.
        md5, sha256: expected hash in hex, None if unknown.
        attempts: consecutive connections without any data before giving up.
        pause_s: seconds before the second attempt; doubled before each further one.
        largest_bytes: limit of the file's size.
        remedy: what to do where the server refuses the address.
        keeps_validator: whether to write the file's ETag and date to `PATH.etag`, for `refresh`.

    Returns:
        `path`.

    Raises:
        DataError: the server refuses, the connection fails repeatedly, the file is too large, or
            the checksum differs.
    """
    if path.exists():
        if wrong := _wrong_hash(path, md5, sha256):
            raise DataError(f"{path}: {wrong}; move it away and run the command again")
        log.info(f"{path}: there already, kept")
        return path
    part, validator = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.etag")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part, validator, largest_bytes, remedy)
            break
        except _ConnectionLost as error:
            grown = part.exists() and part.stat().st_size > before
            failures = 1 if grown else failures + 1
            if failures >= attempts:
                raise DataError(
                    f"{url}: {error}; run the command again to continue where it stopped"
                ) from error
            wait_s = pause_s * 2 ** (failures - 1)
            log.info(f"{_name(url)}: {error}; next attempt in {wait_s:g} s")
            time.sleep(wait_s)
    wrong = _wrong_hash(part, md5, sha256)
    if not wrong and path.suffix == ".zip" and not zipfile.is_zipfile(part):
        wrong = "the server sent something that is not a zip file"
    if wrong or not keeps_validator:
        validator.unlink(missing_ok=True)
    if wrong:
        part.unlink()
        raise DataError(f"{url}: {wrong}; it was removed, check what is expected and run it again")
    part.replace(path)
    if keeps_validator:
        validator.replace(_etag_path(path))
    return path


def refresh(
    url: str, path: Path, remedy: str, largest_bytes: int, check: Callable[[Path], object]
) -> Path:
    """Downloads a file, again if the server does not say that it is as it was the last time.

    Args:
        url, remedy, largest_bytes: see `fetch`.
        path: of the file; an earlier one is replaced once the new one is complete. It is used as it
            is, with a note, where the server cannot be reached.
        check: of a new file; if it raises a DataError, that file is removed and the earlier stays.

    Returns:
        `path`.

    Raises:
        DataError: see `fetch` and `check`.
    """
    if path.exists():
        try:
            if _is_unchanged(url, _etag_path(path), remedy):
                return path
        except _ConnectionLost as error:
            date = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
            log.info(f"note: {url}: {error}; using the copy that was downloaded on {date}")
            return path
    new = path.with_name(f"new-{path.name}")
    new.unlink(missing_ok=True)  # of a process that was killed
    log.info(f"downloading {url}" + (" again: it may have changed" if path.exists() else ""))
    fetch(url, new, largest_bytes=largest_bytes, remedy=remedy, keeps_validator=True)
    try:
        check(new)
    except DataError:
        new.unlink()
        _etag_path(new).unlink()
        raise
    new.replace(path)
    _etag_path(new).replace(_etag_path(path))
    return path


def _etag_path(path: Path) -> Path:
    return path.with_name(path.name + ".etag")


def _is_unchanged(url: str, etag_path: Path, remedy: str) -> bool:
    """Whether the server says that a file is still that of the ETag and date kept of it.

    Raises:
        DataError: the server refuses the address.
        _ConnectionLost: it cannot be asked.
    """
    etag, date = _read_validators(etag_path)
    # If-Modified-Since would miss an older file that is put back, so without an ETag the dates are
    # compared; without either it is learnt that the server is there. The body is not read.
    with _open(url, {"If-None-Match": etag} if etag else {}, CHECK_TIMEOUT_S, remedy) as response:
        is_same_date = bool(date) and response.headers.get("Last-Modified") == date
        return response.status == 304 or (not etag and is_same_date)


def _read_validators(path: Path) -> tuple[str, str]:
    """Reads the ETag and the date of a file, each as the server sent it, "" if it did not."""
    lines = path.read_text().splitlines() if path.exists() else []
    etags = [line for line in lines if line.startswith(('"', "W/"))]
    dates = [line for line in lines if line and line not in etags]
    return "".join(etags[:1]), "".join(dates[:1])


def _open(url: str, headers: dict[str, str], timeout_s: float, remedy: str) -> Any:
    """Requests a file; returns the response of status 200, 206, 304 or 416.

    Raises:
        DataError: the server refuses the address.
        _ConnectionLost: another attempt may succeed.
    """
    headers = {"User-Agent": "vnet_mindspore", "Accept-Encoding": "identity", **headers}
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code in (304, 416):
            return error
        if error.code in (408, 429) or error.code >= 500:
            raise _ConnectionLost(f"the server answers {error.code} {error.reason}") from error
        raise DataError(
            f"{url}: the server answers {error.code} {error.reason}; {remedy}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # what a URLError wraps
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(
                f"{url}: this machine does not trust the server's certificate "
                f"({reason.verify_message}); set SSL_CERT_FILE=FILE.pem to the certificate of your "
                "site's authority, or get the file by hand"
            ) from None
        raise _ConnectionLost(f"no connection ({error})") from error


def _continue(
    url: str, part: Path, validator: Path, largest_bytes: int | None, remedy: str
) -> None:
    """Downloads over one connection: appends to `part`, or starts again if that is not possible.

    `validator` holds the ETag and date of the file when `part` was started. With If-Range the
    server sends the whole file if it has changed since; without one the download starts again.
    """
    etag, date = _read_validators(validator) if part.exists() else ("", "")
    # A weak ETag does not promise equal bytes (RFC 9110, 8.8.1).
    known = date if etag.startswith("W/") else etag or date
    offset = part.stat().st_size if known else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": known} if offset else {}
    with _open(url, headers, TIMEOUT_S, remedy) as response:
        if response.status == 416:
            if response.headers.get("Content-Range") == f"bytes */{offset}":
                return
            part.unlink()
            raise _ConnectionLost("the server answers 416 to the part that was requested")
        if response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                part.unlink()
                raise _ConnectionLost("the server sent another part than requested")
        else:
            offset = 0
        sent = (response.headers.get(name, "") for name in ("ETag", "Last-Modified"))
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        _check_size(url, part, total or offset, largest_bytes)
        with (
            _written(part),
            part.open("ab" if offset else "wb") as file,
            tqdm(
                desc=_name(url),
                total=total,
                initial=offset,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            validator.write_text("\n".join(sent))
            while chunk := _read_chunk(response):
                file.write(chunk)
                bar.update(len(chunk))
                _check_size(url, part, file.tell(), largest_bytes)
    size = part.stat().st_size
    if total is not None and size != total:
        raise _ConnectionLost(f"cut at {size} of {total} bytes")


@contextmanager
def _written(part: Path) -> Iterator[None]:
    """Raises a DataError that names the file where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{part}: cannot be written ({reason_of(error)}); make room and start again, and it "
            "goes on there"
        ) from None


def _name(url: str) -> str:
    """The file's name in its address, for messages; that on the disk may say nothing."""
    return urllib.parse.urlsplit(url).path.rpartition("/")[2] or url


def _check_size(url: str, part: Path, size: int, largest_bytes: int | None) -> None:
    if largest_bytes is not None and size > largest_bytes:
        part.unlink(missing_ok=True)
        raise DataError(f"{url}: more than {largest_bytes / 1e9:g} GB, which is refused")


def _read_chunk(response: IO[bytes]) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(f"connection cut ({error})") from error


def _wrong_hash(path: Path, md5: str | None, sha256: str | None) -> str:
    """Says which expected hash a file does not have; "" if it has both."""
    for name, expected in (("md5", md5), ("sha256", sha256)):
        if expected:
            found = hash_file(path, hashlib.new(name, usedforsecurity=name != "md5"))
            if found != expected.lower():
                return f"{name.upper()} {found}, expected {expected}"
    return ""
