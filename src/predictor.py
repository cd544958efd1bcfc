"""Segmentation of one image: network grid, network, threshold, `clean` mask.

The network grid lies about the image's centre. With `recentre` it is moved to a gland that is found
far from there, and the network runs again.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from scipy import ndimage

from .data_manager import (
    LEFT_RIGHT_AXIS,
    PREPROCESSING,
    grid_centre_mm,
    image_to_network_grid,
    network_grid,
    probability_to_case_grid,
)
from .images.grid import image_like
from .images.orientation import nearest_patient_axes, to_patient_order
from .metrics import bounding_box
from .utils.errors import DataError

if TYPE_CHECKING:
    from mindspore import nn

    from .ensemble import Ensemble


# From some 20 mm off the centre on, glands are segmented worse (docs/accuracy.md). Of a gland that
# reaches beyond the grid, the part on it lies nearer than the whole.
RECENTRE_BEYOND_MM = 15.0
MOST_RECENTRINGS = 2
# The core of a mask lies deeper than CORE_DEPTH_MM below its surface. No voxel of a gland lies
# further from it than REACH_MM (14.3 mm in PROMISE12's 50 reference masks), but what is attached by
# a neck does, such as the bladder (docs/accuracy.md).
CORE_DEPTH_MM = 6.0
REACH_MM = 15.0
POSTPROCESSING = 2  # a version: raise it when the same network, image and keys give another mask


def processing_versions() -> dict[str, int]:
    """Returns the versions of what is done to an image before the network, and to its output."""
    return {"preprocessing": PREPROCESSING, "postprocessing": POSTPROCESSING}


def network_inputs(
    image: sitk.Image, config: EasyDict, centre_mm: Sequence[float] | None = None
) -> list[np.ndarray]:
    """Returns the volumes that the network segments for one image.

    Args:
        image: 3-D scalar, of any voxel type.
        config: of the network grid, `intensity`, `flip_average`.
        centre_mm: of the network grid, see `src.data_manager.network_grid`.

    Returns:
        The image on the network grid, (X, Y, Z) float32; with `flip_average` followed by its
        left-right mirror image.

    Raises:
        ValueError: not a 3-D scalar image, or NaN or infinity in it.
        DataError: the image has no contrast on the network grid.
    """
    volume = image_to_network_grid(image, config, centre_mm)
    if not config.flip_average:
        return [volume]
    return [volume, np.flip(volume, LEFT_RIGHT_AXIS)]


def foreground_probability(network: "nn.Cell | Ensemble", volume: np.ndarray) -> np.ndarray:
    """Runs the network on one volume.

    Args:
        network: a `VNet` in evaluation mode, `set_train(False)`, or an `Ensemble`.
        volume: (X, Y, Z) on the network grid.

    Returns:
        Foreground probability, (X, Y, Z) float32 in 0..1.

    Raises:
        ValueError: `volume` is not 3-D, or the network is in training mode.
        DataError: NaN or infinity in the output.
    """
    if np.ndim(volume) != 3:
        raise ValueError(f"a volume of shape {np.shape(volume)}, expected (X, Y, Z)")
    if getattr(network, "training", False):
        raise ValueError("a network in training mode, expected set_train(False)")
    import mindspore as ms

    batch = np.ascontiguousarray(volume[None, None], dtype=np.float32)
    probability = network(ms.Tensor(batch)).asnumpy()[0]
    if not np.isfinite(probability).all():
        raise DataError(
            "the network's output has NaN or infinity: its weights are damaged, or its training "
            "diverged; take another checkpoint, or train with a lower lr"
        )
    return probability


def average_outputs(outputs: list[np.ndarray], config: EasyDict) -> np.ndarray:
    """Returns the probability that the network's outputs for one image give on the network grid.

    Args:
        outputs: of `network_inputs`, each (X, Y, Z).
        config: `flip_average`: the second output is that of the left-right mirror image.

    Returns:
        (X, Y, Z).

    Raises:
        ValueError: another number of outputs than of inputs, or two shapes.
    """
    shapes, expected = [np.shape(output) for output in outputs], 1 + config.flip_average
    if len(shapes) != expected or len(set(shapes)) != 1:
        raise ValueError(
            f"outputs of shapes {shapes}, expected {expected} of one shape with "
            f"flip_average={config.flip_average}"
        )
    if not config.flip_average:
        return outputs[0]
    straight, mirrored = outputs
    return (straight + np.flip(mirrored, LEFT_RIGHT_AXIS)) / 2


def _check_mask(mask):
    if np.ndim(mask) != 3 or mask.dtype != bool:
        raise ValueError(f"{mask.dtype} of shape {mask.shape}, expected bool with three axes")


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Returns the largest 26-connected component of a 3-D boolean mask.

    Of equally large components the first in array order; an empty mask stays empty.

    Raises:
        ValueError: not a boolean array of three axes.
    """
    _check_mask(mask)
    box = bounding_box(mask)
    labels, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    largest = np.zeros_like(mask)
    largest[box] = labels == 1 + np.argmax(sizes[1:])
    return largest


def without_cavities(mask: np.ndarray) -> np.ndarray:
    """Returns a 3-D boolean mask with the background filled that it encloses on all sides.

    Background that reaches the array's border through its 6-connected voxels stays.

    Raises:
        ValueError: not a boolean array of three axes.
    """
    _check_mask(mask)
    box = bounding_box(mask)
    background, _ = ndimage.label(~np.pad(mask[box], 1))
    filled = mask.copy()
    filled[box] = (background != background[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled


def without_attachments(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns a 3-D boolean mask without what hangs on it by a neck, such as a part of the bladder.

    Only voxels up to `REACH_MM` from the core stay: the largest component of those that lie deeper
    than `CORE_DEPTH_MM`. A mask that is nowhere so deep stays as it is.

    Args:
        mask: one component.
        spacing_mm: (3,) voxel size along the axes of `mask`.

    Raises:
        ValueError: not a boolean array of three axes.
    """
    _check_mask(mask)
    box = bounding_box(mask)
    depth_mm = ndimage.distance_transform_edt(np.pad(mask[box], 1), spacing_mm)
    core = largest_component(depth_mm > CORE_DEPTH_MM)
    if not core.any():
        return mask
    from_core_mm = ndimage.distance_transform_edt(~core, spacing_mm)
    near = np.zeros_like(mask)
    near[box] = from_core_mm[1:-1, 1:-1, 1:-1] <= REACH_MM
    return mask & near


def clean(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Returns the largest component of a 3-D boolean mask, without attachments and cavities.

    A prostate has none of these: a cavity is tissue that the network does not know, such as a cyst.

    Args:
        mask: of the voxels above the threshold.
        spacing_mm: see `without_attachments`.

    Raises:
        ValueError: not a boolean array of three axes.
    """
    whole = largest_component(mask)
    return without_cavities(largest_component(without_attachments(whole, spacing_mm)))


def mask_of_probability(probability: sitk.Image, threshold: float = 0.5) -> sitk.Image:
    """Thresholds a probability and cleans the mask, see `clean`.

    Args:
        probability: float32 or float64, on the case's own grid.
        threshold: 0..1; voxels above it are foreground.

    Returns:
        uint8, 0 and 1, with the same geometry.

    Raises:
        ValueError: an image of integers (a mask or intensities), NaN or infinity in it, or a
            threshold outside 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold of {threshold}, expected 0 to 1")
    if probability.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64):
        raise ValueError(f"a {probability.GetPixelIDTypeAsString()}, expected probabilities")
    values = sitk.GetArrayViewFromImage(probability)
    if not np.isfinite(values).all():
        raise ValueError("a probability with NaN or infinity, expected 0 to 1")
    above = values > threshold
    foreground = np.zeros(above.shape, np.uint8)
    # Of two equally large components the kept one must not depend on the voxels' storage order.
    axes, _ = nearest_patient_axes(probability)
    to_patient_order(foreground.T, probability)[...] = clean(
        to_patient_order(above.T, probability), [probability.GetSpacing()[axis] for axis in axes]
    )
    return image_like(foreground, probability)


def cut_share(mask: sitk.Image, probability: sitk.Image, threshold: float) -> float:
    """Returns how much of what was found `without_attachments` cut off, as a share from 0 to 1.

    Args:
        mask: of `mask_of_probability(probability, threshold)`.
        probability, threshold: see `mask_of_probability`.
    """
    found = largest_component(
        to_patient_order(sitk.GetArrayViewFromImage(probability).T, probability) > threshold
    )
    kept = to_patient_order(sitk.GetArrayViewFromImage(mask).T, mask)[found]
    return 1 - np.count_nonzero(kept) / kept.size if kept.size else 0.0


def segment_outputs(
    outputs: list[np.ndarray],
    image: sitk.Image,
    config: EasyDict,
    centre_mm: Sequence[float] | None = None,
) -> tuple[sitk.Image, sitk.Image]:
    """Converts the network's outputs for one image to a mask on the image's own grid.

    Args:
        outputs: of `network_inputs(image, config, centre_mm)`, each (X, Y, Z) float32 in 0..1.
        image: the case's image.
        config: of the network grid, `threshold`, `flip_average`.
        centre_mm: of the network grid, see `src.data_manager.network_grid`.

    Returns:
        Mask (uint8, 0 and 1) and probability (float32), with the geometry of `image`.

    Raises:
        ValueError: the number or the shape of the outputs does not fit the configuration.
    """
    average = average_outputs(outputs, config)
    probability = probability_to_case_grid(average, image, config, centre_mm)
    return mask_of_probability(probability, config.threshold), probability


class Segmentation(NamedTuple):
    """What is found in an image."""

    mask: sitk.Image  # uint8, 0 and 1, with the image's geometry
    probability: sitk.Image  # float32, with the image's geometry
    centre_mm: Sequence[float] | None  # of the network grid in patient coordinates, if it was moved


def segment(
    network: "nn.Cell | Ensemble", image: sitk.Image, config: EasyDict
) -> tuple[sitk.Image, sitk.Image]:
    """Segments one image: `network_inputs`, then `segment_inputs`.

    Args:
        network: a `VNet` in evaluation mode.
        image: 3-D scalar, of any voxel type.
        config: see `network_inputs`, `segment_outputs` and `off_centre_mm`.

    Returns:
        Mask and probability, see `segment_outputs`.

    Raises:
        ValueError: not a 3-D scalar image of finite voxels, or a network in training mode.
        DataError: the image has no contrast on the network grid.
    """
    return segment_inputs(network, network_inputs(image, config), image, config)[:2]


def segment_inputs(
    network: "nn.Cell | Ensemble",
    volumes: list[np.ndarray],
    image: sitk.Image,
    config: EasyDict,
    read_image: Callable[[], sitk.Image] | None = None,
) -> Segmentation:
    """Segments one image from its volumes on the network grid, which `recentre` may move.

    Args:
        network: a `VNet` in evaluation mode.
        volumes: `network_inputs(image, config)`.
        image, config: see `segment`.
        read_image: returns the image for a moved grid, which is rare, where `image` is its
            reference mask; None: `image` is the image.

    Raises:
        ValueError: a network in training mode.
        DataError: the image has no contrast on a moved grid, or the output has NaN.
    """

    def run(centre_mm: Sequence[float] | None) -> list[np.ndarray]:
        inputs = volumes
        if centre_mm is not None:
            inputs = network_inputs(read_image() if read_image else image, config, centre_mm)
        return [foreground_probability(network, volume) for volume in inputs]

    return segment_on_grids(run, image, config)


def segment_on_grids(
    run: Callable[[Sequence[float] | None], list[np.ndarray]], image: sitk.Image, config: EasyDict
) -> Segmentation:
    """Segments one image on the network grid, and again on a grid about the gland if need be.

    A grid on which nothing is found does not count.

    Args:
        run: returns the network's outputs for `network_inputs` with this `centre_mm`.
        image: the case's image, for its geometry.
        config: see `segment`.

    Returns:
        The last result with a mask that is not empty, else the first one.
    """
    found = Segmentation(*segment_outputs(run(None), image, config), None)
    for _ in range(MOST_RECENTRINGS):
        centre_mm = off_centre_mm(found, config)
        if centre_mm is None:
            break
        mask, probability = segment_outputs(run(centre_mm), image, config, centre_mm)
        if not sitk.GetArrayViewFromImage(mask).any():
            break
        found = Segmentation(mask, probability, centre_mm)
    return found


def off_centre_mm(found: Segmentation, config: EasyDict) -> tuple[float, float, float] | None:
    """Returns where the network grid should lie instead, if the gland is far from its centre.

    Args:
        found: on the present grid.
        config: of the network grid, `recentre`.

    Returns:
        The mask's centre of mass in patient coordinates, to 0.1 mm, if `recentre` is set and it is
        more than `RECENTRE_BEYOND_MM` from the grid's centre; else None.
    """
    if not config.recentre:
        return None
    voxels = np.nonzero(sitk.GetArrayViewFromImage(found.mask))[::-1]  # x, y, z
    if not voxels[0].size:
        return None
    gland_mm = found.mask.TransformContinuousIndexToPhysicalPoint([float(v.mean()) for v in voxels])
    x, y, z = (round(place, 1) + 0.0 for place in gland_mm)  # -0.0 + 0.0 is 0.0
    grid_mm = grid_centre_mm(network_grid(found.mask, config, found.centre_mm))
    is_far = np.linalg.norm(np.subtract((x, y, z), grid_mm)) > RECENTRE_BEYOND_MM
    return (x, y, z) if is_far else None


class LazyNetwork:
    """A network that is loaded while the first case is read.

    Args:
        load: returns the network, a `VNet` in evaluation mode or an `Ensemble`.
    """

    def __init__(self, load: "Callable[[], nn.Cell | Ensemble]") -> None:
        self.load = load


def loaded(network: "nn.Cell | Ensemble | LazyNetwork") -> "nn.Cell | Ensemble":
    """Returns a network, which is loaded now if it is lazy."""
    return network.load() if isinstance(network, LazyNetwork) else network
