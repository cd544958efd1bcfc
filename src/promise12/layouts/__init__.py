"""Layouts of data sets: where the images are, and which mask belongs to which.

The rules, in this order; the first that fits is taken, and a line names it:

1. nnU-Net and the Medical Segmentation Decathlon: folders imagesTr, imagesTs, labelsTr, labelsTs;
2. PI-CAI: PATIENT_STUDY_t2w beside _adc, _hbv, _sag, _cor, masks PATIENT_STUDY elsewhere;
3. DICOM: one folder per patient;
4. one folder per patient with t2.nii.gz or another name that is the same in each;
5. this project's img/ and gt/, and other names or folders that distinguish masks from images.
"""

from .detection import detect_layout
from .layout import Layout, Options, Pair

__all__ = ["Layout", "Options", "Pair", "detect_layout"]
