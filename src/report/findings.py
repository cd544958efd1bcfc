"""Findings: rules that tell which masks are probably wrong and should be looked at.

Functions return {code: text}. The codes are stable, for programs; the texts, of `texts.FINDINGS`,
are for people, shown after a case's Dice or volume. No rule is a clinical limit.
"""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from scipy import ndimage

from ..data_manager import network_grid, xyz
from ..images.orientation import acquisition_plane, nearest_patient_axes
from ..metrics import bounding_box, mask_array, volume_ml
from .texts import finding_text

LOW_DICE = 0.8
# A healthy adult's prostate has some 20 ml, after treatment rarely less than 10; above 200 ml is
# rare (giant prostatic hyperplasia).
PLAUSIBLE_ML = (10, 250)
LARGE_CUT = 0.05  # of what was found; nothing is cut off PROMISE12's 50 reference masks
PARTS = ("base", "apex")


def finding_fields(findings: dict[str, str]) -> dict[str, list[str]]:
    """Returns findings as the two fields that a case has in tables and report."""
    return {"findings": list(findings), "findings_text": list(findings.values())}


def plane_findings(image: sitk.Image, config: EasyDict) -> dict[str, str]:
    """Finds whether the slices of an image lie in another plane than those of the training.

    Args:
        image: the image to segment.
        config: `plane`; "auto" counts as axial.
    """
    trained = "axial" if config.plane == "auto" else config.plane
    plane = acquisition_plane(image)
    if plane in (None, trained):
        return {}
    return {"plane": finding_text("plane", plane=plane, trained=trained)}


def mask_findings(
    mask: sitk.Image,
    config: EasyDict,
    centre_mm: Sequence[float] | None = None,
    cut_share: float = 0.0,
) -> dict[str, str]:
    """Finds what is suspicious about a mask that has no reference.

    Args:
        mask: uint8, 0 and 1.
        config: network grid.
        centre_mm: of the network grid, see `src.data_manager.network_grid`.
        cut_share: see `src.predictor.cut_share`.
    """
    prostate_ml, (least, most) = volume_ml(mask), PLAUSIBLE_ML
    found = {
        "empty": prostate_ml == 0,
        "border": touches_border(mask, config, centre_mm),
        "small": 0 < prostate_ml < least,
        "large": prostate_ml > most,
        "cut": cut_share > LARGE_CUT,
    }
    values = {"least": least, "most": most, "percent": round(100 * cut_share)}
    return {code: finding_text(code, **values) for code, holds in found.items() if holds}


def touches_border(
    mask: sitk.Image, config: EasyDict, centre_mm: Sequence[float] | None = None
) -> bool:
    """Whether a mask reaches the border of what the network saw, so that the gland may be cut off.

    The first and the last slice of an image do not count: many stacks end where the gland does.

    Args:
        mask: uint8, 0 and 1.
        config: network grid.
        centre_mm: see `mask_findings`.
    """
    box = bounding_box(mask_array(mask))[::-1]  # x, y, z
    if box[0].stop == 0:  # an empty mask
        return False
    # Around the mask, with a neighbour of each of its voxels, except at the border of the image.
    near = mask[tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)]
    ones = network_grid(mask, config, centre_mm) + 1
    seen = sitk.Resample(ones, near, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    # One more slice at both ends, so that the erosion leaves the first and the last one.
    padding = [int(axis == _slice_axis(mask)) for axis in range(3)]
    inside = ndimage.binary_erosion(np.pad(xyz(seen) > 0, [(n, n) for n in padding], mode="edge"))
    inside = inside[tuple(slice(n, -n or None) for n in padding)]
    return bool((xyz(near) > 0)[~inside].any())


def _slice_axis(image: sitk.Image) -> int:
    """The image's axis across its slices; the one nearest to head-feet if voxels are cubes."""
    if acquisition_plane(image):
        return int(np.argmax(image.GetSpacing()))
    return nearest_patient_axes(image)[0][2]


def metric_findings(metrics: dict) -> dict[str, str]:
    """Finds what is wrong with a mask that has a reference.

    Args:
        metrics: of `src.metrics.case_metrics`.
    """
    empty = [name for name in ("reference", "prediction") if metrics[f"{name}_ml"] == 0]
    missed = [part for part in PARTS if metrics[f"{part}_empty"] and not metrics["empty"]]
    codes = [
        *(["low_dice"] if metrics["dice"] < LOW_DICE else []),
        *(f"empty_{name}" for name in empty),
        *(f"no_{part}" for part in missed),
    ]
    return {code: finding_text(code, low_dice=LOW_DICE) for code in codes}
