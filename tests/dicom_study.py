"""A synthetic DICOM study."""

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_study(folder, descriptions=("t2_tse_tra",)):
    """A tree of axial MR slices without suffix, a folder per series: a bright box in noise."""
    study_uid = generate_uid()
    for number, description in enumerate(descriptions, 1):
        series_uid = generate_uid()
        noise = np.random.default_rng(number).integers(0, 90, (10, 24, 24))
        noise[3:7, 8:16, 8:16] += 500
        for k, plane in enumerate(noise.astype(np.uint16)):
            slice_ = pydicom.Dataset()
            slice_.SOPClassUID = MRImageStorage
            slice_.SOPInstanceUID = generate_uid()
            slice_.Modality, slice_.PatientID, slice_.SeriesDescription = "MR", "p", description
            slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study_uid, series_uid
            slice_.SeriesNumber, slice_.InstanceNumber = number, k + 1
            slice_.EchoTime, slice_.RepetitionTime = 100, 4000
            slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            slice_.ImagePositionPatient = [-15, -15, 3 * k]
            slice_.PixelSpacing, slice_.SliceThickness = [1.25, 1.25], 3
            slice_.Rows, slice_.Columns = plane.shape
            slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
            slice_.BitsAllocated = slice_.BitsStored = 16
            slice_.HighBit, slice_.PixelRepresentation = 15, 0
            slice_.PixelData = plane.tobytes()
            slice_.file_meta = pydicom.dataset.FileMetaDataset()
            slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            path = folder / f"S{number}" / f"IM{k:04d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            slice_.save_as(path, enforce_file_format=True)
    return folder
