"""Threshold, the cleaning of masks and flip averaging against what can be counted by hand."""

import itertools
from collections import deque

import mindspore as ms
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.distance import cdist

from src.data_manager import image_to_network_grid, xyz
from src.images.orientation import to_patient_order
from src.predictor import (
    CORE_DEPTH_MM,
    REACH_MM,
    Segmentation,
    average_outputs,
    clean,
    cut_share,
    foreground_probability,
    largest_component,
    mask_of_probability,
    network_inputs,
    off_centre_mm,
    segment,
    segment_inputs,
    segment_outputs,
    without_attachments,
    without_cavities,
)
from src.utils.errors import DataError
from tests.volumes import STORAGE_ORDERS, geometry_error, geometry_of, stored_in_order

# Slices run to the left.
SAGITTAL = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]], float)
NEIGHBOURS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]


def flood_components(mask):
    """Sets of voxels joined by faces, edges or corners, in the order of their first voxels."""
    left = set(map(tuple, np.argwhere(mask)))
    components = []
    for seed in map(tuple, np.argwhere(mask)):
        if seed not in left:
            continue
        left.remove(seed)
        component, queue = {seed}, deque([seed])
        while queue:
            voxel = queue.popleft()
            for step in NEIGHBOURS:
                other = tuple(np.add(voxel, step))
                if other in left:
                    left.remove(other)
                    component.add(other)
                    queue.append(other)
        components.append(component)
    return components


@pytest.mark.parametrize("share", [0.02, 0.06, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_largest_component_equals_a_flood_fill(seed, share):
    mask = np.random.default_rng(seed).random((9, 8, 7)) < share
    components = flood_components(mask)
    expected = max(components, key=len)  # the first of equally large ones
    assert set(map(tuple, np.argwhere(largest_component(mask)))) == expected
    assert len(components) > 1 or share == 0.5


def test_of_equally_large_components_the_first_stays():
    mask = np.zeros((3, 3, 9), bool)
    mask[0, 0, [0, 1, 4, 5]] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("value", [False, True])
def test_an_empty_mask_stays_empty_and_a_full_one_full(value):
    mask = np.full((4, 5, 6), value)
    np.testing.assert_array_equal(largest_component(mask), mask)


def test_the_background_is_no_component():
    mask = np.zeros((6, 6, 6), bool)
    mask[2, 2, 2] = True  # one voxel of foreground, 215 of background
    np.testing.assert_array_equal(largest_component(mask), mask)


def reached_from_the_border(background):
    """The voxels of a boolean array that steps through faces reach from beyond its border."""
    free = np.pad(background, 1, constant_values=True)
    reached = np.zeros_like(free)
    reached[0, 0, 0] = True
    while True:
        steps = [np.roll(reached, by, axis) for axis in range(3) for by in (-1, 1)]
        wider = free & np.logical_or.reduce([reached, *steps])
        if (wider == reached).all():
            return reached[1:-1, 1:-1, 1:-1]
        reached = wider


@pytest.mark.parametrize("share", [0, 0.5, 0.8, 0.9, 1])
@pytest.mark.parametrize("seed", range(3))
def test_cavities_are_what_the_border_does_not_reach(seed, share):
    mask = np.random.default_rng(seed).random((9, 8, 7)) < share
    filled = without_cavities(mask)
    np.testing.assert_array_equal(filled, ~reached_from_the_border(~mask))
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(mask))
    assert (filled != mask).any() == (share in (0.5, 0.8, 0.9))


@pytest.mark.parametrize(
    ("open_at", "voxels"),
    [((1, 1, 1), 27), ((1, 1, 2), 25), ((1, 2, 2), 26), ((2, 2, 2), 26)],
    ids=["closed", "face", "edge", "corner"],
)
def test_a_cavity_is_open_through_a_face_only(open_at, voxels):
    mask = np.ones((3, 3, 3), bool)
    mask[1, 1, 1] = mask[open_at] = False
    assert without_cavities(mask).sum() == voxels


# Attachments --------------------------------------------------------------------------------------

FINE = (0.5, 0.8, 3.0)


def ball(centre_mm, radii_mm, spacing_mm=FINE, size_mm=(70, 60, 100)):
    """An ellipsoid in an array of this extent."""
    shape = np.ceil(np.divide(size_mm, spacing_mm)).astype(int)
    places = [np.arange(n) * step for n, step in zip(shape, spacing_mm, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    parts = zip(grid, centre_mm, radii_mm, strict=True)
    return sum(((place - c) / r) ** 2 for place, c, r in parts) <= 1


def tube(from_mm, to_mm, radius_mm, spacing_mm=FINE):
    """Balls in a row."""
    places = np.linspace(from_mm, to_mm, 30)
    return np.logical_or.reduce([ball(place, [radius_mm] * 3, spacing_mm) for place in places])


GLAND = ball((35, 30, 30), (22, 18, 20))


@pytest.mark.parametrize("spacing_mm", [FINE, (0.3, 0.3, 4.0), (1.0, 1.0, 1.0), (2.0, 1.0, 0.7)])
@pytest.mark.parametrize("radii_mm", [(12, 9, 10), (22, 18, 20), (34, 29, 31), (8, 20, 8)])
def test_a_gland_of_any_size_and_voxels_stays_whole(spacing_mm, radii_mm):
    gland = ball((35, 30, 40), radii_mm, spacing_mm)
    np.testing.assert_array_equal(without_attachments(gland, spacing_mm), gland)


@pytest.mark.parametrize("hollow", [False, True])
def test_a_bladder_that_hangs_on_by_its_neck_goes(hollow):
    bladder = ball((35, 30, 78), (20, 20, 18))
    if hollow:
        bladder &= ~ball((35, 30, 78), (15, 15, 13))
    neck = tube((35, 30, 45), (35, 30, 65), 3.5)
    whole = GLAND | neck | bladder
    found = clean(whole, FINE)
    assert (found & GLAND).sum() == GLAND.sum()
    beyond = found & ~GLAND
    assert beyond.any() and np.argwhere(beyond)[:, 2].max() * FINE[2] <= 60  # some of the neck
    assert beyond.sum() < 0.02 * GLAND.sum()


def test_what_is_cut_off_from_the_rest_goes_too():
    """A branch that leaves the reach and comes back, as a part of another organ would."""
    out = [(35, 30, 45), (35, 30, 66), (10, 30, 66), (10, 30, 46)]
    arms = [tube(a, b, 2.5) for a, b in zip(out, out[1:], strict=False)]
    found = clean(np.logical_or.reduce([GLAND, *arms]), FINE)
    np.testing.assert_array_equal(found, largest_component(found))


@pytest.mark.parametrize("seed", range(3))
def test_attachments_are_what_lies_far_from_the_core(seed):
    """Against all distances of all voxels."""
    generator = np.random.default_rng(seed)
    spacing_mm = np.array((2.5, 2.0, 3.0))
    mask = ndimage.gaussian_filter(generator.normal(size=(18, 17, 12)), 2.5 / spacing_mm) > 0
    mask[5:13, 5:13, 4:9] = True
    mask = largest_component(mask)
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    inside = np.argwhere(mask)

    def nearest_mm(voxels, others):
        return cdist(voxels * spacing_mm, others * spacing_mm).min(axis=1)

    core = np.zeros_like(mask)
    core[tuple(inside[nearest_mm(inside, outside) > CORE_DEPTH_MM].T)] = True
    core = largest_component(core)
    stays = inside[nearest_mm(inside, np.argwhere(core)) <= REACH_MM]
    assert 0 < len(stays) < len(inside)
    assert np.argwhere(without_attachments(mask, spacing_mm)).tolist() == stays.tolist()


def test_the_core_lies_6_mm_deep_and_15_mm_about_it_stay():
    """Of a rod on a cube of 17 mm; below its root the core is one voxel longer."""
    mask = np.zeros((50, 17, 17), bool)
    mask[:17] = mask[17:46, 8, 8] = True
    assert without_attachments(mask, (1, 1, 1)).sum() == 17**3 + 10


def test_a_mask_without_a_core_stays():
    mask = np.zeros((30, 5, 5), bool)
    mask[2:28, 1:4, 1:4] = True
    np.testing.assert_array_equal(without_attachments(mask, (2, 2, 2)), mask)
    np.testing.assert_array_equal(without_attachments(mask & False, (2, 2, 2)), mask & False)


def test_a_cavity_is_filled_when_the_attachments_are_gone():
    """A shell of 10 mm has no core, so that what hangs on it stays; filled, it would have one."""
    outer, inner = (ball((30, 30, 30), [mm] * 3, (1, 1, 1), (60, 60, 90)) for mm in (20, 10))
    mask = outer & ~inner
    mask[30, 30, 50:88] = True
    found = clean(mask, (1, 1, 1))
    assert found[30, 30, 50:88].all() and found.sum() == 33438


def test_attachments_go_in_every_order_of_storage(make_image):
    spacing_mm = (1.0, 1.6, 3.0)
    gland = ball((35, 30, 30), (22, 18, 20), spacing_mm)
    whole = gland | tube((35, 30, 45), (35, 30, 90), 3.5, spacing_mm)
    probability = make_image(whole.T.astype(np.float32), spacing_mm)
    expected = to_patient_order(xyz(mask_of_probability(probability)), probability)
    assert 0 < expected.sum() < whole.sum()
    for axes, signs in STORAGE_ORDERS:
        stored = stored_in_order(probability, axes, signs)
        mask = mask_of_probability(stored)
        np.testing.assert_array_equal(to_patient_order(xyz(mask), stored), expected)
        assert cut_share(mask, stored, 0.5) == 1 - expected.sum() / whole.sum()


def test_nothing_is_cut_off_a_gland_with_a_cavity_or_a_mask_that_is_empty(make_image):
    gland = ball((35, 30, 30), (22, 18, 20), (2, 2, 2))
    gland[17, 15, 15] = False
    other = ball((60, 50, 90), (6, 6, 6), (2, 2, 2))  # a component of its own
    for found in (gland, gland | other, gland & False):
        probability = make_image(found.T.astype(np.float32), (2, 2, 2))
        assert cut_share(mask_of_probability(probability), probability, 0.5) == 0


def test_a_mask_has_no_cavity(make_image, oblique):
    """Of a shell with something smaller in it the shell counts, and is filled."""
    values = np.full((9, 9, 9), 0.9, np.float32)
    values[2:7, 2:7, 2:7] = 0.1
    values[4, 4, 4] = 0.9
    values = np.pad(values, 3)
    mask = mask_of_probability(make_image(values, direction=oblique))
    assert sitk.GetArrayFromImage(mask).sum() == 9**3


# The network's answer ----------------------------------------------------------------------------


class Stub:
    """A network without any symmetry: half of each voxel and a ramp along x, y and z."""

    def __init__(self):
        self.seen = []

    def __call__(self, batch):
        volume = batch.asnumpy()
        self.seen.append(volume)
        x, y, z = np.ogrid[tuple(slice(side) for side in volume.shape[2:])]
        return ms.Tensor((0.5 * volume[:, 0] + 0.1 * x + 0.01 * y + 0.001 * z).astype(np.float32))


def same_voxels(one, other):
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(one), sitk.GetArrayViewFromImage(other)
    )


def test_the_network_gets_a_batch_of_one():
    volume = np.random.default_rng(0).normal(size=(3, 4, 5))
    network = Stub()
    probability = foreground_probability(network, volume)
    (seen,) = network.seen
    assert seen.shape == (1, 1, 3, 4, 5) and seen.dtype == np.float32
    np.testing.assert_array_equal(seen[0, 0], volume.astype(np.float32))
    assert probability.shape == (3, 4, 5) and probability.dtype == np.float32
    assert probability[2, 3, 4] == pytest.approx(0.5 * volume[2, 3, 4] + 0.2 + 0.03 + 0.004)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_of_damaged_weights_is_an_error_of_the_checkpoint(value):
    output = np.full((1, 4, 3, 2), 0.5, np.float32)
    output[0, 1, 2, 0] = value
    with pytest.raises(DataError, match="NaN or infinity.*another checkpoint"):
        foreground_probability(lambda batch: ms.Tensor(output), np.zeros((4, 3, 2), np.float32))


def test_flips_are_averaged_voxel_by_voxel(small_config):
    axis = 0  # left-right
    volume = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    answers = [foreground_probability(Stub(), array) for array in (volume, np.flip(volume, axis))]
    averaged = average_outputs(answers, small_config("flip_average=true"))
    assert averaged.shape == (3, 4, 5) and averaged.dtype == np.float32
    for voxel in np.ndindex(3, 4, 5):
        straight = 0.5 * volume[voxel] + np.dot(voxel, (0.1, 0.01, 0.001))
        # In the mirror image the voxel lies elsewhere, where the ramp along the axis is another.
        place = np.array(voxel)
        place[axis] = volume.shape[axis] - 1 - voxel[axis]
        mirrored = 0.5 * volume[voxel] + np.dot(place, (0.1, 0.01, 0.001))
        assert averaged[voxel] == pytest.approx((straight + mirrored) / 2, abs=1e-6)
    assert np.abs(averaged - answers[0]).max() > 0.0019


@pytest.mark.parametrize("options", [(), ("normDir=true",)])
def test_the_network_is_asked_about_the_volume_and_its_mirror_image(
    make_image, small_config, options
):
    """x is the patient's left-right, though the image stores it last."""
    values = np.random.default_rng(0).random((12, 20, 18)).astype(np.float32)
    image = make_image(values, direction=SAGITTAL)
    sides = "VolSize=16,32,48"
    (volume,) = network_inputs(image, small_config(sides, *options))
    assert volume.shape == (16, 32, 48) and volume.dtype == np.float32
    assert volume.max() > 1
    np.testing.assert_array_equal(
        volume, image_to_network_grid(image, small_config(sides, *options))
    )
    straight, mirrored = network_inputs(image, small_config(sides, "flip_average=true", *options))
    np.testing.assert_array_equal(straight, volume)
    np.testing.assert_array_equal(mirrored, volume[::-1])
    assert np.abs(mirrored - volume).max() > 0.5


@pytest.mark.parametrize("flip", ["false", "true"])
def test_segment_asks_the_network_about_its_inputs_and_cuts_at_the_threshold(
    make_image, small_config, oblique, flip
):
    values = np.random.default_rng(0).random((12, 20, 18)).astype(np.float32)
    image = make_image(values, direction=oblique)
    config = small_config(f"flip_average={flip}", "threshold=0.4")
    network = Stub()
    mask, probability = map(sitk.GetArrayFromImage, segment(network, image, config))
    inputs = network_inputs(image, config)
    np.testing.assert_array_equal([seen[0, 0] for seen in network.seen], inputs)
    spacing_zyx_mm = image.GetSpacing()[::-1]
    np.testing.assert_array_equal(mask > 0, clean(probability > 0.4, spacing_zyx_mm))
    assert np.any((probability > 0.4) & (probability < 0.5))


def test_outputs_are_averaged_along_the_patients_left(make_image, small_config):
    """Answers that are mirror images of each other agree only if the right axis is flipped."""
    image = make_image(np.zeros((12, 20, 18), np.float32), direction=SAGITTAL)
    answer = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    plain, averaged = small_config(), small_config("flip_average=true")
    expected = segment_outputs([answer], image, plain)
    found = segment_outputs([answer, answer[::-1]], image, averaged)
    for one, other in zip(found, expected, strict=True):
        same_voxels(one, other)
    other = segment_outputs([answer, answer[:, ::-1]], image, averaged)[1]
    assert np.abs(sitk.GetArrayFromImage(other) - sitk.GetArrayFromImage(expected[1])).max() > 0.1


@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.0, 0.3])
def test_foreground_is_strictly_above_the_threshold(make_image, oblique, threshold):
    at = np.float32(threshold)
    values = np.array([0, at, np.nextafter(at, np.float32(1)), 1, np.nextafter(at, -1)], np.float32)
    probability = make_image(values.reshape(1, 1, 5), direction=oblique)
    mask = mask_of_probability(probability, threshold)
    assert sitk.GetArrayFromImage(mask).ravel().tolist() == [0, 0, 1, 1, 0]
    assert mask.GetPixelID() == sitk.sitkUInt8


def test_mask_keeps_geometry_and_the_largest_component(make_image, oblique):
    values = np.zeros((4, 5, 6), np.float32)
    values[0, 0, :2] = 1
    values[2:, 2:, 3:] = 0.6
    probability = make_image(values, (0.3, 0.4, 3.6), (1.5, -2.5, 1 / 3), oblique)
    mask = mask_of_probability(probability)
    assert sitk.GetArrayFromImage(mask).sum() == 2 * 3 * 3
    assert sitk.GetArrayFromImage(mask)[0].sum() == 0
    assert geometry_of(mask) == geometry_of(probability)


def bright(batch):
    """A network that calls the bright half of the values foreground."""
    volume = batch.asnumpy()[:, 0]
    return ms.Tensor((volume > 0).astype(np.float32))


def test_segment_finds_a_bright_block_on_the_images_own_grid(make_image, small_config, oblique):
    values = np.full((10, 20, 24), 100, np.float32)
    values[3:7, 5:14, 8:18] = 900
    image = make_image(values, direction=oblique)
    config = small_config("VolSize=32,32,32", "dstRes=1.25,1.25,1.25")
    mask, probability = segment(bright, image, config)
    for result in (mask, probability):
        assert geometry_of(result) == geometry_of(image)
    expected, found = values > 500, sitk.GetArrayFromImage(mask) > 0
    assert 2 * (expected & found).sum() / (expected.sum() + found.sum()) > 0.95
    array = sitk.GetArrayViewFromImage(probability)
    assert array.dtype == np.float32 and array.min() == 0 and array.max() == 1


def test_an_empty_prediction_is_an_empty_mask(make_image, small_config):
    image = make_image(np.random.default_rng(0).random((12, 20, 20)).astype(np.float32))
    mask, _ = segment(lambda batch: ms.ops.zeros_like(batch)[:, 0], image, small_config())
    assert not sitk.GetArrayViewFromImage(mask).any()


# A grid that is moved -----------------------------------------------------------------------------


def block_image(make_image, off_mm, direction=None):
    """A bright block of 20 mm in an image of 160 x 160 x 120 mm, off its centre; and the block."""
    values = np.full((40, 80, 80), 100, np.float32)  # z, y, x
    low = [
        int(side / 2 + off / size - 10 / size)
        for side, off, size in zip((40, 80, 80), off_mm[::-1], (3, 2, 2), strict=True)
    ]
    block = tuple(
        slice(start, start + length) for start, length in zip(low, (7, 10, 10), strict=True)
    )
    values[block] = 900
    return make_image(values, (2.0, 2.0, 3.0), direction=direction), values > 500


def overlap(mask, truth):
    found = sitk.GetArrayFromImage(mask) > 0
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def centre_mm(image):
    return np.array(
        image.TransformContinuousIndexToPhysicalPoint([(side - 1) / 2 for side in image.GetSize()])
    )


GRID_OF_64_MM = ("VolSize=32,32,32", "dstRes=2,2,2")


@pytest.mark.parametrize(
    ("off_mm", "flip"),
    [
        *[((30, 0, 0), "false"), ((0, -34, 0), "false"), ((0, 0, 33), "false")],
        *[((-16, 12, 28), "false"), ((-16, 12, 28), "true")],
    ],
)
def test_a_gland_far_from_the_centre_is_segmented_on_a_grid_about_it(
    make_image, small_config, oblique, off_mm, flip
):
    """Each reaches beyond the border of a grid about the image's centre."""
    image, truth = block_image(make_image, off_mm, oblique)
    fixed, moving = (
        small_config(*GRID_OF_64_MM, f"flip_average={flip}", f"recentre={moves}")
        for moves in ("false", "true")
    )
    of_fixed = overlap(segment(bright, image, fixed)[0], truth)
    found = segment_inputs(bright, network_inputs(image, moving), image, moving)
    assert overlap(found.mask, truth) > max(0.9, of_fixed + 0.05)
    centre = [np.mean(places) for places in np.nonzero(truth.T)]
    block_mm = image.TransformContinuousIndexToPhysicalPoint(centre)
    # The first grid shows a part of the block only.
    assert np.linalg.norm(np.subtract(found.centre_mm, block_mm)) < 10
    outputs = [
        foreground_probability(bright, volume)
        for volume in network_inputs(image, moving, found.centre_mm)
    ]
    expected = segment_outputs(outputs, image, moving, found.centre_mm)
    for one, other in zip(found[:2], expected, strict=True):
        same_voxels(one, other)
        assert geometry_of(one) == geometry_of(image)
    for one, other in zip(segment(bright, image, moving), expected, strict=True):
        same_voxels(one, other)


@pytest.mark.parametrize(
    "steps", [(6, 0, 0), (7, 0, 0), (0, -6, 0), (0, -8, 1), (4, 4, 2), (5, 5, 2)]
)
def test_the_grid_stays_for_a_gland_up_to_15_mm_off(make_image, small_config, oblique, steps):
    """Masks of one voxel, so many voxels of 2 x 2 x 3 mm from the middle one."""
    values = np.zeros((41, 81, 81), np.uint8)
    values[20 + steps[2], 40 + steps[1], 40 + steps[0]] = 1
    mask = make_image(values, (2.0, 2.0, 3.0), direction=oblique)
    config = small_config("recentre=true")
    off_mm = oblique @ np.multiply(steps, (2, 2, 3))
    expected = np.round(centre_mm(mask) + off_mm, 1)
    found = off_centre_mm(Segmentation(mask, mask, None), config)
    if np.linalg.norm(off_mm) < 15:
        assert found is None
    else:
        assert found == tuple(expected)
    # It is the grid's centre that counts.
    assert off_centre_mm(Segmentation(mask, mask, expected), config) is None
    beside = expected + (0, 16, 0)
    assert off_centre_mm(Segmentation(mask, mask, beside), config) == tuple(expected)
    assert off_centre_mm(Segmentation(mask, mask, beside), small_config()) is None


def test_the_grid_moves_twice_at_most(make_image, small_config):
    """For a network that always finds the corner of its grid."""
    image, _ = block_image(make_image, (0, 0, 0))
    config, seen = small_config(*GRID_OF_64_MM, "recentre=true"), []

    def corner(batch):
        seen.append(batch.asnumpy())
        output = np.zeros((1, 32, 32, 32), np.float32)
        output[0, 9:12, 9:12, 9:12] = 0.9
        return ms.Tensor(output)

    found = segment_inputs(corner, network_inputs(image, config), image, config)
    assert len(seen) == 3
    # Each time from voxel 15.5 to voxel 10.
    np.testing.assert_allclose(found.centre_mm, centre_mm(image) - 2 * 11, atol=2)


@pytest.mark.parametrize("first", [0.0, 0.9])
def test_a_grid_on_which_nothing_is_found_does_not_count(make_image, small_config, first):
    image, _ = block_image(make_image, (0, 0, 0))
    config, seen = small_config(*GRID_OF_64_MM, "recentre=true"), []

    def once(batch):
        output = np.zeros((1, 32, 32, 32), np.float32)
        output[0, 2:5, 9:12, 9:12] = 0 if seen else first
        seen.append(batch.asnumpy())
        return ms.Tensor(output)

    found = segment_inputs(once, network_inputs(image, config), image, config)
    assert found.centre_mm is None and len(seen) == (2 if first else 1)
    assert sitk.GetArrayViewFromImage(found.mask).any() == (first > 0)


def test_what_is_found_beside_the_image_does_not_move_the_grid(make_image, small_config):
    """A thin stack, on a grid that reaches far beyond it; most of what is found lies there."""
    image = make_image(np.random.default_rng(0).random((8, 40, 40)).astype(np.float32))
    config = small_config("VolSize=32,32,32", "dstRes=2,2,2", "recentre=true")
    output = np.zeros((32, 32, 32), np.float32)
    output[14:18, 14:18, 15:17] = 1
    output[10:20, 10:20, 28:] = 1
    found = Segmentation(*segment_outputs([output], image, config), None)
    assert sitk.GetArrayViewFromImage(found.mask).any()
    assert off_centre_mm(found, config) is None


def patient(image):
    """Voxels with axes to the patient's left, posterior, superior."""
    return to_patient_order(sitk.GetArrayFromImage(image).T, image)


# The grid's sides and voxels differ, so that no two axes can be exchanged unseen.
@pytest.mark.parametrize(
    ("options", "orders"),
    [
        ((), STORAGE_ORDERS),
        (("normDir=true",), STORAGE_ORDERS[::5]),
        (("flip_average=true", "intensity=equalize"), STORAGE_ORDERS[::5]),
    ],
)
def test_all_orders_of_storage_give_the_same_mask(
    make_image, small_config, oblique, options, orders
):
    values = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(9, 22, 26)), 1.5)
    image = make_image(values.astype(np.float32), (0.8, 0.9, 2.2), direction=oblique)
    sides = ("VolSize=32,16,16", "dstRes=0.7531,1.3107,1.6143", "threshold=0.8")

    def network(batch):
        return 0.35 * Stub()(batch)

    config = small_config(*sides, *options)
    expected, probability = map(patient, segment(network, image, config))
    assert 0.05 < expected.mean() < 0.6
    for axes, signs in orders:
        stored = stored_in_order(image, axes, signs)
        mask, found = segment(network, stored, config)
        assert geometry_error(mask, stored) == 0
        np.testing.assert_allclose(patient(found), probability, atol=1e-4)
        both = 2 * (patient(mask) & expected).sum()
        assert both / (patient(mask).sum() + expected.sum()) > 0.99


def test_of_two_equal_components_the_same_stays_in_every_order(make_image):
    values = np.zeros((4, 5, 6), np.float32)
    values[0, 1, 1:3] = values[3, 3, 3:5] = 1
    probability = make_image(values)
    expected = patient(mask_of_probability(probability))
    np.testing.assert_array_equal(expected.T > 0, largest_component(values > 0.5))
    for axes, signs in STORAGE_ORDERS:
        mask = mask_of_probability(stored_in_order(probability, axes, signs))
        np.testing.assert_array_equal(patient(mask), expected)


VOXEL_TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.float64]


@pytest.mark.parametrize("dtype", VOXEL_TYPES)
@pytest.mark.parametrize("intensity", ["rescale", "equalize"])
def test_any_voxel_type_gives_the_mask_of_its_float_copy(
    make_image, small_config, dtype, intensity
):
    values = np.random.default_rng(0).integers(0, 120, (12, 20, 18))
    config = small_config(f"intensity={intensity}", "flip_average=true", "threshold=0.9")
    expected = segment(Stub(), make_image(values.astype(np.float32)), config)
    found = segment(Stub(), make_image(values.astype(dtype)), config)
    for one, other in zip(found, expected, strict=True):
        same_voxels(one, other)
    assert 0 < sitk.GetArrayFromImage(expected[0]).mean() < 1


def test_what_is_no_image_or_no_probability_is_said(make_image, small_config):
    volume = make_image(np.random.default_rng(0).random((12, 20, 18)).astype(np.float32))
    config, answer = small_config(), np.zeros((16, 16, 16), np.float32)
    broken = make_image(np.full((3, 4, 5), np.nan, np.float32))
    for call, words in (
        (lambda: segment(Stub(), sitk.Compose(volume, volume), config), "2 component"),
        (lambda: segment(Stub(), volume[:, :, 3], config), r"size \(18, 20\)"),
        (lambda: segment(Stub(), broken, config), "NaN"),
        (lambda: segment_outputs([answer, answer], volume, config), "expected 1 of one shape"),
        (
            lambda: segment_outputs([answer[1:]], volume, config),
            r"\(15, 16, 16\), expected VolSize",
        ),
        (lambda: mask_of_probability(sitk.Cast(volume, sitk.sitkUInt8)), "expected probabilities"),
        (lambda: foreground_probability(Stub(), answer[None]), r"expected \(X, Y, Z\)"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
