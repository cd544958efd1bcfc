"""PROMISE12 and similar data sets: download, conversion to img/ and gt/, checks, splits, export.

What is exported here is imported when it is first used: `splits` alone needs little.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checking import check, format_table, print_report
    from .downloading import download
    from .layouts import Options
    from .nnunet import export_nnunet
    from .placing import lay_out

__all__ = [
    "Options",
    "check",
    "download",
    "export_nnunet",
    "format_table",
    "lay_out",
    "print_report",
]
_MODULES = {
    "checking": ("check", "format_table", "print_report"),
    "downloading": ("download",),
    "layouts": ("Options",),
    "nnunet": ("export_nnunet",),
    "placing": ("lay_out",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
