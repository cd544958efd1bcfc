"""V-Net as a chain of fused units, over the parameters of a plain `VNet`."""

import logging

from easydict import EasyDict
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from ..devices.device import uses_mixed_precision
from ..utils.errors import UsageError
from ..vnet import DOWN_NAMES, UP_NAMES, InstanceNorm3d, VNet, check_volume_shape, columns
from . import operators
from .build import BuildError
from .conv3d import check_input
from .operators import UnitSpec

log = logging.getLogger(__name__)

ACTIVATIONS = {
    nn.ELU: operators.ELU,
    nn.PReLU: operators.PRELU,
    nn.Identity: operators.NO_ACTIVATION,
    type(None): operators.NO_ACTIVATION,
}


def known(cell: nn.Cell | None, kinds: dict):
    """What `kinds` says of a cell's type; a TypeError for any other type."""
    if type(cell) not in kinds:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"the fast CPU V-Net knows {names}, not {type(cell).__name__}")
    return kinds[type(cell)]


@constexpr
def check_keep(dtype, shape, batch, channels):
    """Refuses factors that the operators would misread; runs when the graph is compiled."""
    if dtype != mstype.float32 or tuple(shape) != (batch, channels):
        raise ValueError(
            f"keep has to be float32 of shape ({batch}, {channels}), got {dtype} of {tuple(shape)}"
        )


class Unit(nn.Cell):
    """A convolution of a `VNet` with its norm, activations, residual and join, in one operator.

    Args:
        kind: of the convolution, see `UnitSpec`.
        conv, norm, first, second: cells of the network; what is not there is None or `nn.Identity`.
        residual: see `UnitSpec`.
        skip_channels: see `UnitSpec`.

    `construct(x, residual, skip, keep)` takes blocked tensors (WIDEN: a plain volume) and `keep`,
    (batch, skip_channels). Moving statistics are updated in training. With instance norm the batch
    is 1: its statistics are then those of the batch, in evaluation mode too.
    """

    def __init__(
        self,
        kind: int,
        conv: nn.Cell,
        norm: nn.Cell,
        first: nn.Cell | None = None,
        residual: int = operators.NO_RESIDUAL,
        second: nn.Cell | None = None,
        skip_channels: int = 0,
    ) -> None:
        super().__init__(auto_prefix=False)
        has_norm = known(norm, {nn.BatchNorm3d: True, InstanceNorm3d: True, nn.Identity: False})
        absent = Tensor([0.0], mstype.float32)
        self.absent = absent
        self.of_instance = isinstance(norm, InstanceNorm3d)
        self.has_statistics = has_norm and not self.of_instance
        self.takes_residual = residual == operators.TENSOR_RESIDUAL
        self.weight = conv.weight
        self.bias = conv.bias if conv.has_bias else absent
        norm = norm.bn2d if self.has_statistics else norm
        self.gamma = norm.gamma if has_norm else absent
        self.beta = norm.beta if has_norm else absent
        unused = Tensor([0.0] * conv.out_channels, mstype.float32) if has_norm else absent
        self.moving_mean = norm.moving_mean if self.has_statistics else unused
        self.moving_variance = norm.moving_variance if self.has_statistics else unused
        self.first_slopes = first.w if isinstance(first, nn.PReLU) else absent
        self.second_slopes = second.w if isinstance(second, nn.PReLU) else absent
        spec = UnitSpec(
            kind=kind,
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            first=known(first, ACTIVATIONS),
            residual=residual,
            second=known(second, ACTIVATIONS),
            has_bias=conv.has_bias,
            has_norm=has_norm,
            skip_channels=skip_channels,
            epsilon=norm.eps if has_norm else 0.0,
            momentum=1.0 - norm.momentum if self.has_statistics else 0.0,
        )
        self.spec = spec.tensor()
        self.spec_with_keep = spec._replace(has_keep=True).tensor()
        self.train_unit = operators.unit_training(spec)
        self.infer_unit = operators.unit_inference(spec)

    def construct(self, x, residual=None, skip=None, keep=None):
        inputs = (
            *(x, self.weight, self.bias, self.gamma, self.beta),
            *(self.moving_mean, self.moving_variance, self.first_slopes, self.second_slopes),
            residual if self.takes_residual else self.absent,
            self.absent if skip is None else skip,
            self.absent if keep is None else keep,
            self.spec if keep is None else self.spec_with_keep,
        )
        if not self.training and not self.of_instance:
            return self.infer_unit(*inputs)
        out, _, _, _, mean, variance = self.train_unit(*inputs)
        if self.has_statistics:
            ops.assign(self.moving_mean, mean)
            ops.assign(self.moving_variance, variance)
        return out


def residual_block(block: nn.Cell, last: nn.Cell, residual: int) -> list[Unit]:
    """The convolutions of a stage's `ops`; `last` is the activation after the sum.

    The residual is the block's input; INPUT_RESIDUAL is right where that is also the input of the
    only convolution.
    """
    units = list(block) if isinstance(block, nn.SequentialCell) else [block]
    if len(units) > 1:
        residual = operators.TENSOR_RESIDUAL
    fused = [Unit(operators.CONV5, unit.conv, unit.bn, unit.relu) for unit in units[:-1]]
    end = units[-1]
    return [*fused, Unit(operators.CONV5, end.conv, end.bn, end.relu, residual, last)]


class ResidualStage(nn.Cell):
    """What `FastDownStage` and `FastUpStage` share: the residual block."""

    def __init__(self, stage: nn.Cell, residual: int) -> None:
        super().__init__(auto_prefix=False)
        units = residual_block(stage.ops, stage.relu2, residual)
        for number, unit in enumerate(units):
            setattr(self, f"unit{number}", unit)
        self.first_units = tuple(units[:-1])
        self.last_unit = units[-1]

    def block(self, x, residual):
        for unit in self.first_units:
            x = unit(x)
        return self.last_unit(x, residual)


class FastDownStage(ResidualStage):
    """`src.vnet.DownStage`; `drops` says whether it may get `keep_down`."""

    def __init__(self, stage: nn.Cell, drops: bool) -> None:
        super().__init__(stage, operators.TENSOR_RESIDUAL if drops else operators.INPUT_RESIDUAL)
        self.down = Unit(operators.HALVE, stage.down_conv, stage.bn, stage.relu1)
        self.scale = operators.channel_scaling()

    def construct(self, x, keep_down=None):
        down = self.down(x)
        out = down if keep_down is None else self.scale(down, keep_down)
        return self.block(out, down)


class FastUpStage(ResidualStage):
    """`src.vnet.UpStage`; what it joins never leaves the joined tensor."""

    def __init__(self, stage: nn.Cell, skip_channels: int) -> None:
        super().__init__(stage, operators.INPUT_RESIDUAL)
        self.up = Unit(
            operators.DOUBLE, stage.up_conv, stage.bn, stage.relu1, skip_channels=skip_channels
        )
        self.scale = operators.channel_scaling()

    def construct(self, x, skip, keep_up=None, keep_skip=None):
        if keep_up is not None:
            x = self.scale(x, keep_up)
        joined = self.up(x, None, skip, keep_skip)
        return self.block(joined, joined)


class FastHead(nn.Cell):
    """`src.vnet.Head`: from here on tensors are plain, two channels are no work."""

    def __init__(self, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.has_unit = not isinstance(head.conv1, nn.Identity)
        absent = Tensor([0.0, 0.0], mstype.float32)
        conv, last = (head.conv1 if self.has_unit else head.conv2), head.conv2
        self.weight = conv.weight
        self.bias = conv.bias if conv.has_bias else absent
        self.spec = Tensor([conv.in_channels, 2, 1, conv.has_bias], mstype.float32)
        self.convolve = operators.convolution(x_is_blocked=True)
        self.bn, self.relu = head.bn, head.relu
        # Without a unit the convolution already gives the logits.
        identity = Tensor([[1.0, 0.0], [0.0, 1.0]], mstype.float32).reshape((2, 2, 1, 1, 1))
        self.last_weight = last.weight if self.has_unit else identity
        has_bias = self.has_unit and last.has_bias
        self.last_bias = last.bias if has_bias else absent
        self.last_spec = Tensor([head.foreground, has_bias], mstype.float32)
        self.probability = operators.head_probability()

    def construct(self, x):
        y = self.convolve(x, self.weight, self.bias, self.spec)
        if self.has_unit:
            y = self.relu(self.bn(y))
        return self.probability(y, self.last_weight, self.last_bias, self.last_spec)


class FastVNet(nn.Cell):
    """A `VNet` on CPU: the same parameters under the same names, the same numbers, much faster.

    Args:
        network: the plain network, which keeps the parameters.

    `construct(volume, keep=None)` as `VNet`'s. It has gradients in training mode only, and that of
    the volume is taken as zero: take the plain network where you need others.

    Raises:
        BuildError: the native library cannot be built here.
        TypeError: the volume is not float32, or the network has layers of another kind.
        ValueError: the shape of the volume or of keep does not suit, see `VNet`.
    """

    def __init__(self, network: VNet) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.dropout_channels = network.dropout_channels
        self.down_slices, self.up_slices = network.down_slices, network.up_slices
        first = network.in_tr
        self.one_by_one = isinstance(first.bn, InstanceNorm3d)
        self.in_tr = Unit(
            operators.WIDEN,
            first.conv,
            first.bn,
            residual=operators.INPUT_RESIDUAL,
            second=first.relu,
        )
        self.down_stages = tuple(
            FastDownStage(stage, drops=down is not None)
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

    def construct(self, volume, keep=None):
        check_volume_shape(volume.shape)
        check_input(volume.dtype, volume.shape, 1)
        if keep is not None and self.dropout_channels:
            check_keep(keep.dtype, keep.shape, volume.shape[0], self.dropout_channels)
        if not self.one_by_one or volume.shape[0] == 1:
            return self.answer(volume, keep)
        answers = ()
        for index in range(volume.shape[0]):
            own = None if keep is None else keep[index : index + 1]
            answers = (*answers, self.answer(volume[index : index + 1], own))
        return ops.concat(answers)

    def answer(self, volume, keep):
        x = self.in_tr(volume)
        skips = ()
        for stage, (down,) in zip(self.down_stages, self.down_slices):  # noqa: B905
            skips = (x, *skips)
            x = stage(x, columns(keep, down))
        for stage, skip, (up, across) in zip(self.up_stages, skips, self.up_slices):  # noqa: B905
            x = stage(x, skip, columns(keep, up), columns(keep, across))
        return self.out_tr(x)


def accelerated(network: VNet, config: EasyDict, device_target: str) -> nn.Cell:
    """The network that computes fastest on a device, over the parameters of `network`.

    Args:
        network: the plain network.
        config: `fast_conv3d`: "auto" takes a `FastVNet` on CPU, in float32, where it can be built,
            and says so where it cannot; "on" insists on it; "off" takes the plain network.
        device_target: "Ascend", "GPU" or "CPU".

    Raises:
        UsageError: `fast_conv3d` is "on" for another device than CPU or in mixed precision.
        BuildError: it is "on" and the native library cannot be built.
    """
    suits = device_target == "CPU" and not uses_mixed_precision(config, device_target)
    if config.fast_conv3d == "on" and not suits:
        raise UsageError(
            f"fast_conv3d=on computes in float32 on CPU, not on {device_target} with "
            f"precision={config.precision}; leave it out"
        )
    if config.fast_conv3d == "off" or not suits:
        return network
    try:
        return FastVNet(network)
    except BuildError as error:
        if config.fast_conv3d == "on":
            raise
        log.info(f"{error}; until then MindSpore's own convolutions serve, many times slower")
        return network
