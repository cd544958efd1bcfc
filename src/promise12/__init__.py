"""PROMISE12 and similar data sets: download, conversion to img/ and gt/, checks, splits, export."""

from .checking import check, format_table, print_report
from .downloading import download, fetch
from .layouts import Options
from .nnunet import export_nnunet
from .placing import lay_out

__all__ = [
    "Options",
    "check",
    "download",
    "export_nnunet",
    "fetch",
    "format_table",
    "lay_out",
    "print_report",
]
