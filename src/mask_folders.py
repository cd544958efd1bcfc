"""Pairs the masks of a folder, such as another program's results, with references by name.

A case has the name of its file without suffix and without one of the endings `_test` (this
project's predictions), `_segmentation`, `_seg`, `_label`, `_mask`: Case03_segmentation.mhd,
Case03_test.mhd, Case03_test.seg.nrrd and nnU-Net's Case03.nii.gz are of one case, and so is
Case03_0000_test.nii.gz, the prediction of nnU-Net's image Case03_0000.nii.gz, unless there is a
reference of Case03_0000. The longest name that a case has counts: with a case P01_test,
P01_test_test.mhd is its prediction.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .data_manager import Case
from .images.formats import MASK_ENDING, MASK_SUFFIX, list_images, only_file, stem
from .utils.errors import DataError, list_few

log = logging.getLogger(__name__)

PREDICTION_ENDING = "_test"
FIRST_CHANNEL = "_0000"  # end of the names of nnU-Net's images


def case_name(path: str | Path) -> str:
    """Returns the name of the case that a mask is of, NAME of NAME_segmentation as it is."""
    name = stem(path)
    exact = name.removesuffix(MASK_SUFFIX)
    return exact if exact not in ("", name) else _possible_names(name)[-1]


def _possible_names(name: str) -> list[str]:
    """A mask's name, and what is left of it as endings are taken off; the longest first."""
    names = [name]
    for ending in (MASK_ENDING, re.compile(f"{PREDICTION_ENDING}$"), MASK_ENDING):
        shorter = ending.sub("", names[-1])
        if shorter not in ("", names[-1]):
            names.append(shorter)
    return names


def masks_of(folder: str | Path, cases: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Returns the masks of a folder, {case: path}.

    Args:
        folder: of the masks.
        cases: {possible name: case}; a mask of none of these has its `case_name`.

    Raises:
        DataError: no such folder, no mask there, or several of one case.
    """
    cases = cases or {}
    masks: dict[str, Path] = {}
    for paths in list_images(folder).values():
        path = only_file(paths)
        known = [cases[name] for name in _possible_names(stem(path)) if name in cases]
        case = known[0] if known else case_name(path)
        other = masks.setdefault(case, path)
        if other != path:
            raise DataError(
                f"{folder}: {other.name} and {path.name} would both be the mask of {case}; move "
                "one of them away"
            )
    if not masks:
        raise DataError(f"{folder}: no masks there; expected a file for each case")
    return masks


def reference_cases(folder: str | Path) -> list[Case]:
    """Returns the masks of a folder as references of cases whose images are not known."""
    return [Case(name, path, path) for name, path in sorted(masks_of(folder).items())]


def has_image(case: Case) -> bool:
    """Whether the image of a case is known; False for those of `reference_cases`."""
    return case.image_path != case.mask_path


def masks_for(cases: Iterable[Case], folder: str | Path) -> dict[str, Path]:
    """Returns the mask of each case, {case_id: path}; logs the masks of other cases.

    Args:
        cases: with references.
        folder: of the masks to evaluate.

    Raises:
        DataError: a case has no mask in the folder, or its reference itself; two cases would have
            the same; or the folder is no such folder.
    """
    by_id = {case.case_id: case for case in cases}
    named: dict[str, str] = {}  # possible name -> case
    for case_id in by_id:
        for name in _possible_names(case_id):
            other = named.setdefault(name, case_id)
            if other != case_id:
                raise DataError(
                    f"{folder}: a mask {name} could be of {other} or {case_id}; rename one of "
                    "these cases"
                )
    masks = masks_of(folder, named)
    for name in list(masks.keys() - by_id.keys()):
        of_image = named.get(name.removesuffix(FIRST_CHANNEL))
        if of_image is None:
            continue
        if of_image in masks:
            raise DataError(
                f"{folder}: {masks[of_image].name} and {masks[name].name} would both be the mask "
                f"of {of_image}; move one of them away"
            )
        masks[of_image] = masks.pop(name)
    extra = sorted(masks.keys() - by_id.keys())
    left_out = f"without a reference: {list_few((masks[n].name for n in extra), 5)}"
    missing = [case_id for case_id in by_id if case_id not in masks]
    if missing:
        also = f"; {left_out}" if extra else ""
        raise DataError(
            f"{folder}: no mask of {list_few(missing, 5)}{also}; add the missing masks, or leave "
            "these cases out of the references"
        )
    if extra:
        log.info(f"{folder}: {len(extra)} mask(s) left out, {left_out}")
    for case_id, case in by_id.items():
        if masks[case_id].samefile(case.mask_path):
            raise DataError(
                f"{masks[case_id]}: the reference itself, expected another program's mask; give "
                "the folder of these"
            )
    return {case_id: masks[case_id] for case_id in by_id}
