"""Overlays: outlines, slices and orientations, measured in the pictures."""

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread
from scipy.spatial.transform import Rotation

from src.images.orientation import to_patient_order
from src.report import overlays, planes
from src.report.figures import PREDICTION_COLOUR, REFERENCE_COLOUR, figure_png
from src.report.planes import OverlayCase
from tests.report.made import SHAPE_ZYX, SPACING_XYZ_MM, box_mask, grey_image, near, on_grid
from tests.volumes import image_of


def row_of(case):
    return planes.overlay_row(case, planes.orient_to_lps(case))


def figure_of(cases):
    return overlays._overlay_figure([row_of(case) for case in cases], len(cases))


def drawn(cases, path):
    """The PNG of some cases and, for each of its views, its pixels, mm per pixel and upper left."""
    path.write_bytes(overlays.overlays_png([row_of(case) for case in cases], len(cases)))
    picture = imread(path)[..., :3]
    figure = figure_of(cases)
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
    side_mm = max((56 - 25) * dx, (38 - 15) * dy, (12 - 4) * dz) + 2 * planes.OVERLAY_MARGIN_MM
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
    figure = figure_of([case])
    letters = [[text.get_text() for text in panel.texts[:4]] for panel in figure.axes]
    assert letters == [list("RLAP"), list("APSI"), list("RLSI")]


def test_axes_between_the_patients_are_those_of_the_metrics():
    """An image whose nearest axes one by one are other ones than those nearest together."""
    direction = Rotation.random(random_state=1).as_matrix() * (1, 1, -1)
    image = image_of(np.arange(24.0).reshape(4, 3, 2), direction=direction)
    shown = planes.orient_to_lps(OverlayCase("a", image, image > 99)).image
    expected = to_patient_order(sitk.GetArrayFromImage(image).T, image).T
    np.testing.assert_array_equal(shown, expected)
    assert shown.shape != sitk.DICOMOrient(image, "LPS").GetSize()[::-1]


def test_the_scale_bar_of_a_small_mask_ends_before_the_letter():
    mask = box_mask(z=(6, 7), y=(30, 31), x=(35, 36))
    for panel in figure_of([OverlayCase("a", grey_image(), on_grid(mask))]).axes:
        (bar,) = [line for line in panel.lines if line.get_transform() == panel.transAxes]
        assert min(bar.get_xdata()) > 0.5 + 0.05


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
        slices.append(np.unique(row_of(case).planes[0].image).tolist())
    assert slices == [[10], [3], [3]]


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "PSR", "LSA"])
@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [2]), (2, [2, 11]), (4, [2, 5, 8, 11]), (12, list(range(2, 12)))],
)
def test_a_montage_runs_from_the_feet_through_both_masks(orientation, count, expected, monkeypatch):
    """Slices whose grey value is their number; masks from the third to the twelfth."""
    array = np.broadcast_to(np.arange(14.0)[:, None, None], SHAPE_ZYX).copy()
    masks = box_mask(z=(2, 9), x=(5, 25)), box_mask(z=(4, 12))
    case = OverlayCase("a", *(sitk.DICOMOrient(on_grid(a), orientation) for a in (array, *masks)))
    monkeypatch.setattr(planes, "AXIAL_SLICES", count)
    shown = planes.axial_planes(planes.orient_to_lps(case))
    assert [plane.name for plane in shown] == [f"{z + 1}/14" for z in expected]
    for plane, z in zip(shown, expected, strict=True):
        assert np.unique(plane.image).tolist() == [z]
        np.testing.assert_array_equal(plane.prediction, masks[0][z] != 0)
        np.testing.assert_array_equal(plane.reference, masks[1][z] != 0)
        # Both masks' columns 5 to 50 and the margin, also where the slice itself has no mask.
        assert plane.width_mm == pytest.approx(45 * 0.7 + 2 * planes.OVERLAY_MARGIN_MM)
        assert plane.centre_mm == pytest.approx((29 * 0.9, 27.5 * 0.7))


@pytest.mark.parametrize(("count", "expected"), [(3, [0, 6, 13]), (99, list(range(14)))])
def test_a_montage_without_masks_shows_the_whole_image(count, expected, monkeypatch):
    case = OverlayCase("a", grey_image(), on_grid(0 * box_mask()))
    monkeypatch.setattr(planes, "AXIAL_SLICES", count)
    shown = planes.axial_planes(planes.orient_to_lps(case))
    assert [plane.name for plane in shown] == [f"{z + 1}/14" for z in expected]
    assert shown[0].width_mm == pytest.approx(60 * 0.9)


def test_grey_values_run_from_the_first_to_the_95th_percentile_of_what_is_shown():
    """Whatever lies farther than the margin from both masks does not count."""
    array = np.random.default_rng(0).permutation(np.prod(SHAPE_ZYX)).reshape(SHAPE_ZYX)
    reference, prediction = box_mask(y=(30, 38)), box_mask(x=(30, 52), z=(5, 9))
    # Both masks and 15 mm: 5 slices, 17 rows and 22 columns on each side.
    box = array[0:14, 3:55, 3:70].copy()
    array[:, :3], array[:, :, :3] = 10**6, -(10**6)
    case = OverlayCase(
        "a", on_grid(array.astype(np.float32)), *map(on_grid, (prediction, reference))
    )
    (shown,) = figure_of([case]).axes[0].images
    assert shown.get_clim() == pytest.approx(np.percentile(box, (1, 95)))
    # Where nearly all voxels are equal, all values are shown; without masks, those of all voxels.
    array[:], array[13, 59, 69] = 7, 9
    case = OverlayCase("a", on_grid(array.astype(np.float32)), on_grid(0 * box_mask()))
    (shown,) = figure_of([case]).axes[0].images
    assert shown.get_clim() == (7, 9)


def test_padding_does_not_darken_the_tissue():
    mask = np.zeros((24, 256, 256), np.uint8)
    mask[8:16, 90:150, 90:150] = 1
    values = np.random.default_rng(0).integers(100, 900, mask.shape).astype(np.float32)
    padded = values.copy()
    padded[:, :, :40], padded[:, :, 120:124] = -32768, 65535
    plain, dark = (
        planes.orient_to_lps(OverlayCase("a", on_grid(v), on_grid(mask))) for v in (values, padded)
    )
    assert dark.grey_range == pytest.approx(plain.grey_range, rel=0.1)


def row_titles(figure):
    return [text.get_text() for text in figure.texts]


def test_titles_have_dice_and_volumes():
    cases = [
        OverlayCase("low", grey_image(), on_grid(box_mask(x=(40, 50))), on_grid(box_mask())),
        OverlayCase("unknown", grey_image(), on_grid(box_mask())),
    ]
    titles = row_titles(figure_of(cases))
    assert [title.split()[0] for title in titles] == ["low", "unknown"]
    assert "Dice 0.571" in titles[0]  # 2 * 10 / (10 + 25)
    assert "Dice" not in titles[1]
    voxel_ml = 0.7 * 0.9 * 3 / 1000
    assert f"reference {5 * 18 * 25 * voxel_ml:.1f} ml" in titles[0]
    assert f"prediction {5 * 18 * 10 * voxel_ml:.1f} ml" in titles[0]


@pytest.mark.parametrize("name", ["STUDY_1_" * 14, "病例甲前列腺" * 9])
def test_the_numbers_stand_behind_the_longest_name(name):
    figure = figure_of([OverlayCase(name, grey_image(), *[on_grid(box_mask())] * 2)])
    figure_png(figure)  # with a font that has the characters
    title = figure.texts[0]
    assert title.get_window_extent().x1 < figure.bbox.x1
    assert title.get_text().startswith(name[:9]) and name[-9:] + "   Dice" in title.get_text()


@pytest.mark.parametrize(
    ("reference", "kind"),
    [(on_grid(box_mask()), "lowest Dice"), (None, "those with findings first")],
)
def test_some_of_many_cases_are_told_as_such(reference, kind):
    rows = [row_of(OverlayCase("a", grey_image(), on_grid(box_mask()), reference))] * 2
    figure = overlays._overlay_figure(rows, 14)
    assert len(figure.axes) == 3 * 2
    assert row_titles(figure)[2] == f"2 of 14 cases, {kind}"


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


def test_only_the_shown_square_is_drawn(tmp_path, monkeypatch):
    """The pixels are those of the whole slice, but for rounding in its interpolation."""
    image = on_grid(np.random.default_rng(0).normal(500, 20, SHAPE_ZYX).astype(np.float32))
    case = OverlayCase("a", image, on_grid(box_mask(x=(0, 9), y=(0, 6))), on_grid(box_mask()))
    monkeypatch.setattr(planes, "OVERLAY_MARGIN_MM", 2)
    quick, _ = drawn([case], tmp_path / "quick.png")
    first = overlays._shown_voxels(row_of(case).planes[0])
    assert first != (slice(0, 60), slice(0, 70))
    monkeypatch.setattr(
        overlays, "_shown_voxels", lambda plane: tuple(slice(0, n) for n in plane.image.shape)
    )
    whole, _ = drawn([case], tmp_path / "whole.png")
    assert np.abs(quick - whole).max() < 0.02
