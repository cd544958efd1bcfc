"""What somebody should look at: rules for masks that are probably wrong.

A finding is a short code, which stays the same for programs, and words to put after a case's Dice
or volume. They lead to cases worth a look; none of them is a clinical bound.
"""

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from scipy import ndimage

from ..data_manager import probability_to_case_grid, xyz
from ..images.orientation import acquisition_plane, nearest_patient_axes
from ..metrics import volume_ml

LOW_DICE = 0.8
# A healthy adult's prostate holds some 20 ml, one that shrank under treatment rarely less than 10;
# those above 200 are rare enough to have a name (giant prostatic hyperplasia).
PLAUSIBLE_ML = (10, 250)
PARTS = ("base", "apex")


def plane_findings(image: sitk.Image, config: EasyDict) -> dict[str, str]:
    """Whether an image is a stack of another plane than the training's, {code: words}.

    Args:
        image: to segment.
        config: `plane`; "auto" counts as axial.
    """
    trained = "axial" if config.plane == "auto" else config.plane
    plane = acquisition_plane(image)
    if plane in (None, trained):
        return {}
    return {"plane": f"{plane} stack, the training's are {trained}"}


def mask_findings(mask: sitk.Image, config: EasyDict) -> dict[str, str]:
    """What is odd about a mask without a reference, {code: words}.

    Args:
        mask: uint8, 0 and 1.
        config: network grid.
    """
    prostate_ml, (least, most) = volume_ml(mask), PLAUSIBLE_ML
    found = {
        "empty": ("the mask is empty", prostate_ml == 0),
        "border": (
            "the mask touches the border of the image or of the network grid",
            touches_border(mask, config),
        ),
        "small": (f"less than {least} ml", 0 < prostate_ml < least),
        "large": (f"more than {most} ml", prostate_ml > most),
    }
    return {code: words for code, (words, holds) in found.items() if holds}


def touches_border(mask: sitk.Image, config: EasyDict) -> bool:
    """Whether a mask reaches a border of what the network saw, so that the gland may go on.

    The first and the last slice of an image are none: many stacks end where the gland does.

    Args:
        mask: uint8, 0 and 1.
        config: network grid.
    """
    seen = xyz(probability_to_case_grid(np.ones(config.VolSize), mask, config)) > 0
    beyond = [(int(axis == _slice_axis(mask)),) * 2 for axis in range(3)]
    inside = ndimage.binary_erosion(np.pad(seen, beyond, mode="edge"))
    inside = inside[tuple(slice(before, -before or None) for before, _ in beyond)]
    return bool((xyz(mask) > 0)[~inside].any())


def _slice_axis(image):
    """The axis along which slices follow each other; that to the head where voxels are cubes."""
    if acquisition_plane(image):
        return int(np.argmax(image.GetSpacing()))
    return nearest_patient_axes(image)[0][2]


def metric_findings(metrics: dict) -> dict[str, str]:
    """What is bad about a mask with a reference, {code: words}.

    Args:
        metrics: of `src.metrics.case_metrics`.
    """
    empty = [name for name in ("reference", "prediction") if metrics[f"{name}_ml"] == 0]
    missed = [part for part in PARTS if metrics[f"{part}_empty"] and not metrics["empty"]]
    return {
        **({"low_dice": f"below {LOW_DICE}"} if metrics["dice"] < LOW_DICE else {}),
        **{f"empty_{name}": f"empty {name}" for name in empty},
        **{f"no_{part}": f"nothing predicted at {part}" for part in missed},
    }
