"""Segmentation of one image: network grid, network, threshold, largest component.

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
    grid_centre_mm,
    image_to_network_grid,
    network_grid,
    probability_to_case_grid,
)
from .images.orientation import to_patient_order
from .metrics import bounding_box
from .utils.errors import DataError

if TYPE_CHECKING:
    from mindspore import nn

    from .ensemble import Ensemble


# From some 20 mm off the centre on, glands are segmented worse (docs/accuracy.md). Of a gland that
# reaches beyond the grid, the part on it lies nearer than the whole.
RECENTRE_BEYOND_MM = 15.0
MOST_RECENTRINGS = 2


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


def average_over_flip(outputs: list[np.ndarray]) -> np.ndarray:
    """Returns the mean of the network's outputs for a volume and for its left-right mirror image.

    Args:
        outputs: in the order of `network_inputs`, each (X, Y, Z).

    Raises:
        ValueError: not two outputs of the same shape.
    """
    if len(outputs) != 2 or np.shape(outputs[0]) != np.shape(outputs[1]):
        raise ValueError(f"outputs of {[np.shape(o) for o in outputs]}, expected two of one shape")
    straight, mirrored = outputs
    return (straight + np.flip(mirrored, LEFT_RIGHT_AXIS)) / 2


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Returns the largest 26-connected component of a 3-D boolean mask.

    Of equally large components the first in array order; an empty mask stays empty.

    Raises:
        ValueError: not a boolean array of three axes.
    """
    if np.ndim(mask) != 3 or mask.dtype != bool:
        raise ValueError(f"{mask.dtype} of shape {mask.shape}, expected bool with three axes")
    box = bounding_box(mask)
    labels, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    largest = np.zeros_like(mask)
    largest[box] = labels == 1 + np.argmax(sizes[1:])
    return largest


def mask_of_probability(probability: sitk.Image, threshold: float = 0.5) -> sitk.Image:
    """Thresholds a probability and keeps the largest component.

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
    to_patient_order(foreground.T, probability).T[...] = largest_component(
        to_patient_order(above.T, probability).T
    )
    mask = sitk.GetImageFromArray(foreground)
    mask.CopyInformation(probability)
    return mask


class Segmentation(NamedTuple):
    """What `segment_inputs` and `segment_repeatedly` find in an image."""

    mask: sitk.Image  # uint8, 0 and 1, with the image's geometry
    probability: sitk.Image  # float32, with the image's geometry
    centre_mm: Sequence[float] | None  # of the network grid in patient coordinates, if it was moved


def off_centre_mm(
    outputs: list[np.ndarray],
    image: sitk.Image,
    config: EasyDict,
    centre_mm: Sequence[float] | None = None,
) -> tuple[float, ...] | None:
    """Returns where the network grid should lie instead, if the gland is far from its centre.

    Args:
        outputs, image, config, centre_mm: see `segment_outputs`.

    Returns:
        The centre of mass of the largest component in patient coordinates, if `recentre` is set and
        it is more than `RECENTRE_BEYOND_MM` from the grid's centre; else None.

    Raises:
        ValueError: see `segment_outputs`.
    """
    if not config.recentre:
        return None
    found = largest_component(_average(outputs, config) > config.threshold)
    if not found.any():
        return None
    grid = network_grid(image, config, centre_mm)
    gland_mm = grid.TransformContinuousIndexToPhysicalPoint(
        [float(place) for place in np.mean(np.nonzero(found), axis=1)]
    )
    is_far = np.linalg.norm(np.subtract(gland_mm, grid_centre_mm(grid))) > RECENTRE_BEYOND_MM
    return gland_mm if is_far else None


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
    probability = probability_to_case_grid(_average(outputs, config), image, config, centre_mm)
    return mask_of_probability(probability, config.threshold), probability


def _average(outputs, config):
    """The probability (X, Y, Z) that the outputs for one image give."""
    expected = 1 + config.flip_average
    if len(outputs) != expected:
        raise ValueError(
            f"{len(outputs)} outputs, expected {expected} with flip_average={config.flip_average}"
        )
    return average_over_flip(outputs) if config.flip_average else outputs[0]


def segment(
    network: "nn.Cell | Ensemble", image: sitk.Image, config: EasyDict
) -> tuple[sitk.Image, sitk.Image]:
    """Segments one image: `network_inputs`, then `segment_inputs`.

    Args:
        network: a `VNet` in evaluation mode.
        image: 3-D scalar, of any voxel type.
        config: see `network_inputs` and `segment_outputs`.

    Returns:
        Mask and probability, see `segment_outputs`.

    Raises:
        ValueError: not a 3-D scalar image of finite voxels, or a network in training mode.
    """
    return segment_inputs(network, network_inputs(image, config), image, config)[:2]


def segment_inputs(
    network: "nn.Cell | Ensemble",
    volumes: list[np.ndarray],
    image: sitk.Image,
    config: EasyDict,
) -> Segmentation:
    """Segments one image from its volumes on the network grid, which `recentre` may move.

    Args:
        network: a `VNet` in evaluation mode.
        volumes: `network_inputs(image, config)`.
        image: the case's image.
        config: see `network_inputs`, `segment_outputs` and `off_centre_mm`.

    Raises:
        ValueError: a network in training mode.
    """

    def run(attempt: int, centre_mm: Sequence[float] | None) -> list[np.ndarray]:
        inputs = network_inputs(image, config, centre_mm) if attempt else volumes
        return [foreground_probability(network, volume) for volume in inputs]

    return segment_repeatedly(run, image, config)


def segment_repeatedly(
    run: Callable[[int, Sequence[float] | None], list[np.ndarray]],
    image: sitk.Image,
    config: EasyDict,
) -> Segmentation:
    """Segments one image on the network grid, and again on a grid moved to the gland if need be.

    Args:
        run: returns the outputs of an attempt, counted from 0, for `network_inputs` on a grid with
            this centre, None for the image's.
        image, config: see `segment_inputs`.
    """
    centre_mm, attempt = None, 0
    outputs = run(attempt, centre_mm)
    while attempt < MOST_RECENTRINGS:
        moved_mm = off_centre_mm(outputs, image, config, centre_mm)
        if moved_mm is None:
            break
        centre_mm, attempt = moved_mm, attempt + 1
        outputs = run(attempt, centre_mm)
    return Segmentation(*segment_outputs(outputs, image, config, centre_mm), centre_mm)


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
