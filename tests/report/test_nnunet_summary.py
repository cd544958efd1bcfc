"""summary.json against numbers counted by hand, in the form that nnU-Net v2 writes."""

import json
import math

import numpy as np
import pytest

from src.report.nnunet_summary import NnunetSummary, overlap
from tests.volumes import image_of


def mask_of(*voxels, size=10):
    array = np.zeros((1, 1, size), np.uint8)
    array[0, 0, list(voxels)] = 1
    return image_of(array)


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ((1, 2, 3), (2, 3, 4, 5), {"TP": 2, "FP": 2, "FN": 1, "TN": 5, "n_pred": 4, "n_ref": 3}),
        ((), (7,), {"TP": 0, "FP": 1, "FN": 0, "TN": 9, "n_pred": 1, "n_ref": 0}),
        ((7,), (), {"TP": 0, "FP": 0, "FN": 1, "TN": 9, "n_pred": 0, "n_ref": 1}),
    ],
)
def test_voxels_are_counted(reference, prediction, expected):
    found = overlap(mask_of(*reference), mask_of(*prediction))
    tp, fp, fn = (expected[key] for key in ("TP", "FP", "FN"))
    assert found == {
        **expected,
        "Dice": pytest.approx(2 * tp / (2 * tp + fp + fn)),
        "IoU": pytest.approx(tp / (tp + fp + fn)),
    }


def test_two_empty_masks_have_no_dice_and_do_not_count_in_its_mean(tmp_path):
    summary = NnunetSummary()
    summary.add("labelsTs/a.nii.gz", "out/a.nii.gz", mask_of(1, 2, 3), mask_of(2, 3, 4, 5))
    summary.add("labelsTs/b.nii.gz", "out/b.nii.gz", mask_of(), mask_of())
    summary.write(tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())
    # The keys, their order and nesting as nnU-Net v2 saves them (sort_keys=True).
    assert list(content) == ["foreground_mean", "mean", "metric_per_case"]
    keys = ["Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref"]
    assert list(content["mean"]) == ["1"] and list(content["mean"]["1"]) == keys
    first, second = content["metric_per_case"]
    assert list(first) == ["metrics", "prediction_file", "reference_file"]
    assert (first["reference_file"], first["prediction_file"]) == (
        "labelsTs/a.nii.gz",
        "out/a.nii.gz",
    )
    assert list(first["metrics"]["1"]) == keys
    assert math.isnan(second["metrics"]["1"]["Dice"])
    assert (
        content["foreground_mean"]
        == content["mean"]["1"]
        == {
            **{"Dice": pytest.approx(4 / 7), "IoU": pytest.approx(2 / 5)},
            **{"TP": 1.0, "FP": 1.0, "FN": 0.5, "TN": 7.5, "n_pred": 2.0, "n_ref": 1.5},
        }
    )
