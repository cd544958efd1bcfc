"""Images and masks by patterns on their paths (`--image_pattern`, `--mask_pattern`)."""

import re

from ...utils.errors import DataError, UsageError
from ..names import set_of_path
from ..sources import Dicom, Source, Volume
from .layout import Key, group


def match_case(pattern: str, path: str) -> str | None:
    """Returns the name of the case if a path matches a pattern, else None.

    Args:
        pattern: `{case}` matches the name of the case, `*` and `?` match characters within one
            name, `**/` matches any folders. All `{case}` must match the same text.
        path: below the source.

    Raises:
        UsageError: no `{case}`.
    """
    if "{case}" not in pattern:
        raise UsageError(f"{pattern}: no {{case}} in it, expected one such as '{{case}}/t2.nii.gz'")
    wild = {"{case}": r"(?P<case>[^/]+)", "**/": r"(?:.+/)?", "*": r"[^/]*", "?": r"[^/]"}
    parts = re.split(r"(\{case\}|\*\*/|\*|\?)", pattern.removeprefix("./"))
    expression = "".join(wild.get(part, re.escape(part)) for part in parts)
    before, case_group, after = expression.partition(wild["{case}"])
    found = re.fullmatch(before + case_group + after.replace(wild["{case}"], "(?P=case)"), path)
    return found["case"] if found else None


def find_images(source: Source, pattern: str) -> dict[Key, list[Volume | Dicom]]:
    """Returns the volumes and the folders of DICOM files that `--image_pattern` matches.

    Raises:
        DataError: there are none.
    """
    folders = sorted({member.path.parent for member in source.dicom})
    candidates = [*source.volumes, *(source.dicom_folder(folder) for folder in folders)]
    return _find(source, candidates, pattern, "--image_pattern")


def find_masks(source: Source, pattern: str) -> dict[Key, list[Volume]]:
    """Returns the volumes that `--mask_pattern` matches.

    Raises:
        DataError: there are none.
    """
    return _find(source, source.volumes, pattern, "--mask_pattern")


def _find(source, candidates, pattern, flag):
    cases = [(match_case(pattern, candidate.relative), candidate) for candidate in candidates]
    found = group(((set_of_path(c.path), case), c) for case, c in cases if case)
    if not found:
        example = f", such as {candidates[0].relative}" if candidates else ""
        raise DataError(
            f"{source.path}: {flag} {pattern} matches none of {len(candidates)} volumes{example}; "
            "give a pattern that matches the path below the source"
        )
    return found
