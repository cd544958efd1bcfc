"""summary.json: the overlap of each mask with its reference, in the form of nnU-Net v2.

The form is that of `nnunetv2/evaluation/evaluate_predictions.py`: `metric_per_case`, `mean` and
`foreground_mean`, keys sorted. The prostate is its label "1".
"""

import warnings
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..metrics import mask_array
from ..utils.files import write_json

SUMMARY_JSON = "summary.json"
LABEL = "1"


def overlap(reference: sitk.Image, prediction: sitk.Image) -> dict[str, float]:
    """Counts the voxels of two masks as nnU-Net does.

    Args:
        reference, prediction: masks 0/1 on the same grid.

    Returns:
        "TP", "FP", "FN", "TN", "n_pred", "n_ref" in voxels; "Dice" and "IoU", which are NaN if both
        masks are empty.
    """
    reference_mask, mask = mask_array(reference), mask_array(prediction)
    n_ref, n_pred = int(np.count_nonzero(reference_mask)), int(np.count_nonzero(mask))
    both = int(np.count_nonzero(reference_mask & mask))
    either = n_ref + n_pred - both
    return {
        "Dice": 2 * both / (n_ref + n_pred) if either else np.nan,
        "IoU": both / either if either else np.nan,
        "TP": both,
        "FP": n_pred - both,
        "FN": n_ref - both,
        "TN": mask.size - either,
        "n_pred": n_pred,
        "n_ref": n_ref,
    }


class NnunetSummary:
    """The cases of a summary.json, added one by one."""

    def __init__(self) -> None:
        self.cases: list[dict] = []

    def add(
        self,
        reference_file: str | Path,
        prediction_file: str | Path,
        reference: sitk.Image,
        prediction: sitk.Image,
    ) -> None:
        """Adds a case: the paths of its two masks, and the masks."""
        self.cases.append(
            {
                "reference_file": str(reference_file),
                "prediction_file": str(prediction_file),
                "metrics": {LABEL: overlap(reference, prediction)},
            }
        )

    def write(self, folder: Path) -> None:
        """Writes `folder/summary.json`; like nnU-Net's, it has NaN where both masks are empty.

        Raises:
            DataError: the file cannot be written.
        """
        values = [case["metrics"][LABEL] for case in self.cases]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: the mean is NaN, too
            mean = {key: float(np.nanmean([v[key] for v in values])) for key in values[0]}
        content = {"metric_per_case": self.cases, "mean": {LABEL: mean}, "foreground_mean": mean}
        write_json(folder / SUMMARY_JSON, content, indent=4, sort_keys=True)
