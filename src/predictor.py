"""From an image to its mask: network grid in, probability out, threshold, largest component."""

import mindspore as ms
import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from mindspore import nn
from scipy import ndimage

from src.data_manager import (
    image_to_network_grid,
    left_right_axis,
    network_grid,
    probability_to_case_grid,
)


def network_inputs(image: sitk.Image, config: EasyDict) -> list[np.ndarray]:
    """What the network is asked about one image.

    Args:
        image: float32, from `src.data_manager.read_image`.
        config: network grid, `flip_average`.

    Returns:
        The volume on the network grid, (X, Y, Z) float32; with `flip_average` its mirror image too.
    """
    volume = image_to_network_grid(image, config)
    if not config.flip_average:
        return [volume]
    return [volume, np.flip(volume, left_right_axis(network_grid(image, config)))]


def foreground_probability(network: nn.Cell, volume: np.ndarray) -> np.ndarray:
    """The network's answer to one volume.

    Args:
        network: a `VNet` in evaluation mode, `set_train(False)`.
        volume: (X, Y, Z) on the network grid.

    Returns:
        (X, Y, Z) float32 in 0..1.
    """
    batch = np.ascontiguousarray(volume[None, None], dtype=np.float32)
    return network(ms.Tensor(batch)).asnumpy()[0]


def average_over_flip(outputs: list[np.ndarray], axis: int) -> np.ndarray:
    """Mean of the answers to a volume and to its mirror image along `axis` (test-time
    augmentation), each (X, Y, Z)."""
    straight, mirrored = outputs
    return (straight + np.flip(mirrored, axis)) / 2


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


def segment_outputs(
    outputs: list[np.ndarray], image: sitk.Image, config: EasyDict
) -> tuple[sitk.Image, sitk.Image]:
    """One case from the network's answers to its mask, on the image's own grid.

    Args:
        outputs: answers to `network_inputs(image, config)`, each (X, Y, Z) float32 in 0..1.
        image: the case's image.
        config: network grid, `threshold`, `flip_average`.

    Returns:
        Mask (uint8) and probability (float32), with the geometry of `image`.
    """
    if config.flip_average:
        axis = left_right_axis(network_grid(image, config))
        outputs = [average_over_flip(outputs, axis)]
    probability = probability_to_case_grid(outputs[0], image, config)
    return mask_of_probability(probability, config.threshold), probability


def segment(network: nn.Cell, image: sitk.Image, config: EasyDict) -> tuple[sitk.Image, sitk.Image]:
    """One case from its image to its mask: `network_inputs`, the network, `segment_outputs`."""
    volumes = network_inputs(image, config)
    outputs = [foreground_probability(network, volume) for volume in volumes]
    return segment_outputs(outputs, image, config)
