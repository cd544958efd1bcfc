"""PROMISE12's files: fetch them, lay them out as img/ and gt/, check the volumes.

The challenge (Litjens et al., Medical Image Analysis 18, 2014) is public as Zenodo record 8026660.
Its three archives all count their cases from Case00, so each becomes a set of its own: TrainData,
TestData, LiveTestData.
"""

import hashlib
import http.client
import io
import math
import re
import shutil
import stat
import subprocess
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd
import SimpleITK as sitk
from tqdm import tqdm

from src.errors import DataError
from src.images.formats import (
    MASK_SUFFIX,
    META_SUFFIXES,
    SUFFIXES,
    check_name,
    images_in,
    stem,
    suffix_of,
)
from src.images.metaimage import meta_header
from src.images.reading import read_image, read_mask
from src.metrics import volume_ml

RECORD_URL = "https://zenodo.org/records/8026660"
LICENCE = "LICENSE.TXT"
ARCHIVES_MD5 = {
    "training_data.zip": "f6d23994117c989daf07e5291edd0aea",
    "test_data.zip": None,
    "livechallenge_test_data.zip": None,
}
# Set -> what its name begins with in the challenge's archives and folders, old and new.
SETS = {"LiveTestData": "live", "TestData": "test", "TrainData": "train"}
TIMEOUT_S = 60

# Unpackers of what zipfile does not know (older archives use Deflate64), as commands that write one
# entry to stdout. The entry's size and CRC are compared afterwards.
UNPACKERS = {
    "7zz": ("x", "-so", "-spd", "--"),
    "7z": ("x", "-so", "-spd", "--"),
    "unzip": ("-p",),
}


# Download ---------------------------------------------------------------------------------------


class _ConnectionLost(Exception):
    """The transfer broke off and may go on at another attempt."""


def download(
    folder: Path,
    record_url: str = RECORD_URL,
    archives_md5: dict[str, str | None] = ARCHIVES_MD5,
    attempts: int = 5,
    pause_s: float = 2.0,
) -> list[Path]:
    """Fetches the record's archives into `folder` and shows the licence they stand under.

    Returns:
        Paths of the archives.

    Raises:
        DataError: see `fetch`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        licence = fetch(f"{record_url}/files/{LICENCE}?download=1", folder / LICENCE, attempts=1)
        text = licence.read_text(encoding="utf-8", errors="replace").strip()
        print(f"Licence of the data ({record_url}):\n{textwrap.indent(text, '    ')}")
    except DataError:
        print(f"The licence of the data stands at {record_url}; please read it there.")
    return [
        fetch(f"{record_url}/files/{name}?download=1", folder / name, md5, attempts, pause_s)
        for name, md5 in archives_md5.items()
    ]


def fetch(
    url: str, path: Path, md5: str | None = None, attempts: int = 5, pause_s: float = 2.0
) -> Path:
    """Fetches one file; what an earlier call left in `PATH.part` is continued by HTTP Range.

    Args:
        url: what to fetch.
        path: where it goes, complete and checked only; a file that is there already is kept.
        md5: expected checksum in hex, where one is known.
        attempts: connections in a row that may bring nothing before it is given up.
        pause_s: seconds before the second attempt; doubled before each further one.

    Raises:
        DataError: the server refuses, the connection stays broken, or the content is another one.
    """
    if path.exists():
        if md5 and _md5(path) != md5:
            raise DataError(
                f"{path}: MD5 {_md5(path)}, expected {md5}; move it away and run the command again"
            )
        print(f"{path}: there already, kept")
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
                    f"{url}: {error}; run the command again, it goes on where it stopped"
                ) from error
            wait_s = pause_s * 2 ** (failures - 1)
            print(f"{path.name}: {error}; next attempt in {wait_s:g} s")
            time.sleep(wait_s)
    wrong = None
    if md5 and _md5(part) != md5:
        wrong = f"MD5 {_md5(part)}, expected {md5}"
    elif path.suffix == ".zip" and not zipfile.is_zipfile(part):
        wrong = "what came is no zip file"
    validator.unlink(missing_ok=True)
    if wrong:
        part.unlink()
        raise DataError(f"{url}: {wrong}; it was removed, run the command again")
    return part.replace(path)


def _continue(url: str, part: Path, validator: Path) -> None:
    """One connection: appends to `part`, or starts it anew where the file or the server demands it.

    `validator` holds the ETag or date under which `part` was begun. If-Range makes the server send
    the whole file when that changed; without one there is no telling, so the file starts anew.
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
            f"{url}: the server answers {error.code} {error.reason}; see with a browser what the "
            "record holds now, fetch the zip files there and pass them to --source"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(f"no connection ({error})") from error
    with response:
        if response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                part.unlink()
                raise _ConnectionLost("the server sent another part than asked for")
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
            while chunk := _received(response):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise _ConnectionLost(f"cut at {size} of {total} bytes")


def _received(response) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(f"connection cut ({error})") from error


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# Layout -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A file of a source.

    Attributes:
        path: place in the source, whose own name (without .zip) comes first.
        read: returns its bytes.
    """

    path: PurePosixPath
    read: Callable[[], bytes]


def lay_out(sources: list[Path], out_path: Path) -> None:
    """Copies volumes to `out_path/SET/img` and `out_path/SET/gt`, SET being a key of `SETS`.

    A volume's set follows from the names of its folder, the folders above, and its source:
    train..., test..., live...; where none tells, sources with masks become TrainData, those
    without TestData. Masks are the files called NAME_segmentation. Files that are there already
    with the same content are kept. New ones get their names when all of them are complete.

    Args:
        sources: zip files and folders, flat or up to three levels deep; they stay as they are.
        out_path: where the sets go.

    Raises:
        DataError: a source cannot be used, or two files of different content have one target.
    """
    placed: dict[PurePosixPath, Member] = {}
    for source in sources:
        for target, member in _places(source):
            other = placed.setdefault(target, member)
            if other is not member and other.read() != member.read():
                raise DataError(
                    f"{source}: {member.path} and {other.path} differ and would both become "
                    f"{target}; lay them out into different --out_path folders"
                )
    fresh = {}
    for target, member in placed.items():
        final = out_path / target
        if not final.exists():
            fresh[target] = member
        elif not final.is_file() or final.read_bytes() != member.read():
            raise DataError(
                f"{final}: is there already and differs from {member.path}; move it away or choose "
                "another --out_path"
            )
    _write_all(fresh, out_path)
    for name in sorted({target.parts[0] for target in placed}):
        targets = [target for target in placed if target.parts[0] == name]
        new = sum(target in fresh for target in targets)
        print(f"{out_path / name}: {new} files written, {len(targets) - new} there already")


def _write_all(files: dict[PurePosixPath, Member], out_path: Path) -> None:
    """Writes into a hidden folder, then renames: whole sets, or files beside existing ones."""
    out_path.mkdir(parents=True, exist_ok=True)
    for left in out_path.glob(".unpacking-*"):
        print(f"{left}: left by a run that was killed; it can be deleted")
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=out_path) as staging:
        for target, member in tqdm(files.items(), desc="Laying out", unit="file", disable=None):
            staged = Path(staging, target)
            staged.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(member.read())
        for staged_set in Path(staging).iterdir():
            final_set = out_path / staged_set.name
            if not final_set.exists():
                staged_set.rename(final_set)
                continue
            # Headers last, so that none is ever there without its voxels.
            for staged in sorted(
                staged_set.glob("*/*"), key=lambda path: suffix_of(path) == ".mhd"
            ):
                final = final_set / staged.relative_to(staged_set)
                final.parent.mkdir(exist_ok=True)
                staged.rename(final)


def _places(source: Path) -> Iterator[tuple[PurePosixPath, Member]]:
    """Where each volume file of a source goes, relative to the output folder."""
    if source.is_dir():
        members = _folder_members(source)
    elif source.is_file():
        members = _zip_members(source)
    else:
        raise DataError(f"{source}: no such file or folder; expected zip files or a folder")
    by_path = {member.path: member for member in members}
    headers = [
        member
        for member in members
        if suffix_of(member.path)
        and not any(part.startswith((".", "__MACOSX")) for part in member.path.parts[1:])
    ]
    if not headers:
        zips = any(path.suffix == ".zip" for path in source.iterdir()) if source.is_dir() else False
        raise DataError(
            f"{source}: holds no volume ({', '.join(SUFFIXES)}) within three levels of folders"
            + (f"; for its zip files say --source {source}/*.zip" if zips else "")
        )
    masks = {header.path for header in headers if _is_mask(header.path.name)}
    for header in headers:
        known = (_set_named(part) for part in reversed(header.path.parts[:-1]))
        folder = PurePosixPath(
            next(filter(None, known), "TrainData" if masks else "TestData"),
            "gt" if header.path in masks else "img",
        )
        yield folder / header.path.name, header
        voxels = data_file(header.read()) if suffix_of(header.path) in META_SUFFIXES else None
        if voxels and PurePosixPath(voxels).name == voxels:
            voxels_path = header.path.with_name(voxels)
            if voxels_path in by_path:
                yield folder / voxels, by_path[voxels_path]


def _is_mask(name: str) -> bool:
    return stem(name).endswith(MASK_SUFFIX)


def _set_named(folder_name: str) -> str | None:
    """The set that a folder's name tells: `TrainingData_Part2` -> `TrainData`, `img` -> None."""
    return next(
        (
            name
            for name, word in SETS.items()
            if re.search(f"(^|[^a-z]){word}", folder_name.lower())
        ),
        None,
    )


def data_file(header: bytes) -> str | None:
    """ElementDataFile of a MetaImage header; None where the voxels follow in the same file."""
    name = meta_header(io.BytesIO(header))[0].get("ElementDataFile", "LOCAL")
    return None if name.upper() == "LOCAL" else name


def _folder_members(source: Path) -> list[Member]:
    root = source.resolve()
    found = (path for depth in ("*", "*/*", "*/*/*") for path in sorted(root.glob(depth)))
    return [
        Member(PurePosixPath(root.name, path.relative_to(root)), path.read_bytes)
        for path in found
        if path.is_file()
    ]


def _zip_members(source: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"{source}: cannot be opened as a zip file ({error}); fetch the archive again"
        ) from error
    members = []
    for entry in entries:
        path = PureWindowsPath(entry.filename)  # some archives have backslashes; it takes both
        if path.anchor or ".." in path.parts or stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(
                f"{source}: entry {entry.filename!r} would leave the folder it is unpacked to; "
                "nothing was unpacked, get the archive from a source you trust"
            )
        if not entry.is_dir():
            members.append(
                Member(
                    PurePosixPath(source.stem, *path.parts),
                    lambda entry=entry: _read_entry(source, entry),
                )
            )
    return members


def _read_entry(source: Path, entry: zipfile.ZipInfo) -> bytes:
    try:
        with zipfile.ZipFile(source) as archive:
            return archive.read(entry)
    except NotImplementedError:
        return _read_with_tool(source, entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(
            f"{source}: {entry.filename} cannot be unpacked ({error}); fetch the archive again"
        ) from error


def _read_with_tool(source: Path, entry: zipfile.ZipInfo) -> bytes:
    tool = next(filter(shutil.which, UNPACKERS), None)
    if tool is None:
        raise DataError(
            f"{source}: Python cannot unpack {entry.filename} (compression method "
            f"{entry.compress_type}; 9 is Deflate64); install 7-Zip (Debian: apt install 7zip, "
            "before Debian 12 p7zip-full) and run the command again"
        )
    if not re.fullmatch(r"[\w. /][\w. /-]*", entry.filename):
        raise DataError(
            f"{source}: {entry.filename!r} is no name that can be given to {tool}; unpack the "
            "archive by hand and pass the folder to --source"
        )
    command = [tool, *UNPACKERS[tool], str(source.resolve()), entry.filename]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if len(result.stdout) != entry.file_size or zlib.crc32(result.stdout) != entry.CRC:
        said = " ".join(result.stderr.decode(errors="replace").split())
        raise DataError(
            f"{source}: {tool} cannot unpack {entry.filename} ({said or 'size or CRC differs'}); "
            "fetch the archive again"
        )
    return result.stdout


# Check ------------------------------------------------------------------------------------------


def check(data_path: Path) -> pd.DataFrame:
    """Reads every volume and tells what is wrong with it.

    Args:
        data_path: a folder with img/ and, except for test images, gt/; or one that holds such
            folders under the names of `SETS`. A set of test images may lie flat, as in the zoo.

    Returns:
        One row a case: case, size (voxels, x y z), spacing_mm (x y z), prostate_ml (NaN without a
        good mask), problems (one a line with its remedy, empty where all is well).

    Raises:
        DataError: there is nothing to check.
    """
    sets = [data_path / name for name in sorted(SETS, reverse=True) if (data_path / name).is_dir()]
    if (data_path / "img").is_dir() or not sets:
        sets = [data_path]
    cases = [
        (folder.name + "/" if folder != data_path else "", *case)
        for folder in sets
        for case in _cases(folder)
    ]
    if not cases:
        raise DataError(
            f"{data_path}: no volumes in img/; lay them out with prepare_data.py --source "
            f"{data_path} --out_path DIR"
        )
    rows = []
    for prefix, case_id, images, masks, mask_needed in tqdm(cases, "Checking", disable=None):
        rows.append({"case": prefix + case_id, **_check_case(case_id, images, masks, mask_needed)})
    return pd.DataFrame(rows)


def _cases(folder: Path) -> Iterator[tuple[str, list[Path], list[Path], bool]]:
    """Case, image files, mask files, whether a mask must be there; in a test set only if any is."""
    test_set = (_set_named(folder.resolve().name) or "TrainData") != "TrainData"
    flat = test_set and not (folder / "img").is_dir()
    image_folder, mask_folder = (folder, folder) if flat else (folder / "img", folder / "gt")
    images = images_in(image_folder) if image_folder.is_dir() else {}
    masks = images_in(mask_folder) if mask_folder.is_dir() else {}
    if flat:
        images = {name: paths for name, paths in images.items() if not _is_mask(name)}
        masks = {name: paths for name, paths in masks.items() if _is_mask(name)}
    masks = {name.removesuffix(MASK_SUFFIX): paths for name, paths in masks.items()}
    for case_id in sorted({*images, *masks}):
        mask_needed = bool(masks) or not test_set
        yield case_id, images.get(case_id, []), masks.get(case_id, []), mask_needed


def _check_case(
    case_id: str, images: list[Path], masks: list[Path], mask_needed: bool
) -> dict[str, str | float]:
    problems = []
    for paths in (images, masks):
        if len(paths) > 1:
            problems.append(
                f"{' and '.join(path.name for path in paths)} are one case by name; keep one"
            )
    if not images:
        problems.append(f"{masks[0].name}: mask without an image; add {case_id}.* to img/")
    if mask_needed and not masks:
        problems.append(
            f"{images[0].name}: image without a mask; add {case_id}{MASK_SUFFIX}.* to gt/"
        )
    image = mask = None
    try:
        if images:
            image = read_image(images[0])
        if image is not None and masks:
            mask = read_mask(masks[0], image, images[0])
    except DataError as error:
        problems.append(str(error))
    prostate_ml = math.nan
    if mask is not None:
        prostate_ml = volume_ml(mask)
        if not prostate_ml:
            problems.append(f"{masks[0].name}: the mask is empty; redraw it or leave the case out")
    size, spacing_mm = _grid((images or masks)[0])
    return {
        "size": "x".join(map(str, size)),
        "spacing_mm": "x".join(f"{side:.4g}" for side in spacing_mm),
        "prostate_ml": prostate_ml,
        "problems": "\n".join(problems),
    }


def _grid(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Size and spacing by the header alone, as the voxels may be at fault; empty if it is too."""
    reader = sitk.ImageFileReader()
    try:
        check_name(path)
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except (DataError, RuntimeError):
        return (), ()
    return reader.GetSize(), reader.GetSpacing()


def format_table(frame: pd.DataFrame, width: int) -> str:
    """The table of `check` as text, `width` columns wide; a case's problems follow its row."""
    cells = [["case", "size", "spacing (mm)", "prostate (ml)"]]
    for row in frame.itertuples():
        ml = "-" if math.isnan(row.prostate_ml) else f"{row.prostate_ml:.1f}"
        cells.append([row.case, row.size or "?", row.spacing_mm or "?", ml])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row, problems in zip(cells, ["", *frame["problems"]], strict=True):
        line = "  ".join(map(str.ljust, row, widths)).rstrip()
        lines += [line] if len(line) <= width else _wrapped("  ".join(row), width, "")
        for problem in problems.splitlines():
            lines += _wrapped(problem, width, "  ! ")
    return "\n".join(lines)


def _wrapped(text: str, width: int, mark: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=mark,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def report(frame: pd.DataFrame) -> None:
    """Prints the table of `check` and its sum.

    Raises:
        DataError: a case has problems.
    """
    print(format_table(frame, shutil.get_terminal_size().columns))
    faulty = int((frame["problems"] != "").sum())
    if faulty:
        raise DataError(f"{faulty} of {len(frame)} cases have problems; the table tells what to do")
    print(f"{len(frame)} cases, all well")
