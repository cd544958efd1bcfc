"""V-Net segmentation of the prostate in MR volumes, on MindSpore.

    model = vnet_mindspore.load("vnet_prostate")
    mask = model.segment(SimpleITK.ReadImage("scan.nii.gz"))

See docs/python.md. MindSpore is imported when a function first needs it.
"""

from typing import TYPE_CHECKING

from .utils.errors import DataError, UsageError

if TYPE_CHECKING:
    from .api import Model, compare_masks, evaluate, load, train

__version__ = "1.0.0"
__all__ = ["DataError", "Model", "UsageError", "compare_masks", "evaluate", "load", "train"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
