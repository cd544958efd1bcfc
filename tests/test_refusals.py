"""Public functions refuse what would give a plausible wrong answer, and say what they got."""

import re
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from src import metrics, predictor
from src.data_manager import (
    TrainingVolume,
    mask_to_network_grid,
    network_grid,
)
from src.dataset import TrainingSamples, epoch_order
from src.dropout import draw_dropout_mask
from src.images.intensity import z_score
from src.images.orientation import direction_matrix, to_patient_order
from src.loss import LOSSES
from src.lr_schedule import learning_rates
from src.report import figures, planes
from tests.volumes import image_of

MASK = np.zeros((4, 5, 6), bool)
NAN = np.full((4, 5, 6), np.nan, np.float32)
FLIPPED = SimpleNamespace(flip_average=True)
NARROW = MASK[:, :, :-1]
PLANE = sitk.Image(4, 5, sitk.sitkUInt8)
PAIR = sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 2)


WHOLE = image_of(MASK.astype(np.uint8))
LABELS = image_of(np.full(MASK.shape, 2, np.uint8))
HALF = image_of(np.full(MASK.shape, 0.5, np.float32))


@pytest.mark.parametrize(
    ("call", "words"),
    {
        "dice of counts": (
            lambda: metrics.dice(MASK * 2, MASK),
            "a mask of int64, expected .* bool",
        ),
        "dice of a list": (lambda: metrics.dice([True], MASK), "a mask of list"),
        "dice of two shapes": (
            lambda: metrics.dice(MASK, MASK[:1]),
            r"\(4, 5, 6\) and \(1, 5, 6\)",
        ),
        "volumes": (lambda: metrics.volume_difference_percent(MASK, NARROW), r"and \(4, 5, 5\)"),
        "surface": (lambda: metrics.surface(MASK.astype(np.uint8)), "a mask of uint8"),
        "box": (lambda: metrics.bounding_box(NAN), "a mask of float32"),
        "thirds": (lambda: metrics.apex_and_base(MASK, 3, True), r"axis 3 .*\(4, 5, 6\)"),
        "maps of two shapes": (
            lambda: metrics.surface_distance_maps(MASK, NARROW, np.ones(3)),
            r"and \(4, 5, 5\)",
        ),
        "maps without spacing": (
            lambda: metrics.surface_distance_maps(MASK, MASK, np.array([1.0, 0.0, 1.0])),
            r"spacing of \[1. 0. 1.\] mm, expected 3 positive",
        ),
        "summary of nothing": (lambda: metrics.summarize([]), "no cases"),
        "metrics of labels": (
            lambda: metrics.case_metrics(LABELS, WHOLE),
            r"values \[2\], expected 0",
        ),
        "metrics of a plane": (lambda: metrics.case_metrics(PLANE, PLANE), r"size \(4, 5\)"),
        "volume of a probability": (lambda: metrics.volume_ml(HALF), r"values \[0.5\]"),
        "component of numbers": (lambda: predictor.largest_component(NAN), "float32 of shape"),
        "component of a plane": (lambda: predictor.largest_component(MASK[0]), r"shape \(5, 6\)"),
        "cavities of numbers": (lambda: predictor.without_cavities(NAN), "float32 of shape"),
        "one output for two": (lambda: predictor.average_outputs([NAN], FLIPPED), "expected 2 of"),
        "two shapes": (lambda: predictor.average_outputs([MASK, NARROW], FLIPPED), r"\(4, 5, 5\)"),
        "threshold": (lambda: predictor.mask_of_probability(HALF, 1.5), "threshold of 1.5"),
        "NaN": (lambda: predictor.mask_of_probability(image_of(NAN)), "NaN or infinity"),
        "intensities": (
            lambda: predictor.mask_of_probability(WHOLE),
            "unsigned integer, expected p",
        ),
        "a training network": (
            lambda: predictor.foreground_probability(SimpleNamespace(training=True), NAN),
            "in training mode",
        ),
        "z-score of NaN": (lambda: z_score(NAN), "NaN or infinity"),
        "directions of a plane": (
            lambda: direction_matrix(PLANE),
            r"size \(4, 5\), expected three",
        ),
        "order of another": (lambda: to_patient_order(MASK, WHOLE), r"expected \(6, 5, 4\)"),
        "rates for no step": (lambda: learning_rates(1e-3, 0, 1, 0.3), "total_steps is 0"),
        "rates of NaN": (lambda: learning_rates(np.nan, 5, 1, 0.3), "lr is nan"),
        "warm-up of -1": (lambda: learning_rates(1e-3, 5, -1, 0.3), "warmup_step is -1"),
        "warm-up to more": (lambda: learning_rates(1e-3, 5, 1, 1.3), "warmup_ratio is 1.3"),
        "order of no cases": (lambda: epoch_order(0, 0, 1, 2), "0 cases in batches of 2"),
        "dropout of all": (lambda: draw_dropout_mask(1, 0, 4, 1.0), "dropout of 1.0"),
        "history of nothing": (
            lambda: figures.progress_figure(pd.DataFrame({"epoch": []})),
            "0 rows with epoch, expected one row",
        ),
    }.values(),
)
def test_what_is_given_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("image", [PLANE, PAIR])
@pytest.mark.parametrize("call", [network_grid, mask_to_network_grid])
@pytest.mark.parametrize("aligned", ["false", "true"])
def test_a_grid_is_of_three_axes(small_config, call, image, aligned):
    with pytest.raises(ValueError, match="expected a 3-D scalar image"):
        call(image, small_config(f"normDir={aligned}"))


@pytest.mark.parametrize("second", [(4, 5, 7), None])
def test_training_volumes_are_of_one_shape(small_config, second):
    shapes = [] if second is None else [(4, 5, 6), second]
    volumes = [TrainingVolume(np.zeros(s, np.float32), np.zeros(s, bool), "") for s in shapes]
    with pytest.raises(ValueError, match="expected the same \\(X, Y, Z\\)"):
        TrainingSamples(volumes, small_config(), 0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("mask_shape", [(2, 1, 3, 4, 5), (1, 3, 4, 5), (3, 4, 5)])
def test_a_loss_does_not_broadcast(loss, mode, mask_shape):
    """(2, 1, X, Y, Z) against (2, X, Y, Z) would compare each volume with both masks."""
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        prediction = ms.Tensor(np.full((2, 3, 4, 5), 0.5, np.float32))
        shapes = re.escape(f"prediction (2, 3, 4, 5) and a mask {mask_shape}")
        with pytest.raises(ValueError, match=f"{shapes}.* the same"):
            LOSSES[loss]()(prediction, ms.Tensor(np.zeros(mask_shape, np.float32)))
    finally:
        ms.set_context(mode=before)


@pytest.mark.parametrize("which", ["prediction", "reference"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mask: mask[:, :, :-1], r"size \(6, 5, 3\), expected \(6, 5, 4\)"),
        (lambda mask: image_of(MASK.astype(np.uint8), (1.0, 1.0, 2.0)), r"spacing .*2\.0"),
    ],
)
def test_overlays_are_of_one_grid(which, change, words):
    masks = {"prediction": WHOLE, "reference": WHOLE, which: change(WHOLE)}
    with pytest.raises(ValueError, match=f"Case7: {which} on another grid .*{words}"):
        planes.orient_to_lps(planes.OverlayCase("Case7", HALF, **masks))
