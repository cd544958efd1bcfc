"""NIfTI-1 and NIfTI-2, single files (`.nii`, `.nii.gz`), to and from SimpleITK images.

SimpleITK's own reader turns NaN into 0, pads truncated files and has its own rules for choosing
between sform and qform; therefore headers and voxels are read here. Fields, codes and formulas:
nifti1.h and nifti2.h of nifti.nimh.nih.gov. Coordinates are RAS+ in the header, LPS+ in SimpleITK.
"""

from .reading import read_nifti
from .writing import copied_geometry, write_nifti

__all__ = ["copied_geometry", "read_nifti", "write_nifti"]
