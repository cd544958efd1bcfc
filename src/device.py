"""The start of a device, and its precision."""

import os

import mindspore as ms
from easydict import EasyDict
from mindspore import device_context, nn

from src.errors import DataError


def start_device(target: str, device_id: int = 0) -> None:
    """Makes a device ready, in graph mode; only before the first operator of a process.

    Args:
        target: "Ascend", "GPU" or "CPU".
        device_id: number of the card; CPU has only one.

    Raises:
        DataError: the device is not there.
    """
    backend = getattr(device_context, target.lower())
    if not backend.is_available():
        raise DataError(
            f"device {target} is not available to MindSpore {ms.__version__} on this machine; "
            "check its driver, or use --device_target CPU (launchers: DEVICE_TARGET=CPU)"
        )
    if target == "CPU":
        # With AVX-512, oneDNN has no gemm convolution for plain layouts and falls back to its
        # reference code, 20 times slower. It reads this at the first operator.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
        ms.set_device(target)
    else:
        count = backend.device_count()
        if not 0 <= device_id < count:
            raise DataError(f"device {target} {device_id}: this machine has {count}, from 0")
        try:
            ms.set_device(target, device_id)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"device {target} {device_id}: {str(error).splitlines()[0]}") from None
    ms.set_context(mode=ms.GRAPH_MODE)


def uses_mixed_precision(config: EasyDict, target: str) -> bool:
    """Whether convolutions run in float16: on Ascend and GPU, unless `precision` says otherwise."""
    return config.precision == "mixed" or (config.precision == "auto" and target != "CPU")


def apply_precision(network: nn.Cell, config: EasyDict, target: str) -> None:
    """Lets convolutions compute in float16 where they should; parameters stay float32."""
    if uses_mixed_precision(config, target):
        ms.amp.auto_mixed_precision(network, "O2")
