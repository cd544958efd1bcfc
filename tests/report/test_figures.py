import errno
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from easydict import EasyDict
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from src.metrics import case_metrics, summary
from src.report import figures, overlays
from src.report.figures import PREDICTION_COLOUR, REFERENCE_COLOUR, plot_progress
from src.report.overlays import OverlayCase, plot_overlays
from src.report.tables import write_metrics, zoo_lines
from src.utils.errors import DataError
from tests.helpers import ROOT, strict_json
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


# --- tables -----------------------------------------------------------------------------------


def test_metrics_csv_comes_back_as_written(tmp_path):
    last = [{**{k: v for k, v in row.items() if k != "case"}, "case": row["case"]} for row in ROWS]
    write_metrics(last, tmp_path / "new" / "folder")
    table = pd.read_csv(tmp_path / "new" / "folder" / "metrics.csv")
    assert list(table.columns) == list(ROWS[0])
    assert table["case"].tolist() == [row["case"] for row in ROWS]
    for key in table.columns[1:]:
        assert table[key].tolist() == pytest.approx([row[key] for row in ROWS], abs=1e-6), key


def test_csv_numbers_are_plain_decimals(tmp_path):
    rows = [{**ROWS[0], "dice": 1e-7, "hausdorff_mm": 123456789.123456789}]
    write_metrics(rows, tmp_path)
    values = (tmp_path / "metrics.csv").read_text().splitlines()[1].split(",")[1:]
    for value in values:
        assert set(value) <= set("-.0123456789"), value


def test_metrics_json_holds_cases_summary_flags_and_extra(tmp_path):
    extra = {"checkpoint": Path("ckpt", "best.ckpt"), "config": EasyDict(VolSize=[64, 64, 32])}
    write_metrics(ROWS, tmp_path, extra)
    content = strict_json(tmp_path / "metrics.json")
    assert content == {
        "checkpoint": str(Path("ckpt", "best.ckpt")),
        "config": {"VolSize": [64, 64, 32]},
        "summary": summary(ROWS),
        "flagged": ["missed"],
        "cases": ROWS,
    }


def test_a_path_that_is_not_utf8_is_kept_as_an_escape(tmp_path):
    path = os.fsdecode(b"r\xfcn/best.ckpt")
    write_metrics(ROWS, tmp_path, {"checkpoint": path})
    assert json.loads((tmp_path / "metrics.json").read_bytes())["checkpoint"] == path


@pytest.mark.parametrize(
    ("value", "error"), [(math.nan, ValueError), (math.inf, ValueError), ({1}, TypeError)]
)
def test_what_json_cannot_hold_leaves_no_file(tmp_path, value, error):
    with pytest.raises(error):
        write_metrics(ROWS, tmp_path, {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_zoo_lines():
    rows = [
        {**ROWS[0], "dice": d, "hausdorff_mm": h} for d, h in ((0.75, 10.5), (0.5, 2), (0.25, 1))
    ]
    assert zoo_lines(rows) == ["avg_Hausdorff_distance: 4.5", "avg_dice: 0.5"]


# --- writing ----------------------------------------------------------------------------------


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


WRITERS = {
    "metrics.csv": lambda path: write_metrics(ROWS, path.parent),
    "metrics.json": lambda path: write_metrics(ROWS, path.parent),
    "progress.png": lambda path: plot_progress(history(3), path),
    "overlays.png": lambda path: plot_overlays(
        iter([OverlayCase("a", grey_image(), on_grid(box_mask()))]), path
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_complete_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path, name):
    (tmp_path / name).write_text("old")
    WRITERS[name](tmp_path / name)
    assert (tmp_path / name).read_bytes() != b"old"
    assert {path.name for path in tmp_path.iterdir()} <= set(WRITERS)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch, name):
    def write_half(path, content):
        if name not in path.name:
            return complete(path, content)
        complete(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    for existing in ("metrics.csv", "metrics.json", name):
        (tmp_path / existing).write_text("old")
    complete = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(DataError, match=f"{name}: cannot be written .*No space left"):
        WRITERS[name](tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "metrics.json", name}
    assert all(path.read_text() == "old" for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_is_a_file_is_named(tmp_path, name):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(DataError, match=r"blocked.*cannot be written"):
        WRITERS[name](blocked / name)
    assert blocked.read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", WRITERS)
def test_an_unwritable_folder_is_named(tmp_path, name):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match=r"cannot be written .*Permission denied"):
            WRITERS[name](tmp_path / name)
    finally:
        tmp_path.chmod(0o700)


def test_drawing_leaves_the_global_state_of_pyplot_alone():
    code = "import sys, src.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    root = ROOT
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


# --- the training curve -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "validated", "panels"),
    [(1, (), 2), (1, (1,), 3), (12, (5, 10), 3), (500, range(1, 501), 3), (500, (), 2)],
)
def test_progress_shows_what_the_history_holds(tmp_path, epochs, validated, panels):
    table = history(epochs, validated)
    figure = figures.progress_figure(table)
    assert [panel.get_ylabel() for panel in figure.axes] == (
        ["training loss", "validation Dice", "learning rate"]
        if panels == 3
        else ["training loss", "learning rate"]
    )
    columns = ["train_loss", "val_dice", "learning_rate"]
    for panel in figure.axes:
        column = columns[
            ["training", "validation", "learning"].index(panel.get_ylabel().split()[0])
        ]
        x, y = panel.lines[0].get_data()
        expected = table[table[column].notna()]
        assert list(x) == list(expected["epoch"])
        assert list(y) == list(expected[column])
        assert epochs > 1 or panel.lines[0].get_marker() == "o"  # one point has no line
    if panels == 3:
        best = table.loc[table["val_dice"].idxmax()]
        star = figure.axes[1].lines[1]
        assert (star.get_xdata()[0], star.get_ydata()[0]) == (best["epoch"], best["val_dice"])
        assert f"{best['val_dice']:.4f} in epoch {best['epoch']:.0f}" in star.get_label()

    table.to_csv(tmp_path / "history.csv", index=False)
    plot_progress(tmp_path / "history.csv", tmp_path / "progress.png")
    picture = imread(tmp_path / "progress.png")[..., :3]
    assert picture.shape[1] == 880
    assert picture.shape[0] == pytest.approx(110 * 1.1 * (7.6 if panels == 3 else 4.6), abs=1)
    for colour in (figures.LOSS_COLOUR, figures.RATE_COLOUR):
        assert near(picture, colour).any()
    assert near(picture, figures.REFERENCE_COLOUR).any() == (panels == 3)  # the star


@pytest.mark.parametrize(("losses", "scale"), [((0.9, 0.7, 0.5), "linear"), ((0.9, 0.1), "log")])
def test_a_loss_that_falls_far_gets_a_logarithmic_axis(losses, scale):
    table = history(len(losses)).assign(train_loss=losses)
    assert figures.progress_figure(table).axes[0].get_yscale() == scale


# --- overlays -----------------------------------------------------------------------------------


def near(picture, colour, tolerance=0.12):
    return np.abs(picture - to_rgb(colour)).max(axis=-1) < tolerance


def drawn(cases, path):
    """The PNG of some cases and, for each of its views, its pixels, mm per pixel and upper left."""
    plot_overlays(cases, path)
    picture = imread(path)[..., :3]
    figure = overlays._overlay_figure([overlays._overlay_row(case) for case in cases])
    figure.set_dpi(110)
    views = []
    for panel in figure.axes:
        frame = panel.get_window_extent()
        top, bottom = (round(picture.shape[0] - y) for y in (frame.y1, frame.y0))
        pixels = picture[top:bottom, round(frame.x0) : round(frame.x1)]
        left_mm, right_mm = panel.get_xlim()
        bottom_mm, top_mm = panel.get_ylim()
        assert (right_mm - left_mm) == pytest.approx(bottom_mm - top_mm)  # as wide as high
        views.append((pixels, (right_mm - left_mm) / frame.width, top_mm, left_mm))
    return picture, views


def extent_mm(view, colour):
    """Top, bottom, left, right of what has a colour, in mm of the slice: line centres."""
    pixels, mm_per_pixel, top_mm, left_mm = view
    rows, columns = np.nonzero(near(pixels, colour))
    middle = 0.5 * mm_per_pixel
    return (
        top_mm + rows.min() * mm_per_pixel + middle,
        top_mm + rows.max() * mm_per_pixel + middle,
        left_mm + columns.min() * mm_per_pixel + middle,
        left_mm + columns.max() * mm_per_pixel + middle,
    )


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "PSR", "LSA"])
def test_contours_lie_on_the_edges_of_the_masks(tmp_path, orientation):
    reference, prediction = box_mask(), box_mask(z=(5, 12), y=(15, 36), x=(30, 56))
    images = [grey_image(), on_grid(prediction), on_grid(reference)]
    stored = OverlayCase("a", *(sitk.DICOMOrient(image, orientation) for image in images))
    _, views = drawn([stored], tmp_path / "overlays.png")
    dx, dy, dz = SPACING_XYZ_MM
    head = SHAPE_ZYX[0]  # slices are turned over: the head is up
    expected = {
        REFERENCE_COLOUR: [
            (20 * dy, 38 * dy, 25 * dx, 50 * dx),
            ((head - 9) * dz, (head - 4) * dz, 20 * dy, 38 * dy),
            ((head - 9) * dz, (head - 4) * dz, 25 * dx, 50 * dx),
        ],
        PREDICTION_COLOUR: [
            (15 * dy, 36 * dy, 30 * dx, 56 * dx),
            ((head - 12) * dz, (head - 5) * dz, 15 * dy, 36 * dy),
            ((head - 12) * dz, (head - 5) * dz, 30 * dx, 56 * dx),
        ],
    }
    for colour, edges in expected.items():
        for view, edge in zip(views, edges, strict=True):
            # Half the broader line's 3.2 pt at 110 dpi is 2.5 pixels.
            assert extent_mm(view, colour) == pytest.approx(edge, abs=3 * view[1])
    # Each view is centred on the box of both masks and shows the margin around its longest side.
    centres = {"x": (25 + 56) / 2 * dx, "y": (15 + 38) / 2 * dy, "z": (head - (4 + 12) / 2) * dz}
    side_mm = max((56 - 25) * dx, (38 - 15) * dy, (12 - 4) * dz) + 2 * overlays.OVERLAY_MARGIN_MM
    for (pixels, step, top, left), (rows, columns) in zip(views, ("yx", "zy", "zx"), strict=True):
        assert len(pixels) * step == pytest.approx(side_mm, rel=0.01)
        assert top + side_mm / 2 == pytest.approx(centres[rows])
        assert left + side_mm / 2 == pytest.approx(centres[columns])


def test_a_mask_at_the_border_of_the_image_is_outlined_all_around(tmp_path):
    mask = np.ones(SHAPE_ZYX, np.uint8)
    _, views = drawn([OverlayCase("a", grey_image(), on_grid(mask))], tmp_path / "overlays.png")
    size_mm = np.array(SHAPE_ZYX) * SPACING_XYZ_MM[::-1]
    for view, (rows, columns) in zip(views, ((1, 2), (0, 1), (0, 2)), strict=True):
        edge = (0, size_mm[rows], 0, size_mm[columns])
        assert extent_mm(view, PREDICTION_COLOUR) == pytest.approx(edge, abs=3 * view[1])


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "PSR", "LSA"])
def test_views_face_the_patient_as_radiologists_expect(tmp_path, orientation):
    """A bright corner at the patient's left, front and head, on the three central slices."""
    array = np.zeros(SHAPE_ZYX, np.float32)
    array[12:, 2:14, :] = array[12:, :, 52:] = array[:, 2:14, 52:] = 100
    images = [on_grid(array), on_grid(np.zeros(SHAPE_ZYX, np.uint8))]
    case = OverlayCase("a", *(sitk.DICOMOrient(image, orientation) for image in images))
    _, views = drawn([case], tmp_path / "overlays.png")
    quarters = []
    for pixels, *_ in views:
        middle = [n // 2 for n in pixels.shape[:2]]
        mean = [
            [part.mean() for part in np.array_split(half, [middle[1]], axis=1)]
            for half in np.array_split(pixels, [middle[0]], axis=0)
        ]
        quarters.append(np.unravel_index(np.argmax(mean), (2, 2)))
    assert quarters == [(0, 1), (0, 0), (0, 1)]  # axial, sagittal (face to the left), coronal
    figure = overlays._overlay_figure([overlays._overlay_row(case)])
    letters = [[text.get_text() for text in panel.texts[:4]] for panel in figure.axes]
    assert letters == [list("RLAP"), list("APSI"), list("RLSI")]


def test_a_ball_is_as_wide_as_high_in_every_view(tmp_path):
    grids = np.ogrid[tuple(slice(n) for n in SHAPE_ZYX)]
    terms = zip(grids, SPACING_XYZ_MM[::-1], (20, 27, 24), strict=True)
    ball = sum((i * step - centre) ** 2 for i, step, centre in terms) <= 16**2
    case = OverlayCase("a", grey_image(), on_grid(ball.astype(np.uint8)))
    _, views = drawn([case], tmp_path / "overlays.png")
    for view in views:
        top, bottom, left, right = extent_mm(view, PREDICTION_COLOUR)
        assert bottom - top == pytest.approx(32, abs=3)
        assert right - left == pytest.approx(32, abs=3)


def test_slices_go_through_the_centre_of_the_reference_or_else_of_the_prediction(tmp_path):
    reference, prediction = box_mask(z=(9, 12)), box_mask(z=(2, 5), y=(40, 50))
    image = on_grid(np.broadcast_to(np.arange(14.0)[:, None, None], SHAPE_ZYX).copy())
    slices = []
    for truth in (reference, 0 * reference, None):
        case = OverlayCase(
            "a", image, on_grid(prediction), None if truth is None else on_grid(truth)
        )
        slices.append(np.unique(overlays._overlay_row(case).planes[0].image).tolist())
    assert slices == [[10], [3], [3]]


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "PSR", "LSA"])
@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [2]), (2, [2, 11]), (4, [2, 5, 8, 11]), (12, list(range(2, 12)))],
)
def test_a_montage_runs_from_the_feet_through_both_masks(orientation, count, expected):
    """Slices whose grey value is their number; masks from the third to the twelfth."""
    array = np.broadcast_to(np.arange(14.0)[:, None, None], SHAPE_ZYX).copy()
    masks = box_mask(z=(2, 9), x=(5, 25)), box_mask(z=(4, 12))
    case = OverlayCase("a", *(sitk.DICOMOrient(on_grid(a), orientation) for a in (array, *masks)))
    planes = overlays.axial_planes(overlays.orient_to_lps(case), count)
    assert [plane.name for plane in planes] == [f"{z + 1} of 14" for z in expected]
    for plane, z in zip(planes, expected, strict=True):
        assert np.unique(plane.image).tolist() == [z]
        np.testing.assert_array_equal(plane.prediction, masks[0][z] != 0)
        np.testing.assert_array_equal(plane.reference, masks[1][z] != 0)
        # Both masks' columns 5 to 50 and the margin, also where the slice itself has no mask.
        assert plane.width_mm == pytest.approx(45 * 0.7 + 2 * overlays.OVERLAY_MARGIN_MM)
        assert plane.centre_mm == pytest.approx((29 * 0.9, 27.5 * 0.7))


@pytest.mark.parametrize(("count", "expected"), [(3, [0, 6, 13]), (99, list(range(14)))])
def test_a_montage_without_masks_shows_the_whole_image(count, expected):
    case = OverlayCase("a", grey_image(), on_grid(0 * box_mask()))
    planes = overlays.axial_planes(overlays.orient_to_lps(case), count)
    assert [plane.name for plane in planes] == [f"{z + 1} of 14" for z in expected]
    assert planes[0].width_mm == pytest.approx(60 * 0.9)


def test_grey_values_run_from_the_first_to_the_99th_percentile(tmp_path):
    array = np.random.default_rng(0).permutation(np.prod(SHAPE_ZYX)).reshape(SHAPE_ZYX)
    case = OverlayCase("a", on_grid(array.astype(np.float32)), on_grid(box_mask()))
    (shown,) = overlays._overlay_figure([overlays._overlay_row(case)]).axes[0].images
    assert shown.get_clim() == pytest.approx(((array.size - 1) * 0.01, (array.size - 1) * 0.99))


def row_titles(figure):
    return [text.get_text() for text in figure.texts]


def test_rows_run_from_the_worst_dice_and_cases_without_reference_come_last():
    shifts = {"good": 1, "worst": 15, "middle": 5}
    cases = [OverlayCase("unknown", grey_image(), on_grid(box_mask()))]
    cases += [
        OverlayCase(
            case,
            grey_image(),
            on_grid(box_mask(x=(25 + shift, 50))),
            on_grid(box_mask()),
        )
        for case, shift in shifts.items()
    ]
    titles = row_titles(overlays._overlay_figure([overlays._overlay_row(case) for case in cases]))
    assert [title.split()[0] for title in titles] == ["worst", "middle", "good", "unknown"]
    assert "Dice 0.571" in titles[0]  # 2 * 10 / (10 + 25)
    assert "Dice" not in titles[3]
    voxel_ml = 0.7 * 0.9 * 3 / 1000
    assert f"reference {5 * 18 * 25 * voxel_ml:.1f} ml" in titles[0]
    assert f"prediction {5 * 18 * 10 * voxel_ml:.1f} ml" in titles[0]


def test_of_many_cases_the_worst_twelve_are_shown():
    image, reference = grey_image(), on_grid(box_mask())
    cases = [
        OverlayCase(f"Case{i:02}", image, on_grid(box_mask(x=(25 + i, 50))), reference)
        for i in range(14)
    ]
    figure = overlays._overlay_figure([overlays._overlay_row(case) for case in cases])
    titles = row_titles(figure)
    assert len(figure.axes) == 3 * 12
    assert [title.split()[0] for title in titles[:12]] == [f"Case{i:02}" for i in range(13, 1, -1)]
    assert titles[12] == "12 of 14 cases, lowest Dice"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("prediction", "reference", "colours"),
    [
        (box_mask(), None, {PREDICTION_COLOUR}),
        (box_mask(), 0 * box_mask(), {PREDICTION_COLOUR}),
        (0 * box_mask(), box_mask(), {REFERENCE_COLOUR}),
        (0 * box_mask(), 0 * box_mask(), set()),
        (0 * box_mask(), None, set()),
        (box_mask(), box_mask(y=(24, 44)), {PREDICTION_COLOUR, REFERENCE_COLOUR}),
    ],
)
def test_missing_and_empty_masks_are_drawn_as_what_they_are(
    tmp_path, prediction, reference, colours
):
    reference_image = None if reference is None else on_grid(reference)
    case = OverlayCase(r"$\no_formula{$", grey_image(), on_grid(prediction), reference_image)
    picture, views = drawn([case], tmp_path / "overlays.png")
    assert picture.shape[:2] == pytest.approx((410, 1034), abs=4)
    for pixels, *_ in views:
        assert pixels.shape[:2] == pytest.approx((330, 330), abs=1)
        assert pixels.std() > 0.05  # no blank panel
        for colour in (PREDICTION_COLOUR, REFERENCE_COLOUR):
            assert near(pixels, colour).any() == (colour in colours)
    # The legend names the reference where there is one, even an empty one.
    legend = picture[:40]
    assert near(legend, PREDICTION_COLOUR).any()
    assert near(legend, REFERENCE_COLOUR).any() == (reference is not None)
