"""Synthetic cases, metrics and histories for the tests of the report."""

import math
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb

from src.metrics import case_metrics
from src.report.page import metric_groups, render_page
from src.report.pictures import box_plot_picture, training_curves
from tests.volumes import image_of

SPACING_XYZ_MM = (0.7, 0.9, 3.0)
SHAPE_ZYX = (14, 60, 70)

on_grid = partial(image_of, spacing_mm=SPACING_XYZ_MM)


def box_mask(z=(4, 9), y=(20, 38), x=(25, 50)):
    mask = np.zeros(SHAPE_ZYX, np.uint8)
    mask[slice(*z), slice(*y), slice(*x)] = 1
    return mask


def grey_image(seed=0):
    return on_grid(np.random.default_rng(seed).normal(500, 20, SHAPE_ZYX).astype(np.float32))


def row_of(case, prediction, reference=None):
    reference = box_mask() if reference is None else reference
    return {"case": case, **case_metrics(on_grid(reference), on_grid(prediction))}


ROWS = [
    row_of("Case00", box_mask(y=(22, 40))),
    row_of('odd, "name" é', box_mask(x=(25, 44))),
    row_of("missed", 0 * box_mask()),
]


def history(epochs, validated=()):
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "step": epoch * 10,
            "learning_rate": 1e-3 * np.cos(epoch / (epochs + 1)),
            "train_loss": 0.9 * np.exp(-4 * epoch / epochs),
            "epoch_time_s": 2.5,
            "val_dice": [0.5 + 0.3 * math.sin(e) if e in validated else math.nan for e in epoch],
        }
    )


def near(picture, colour, tolerance=0.12):
    return np.abs(picture - to_rgb(colour)).max(axis=-1) < tolerance


def write_page(path, rows, pictures, metadata, history=None, language="en"):
    """Writes a report with its box plots and training curves."""
    box_plots = [box_plot_picture(values) for values in metric_groups(rows)]
    curves = None if history is None else training_curves(history)
    path.write_bytes(render_page(rows, pictures, metadata, box_plots, curves, language))
