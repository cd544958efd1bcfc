"""Splits of the cases into training and validation: the zoo's 40/10, random, or k folds.

What is drawn are patients, so that none has examinations on both sides; see `names.patient_of`.

A split file has one image file name per line, without a header.
"""

import logging
import random
import re
from pathlib import Path

from ..data_manager import Case, find_cases
from ..images.formats import MASK_SUFFIX, SUFFIXES, list_images, only_file, stem
from ..utils.errors import DataError, UsageError, list_few, reason_of
from ..utils.files import check_name, write_files
from .names import patient_of

log = logging.getLogger(__name__)

# The MindSpore model zoo's evaluation cases, of the challenge's 50 training cases.
ZOO_CASES = tuple(f"Case{number:02d}" for number in range(50))
ZOO_EVALUATION = tuple(f"Case{number}" for number in (11, 15, 19, 30, 42, 43, 44, 46, 48, 49))
EVALUATION_SHARE = 0.2
_IMAGE_NAME = re.compile(
    r'(?!\s)[^,;"\x00-\x1f/\\]+(?:' + "|".join(map(re.escape, SUFFIXES)) + ")", re.IGNORECASE
)


def check_listable(image: Path) -> None:
    """Raises a DataError for a file name that a split file cannot hold."""
    check_name(image)
    if not _IMAGE_NAME.fullmatch(image.name):
        raise DataError(
            f"{image}: a split file cannot hold this name; "
            "rename it without commas, semicolons, quotes, tabs, line breaks"
        )


def list_cases(data_path: Path) -> list[str]:
    """Returns the file names of the images in `data_path/img`, sorted.

    Raises:
        DataError: no img/ or gt/, no image, two images of one case, a name that a split file cannot
            hold, or a case without a mask in `data_path/gt`.
    """
    from .unread import unread_images  # pydicom takes 0.1 s to import

    images, masks = list_images(data_path / "img"), list_images(data_path / "gt")
    if not images:
        raise DataError(
            f"{data_path / 'img'}: no images ({', '.join(SUFFIXES)}) there; "
            "--data_path is the folder that holds img/ and gt/"
        )
    files = [only_file(paths) for paths in images.values()]
    for file in files:
        check_listable(file)
    unread = [path.name for part in ("img", "gt") for path in unread_images(data_path / part)]
    if unread:
        log.info(
            f"{data_path}: {list_few(unread)} in img/ or gt/ cannot be read there and are left "
            "out; prepare_data.py --check says what to do"
        )
    lacking = [case_id for case_id in images if case_id + MASK_SUFFIX not in masks]
    if lacking:
        raise DataError(
            f"{data_path / 'gt'}: no mask for {list_few(lacking, 5)}; expected e.g. "
            f"{lacking[0]}{MASK_SUFFIX}.mhd; add the masks or move these images away"
        )
    return [file.name for file in files]


def draw_splits(
    cases: list[str] | None, shuffled: bool = False, folds: int | None = None, seed: int = 1
) -> dict[str, list[str]]:
    """Splits the cases; those of one patient, by their names, stay together in a random draw.

    Args:
        cases: image file names; None for the challenge's Case00.mhd to Case49.mhd.
        shuffled: draw 20 % of the patients for evaluation, instead of the zoo's ten cases.
        folds: number of folds; each case is in the validation of exactly one, and their numbers of
            patients differ by at most one.
        seed: of the random draw.

    Returns:
        {file name: sorted image file names}, the files being train.csv and val.csv or
        train_foldN.csv and val_foldN.csv.

    Raises:
        UsageError: the request does not fit the cases.
    """
    cases = sorted(cases or (f"{case_id}.mhd" for case_id in ZOO_CASES))
    if len(cases) < 2:
        raise UsageError(f"{len(cases)} case cannot be split; add cases, at least 2 are needed")
    validation: dict[str, list[str]]
    if folds is not None:
        patients = _patients(cases)
        if not 2 <= folds <= len(patients):
            what = "cases" if len(patients) == len(cases) else "patients"
            raise UsageError(
                f"--folds {folds}: expected 2 to {len(patients)}, the number of {what}"
            )
        order = random.Random(seed).sample(patients, len(patients))
        validation = {f"_fold{fold}": sum(order[fold::folds], []) for fold in range(folds)}
    elif shuffled:
        patients = _patients(cases)
        count = max(1, round(EVALUATION_SHARE * len(patients)))
        validation = {"": sum(random.Random(seed).sample(patients, count), [])}
    else:
        validation = {"": [case for case in cases if stem(case) in ZOO_EVALUATION]}
        if len(validation[""]) in (0, len(cases)):
            some = "none" if not validation[""] else "all"
            raise UsageError(
                f"--random 0 evaluates on the zoo's {', '.join(ZOO_EVALUATION)}, and {some} "
                f"of the {len(cases)} cases are among them; use --random 1 or --folds K"
            )
    splits = {}
    for ending, held_out in validation.items():
        splits[f"train{ending}.csv"] = [case for case in cases if case not in held_out]
        splits[f"val{ending}.csv"] = sorted(held_out)
    return splits


def _patients(cases):
    """The cases of each patient, who are two at least; a line says how many there are."""
    by_name: dict[str, list[str]] = {}
    for case in cases:
        by_name.setdefault(patient_of(stem(case)), []).append(case)
    patients = list(by_name.values())
    if len(patients) == 1:
        raise UsageError(
            f"the {len(cases)} cases, {list_few(cases, 3)}, are of one patient by their names, and "
            "a split needs two; rename the cases, or write the split files yourself"
        )
    if len(patients) < len(cases):
        example = next(names for names in patients if len(names) > 1)
        log.info(
            f"{len(patients)} patients of {len(cases)} cases by their names; those of one are kept "
            f"together, such as {list_few(example, 3)}"
        )
    return patients


def write_splits(out_path: Path, splits: dict[str, list[str]]) -> None:
    """Writes the split files, all or none, and logs a line for each.

    Raises:
        DataError: the folder cannot be written, or one of the files exists and is not a split file.
    """
    notes = {}
    for name, cases in splits.items():
        path, note = out_path / name, ""
        if path.exists():
            try:
                previous = read_split(path)
            except DataError as error:
                raise DataError(
                    f"{error}; it is not a split file and therefore not replaced: move it away or "
                    "choose another --out_path"
                ) from error
            same = previous == cases
            note = ", as before" if same else f", replaces a split of {len(previous)}"
        notes[path] = f"{path}: {len(cases)} cases{note}"
    write_files(
        {path: "".join(f"{case}\n" for case in splits[path.name]).encode() for path in notes}
    )
    log.info("%s", "\n".join(notes.values()))
    earlier = {path.name for path in out_path.glob("*_fold*.csv")} - set(splits)
    if earlier and any("_fold" in name for name in splits):
        log.info(
            f"{out_path}: {list_few(sorted(earlier), 5)} of an earlier split remain; delete them"
        )


def read_split(path: str | Path) -> list[str]:
    """Reads the image file names of a split file; blank lines do not count.

    Raises:
        DataError: the file is missing, unreadable or empty, a line is not an image file name, or a
            case is repeated.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such split file; create_csv.py writes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as text ({reason_of(error)}); create_csv.py writes split files"
        ) from error
    names: list[str] = []
    first_line: dict[str, int] = {}  # of each case
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        if not _IMAGE_NAME.fullmatch(line):
            raise DataError(
                f"{path}: line {number} is {line[:60]!r}; expected one image file name a line, "
                "such as Case00.mhd, and no header"
            )
        if stem(line) in first_line:
            raise DataError(
                f"{path}: line {number} repeats {stem(line)} of line {first_line[stem(line)]}; "
                "keep one of them"
            )
        first_line[stem(line)] = number
        names.append(line)
    if not first_line:
        raise DataError(f"{path}: holds no case; create_csv.py writes split files")
    return names


def split_file(path: str | Path, kind: str, fold: int) -> Path:
    """Returns the split file for a file or folder on the command line.

    Args:
        path: a split file, or a folder written by `create_csv.py`.
        kind: "train" or "val".
        fold: number of the fold, from 0, if the folder has folds.

    Returns:
        `path` itself; in a folder `kind_foldN.csv`, or `kind.csv` if there are no folds.

    Raises:
        DataError: the folder has folds, but not this one.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    folds = sorted(path.glob(f"{kind}_fold*.csv"))
    chosen = path / (f"{kind}_fold{fold}.csv" if folds else f"{kind}.csv")
    if folds and not chosen.is_file():
        raise DataError(f"{path}: no {chosen.name}, only {len(folds)} folds; set fold below that")
    return chosen


def split_cases(data_path: str | Path, path: str | Path, kind: str, fold: int) -> list[Case]:
    """Returns the cases of a split, with their masks.

    Args:
        data_path: folder with `img/` and `gt/`.
        path, kind, fold: see `split_file`.

    Raises:
        DataError: a missing or empty split, missing or ambiguous files.
    """
    return find_cases(data_path, read_split(split_file(path, kind, fold)))
