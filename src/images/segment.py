"""How other programs name, code and colour the segment of the prostate."""

from typing import NamedTuple


class Code(NamedTuple):
    """A coded concept of DICOM (PS3.16)."""

    value: str
    scheme: str
    meaning: str


NAME = "Prostate"
RGB = (230, 158, 140)  # 0..255, the colour of the prostate in 3D Slicer's anatomical list
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")  # context group 7150
PROSTATE = Code("41216001", "SCT", "Prostate")
