"""Surfaces: distances and outlines by closed forms, sides by the patient's directions."""

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgb

from src.report import surfaces
from src.report.planes import (
    DISTANCE_COLOURS,
    DISTANCE_LIMIT_MM,
    SURFACE_LETTERS,
    Masks,
    OverlayCase,
    cropped_masks,
    orient_to_lps,
)
from tests.report.made import SHAPE_ZYX, box_mask, grey_image, on_grid

SPACINGS_ZYX_MM = [(1.0, 1.0, 1.0), (3.6, 0.7, 0.7), (3.0, 0.4, 0.5)]


def ellipsoid(radii_mm, spacing_mm, shift_mm=(0, 0, 0)):
    """An ellipsoid mask in a box of 60 mm."""
    axes = (np.arange(round(60 / step)) + 0.5 for step in spacing_mm)
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    terms = zip((z, y, x), spacing_mm, radii_mm, shift_mm, strict=True)
    return sum(((i * step - 30 - shift) / radius) ** 2 for i, step, radius, shift in terms) <= 1


def lit(picture):
    """Where a picture shows the surface: without the bar, which is pure white."""
    return (picture.max(axis=2) > 40) & ~(picture == 255).all(axis=2)


@pytest.mark.parametrize("spacing_mm", SPACINGS_ZYX_MM)
def test_an_ellipsoid_is_as_large_as_it_is_from_every_side(spacing_mm):
    """Head-foot 44 mm, front-back 28 mm, left-right 36 mm, measured by the bar of 20 mm."""
    mask = ellipsoid((22, 14, 18), spacing_mm)
    pictures = surfaces.surface_views(Masks(mask, None, np.array(spacing_mm)))
    assert list(pictures) == list(SURFACE_LETTERS) == list(surfaces.VIEWS)
    for side, picture in pictures.items():
        bar = (picture == 255).all(axis=2)
        mm = 20 / bar.any(axis=0).sum()
        shown = lit(picture)
        assert shown.any(axis=1).sum() * mm == pytest.approx(44, abs=0.5 + 0.75 * spacing_mm[0])
        width_mm = 36 if side in ("front", "back") else 28
        assert shown.any(axis=0).sum() * mm == pytest.approx(width_mm, abs=1.2)
        area_mm2 = np.pi / 4 * 44 * width_mm
        assert shown.sum() * mm**2 == pytest.approx(area_mm2, rel=0.04)
        assert not (shown & bar).any()


@pytest.mark.parametrize("spacing_mm", SPACINGS_ZYX_MM)
def test_the_distance_to_a_ball_is_that_to_its_centre_less_its_radius(spacing_mm):
    mask = ellipsoid((18, 18, 18), spacing_mm)
    distance = surfaces.ReferenceDistance(Masks(mask, mask, np.array(spacing_mm)))
    directions = np.random.default_rng(0).normal(size=(3, 300))
    directions /= np.linalg.norm(directions, axis=0)
    for signed_mm in (-5, -2, 0, 2, 5):
        found = distance.at(30 + (18 + signed_mm) * directions)
        # The surface of voxels of several mm is uncertain by a part of them.
        assert np.median(found) == pytest.approx(signed_mm, abs=0.4)
        assert np.abs(found - signed_mm).max() < 0.5 + 0.3 * max(spacing_mm)


def colour_at(picture, row, column):
    """The hue of a place without its shading: channels as shares of the brightest."""
    pixel = picture[round(row), round(column)].astype(float)
    return pixel / pixel.max()


def test_colours_say_where_the_prediction_lies_inside_and_outside():
    """The prediction is shifted to the left, the front and the head by 4 mm."""
    spacing_mm = (1.0, 1.0, 1.0)
    masks = Masks(
        ellipsoid((16, 16, 16), spacing_mm, (4, -4, 4)),
        ellipsoid((16, 16, 16), spacing_mm),
        np.array(spacing_mm),
    )
    pictures = surfaces.surface_views(masks)
    middle = surfaces.SIDE // 2
    for side, is_outside in {"front": True, "back": False, "left": True, "right": False}.items():
        red, _, blue = colour_at(pictures[side], middle, middle)
        assert (red > blue) == is_outside, side
        # Redder towards the head than towards the feet.
        shown = np.flatnonzero(lit(pictures[side])[:, middle])
        (top, _, top_blue), (low, _, low_blue) = (
            colour_at(pictures[side], row, middle) for row in (shown[8], shown[-8])
        )
        assert top - top_blue > low - low_blue, side
    alone = surfaces.surface_views(masks._replace(reference=masks.prediction))
    assert np.ptp(colour_at(alone["front"], middle, middle)) < 0.1  # no distance: white


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "PSR", "LSA"])
def test_each_side_is_seen_with_the_head_up_and_the_patient_facing_the_viewer(orientation):
    """A block at the patient's left, front and head stands out of a plate on each side."""
    array = box_mask(z=(3, 11), y=(20, 40), x=(20, 50))
    array[9:11, 10:20, 40:60] = 1  # at the front, the left and near the head
    images = [grey_image(), on_grid(array)]
    case = OverlayCase("a", *(sitk.DICOMOrient(image, orientation) for image in images))
    pictures = surfaces.surface_views(cropped_masks(orient_to_lps(case)))
    centre = surfaces.SIDE / 2
    # The block rises above the plate in the views from left and right, at its front.
    for side, letters in SURFACE_LETTERS.items():
        edges = {edge: letter for letter, edge in letters}
        assert (edges["at-top"], edges["at-bottom"]) == ("S", "I")
        shown = lit(pictures[side])
        rows, columns = np.nonzero(shown)
        if side in ("left", "right"):
            upper = columns[rows < np.percentile(rows, 15)].mean()
            towards = edges["at-left"] if upper < columns.mean() else edges["at-right"]
            assert towards == "A", side
    # From the opposite side an outline is mirrored.
    for one, other in (("front", "back"), ("left", "right")):
        outline, mirrored = lit(pictures[one]), lit(pictures[other])[:, ::-1]
        assert (outline != mirrored).mean() < 0.005 < (outline != outline[:, ::-1]).mean()
    # From the front it is seen before the plate: its lower edge casts no light on the left.
    step = np.abs(np.diff(pictures["front"].astype(int).sum(axis=2), axis=0))
    rows, columns = np.nonzero(step[30:-30, 30:-30] > 40)
    assert len(columns) and (columns + 30).mean() > centre  # the patient's left is at the right


@pytest.mark.parametrize(("reference", "is_grey"), [(on_grid(0 * box_mask()), True), (None, False)])
def test_grey_is_a_surface_whose_reference_is_empty(reference, is_grey):
    """Blue would say that it lies within the reference; of a prediction it says nothing."""
    case = OverlayCase("a", grey_image(), on_grid(box_mask()), reference)
    for picture in surfaces.surface_views(cropped_masks(orient_to_lps(case))).values():
        assert (np.ptp(picture[lit(picture)], axis=1) == 0).all() == is_grey


def test_nothing_is_drawn_of_an_empty_mask_and_of_what_is_too_small():
    empty = OverlayCase("a", grey_image(), on_grid(0 * box_mask()), on_grid(box_mask()))
    assert cropped_masks(orient_to_lps(empty)) is None
    voxel = np.zeros(SHAPE_ZYX, np.uint8)
    voxel[7, 30, 40] = 1
    case = OverlayCase("a", grey_image(), on_grid(voxel), on_grid(voxel))
    pictures = surfaces.surface_views(cropped_masks(orient_to_lps(case)))
    assert all(lit(picture).any() for picture in pictures.values())
    sheet = np.zeros((9, 300, 300), bool)  # lost as every third row is kept
    sheet[:, 0] = True
    spacing_mm = np.array((3.0, 0.3, 0.3))
    assert surfaces.surface_views(Masks(sheet, ~sheet, spacing_mm)) == {}
    assert surfaces.surface_views(Masks(~sheet, sheet, spacing_mm))


def test_a_mask_of_the_whole_image_is_thinned():
    mask = np.ones((40, 512, 512), bool)
    masks = surfaces._prepared(Masks(mask, mask, np.array((3.0, 0.4, 0.4))))
    assert max(masks.prediction.shape) <= 1.5 * surfaces.MASK_VOXELS + 2 * surfaces.PADDING
    size_mm = (np.array(masks.prediction.shape) - 2 * surfaces.PADDING) * masks.spacing_mm
    assert size_mm == pytest.approx((120, 204.8, 204.8), rel=0.02)


def test_colours_run_between_symmetric_limits():
    limit = DISTANCE_LIMIT_MM
    colours = surfaces.distance_colours(np.array([-99, -limit, 0, limit, 99]))
    expected = [to_rgb(colour) for colour in DISTANCE_COLOURS]
    assert colours / 255 == pytest.approx(np.array(expected)[[0, 0, 2, 4, 4]])
    half = surfaces.distance_colours(np.array([-limit / 4]))[0]
    assert half / 255 == pytest.approx(np.mean(expected[1:3], axis=0))


@pytest.mark.parametrize("spacing_mm", [0.05, 1.0])
@pytest.mark.parametrize("ratio", [0.1, 1, 10])
def test_masks_of_any_size_and_spacing_are_drawn(spacing_mm, ratio):
    """Smoothing may leave no voxel outside: of a small mask, or of one whose rim is thin."""
    for sides in ((1, 1, 1), (3, 40, 40), (40, 3, 40), (40, 40, 2)):
        mask = np.ones(sides, bool)
        spacing = np.array([spacing_mm * ratio, spacing_mm, spacing_mm])
        for picture in surfaces.surface_views(surfaces.Masks(mask, mask, spacing)).values():
            assert picture.shape == (surfaces.SIDE, surfaces.SIDE, 3)
