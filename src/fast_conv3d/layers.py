"""The layers of a plain `VNet`, in the order in which native/network.h computes them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from mindspore import Parameter, nn

from ..vnet import InstanceNorm3d, VNet
from .protocol import Activation, DropoutColumns, NetworkDescription, Norm

T = TypeVar("T")

ACTIVATIONS = {
    nn.ELU: Activation.ELU,
    nn.PReLU: Activation.PRELU,
    nn.Identity: Activation.NONE,
    type(None): Activation.NONE,
}
NORMS = {nn.Identity: Norm.NONE, nn.BatchNorm3d: Norm.BATCH, InstanceNorm3d: Norm.INSTANCE}
# The order of a layer's parameters; a layer has only those that it needs.
STATISTICS = ("moving_mean", "moving_variance")
PARAMETERS = (
    *("weight", "bias", "gamma", "beta", *STATISTICS),
    *("first_slopes", "second_slopes"),
)


class Layer(NamedTuple):
    """A convolution, and what is applied to its output."""

    conv: nn.Cell
    norm: nn.Cell
    first: nn.Cell | None = None  # activation before the sum with the residual
    second: nn.Cell | None = None  # and after it


def layers_of(network: VNet) -> Iterator[Layer]:
    """Yields the convolutions of a network in the order in which they are computed."""
    first = network.in_tr
    yield Layer(first.conv, first.bn, second=first.relu)
    for stage in network.down_stages:
        yield from _layers_of_stage(stage, stage.down_conv)
    for stage in network.up_stages:
        yield from _layers_of_stage(stage, stage.up_conv)
    head = network.out_tr
    if not isinstance(head.conv1, nn.Identity):
        yield Layer(head.conv1, head.bn, head.relu)
    yield Layer(head.conv2, nn.Identity())


def _layers_of_stage(stage, conv):
    yield Layer(conv, stage.bn, stage.relu1)
    *units, last = _units(stage)
    for unit in units:
        yield Layer(unit.conv, unit.bn, unit.relu)
    yield Layer(last.conv, last.bn, last.relu, stage.relu2)


def _units(stage):
    return list(stage.ops) if isinstance(stage.ops, nn.SequentialCell) else [stage.ops]


def _depths(stages):
    return tuple(len(_units(stage)) for stage in stages)


def parameters_of(layer: Layer) -> dict[str, Parameter]:
    """The parameters of a layer, in the order of `PARAMETERS`."""
    conv, norm = layer.conv, getattr(layer.norm, "bn2d", layer.norm)
    found = {"weight": conv.weight, "bias": conv.bias if conv.has_bias else None}
    found |= {name: getattr(norm, name, None) for name in ("gamma", "beta", *STATISTICS)}
    for name, activation in (("first_slopes", layer.first), ("second_slopes", layer.second)):
        found[name] = activation.w if isinstance(activation, nn.PReLU) else None
    return {name: found[name] for name in PARAMETERS if found[name] is not None}


def _look_up(cell: nn.Cell | None, by_type: dict[type, T]) -> T:
    if type(cell) not in by_type:
        names = ", ".join(kind.__name__ for kind in by_type)
        raise TypeError(f"the fast CPU V-Net supports {names}, not {type(cell).__name__}")
    return by_type[type(cell)]


def _only(values: Iterable[T], what: str) -> T:
    """The value that all are equal to."""
    found = set(values)
    if len(found) != 1:
        raise TypeError(f"the fast CPU V-Net supports one {what}, not {sorted(map(str, found))}")
    return found.pop()


def description_of(network: VNet) -> NetworkDescription:
    """Returns what the layers of a network are.

    Raises:
        TypeError: a layer has a norm or activation that is not supported, or other than the rest.
    """
    layers = list(layers_of(network))
    first, up, head = layers[0], network.up_stages[0], network.out_tr
    unit, last = _units(up)[-1], layers[-1].conv
    activations = {
        _look_up(activation, ACTIVATIONS) for layer in layers for activation in layer[2:]
    }
    norms = [layer.norm for layer in layers[:-1]]
    return NetworkDescription(
        width=first.conv.out_channels,
        encoder_depths=(1, *_depths(network.down_stages)),
        decoder_depths=_depths(network.up_stages),
        activation=_only(activations - {Activation.NONE}, "activation"),
        norm=_only((_look_up(norm, NORMS) for norm in norms), "norm"),
        activation_before_sum=not isinstance(unit.relu, nn.Identity),
        encoder_bias=first.conv.has_bias,
        decoder_bias=unit.conv.has_bias,
        up_bias=up.up_conv.has_bias,
        head_unit=not isinstance(head.conv1, nn.Identity),
        head_side=last.kernel_size[0],
        head_bias=last.has_bias,
        foreground=head.foreground,
        epsilon=_only(
            (float(getattr(getattr(norm, "bn2d", norm), "eps", 0.0)) for norm in norms), "epsilon"
        ),
    )


def momentum_of(network: VNet) -> float:
    """The weight of batch norm's old moving statistics in an update; 1 without them.

    Raises:
        TypeError: it is not the same in all layers.
    """
    norms = [layer.norm for layer in layers_of(network)]
    momenta = [1.0 - norm.bn2d.momentum for norm in norms if isinstance(norm, nn.BatchNorm3d)]
    return _only(momenta or [1.0], "momentum")


def dropout_columns(network: VNet) -> DropoutColumns:
    """Where the factors of each place of dropout are in the dropout mask."""

    def starts(places):
        return tuple(-1 if place is None else place[0] for place in places)

    return DropoutColumns(
        down=starts(down for (down,) in network.down_slices),
        up=starts(up for up, _ in network.up_slices),
        skip=starts(skip for _, skip in network.up_slices),
    )
