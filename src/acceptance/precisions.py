"""The precisions in which a device trains, and how far its results may be from golden values."""

from easydict import EasyDict

from ..config import override_config, vnet_cfg

PRECISIONS = {"CPU": ("float32",), "GPU": ("float32", "mixed"), "Ascend": ("mixed",)}
# Largest difference from a golden value, as a share of the largest golden value. A GPU may compute
# float32 convolutions with TensorFloat-32's 11 bits.
TOLERANCE = {("CPU", "float32"): 1e-4, ("GPU", "float32"): 5e-3}
MIXED_TOLERANCE = 2e-2  # float16 has 11 bits; rounding errors add up over the layers


def tolerance(target: str, precision: str) -> float:
    """Returns the largest difference of a layer, as a share of the largest golden value."""
    return TOLERANCE.get((target, precision), MIXED_TOLERANCE)


def configuration(precision: str, *overrides: str) -> EasyDict:
    """Returns the default configuration with a precision, without the fast convolution."""
    fixed = (f"precision={precision}", "fast_conv3d=off", "dropout=0.5")
    return override_config(vnet_cfg, [*fixed, *overrides])
