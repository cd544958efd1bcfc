"""The fast CPU V-Net: one operator that computes with the parameters of a plain `VNet`."""

import logging

from easydict import EasyDict
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from ..devices.device import uses_mixed_precision
from ..utils.errors import UsageError
from ..vnet import VNet, check_volume_shape
from .build import BuildError
from .conv3d import check_input
from .layers import (
    STATISTICS,
    description_of,
    dropout_columns,
    layers_of,
    momentum_of,
    parameters_of,
)
from .operators import NetworkOperator
from .protocol import NetworkSpec

log = logging.getLogger(__name__)


@constexpr
def check_dropout_mask(
    dtype: mstype.Type, shape: tuple[int, ...], batch: int, channels: int
) -> None:
    """Checks dtype and shape, which the operators rely on; runs when the graph is compiled."""
    if dtype != mstype.float32 or tuple(shape) != (batch, channels):
        raise ValueError(
            f"dropout_mask must be float32 of shape ({batch}, {channels}), "
            f"got {dtype} of {tuple(shape)}"
        )


class FastVNet(nn.Cell):
    """A `VNet` for CPU: same parameters, same names, same outputs up to rounding, much faster.

    Args:
        network: the plain network, which owns the parameters.

    `construct(volume, dropout_mask=None)` takes and returns what `VNet`'s does. Gradients, also of
    the volume and of dropout_mask, exist in training mode only.

    Raises:
        BuildError: the native library cannot be built on this machine.
        TypeError: the volume is not float32, or the network has unsupported layers.
        ValueError: the shape of the volume or of dropout_mask is wrong, see `VNet`; or a gradient
            is asked for in evaluation mode.
    """

    def __init__(self, network: VNet) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.dropout_channels = network.dropout_channels
        spec = NetworkSpec(
            description_of(network), dropout_columns(network), momentum_of(network), logits=False
        )
        self.probability = NetworkOperator(spec)
        self.logit = NetworkOperator(spec._replace(logits=True))
        named = [item for layer in layers_of(network) for item in parameters_of(layer).items()]
        self.weights = tuple(value for name, value in named if name not in STATISTICS)
        self.statistics = tuple(value for name, value in named if name in STATISTICS)
        self.no_mask = Tensor([0.0], mstype.float32)

    @property
    def compile_phase(self) -> str | None:
        """MindSpore's name of the compiled graph, which it sets at each call.

        `nn.Cell` also sets it for all cells inside. Those of the plain network are not compiled;
        to set a hundred of them takes half a millisecond.
        """
        return self._compile_phase

    @compile_phase.setter
    def compile_phase(self, value: str) -> None:
        object.__setattr__(self, "_compile_phase", value)

    def logits(self, volume: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """The foreground's logit, (batch, X, Y, Z), as `VNet.logits`."""
        mask = self.checked_mask(volume, dropout_mask)
        return self.logit(volume, mask, self.weights, self.statistics)[0]

    def construct(self, volume: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        mask = self.checked_mask(volume, dropout_mask)
        return self.probability(volume, mask, self.weights, self.statistics)[0]

    def checked_mask(self, volume: Tensor, dropout_mask: Tensor | None) -> Tensor:
        """Checks the inputs; returns the mask, or what takes its place without dropout."""
        check_volume_shape(volume.shape)
        check_input(volume.dtype, volume.shape, 1)
        if dropout_mask is None or not self.dropout_channels:
            return self.no_mask
        check_dropout_mask(
            dropout_mask.dtype, dropout_mask.shape, volume.shape[0], self.dropout_channels
        )
        return dropout_mask


def to_fast_vnet(network: VNet, config: EasyDict, device_target: str) -> nn.Cell:
    """Returns a `FastVNet` of a network if the configuration and the device allow it.

    Args:
        network: the plain network.
        config: `fast_conv3d`: "auto" uses a `FastVNet` on CPU in float32 and logs a message if it
            cannot be built; "on" requires it; "off" returns the plain network.
        device_target: "Ascend", "GPU" or "CPU".

    Returns:
        A `FastVNet` over the parameters of `network`, or `network` itself.

    Raises:
        UsageError: `fast_conv3d` is "on" for another device than CPU or in mixed precision.
        BuildError: it is "on" and the native library cannot be built.
    """
    is_supported = device_target == "CPU" and not uses_mixed_precision(config, device_target)
    if config.fast_conv3d == "on" and not is_supported:
        raise UsageError(
            f"fast_conv3d=on computes in float32 on CPU, not on {device_target} with "
            f"precision={config.precision}; leave it out"
        )
    if config.fast_conv3d == "off" or not is_supported:
        return network
    try:
        return FastVNet(network)
    except BuildError as error:
        if config.fast_conv3d == "on":
            raise
        log.info(f"{error}; using MindSpore's own convolutions, which are many times slower")
        return network
