"""V-Net (Milletari, Navab, Ahmadi 2016, https://arxiv.org/abs/1606.04797) as one MindSpore cell.

The architecture is data: a `Variant` holds the depth of each stage and the options in which the
known implementations differ. Stages have the model zoo's names (`in_tr`, `down_tr32` ..
`up_tr32`, `out_tr`), so that its checkpoints can be loaded; the names do not depend on `width`.
"""

from typing import NamedTuple

from easydict import EasyDict
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops import constexpr

from .utils.errors import UsageError

SIDE_MULTIPLE = 16  # the encoder halves each side four times


class Variant(NamedTuple):
    """The options in which the known V-Nets differ.

    Attributes:
        encoder_depths: 5x5x5 convolutions of the input stage, always 1, and the four stages down.
        decoder_depths: those of the four stages up, deepest first.
        activation: "elu" or "prelu".
        norm: "batch" or "instance" norm after every convolution but the last, or None.
        activation_before_sum: whether a residual block's last convolution has its own activation,
            besides the one that follows the sum.
        encoder_bias: bias of the encoder's convolutions and of the head's unit.
        decoder_bias: bias of the decoder's 5x5x5 convolutions.
        up_bias: bias of the transposed convolutions.
        head_unit: whether a 5x5x5 convolution to two channels, with norm and activation, precedes
            the last convolution.
        head_kernel_size: side of the last convolution's kernel, odd.
        head_bias: bias of the last convolution.
        foreground_channel: which of the two logits is the foreground, 0 or 1.
        dropout_on: stage name -> tensors whose channels are dropped in training: "down" the input
            of a stage's residual block, "up" the output of the stage below, "skip" the skip
            connection from the encoder.
    """

    encoder_depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    activation: str
    norm: str | None
    activation_before_sum: bool
    encoder_bias: bool
    decoder_bias: bool
    up_bias: bool
    head_unit: bool
    head_kernel_size: int
    head_bias: bool
    foreground_channel: int
    dropout_on: dict[str, tuple[str, ...]]


# MindSpore model zoo, research/cv/vnet.
ZOO = Variant(
    encoder_depths=(1, 1, 2, 3, 2),
    decoder_depths=(2, 2, 1, 1),
    activation="elu",
    norm="batch",
    activation_before_sum=True,
    encoder_bias=False,
    decoder_bias=False,
    up_bias=False,
    head_unit=True,
    head_kernel_size=3,
    head_bias=False,
    foreground_channel=0,
    dropout_on={
        "down_tr128": ("down",),
        "down_tr256": ("down",),
        "up_tr256": ("up", "skip"),
        "up_tr128": ("up", "skip"),
    },
)
# MONAI 1.6, monai.networks.nets.VNet(out_channels=2), softmax on its logits.
MONAI = ZOO._replace(
    up_bias=True,
    head_kernel_size=1,
    head_bias=True,
    foreground_channel=1,
    dropout_on={**ZOO.dropout_on, "up_tr64": ("skip",), "up_tr32": ("skip",)},
)
# The paper's figure 2 and table 1. It has neither norm nor dropout, so each convolution has a bias.
# The 1x1x1 convolution follows the last stage directly: in table 1 the output has the receptive
# field of that stage, 551 voxels. A stage's input is added to the output of its last convolution
# before the nonlinearity (section 2).
PAPER = Variant(
    encoder_depths=(1, 2, 3, 3, 3),
    decoder_depths=(3, 3, 2, 1),
    activation="prelu",
    norm=None,
    activation_before_sum=False,
    encoder_bias=True,
    decoder_bias=True,
    up_bias=True,
    head_unit=False,
    head_kernel_size=1,
    head_bias=True,
    foreground_channel=1,
    dropout_on={},
)
# Ours: instance norm, because MR intensities have no common scale across volumes, and because the
# statistics of batches of one or two volumes differ from the moving statistics that batch norm uses
# for prediction. The head is the paper's: a norm over the two output channels would remove the
# information about the size of the prostate.
INSTANCE = ZOO._replace(
    norm="instance",
    head_unit=False,
    head_kernel_size=1,
    head_bias=True,
    foreground_channel=1,
)
VARIANTS = {"zoo": ZOO, "monai": MONAI, "paper": PAPER, "instance": INSTANCE}

DOWN_NAMES = ("down_tr32", "down_tr64", "down_tr128", "down_tr256")
UP_NAMES = ("up_tr256", "up_tr128", "up_tr64", "up_tr32")


@constexpr
def check_volume_shape(shape: tuple[int, ...]) -> None:
    """Checks the shape of a volume; runs when the graph is compiled.

    Raises:
        ValueError: not (batch, 1, X, Y, Z) with sides that can be halved four times.
    """
    if len(shape) != 5 or shape[1] != 1:
        raise ValueError(f"V-Net takes volumes of shape (batch, 1, X, Y, Z), got {tuple(shape)}")
    if any(side < 1 or side % SIDE_MULTIPLE for side in shape[2:]):
        raise ValueError(
            f"V-Net halves each side four times: X, Y, Z must be multiples of {SIDE_MULTIPLE}, "
            f"got {tuple(shape[2:])}"
        )


class SyncBatchNorm3d(nn.Cell):
    """Batch norm over the batches of all devices, with the parameter names of `nn.BatchNorm3d`.

    MindSpore's `SyncBatchNorm` takes 4-D tensors, so Y and Z are merged; it exists on Ascend only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn2d = nn.SyncBatchNorm(channels)

    def construct(self, x: Tensor) -> Tensor:
        normed = self.bn2d(x.reshape(x.shape[:3] + (-1,)))
        return ops.cast(normed, x.dtype).reshape(x.shape)


class InstanceNorm3d(nn.Cell):
    """Instance norm with gamma and beta (Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022).

    MindSpore's own `InstanceNorm3d` exists on GPU only.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = Parameter(ops.ones((channels,), mstype.float32))
        self.beta = Parameter(ops.zeros((channels,), mstype.float32))
        self.eps = 1e-5

    def construct(self, x: Tensor) -> Tensor:
        voxels = (2, 3, 4)  # not one flattened axis, see DiceLoss
        whole = ops.cast(x, mstype.float32)
        centred = whole - whole.mean(axis=voxels, keep_dims=True)
        variance = (centred * centred).mean(axis=voxels, keep_dims=True)
        gamma, beta = (ops.reshape(p, (1, -1, 1, 1, 1)) for p in (self.gamma, self.beta))
        return ops.cast(centred * (gamma / ops.sqrt(variance + self.eps)) + beta, x.dtype)


class LayerFactory(NamedTuple):
    """Creates the norms, activations and residual blocks of a variant."""

    variant: Variant
    sync_batch_norm: bool

    def act(self, channels: int) -> nn.Cell:
        """Returns an ELU, or a PReLU with one slope per channel."""
        return {"elu": nn.ELU, "prelu": lambda: nn.PReLU(channels)}[self.variant.activation]()

    def norm(self, channels: int) -> nn.Cell:
        """Returns a batch norm, an instance norm or an identity."""
        if self.variant.norm is None:
            return nn.Identity()
        if self.variant.norm == "instance":
            return InstanceNorm3d(channels)
        return (SyncBatchNorm3d if self.sync_batch_norm else nn.BatchNorm3d)(channels)

    def units(self, depth: int, channels: int, bias: bool) -> nn.Cell:
        """Returns the `depth` convolution units of a residual block.

        A single convolution is not wrapped in a `SequentialCell`, since the zoo's parameter names
        have no index for it.
        """
        has_activation = [True] * (depth - 1) + [self.variant.activation_before_sum]
        units = [
            ConvUnit(
                conv5(channels, channels, bias),
                self.norm(channels),
                self.act(channels) if activated else nn.Identity(),
            )
            for activated in has_activation
        ]
        return units[0] if depth == 1 else nn.SequentialCell(*units)


def conv5(in_channels: int, out_channels: int, bias: bool) -> nn.Cell:
    """The network's 5x5x5 convolution: stride 1, same size."""
    return nn.Conv3d(in_channels, out_channels, 5, pad_mode="pad", padding=2, has_bias=bias)


def drop_channels(x: Tensor, dropout_mask: Tensor) -> Tensor:
    """Drops channels: multiplies each by its factor.

    Args:
        x: (batch, channels, X, Y, Z).
        dropout_mask: (batch, channels), 0 where a channel is dropped and 1 / (1 - rate) elsewhere.
    """
    return x * ops.cast(dropout_mask, x.dtype).reshape(dropout_mask.shape + (1, 1, 1))


def mask_columns(dropout_mask: Tensor | None, place: tuple[int, int] | None) -> Tensor | None:
    """Returns the columns (start, stop) of `dropout_mask`; None if either argument is None."""
    return None if dropout_mask is None or place is None else dropout_mask[:, place[0] : place[1]]


class ConvUnit(nn.Cell):
    """A convolution with norm and activation; attributes have the zoo's names, here and below.

    `construct(x)`: (batch, C, X, Y, Z) to (batch, channels of the convolution, X, Y, Z).
    """

    def __init__(self, conv: nn.Cell, norm: nn.Cell, activation: nn.Cell) -> None:
        super().__init__()
        self.conv = conv
        self.bn = norm
        self.relu = activation

    def construct(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class InputStage(nn.Cell):
    """A convolution from 1 to `width` channels; the volume is added to each output channel.

    `construct(volume)`: (batch, 1, X, Y, Z) to (batch, width, X, Y, Z).
    """

    def __init__(self, width: int, layers: LayerFactory) -> None:
        super().__init__()
        self.conv = conv5(1, width, layers.variant.encoder_bias)
        self.bn = layers.norm(width)
        self.relu = layers.act(width)

    def construct(self, volume: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(volume)) + volume)


class DownStage(nn.Cell):
    """Halves the sides and doubles the channels, then applies `depth` residual convolutions.

    `construct(x, dropout_mask)`: (batch, in_channels, X, Y, Z) to (batch, 2 in_channels, X/2, Y/2,
    Z/2); the mask, for `drop_channels`, has 2 in_channels columns.
    """

    def __init__(self, in_channels: int, depth: int, layers: LayerFactory) -> None:
        super().__init__()
        channels, bias = 2 * in_channels, layers.variant.encoder_bias
        self.down_conv = nn.Conv3d(
            in_channels, channels, 2, stride=2, pad_mode="valid", has_bias=bias
        )
        self.bn = layers.norm(channels)
        self.relu1 = layers.act(channels)
        self.ops = layers.units(depth, channels, bias)
        self.relu2 = layers.act(channels)

    def construct(self, x: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        down = self.relu1(self.bn(self.down_conv(x)))
        out = down if dropout_mask is None else drop_channels(down, dropout_mask)
        return self.relu2(self.ops(out) + down)


class UpStage(nn.Cell):
    """Doubles the sides, concatenates the skip connection, then applies a residual block.

    `construct(x, skip, up_mask, skip_mask)`: x (batch, in_channels, X/2, Y/2, Z/2) and skip (batch,
    channels / 2, X, Y, Z) to (batch, channels, X, Y, Z); the masks, for `drop_channels`, have as
    many columns as x and skip have channels.
    """

    def __init__(self, in_channels: int, channels: int, depth: int, layers: LayerFactory) -> None:
        super().__init__()
        self.up_conv = nn.Conv3dTranspose(
            in_channels,
            channels // 2,
            2,
            stride=2,
            pad_mode="valid",
            has_bias=layers.variant.up_bias,
        )
        self.bn = layers.norm(channels // 2)
        self.relu1 = layers.act(channels // 2)
        self.ops = layers.units(depth, channels, layers.variant.decoder_bias)
        self.relu2 = layers.act(channels)

    def construct(
        self,
        x: Tensor,
        skip: Tensor,
        up_mask: Tensor | None = None,
        skip_mask: Tensor | None = None,
    ) -> Tensor:
        if up_mask is not None:
            x = drop_channels(x, up_mask)
        if skip_mask is not None:
            skip = drop_channels(skip, skip_mask)
        joined = ops.concat((self.relu1(self.bn(self.up_conv(x))), skip), axis=1)
        return self.relu2(self.ops(joined) + joined)


class Head(nn.Cell):
    """The last convolutions; returns the foreground's probability, (batch, X, Y, Z) float32."""

    def __init__(self, in_channels: int, layers: LayerFactory) -> None:
        super().__init__()
        variant = layers.variant
        unit, side = variant.head_unit, variant.head_kernel_size
        self.conv1 = conv5(in_channels, 2, variant.encoder_bias) if unit else nn.Identity()
        self.bn = layers.norm(2) if unit else nn.Identity()
        self.relu = layers.act(2) if unit else nn.Identity()
        self.conv2 = nn.Conv3d(
            2 if unit else in_channels,
            2,
            side,
            pad_mode="pad",
            padding=side // 2,
            has_bias=variant.head_bias,
        )
        self.foreground = variant.foreground_channel

    def logits(self, x: Tensor) -> Tensor:
        """The foreground's logit minus the background's, (batch, X, Y, Z) float32.

        Its sigmoid is the softmax of both.
        """
        both = ops.cast(self.conv2(self.relu(self.bn(self.conv1(x)))), mstype.float32)
        return both[:, self.foreground] - both[:, 1 - self.foreground]

    def construct(self, x: Tensor) -> Tensor:
        return ops.sigmoid(self.logits(x))


def dropout_slices(
    channels: list[int], dropout_on: dict[str, tuple[str, ...]]
) -> tuple[tuple, tuple, int]:
    """Assigns columns of the dropout mask to the places of dropout.

    Args:
        channels: number of channels of each of the five levels.
        dropout_on: stage name -> places, see `Variant`.

    Returns:
        ((down,) of each stage down, (up, skip) of each stage up, number of columns); down, up and
        skip are columns (start, stop), or None without dropout.
    """
    total = 0

    def claim(name, place, count):
        nonlocal total
        if place not in dropout_on.get(name, ()):
            return None
        total += count
        return (total - count, total)

    down = tuple(
        (claim(name, "down", channels[level + 1]),) for level, name in enumerate(DOWN_NAMES)
    )
    from_below = (channels[4], *channels[:1:-1])
    up = tuple(
        (claim(name, "up", below), claim(name, "skip", across))
        for name, below, across in zip(UP_NAMES, from_below, channels[3::-1], strict=True)
    )
    return down, up, total


class VNet(nn.Cell):
    """V-Net with four stages down and four up.

    Args:
        variant: depths and options, such as one of `VARIANTS`.
        width: channels of the first stage; each stage below has twice as many.
        sync_batch_norm: whether batch norm uses the statistics of all devices.

    `construct(volume, dropout_mask=None)` takes a (batch, 1, X, Y, Z) volume and, in training, the
    factors that drop channels, (batch, `dropout_channels`), from `src.dropout.draw_dropout_mask`:
    MindSpore's own Dropout3D cannot be seeded. It returns the foreground's probability,
    (batch, X, Y, Z) float32 in 0..1.

    Raises:
        ValueError: a side of the volume is not a multiple of 16; more than one input convolution.
    """

    def __init__(self, variant: Variant, width: int = 16, sync_batch_norm: bool = False) -> None:
        super().__init__()
        if variant.encoder_depths[0] != 1:
            raise ValueError(f"the input stage has 1 convolution, got {variant.encoder_depths[0]}")
        layers = LayerFactory(variant, sync_batch_norm)
        channels = [width * 2**level for level in range(5)]
        self.in_tr = InputStage(width, layers)
        self.down_stages = tuple(
            DownStage(channels[level], depth, layers)
            for level, depth in enumerate(variant.encoder_depths[1:])
        )
        # A stage up takes the output of the stage below. The first returns as many channels as the
        # lowest level, 16 * width.
        self.up_stages = tuple(
            UpStage(wide_in, wide_out, depth, layers)
            for wide_in, wide_out, depth in zip(
                (channels[4], *channels[:1:-1]),
                channels[:0:-1],
                variant.decoder_depths,
                strict=True,
            )
        )
        for name, stage in zip(
            DOWN_NAMES + UP_NAMES, self.down_stages + self.up_stages, strict=True
        ):
            setattr(self, name, stage)
        self.out_tr = Head(2 * width, layers)
        self.down_slices, self.up_slices, self.dropout_channels = dropout_slices(
            channels, variant.dropout_on
        )

    def features(self, volume: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """The output of the last stage, the input of the head: (batch, 2 * width, X, Y, Z)."""
        check_volume_shape(volume.shape)
        x = self.in_tr(volume)
        skips: tuple[Tensor, ...] = ()
        # MindSpore's graph parser does not support zip(strict=...).
        for stage, (down,) in zip(self.down_stages, self.down_slices):  # noqa: B905
            skips = (x, *skips)
            x = stage(x, mask_columns(dropout_mask, down))
        for stage, skip, (up, across) in zip(self.up_stages, skips, self.up_slices):  # noqa: B905
            x = stage(x, skip, mask_columns(dropout_mask, up), mask_columns(dropout_mask, across))
        return x

    def logits(self, volume: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """The foreground's logit, (batch, X, Y, Z) float32; `construct` returns its sigmoid."""
        return self.out_tr.logits(self.features(volume, dropout_mask))

    def construct(self, volume: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        return self.out_tr(self.features(volume, dropout_mask))


def create_vnet(config: EasyDict, sync_batch_norm: bool = False) -> VNet:
    """Creates the network of a configuration.

    Args:
        config: `variant`, `width`, and `VolSize` for a check.
        sync_batch_norm: see `VNet`.

    Raises:
        UsageError: the lowest level has a single voxel, which instance norm would set to 0.
    """
    variant = VARIANTS[config.variant]
    if variant.norm == "instance" and max(config.VolSize) == SIDE_MULTIPLE:
        raise UsageError(
            f"variant={config.variant} with VolSize={config.VolSize}: the lowest level has one "
            "voxel, which instance norm cannot normalize; "
            f"use a side of at least {2 * SIDE_MULTIPLE}"
        )
    return VNet(variant, config.width, sync_batch_norm)
