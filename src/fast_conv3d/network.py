"""The fast CPU V-Net: a chain of fused units that use the parameters of a plain `VNet`."""

import logging
from typing import TypeVar

from easydict import EasyDict
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from ..devices.device import uses_mixed_precision
from ..utils.errors import UsageError
from ..vnet import DOWN_NAMES, UP_NAMES, InstanceNorm3d, VNet, check_volume_shape, mask_columns
from . import operators
from .build import BuildError
from .conv3d import check_input
from .protocol import Activation, HeadSpec, Kind, Residual, UnitSpec

log = logging.getLogger(__name__)
T = TypeVar("T")

ACTIVATIONS = {
    nn.ELU: Activation.ELU,
    nn.PReLU: Activation.PRELU,
    nn.Identity: Activation.NONE,
    type(None): Activation.NONE,
}


def look_up(cell: nn.Cell | None, by_type: dict[type, T]) -> T:
    """Returns the entry of `by_type` for a cell's type.

    Raises:
        TypeError: there is none.
    """
    if type(cell) not in by_type:
        names = ", ".join(kind.__name__ for kind in by_type)
        raise TypeError(f"the fast CPU V-Net supports {names}, not {type(cell).__name__}")
    return by_type[type(cell)]


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


class Unit(nn.Cell):
    """A convolution with its norm, activations, residual and concatenation, in one operator.

    Args:
        kind: of the convolution, see `UnitSpec`.
        conv: a convolution of the plain network.
        norm: the norm that follows it, or `nn.Identity`.
        first: the activation before the sum with the residual, `nn.Identity` or None.
        residual: see `UnitSpec`.
        second: the activation after the sum, `nn.Identity` or None.
        skip_channels: see `UnitSpec`.

    `construct(x, residual, skip, dropout_mask)` takes blocked tensors (FEW_INPUT: x is a plain
    volume) and a `dropout_mask` of (batch, skip_channels), and returns a blocked tensor. Training
    updates the moving statistics. Instance norm is computed as batch norm with the statistics of
    the batch, in evaluation mode too; the batch size must therefore be 1.
    """

    def __init__(
        self,
        kind: Kind,
        conv: nn.Cell,
        norm: nn.Cell,
        first: nn.Cell | None = None,
        residual: Residual = Residual.NONE,
        second: nn.Cell | None = None,
        skip_channels: int = 0,
    ) -> None:
        super().__init__(auto_prefix=False)
        has_norm = look_up(norm, {nn.BatchNorm3d: True, InstanceNorm3d: True, nn.Identity: False})
        unused = Tensor([0.0], mstype.float32)
        self.unused = unused
        self.has_instance_norm = isinstance(norm, InstanceNorm3d)
        self.has_statistics = has_norm and not self.has_instance_norm
        self.takes_residual = residual == Residual.TENSOR
        self.weight = conv.weight
        self.bias = conv.bias if conv.has_bias else unused
        norm = norm.bn2d if self.has_statistics else norm
        self.gamma = norm.gamma if has_norm else unused
        self.beta = norm.beta if has_norm else unused
        per_channel = Tensor([0.0] * conv.out_channels, mstype.float32) if has_norm else unused
        self.moving_mean = norm.moving_mean if self.has_statistics else per_channel
        self.moving_variance = norm.moving_variance if self.has_statistics else per_channel
        self.first_slopes = first.w if isinstance(first, nn.PReLU) else unused
        self.second_slopes = second.w if isinstance(second, nn.PReLU) else unused
        spec = UnitSpec(
            kind=kind,
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            first=look_up(first, ACTIVATIONS),
            residual=residual,
            second=look_up(second, ACTIVATIONS),
            has_bias=conv.has_bias,
            has_norm=has_norm,
            skip_channels=skip_channels,
            epsilon=norm.eps if has_norm else 0.0,
            momentum=1.0 - norm.momentum if self.has_statistics else 0.0,
        )
        self.spec = operators.spec_tensor(spec)
        self.spec_with_mask = operators.spec_tensor(spec._replace(has_dropout_mask=True))
        self.train_unit = operators.unit_training(spec)
        self.infer_unit = operators.unit_inference(spec)

    def construct(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        skip: Tensor | None = None,
        dropout_mask: Tensor | None = None,
    ) -> Tensor:
        inputs = (
            *(x, self.weight, self.bias, self.gamma, self.beta),
            *(self.moving_mean, self.moving_variance, self.first_slopes, self.second_slopes),
            residual if self.takes_residual else self.unused,
            self.unused if skip is None else skip,
            self.unused if dropout_mask is None else dropout_mask,
            self.spec if dropout_mask is None else self.spec_with_mask,
        )
        if not self.training and not self.has_instance_norm:
            return self.infer_unit(*inputs)
        out, _, _, _, mean, variance = self.train_unit(*inputs)
        if self.has_statistics:
            ops.assign(self.moving_mean, mean)
            ops.assign(self.moving_variance, variance)
        return out


def residual_block(block: nn.Cell, last: nn.Cell, residual: Residual) -> list[Unit]:
    """Returns the units of a residual block.

    Args:
        block: a stage's `ops`: one or several convolution units of `src.vnet`.
        last: the activation after the sum.
        residual: Residual.INPUT if the block's residual is also its input, else Residual.TENSOR. A
            block of several convolutions always takes its residual as a tensor.
    """
    units = list(block) if isinstance(block, nn.SequentialCell) else [block]
    if len(units) > 1:
        residual = Residual.TENSOR
    fused = [Unit(Kind.CONV5, unit.conv, unit.bn, unit.relu) for unit in units[:-1]]
    end = units[-1]
    return [*fused, Unit(Kind.CONV5, end.conv, end.bn, end.relu, residual, last)]


class ResidualStage(nn.Cell):
    """Base class of `FastDownStage` and `FastUpStage`: the residual block."""

    def __init__(self, stage: nn.Cell, residual: Residual) -> None:
        super().__init__(auto_prefix=False)
        units = residual_block(stage.ops, stage.relu2, residual)
        for number, unit in enumerate(units):
            setattr(self, f"unit{number}", unit)
        self.first_units = tuple(units[:-1])
        self.last_unit = units[-1]

    def block(self, x: Tensor, residual: Tensor) -> Tensor:
        for unit in self.first_units:
            x = unit(x)
        return self.last_unit(x, residual)


class FastDownStage(ResidualStage):
    """`src.vnet.DownStage` with fused units.

    Args:
        stage: the plain stage.
        has_dropout: whether it may get a `dropout_mask`.
    """

    def __init__(self, stage: nn.Cell, has_dropout: bool) -> None:
        super().__init__(stage, Residual.TENSOR if has_dropout else Residual.INPUT)
        self.down = Unit(Kind.CONV_DOWN2, stage.down_conv, stage.bn, stage.relu1)
        self.scale = operators.channel_scaling()

    def construct(self, x: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        down = self.down(x)
        out = down if dropout_mask is None else self.scale(down, dropout_mask)
        return self.block(out, down)


class FastUpStage(ResidualStage):
    """`src.vnet.UpStage` with fused units; the concatenated tensor is written directly.

    Args:
        stage: the plain stage.
        skip_channels: channels of the skip connection.
    """

    def __init__(self, stage: nn.Cell, skip_channels: int) -> None:
        super().__init__(stage, Residual.INPUT)
        self.up = Unit(
            Kind.CONV_UP2, stage.up_conv, stage.bn, stage.relu1, skip_channels=skip_channels
        )
        self.scale = operators.channel_scaling()

    def construct(
        self,
        x: Tensor,
        skip: Tensor,
        up_mask: Tensor | None = None,
        skip_mask: Tensor | None = None,
    ) -> Tensor:
        if up_mask is not None:
            x = self.scale(x, up_mask)
        joined = self.up(x, None, skip, skip_mask)
        return self.block(joined, joined)


class FastHead(nn.Cell):
    """`src.vnet.Head`: its unit, if any, and one operator for the last convolution and softmax."""

    def __init__(self, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        has_unit = not isinstance(head.conv1, nn.Identity)
        self.unit = Unit(Kind.CONV5, head.conv1, head.bn, head.relu) if has_unit else None
        last = head.conv2
        self.weight = last.weight
        self.bias = last.bias if last.has_bias else Tensor([0.0], mstype.float32)
        spec = HeadSpec(head.foreground, last.has_bias, logits=False)
        self.spec = operators.spec_tensor(spec)
        self.logits_spec = operators.spec_tensor(spec._replace(logits=True))
        self.head = operators.head()

    def first(self, x: Tensor) -> Tensor:
        """The input of the last convolution."""
        return x if self.unit is None else self.unit(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.first(x), self.weight, self.bias, self.logits_spec)

    def construct(self, x: Tensor) -> Tensor:
        return self.head(self.first(x), self.weight, self.bias, self.spec)


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
        self.down_slices, self.up_slices = network.down_slices, network.up_slices
        first = network.in_tr
        self.per_volume = isinstance(first.bn, InstanceNorm3d)
        self.in_tr = Unit(
            Kind.FEW_INPUT,
            first.conv,
            first.bn,
            residual=Residual.INPUT,
            second=first.relu,
        )
        self.down_stages = tuple(
            FastDownStage(stage, has_dropout=down is not None)
            for stage, (down,) in zip(network.down_stages, network.down_slices, strict=True)
        )
        self.up_stages = tuple(
            FastUpStage(stage, stage.up_conv.out_channels) for stage in network.up_stages
        )
        for name, stage in zip(
            DOWN_NAMES + UP_NAMES, self.down_stages + self.up_stages, strict=True
        ):
            setattr(self, name, stage)
        self.out_tr = FastHead(network.out_tr)

    def logits(self, volume: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """The foreground's logit, (batch, X, Y, Z), as `VNet.logits`."""
        return self.outputs(volume, dropout_mask, True)

    def construct(self, volume: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        return self.outputs(volume, dropout_mask, False)

    def outputs(self, volume: Tensor, dropout_mask: Tensor | None, of_logits: bool) -> Tensor:
        """Logits or probabilities of a batch; with instance norm computed volume by volume."""
        check_volume_shape(volume.shape)
        check_input(volume.dtype, volume.shape, 1)
        if dropout_mask is not None and self.dropout_channels:
            check_dropout_mask(
                dropout_mask.dtype, dropout_mask.shape, volume.shape[0], self.dropout_channels
            )
        if not self.per_volume or volume.shape[0] == 1:
            return self.compute(volume, dropout_mask, of_logits)
        outputs: tuple[Tensor, ...] = ()
        for index in range(volume.shape[0]):
            mask = None if dropout_mask is None else dropout_mask[index : index + 1]
            outputs = (*outputs, self.compute(volume[index : index + 1], mask, of_logits))
        return ops.concat(outputs)

    def compute(self, volume: Tensor, dropout_mask: Tensor | None, of_logits: bool) -> Tensor:
        x = self.in_tr(volume)
        skips: tuple[Tensor, ...] = ()
        for stage, (down,) in zip(self.down_stages, self.down_slices):  # noqa: B905
            skips = (x, *skips)
            x = stage(x, mask_columns(dropout_mask, down))
        for stage, skip, (up, across) in zip(self.up_stages, skips, self.up_slices):  # noqa: B905
            x = stage(x, skip, mask_columns(dropout_mask, up), mask_columns(dropout_mask, across))
        return self.out_tr.logits(x) if of_logits else self.out_tr(x)


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
