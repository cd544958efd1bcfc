"""Checks the volumes in img/ and gt/, and formats the table of problems."""

import logging
import math
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import SimpleITK as sitk
from tqdm import tqdm

from ..config import vnet_cfg
from ..data_manager import worker_count
from ..images.formats import MASK_SUFFIX, list_images, only_file
from ..images.metaimage import data_file
from ..images.reading import mr_image, read_mask, read_volume_or_one_of
from ..metrics import volume_ml
from ..utils.errors import DataError
from ..utils.files import check_name
from .names import SETS, set_named
from .splits import check_listable
from .unread import case_of, misnamed_masks, unread_images

log = logging.getLogger(__name__)


class CaseFiles(NamedTuple):
    """The files of a case.

    Attributes:
        name: of the case.
        images, masks: should be one each.
        mask_needed: whether there must be a mask.
        unread_images, unread_masks: lines on files that should be its images or masks, but are not
            read as such.
    """

    name: str
    images: list[Path]
    masks: list[Path]
    mask_needed: bool
    unread_images: list[str]
    unread_masks: list[str]


def check(data_path: Path, labels: Sequence[int] = (), channel: int | None = None) -> pd.DataFrame:
    """Reads all volumes, several at a time, and collects their problems.

    Args:
        data_path: a folder with img/ and, except for test images, gt/; or one with such folders
            under the names of `SETS`. Test images may be in the folder itself, as in the zoo.
        labels: mask values that together are the prostate; empty: masks must have only 0 and 1.
        channel: index of the T2 image in 4-D files.

    Returns:
        One row per case: case, size (voxels, x y z), spacing_mm (x y z), prostate_ml (NaN without a
        valid mask), problems (one per line with its remedy; empty if there are none).

    Raises:
        DataError: there is nothing to check.
    """
    cases = [
        (folder.name + "/" if folder != data_path else "", case)
        for folder in sets_of(data_path)
        for case in cases_of(folder)
    ]
    if not cases:
        raise DataError(
            f"{data_path}: no volumes in img/; lay them out with prepare_data.py --source "
            f"{data_path} --out_path DIR"
        )

    def row_of(prefix_and_case):
        prefix, case = prefix_and_case
        return {"case": prefix + case.name, **_check_case(case, labels, channel)}

    with ThreadPoolExecutor(worker_count(vnet_cfg)) as pool:
        rows = list(tqdm(pool.map(row_of, cases), "Checking", len(cases), disable=None))
    _add_shared_voxels([case for _, case in cases], rows)
    return pd.DataFrame(rows)


def _add_shared_voxels(cases, rows):
    """Adds the problem of a header that names the data file of another one."""
    owners: dict[Path, Path] = {}
    for case, row in zip(cases, rows, strict=True):
        for path in (*case.images[:1], *case.masks[:1]):
            try:
                voxels = data_file(path).resolve()
            except (DataError, OSError):  # reported in its own row
                continue
            first = owners.setdefault(voxels, path)
            if first != path:
                problem = (
                    f"{path.name}: its voxels are in {voxels.name}, like those of {first.name}; "
                    "give each its own data file"
                )
                row["problems"] = "\n".join(filter(None, (row["problems"], problem)))


def sets_of(data_path: Path) -> list[Path]:
    """Returns the folders of `SETS` in a folder, TrainData first, or the folder if it has img/."""
    sets = [data_path / name for name in sorted(SETS, reverse=True) if (data_path / name).is_dir()]
    return [data_path] if (data_path / "img").is_dir() or not sets else sets


def cases_of(folder: Path) -> Iterator[CaseFiles]:
    """Yields the files of each case. In a test set masks are needed if there are any."""
    test_set = (set_named(folder.resolve().name) or "TrainData") != "TrainData"
    flat = test_set and not (folder / "img").is_dir()
    image_folder, mask_folder = (folder, folder) if flat else (folder / "img", folder / "gt")
    images = list_images(image_folder) if image_folder.is_dir() else {}
    masks = list_images(mask_folder) if mask_folder.is_dir() else {}
    if flat:
        images = {name: paths for name, paths in images.items() if not name.endswith(MASK_SUFFIX)}
        masks = {name: paths for name, paths in masks.items() if name.endswith(MASK_SUFFIX)}
    misnamed = misnamed_masks(masks, images)
    masks = {
        name.removesuffix(MASK_SUFFIX): paths
        for name, paths in masks.items()
        if name.endswith(MASK_SUFFIX)
    }
    cases = {*images, *masks}
    of_images = _lines_by_case(_lacking(unread_images(image_folder), images, cases))
    unread_masks = {} if flat else _lacking(unread_images(mask_folder), masks, cases)
    of_masks = _lines_by_case(misnamed | unread_masks)
    mask_needed = bool(masks or of_masks) or not test_set
    for name in sorted({*images, *masks, *of_images, *of_masks}):
        yield CaseFiles(
            name,
            images.get(name, []),
            masks.get(name, []),
            mask_needed,
            of_images.get(name, []),
            of_masks.get(name, []),
        )


def _lacking(unread, there, cases):
    """What is in the place of a file that a case lacks; a line tells of folders of no case.

    Args:
        unread: of `unread_images`.
        there: names of the cases that have the file.
        cases: names of all cases with any file.
    """
    lacking = {path: what for path, what in unread.items() if case_of(path) not in there}
    for path, what in lacking.items():
        if path.is_dir() and case_of(path) not in cases:
            log.info(f"{path}: {what}, or move it away")
    return {p: what for p, what in lacking.items() if not p.is_dir() or case_of(p) in cases}


def _lines_by_case(unread):
    lines = defaultdict(list)
    for path, what in unread.items():
        lines[case_of(path)].append(f"{path.parent.name}/{path.name}: {what}")
    return dict(lines)


def _check_case(
    case: CaseFiles, labels: Sequence[int], channel: int | None
) -> dict[str, str | float]:
    images, masks = case.images, case.masks
    problems = [*case.unread_images, *case.unread_masks]
    for paths in filter(None, (images, masks)):
        try:
            only_file(paths)
            if case.mask_needed and paths is images:  # it may be listed in a split
                check_listable(images[0])
        except DataError as error:
            problems.append(str(error))
    if masks and not images and not case.unread_images:
        problems.append(f"{masks[0].name}: mask without an image; add {case.name}.* to img/")
    if images and case.mask_needed and not masks and not case.unread_masks:
        problems.append(
            f"{images[0].name}: image without a mask; add {case.name}{MASK_SUFFIX}.* to gt/"
        )
    image = mask = None
    try:
        if images:
            image = mr_image(read_volume_or_one_of(images[0], channel)[0], images[0])
        if image is not None and masks:
            mask = read_mask(masks[0], image, images[0], labels)
    except DataError as error:
        problems.append(str(error))
    prostate_ml = math.nan
    if mask is not None:
        prostate_ml = volume_ml(mask)
        if not prostate_ml:
            problems.append(f"{masks[0].name}: the mask is empty; redraw it or leave the case out")
    size: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    if image is not None:
        size, spacing_mm = image.GetSize(), image.GetSpacing()
    elif images or masks:
        size, spacing_mm = _grid_by_header((images or masks)[0])
    return {
        "size": "x".join(map(str, size)),
        "spacing_mm": "x".join(f"{side:.4g}" for side in spacing_mm),
        "prostate_ml": prostate_ml,
        "problems": "\n".join(problems),
    }


def _grid_by_header(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Size and spacing from the header of a file whose voxels cannot be read; else empty."""
    reader = sitk.ImageFileReader()
    try:
        check_name(path)
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except (DataError, RuntimeError):
        return (), ()
    return reader.GetSize()[:3], reader.GetSpacing()[:3]


def format_table(frame: pd.DataFrame, width: int) -> str:
    """Formats the table of `check`, `width` columns wide; a case's problems follow its row."""
    cells = [["case", "size", "spacing (mm)", "prostate (ml)"]]
    for row in frame.itertuples():
        ml = "-" if math.isnan(row.prostate_ml) else f"{row.prostate_ml:.1f}"
        cells.append([row.case, row.size or "?", row.spacing_mm or "?", ml])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row, problems in zip(cells, ["", *frame["problems"]], strict=True):
        line = "  ".join(map(str.ljust, row, widths)).rstrip()
        lines += [line] if len(line) <= width else _wrap("  ".join(row), width, "")
        for problem in problems.splitlines():
            lines += _wrap(problem, width, "  ! ")
    return "\n".join(lines)


def _wrap(text: str, width: int, mark: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=mark,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def print_report(frame: pd.DataFrame) -> None:
    """Prints the table of `check` and the number of cases.

    Raises:
        DataError: some case has problems.
    """
    print(format_table(frame, shutil.get_terminal_size().columns))
    faulty = int((frame["problems"] != "").sum())
    if faulty:
        raise DataError(
            f"{faulty} of {len(frame)} cases have problems; see the table for what to do"
        )
    print(f"{len(frame)} cases, no problems")
