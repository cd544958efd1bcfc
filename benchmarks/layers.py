"""The convolutions of V-Net one by one: shapes and input values, equal for all implementations."""

from typing import NamedTuple

import numpy as np

WIDTH = 16
PARTS = ("forward", "input gradient", "weight gradient")
SAMPLES = 64  # values of a result that are compared


class Layer(NamedTuple):
    """A convolution without bias.

    Attributes:
        kind: "conv5" (5x5x5, same size), "down" (2x2x2, stride 2) or "up" (its transpose).
        in_channels, out_channels: of the convolution.
        sides: X, Y, Z of its input.
        count: number of such convolutions in V-Net (variants `monai` and `zoo`).
    """

    kind: str
    in_channels: int
    out_channels: int
    sides: tuple[int, int, int]
    count: int

    @property
    def name(self) -> str:
        """Such as "conv5 32->32 @ 128x128x64"."""
        sides = "x".join(map(str, self.sides))
        return f"{self.kind} {self.in_channels}->{self.out_channels} @ {sides}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that a training step computes; the input volume needs no gradient."""
        return PARTS if self.in_channels > 1 else (PARTS[0], PARTS[2])

    @property
    def kernel(self) -> int:
        """Side of the kernel."""
        return 5 if self.kind == "conv5" else 2


def vnet_layers(
    size: tuple[int, int, int], width: int = WIDTH, head_unit: bool = True
) -> list[Layer]:
    """All different 5x5x5 and 2x2x2 convolutions of a network.

    Args:
        size: X, Y, Z of a volume.
        width: channels of the first stage.
        head_unit: whether it ends with a 5x5x5 convolution to 2 channels, as `monai`.
    """

    def sides(level):
        return tuple(side >> level for side in size)

    layers = [
        Layer("conv5", 1, width, sides(0), 1),
        *([Layer("conv5", 2 * width, 2, sides(0), 1)] if head_unit else []),
        Layer("conv5", 2 * width, 2 * width, sides(0), 1),
    ]
    # Convolutions of each stage, from the top; the stage up has twice the channels of its level.
    for level, (down, up) in enumerate(((1, 1), (2, 2), (3, 2), (2, 0)), start=1):
        channels = width << level
        layers.append(Layer("conv5", channels, channels, sides(level), down))
        if up:
            layers.append(Layer("conv5", 2 * channels, 2 * channels, sides(level), up))
    layers += [
        Layer("down", width << level, 2 * width << level, sides(level), 1) for level in range(4)
    ]
    # A stage up returns as many channels as the level below it has; the deepest returns 16 * width.
    layers += [
        Layer("up", min(4 * width << level, 16 * width), width << level, sides(level + 1), 1)
        for level in range(4)
    ]
    return layers


def layer_arrays(layer: Layer, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws input, weight and gradient of the output from a fixed seed.

    Returns:
        (batch, in, X, Y, Z); (out, in, k, k, k), or (in, out, k, k, k) of a transpose;
        (batch, out, X, Y, Z) of the output. All float32, of order one but for the weight.
    """
    random = np.random.default_rng(0)
    sides = {
        "conv5": layer.sides,
        "down": tuple(side // 2 for side in layer.sides),
        "up": tuple(2 * side for side in layer.sides),
    }[layer.kind]
    channels = (layer.out_channels, layer.in_channels)
    kernel = (channels[::-1] if layer.kind == "up" else channels) + (layer.kernel,) * 3
    # Each output voxel of a 2x2x2 transposed convolution of stride 2 sums over the channels only.
    fan_in = layer.in_channels * (1 if layer.kind == "up" else layer.kernel**3)
    x = random.standard_normal((batch, layer.in_channels, *layer.sides), dtype=np.float32)
    weight = random.standard_normal(kernel, dtype=np.float32) / np.float32(np.sqrt(fan_in))
    dy = random.standard_normal((batch, layer.out_channels, *sides), dtype=np.float32)
    return x, weight, dy


def sample(array: np.ndarray) -> list[float]:
    """Returns SAMPLES evenly spaced values of an array, for comparison."""
    flat = array.ravel()
    places = np.linspace(0, flat.size - 1, SAMPLES).astype(int)
    return flat[places].tolist()


def relative_difference(sample_a: list[float], sample_b: list[float]) -> float:
    """Largest difference of two samples, over the second one's root mean square."""
    a, b = np.array(sample_a), np.array(sample_b)
    return float(np.abs(a - b).max() / np.sqrt((b * b).mean()))
