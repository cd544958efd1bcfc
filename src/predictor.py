"""From an image to its mask: network grid in, probability out, threshold, largest component."""

import mindspore as ms
import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from mindspore import nn
from scipy import ndimage

from src.data_manager import image_to_network_grid, network_grid, probability_to_case_grid


def left_right_axis(grid: sitk.Image) -> int:
    """The array axis (0, 1, 2 of X, Y, Z) of an image that runs closest to the patient's left."""
    left_of_axes = np.abs(grid.GetDirection()[:3])
    return int(np.argmax(left_of_axes))


def foreground_probability(
    network: nn.Cell, volume: np.ndarray, flip_axis: int | None = None
) -> np.ndarray:
    """The network's answer to one volume.

    Args:
        network: a `VNet` in evaluation mode, `set_train(False)`.
        volume: (X, Y, Z) float32 on the network grid.
        flip_axis: average over the volume and its mirror image along this axis (test-time
            augmentation); None: the volume alone.

    Returns:
        (X, Y, Z) float32 in 0..1.
    """

    def run(array):
        batch = np.ascontiguousarray(array[None, None], dtype=np.float32)
        return network(ms.Tensor(batch)).asnumpy()[0]

    probability = run(volume)
    if flip_axis is not None:
        mirrored = np.flip(run(np.flip(volume, flip_axis)), flip_axis)
        probability = (probability + mirrored) / 2
    return probability


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 26-connected component of a boolean array; an empty mask stays empty.

    Of equally large ones, the first in array order.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    return labels == 1 + np.argmax(sizes[1:])


def mask_of_probability(probability: sitk.Image, threshold: float = 0.5) -> sitk.Image:
    """The prostate where the probability is above the threshold, reduced to its largest component.

    Args:
        probability: float32, on the case's own grid.
        threshold: 0..1.

    Returns:
        uint8, 0 and 1, with the same geometry.
    """
    above = sitk.GetArrayViewFromImage(probability) > threshold
    mask = sitk.GetImageFromArray(largest_component(above).astype(np.uint8))
    mask.CopyInformation(probability)
    return mask


def segment(network: nn.Cell, image: sitk.Image, config: EasyDict) -> tuple[sitk.Image, sitk.Image]:
    """One case from its image to its mask, on the image's own grid.

    Args:
        network: a `VNet` in evaluation mode.
        image: float32, from `src.data_manager.read_image`.
        config: network grid, `threshold`, `flip_average`.

    Returns:
        Mask (uint8) and probability (float32), with the geometry of `image`.
    """
    volume = image_to_network_grid(image, config)
    flip_axis = left_right_axis(network_grid(image, config)) if config.flip_average else None
    probability = probability_to_case_grid(
        foreground_probability(network, volume, flip_axis), image, config
    )
    return mask_of_probability(probability, config.threshold), probability
