"""Data: PROMISE12's files and those of peers, brought into img/ and gt/, checked, and exported."""

from .checking import check, format_table, report
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
    "report",
]
