"""Data: PROMISE12's files and those of peers, brought into img/ and gt/, checked, and exported."""

from src.promise12.checking import check, format_table, report
from src.promise12.downloading import download, fetch
from src.promise12.layouts import Options
from src.promise12.nnunet import export_nnunet
from src.promise12.placing import lay_out

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
