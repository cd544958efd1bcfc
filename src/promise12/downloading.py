"""Downloads the challenge's archives from Zenodo and checks them.

The challenge (Litjens et al., Medical Image Analysis 18, 2014) is public as Zenodo record 8026660.
"""

import logging
import textwrap
from pathlib import Path

from ..utils.download import fetch
from ..utils.errors import DataError

log = logging.getLogger(__name__)

RECORD_URL = "https://zenodo.org/records/8026660"
LICENCE = "LICENSE.TXT"
ARCHIVES_MD5 = {
    "training_data.zip": "f6d23994117c989daf07e5291edd0aea",
    "test_data.zip": None,
    "livechallenge_test_data.zip": None,
}
BY_HAND = "open the record in a browser, download the zip files there and pass them to --source"


def download(
    folder: Path,
    record_url: str = RECORD_URL,
    archives_md5: dict[str, str | None] = ARCHIVES_MD5,
    pause_s: float = 2.0,
) -> list[Path]:
    """Downloads the record's archives into `folder` and logs their licence.

    Args:
        folder: created if absent.
        record_url: address of the Zenodo record.
        archives_md5: {file name: MD5 in hex, None if unknown}.
        pause_s: see `fetch`.

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
        fetch(
            f"{record_url}/files/{name}?download=1",
            folder / name,
            md5,
            pause_s=pause_s,
            remedy=BY_HAND,
        )
        for name, md5 in archives_md5.items()
    ]
