"""Downloads the challenge's archives from Zenodo and checks them.

The challenge (Litjens et al., Medical Image Analysis 18, 2014) is public as Zenodo record 8026660.
"""

import hashlib
import http.client
import logging
import textwrap
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

from ..utils.errors import DataError
from ..utils.files import hash_file

log = logging.getLogger(__name__)

RECORD_URL = "https://zenodo.org/records/8026660"
LICENCE = "LICENSE.TXT"
ARCHIVES_MD5 = {
    "training_data.zip": "f6d23994117c989daf07e5291edd0aea",
    "test_data.zip": None,
    "livechallenge_test_data.zip": None,
}
TIMEOUT_S = 60


class _ConnectionLost(Exception):
    """The transfer was interrupted; another attempt may continue it."""


def download(
    folder: Path,
    record_url: str = RECORD_URL,
    archives_md5: dict[str, str | None] = ARCHIVES_MD5,
    attempts: int = 5,
    pause_s: float = 2.0,
) -> list[Path]:
    """Downloads the record's archives into `folder` and logs their licence.

    Args:
        folder: created if absent.
        record_url: address of the Zenodo record.
        archives_md5: {file name: MD5 in hex, None if unknown}.
        attempts, pause_s: see `fetch`.

    Returns:
        Paths of the archives.

    Raises:
        DataError: see `fetch`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        licence = fetch(f"{record_url}/files/{LICENCE}?download=1", folder / LICENCE, attempts=1)
        text = licence.read_text(encoding="utf-8", errors="replace").strip()
        log.info(f"Licence of the data ({record_url}):\n{textwrap.indent(text, '    ')}")
    except DataError:
        log.info(f"The licence of the data is at {record_url}; please read it there.")
    return [
        fetch(f"{record_url}/files/{name}?download=1", folder / name, md5, attempts, pause_s)
        for name, md5 in archives_md5.items()
    ]


def fetch(
    url: str, path: Path, md5: str | None = None, attempts: int = 5, pause_s: float = 2.0
) -> Path:
    """Downloads a file; continues `PATH.part` of an earlier call with an HTTP Range request.

    Args:
        url: of the file.
        path: of the complete and checked file; an existing file is kept.
        md5: expected MD5 in hex, None if unknown.
        attempts: consecutive connections without any data before giving up.
        pause_s: seconds before the second attempt; doubled before each further one.

    Returns:
        `path`.

    Raises:
        DataError: the server refuses, the connection fails repeatedly, or the checksum differs.
    """
    if path.exists():
        if md5 and _md5(path) != md5:
            raise DataError(
                f"{path}: MD5 {_md5(path)}, expected {md5}; move it away and run the command again"
            )
        log.info(f"{path}: there already, kept")
        return path
    part, validator = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.etag")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part, validator)
            break
        except _ConnectionLost as error:
            grown = part.exists() and part.stat().st_size > before
            failures = 1 if grown else failures + 1
            if failures >= attempts:
                raise DataError(
                    f"{url}: {error}; run the command again to continue where it stopped"
                ) from error
            wait_s = pause_s * 2 ** (failures - 1)
            log.info(f"{path.name}: {error}; next attempt in {wait_s:g} s")
            time.sleep(wait_s)
    wrong = None
    if md5 and _md5(part) != md5:
        wrong = f"MD5 {_md5(part)}, expected {md5}"
    elif path.suffix == ".zip" and not zipfile.is_zipfile(part):
        wrong = "the server sent something that is not a zip file"
    validator.unlink(missing_ok=True)
    if wrong:
        part.unlink()
        raise DataError(f"{url}: {wrong}; it was removed, run the command again")
    return part.replace(path)


def _continue(url: str, part: Path, validator: Path) -> None:
    """Downloads over one connection: appends to `part`, or starts again if that is not possible.

    `validator` holds the ETag or date of the file when `part` was started. With If-Range the server
    sends the whole file if it has changed since; without a validator the download starts again.
    """
    known = validator.read_text() if validator.exists() and part.exists() else ""
    offset = part.stat().st_size if known else 0
    headers = {"User-Agent": "prepare_data.py", "Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": known}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{offset}":
            return
        if error.code == 416:
            part.unlink()
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _ConnectionLost(f"the server answers {error.code} {error.reason}") from error
        raise DataError(
            f"{url}: the server answers {error.code} {error.reason}; open the record in a browser, "
            "download the zip files there and pass them to --source"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(f"no connection ({error})") from error
    with response:
        if response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                part.unlink()
                raise _ConnectionLost("the server sent another part than requested")
        else:
            offset = 0
        etag = response.headers.get("ETag", "W/")
        date = response.headers.get("Last-Modified", "")
        # A weak ETag does not promise equal bytes (RFC 9110, 8.8.1).
        validator.write_text(date if etag.startswith("W/") else etag)
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        with (
            part.open("ab" if offset else "wb") as file,
            tqdm(
                desc=part.stem,
                total=total,
                initial=offset,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            while chunk := _read_chunk(response):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise _ConnectionLost(f"cut at {size} of {total} bytes")


def _read_chunk(response) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(f"connection cut ({error})") from error


def _md5(path: Path) -> str:
    return hash_file(path, hashlib.md5(usedforsecurity=False))
