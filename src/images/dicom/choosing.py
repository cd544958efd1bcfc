"""Choice of one of several series: by default the only axial T2."""

import fnmatch
from collections import Counter
from pathlib import Path

from ...utils.errors import DataError
from ...utils.log import warn_once
from .headers import class_name
from .series import Series

OR_CHOOSE = ", or choose the series to read with --series"
NO_PLANE = "no ImageOrientationPatient; export it again from the scanner or archive"


def choose_series(series: list[Series], wanted: str, path: str | Path) -> Series:
    """Returns the requested series, or the only axial T2.

    Args:
        series: all series found, see `find_series`.
        wanted: a SeriesInstanceUID, a series number, or a pattern on the description (`*t2*tra*`,
            or a part of it), in any case. Empty: the only axial T2, or the only image series if
            nothing contradicts that it is one.
        path: where they were found, for messages.

    Raises:
        DataError: no series or several match; or without `wanted` those of MR are of several
            patients, or damaged files or a series that does not tell its plane may be the axial T2.
    """
    lost = series[0].lost
    count = f" ({len(lost)} such files)" if len(lost) > 1 else ""
    if wanted:
        chosen_by_name = _find_wanted(series, wanted, path)
        if lost:
            warn_once(f"warning: {path}: left out: {lost[0]}{count}")
        return chosen_by_name
    if lost:
        raise DataError(f"{path}: {lost[0]}{OR_CHOOSE}{count}")
    patients = {s.patient_id for s in series if s.patient_id and not s.not_mr}
    if len(patients) > 1:
        raise DataError(
            f"{path}: series of {len(patients)} patients (PatientID): {_list_series(series)}; give "
            "each patient's files a folder of their own, or choose one series with --series"
        )
    likely = [s for s in series if s.may_be_t2]
    chosen = [s for s in likely if s.contrast == "T2"]
    images = [s for s in series if not s.not_mr or "Image Storage" in class_name(s.sop_class)]
    if not chosen and len(images) == 1:
        only = images[0]
        if only.problems or (only.plane == "unknown" and not only.not_mr):
            return only  # `read_series` reports the problem
        chosen = likely
    unclear = [s for s in series if s.may_be_t2_without_plane]
    if chosen and unclear:
        problems = unclear[0].problems or (NO_PLANE,)
        raise DataError(f"{path}: series {unclear[0].name}: {problems[0]}{OR_CHOOSE}")
    if len(chosen) == 1:
        return chosen[0]
    if len(series) == 1:
        raise DataError(f"{path}: series {_why_not_t2(series[0])}")
    found = "several axial T2 series" if chosen else "no axial T2 series"
    raise DataError(
        f"{path}: {found} among {_list_series(series)}; choose one with --series (number, UID or a "
        "pattern on the description)"
    )


def _why_not_t2(series):
    """Why the only series is not an axial T2, and the remedy."""
    name = f"{series.name} ({series.plane}, {len(series.frames)} slice(s))"
    if series.not_mr:
        return f"{series.name} is {series.not_mr}; expected an axial T2 MR series"
    if series.diffusion or series.localizer:
        kind = "diffusion" if series.diffusion else "a localizer"
        evidence = series.diffusion or series.localizer
        return f"{name} is {kind} ({evidence}); expected an axial T2 series; --series reads it"
    found = series.contrast if series.contrast not in ("", "T2") else f"{series.plane}, not axial"
    return f"{name} is {found}; expected an axial T2 series, choose it with --series to read it"


def _list_series(series):
    twice = Counter((s.number, s.description) for s in series)
    return f"{len(series)} series: " + "; ".join(
        s.summary + (f" UID {s.uid}" if twice[s.number, s.description] > 1 else "") for s in series
    )


def _find_wanted(series, wanted, path):
    pattern = wanted.strip().lower()
    is_number = pattern.isdecimal()
    rules = (
        lambda s: s.uid.lower() == pattern,
        lambda s: is_number and s.number == int(pattern),
        lambda s: s.description.lower() == pattern,
        # The 3 of a patient without a series 3 is not that of another's "fov3".
        lambda s: not is_number and fnmatch.fnmatchcase(s.description.lower(), pattern),
        lambda s: not is_number and pattern in s.description.lower(),
    )
    for matches in rules:
        found = [s for s in series if matches(s)]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{path}: --series {wanted} matches {_list_series(found)}; give the number or UID "
                "of one"
            )
    raise DataError(f"{path}: --series {wanted} matches none of {_list_series(series)}")
