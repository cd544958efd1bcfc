"""Synthetic DICOM."""

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_series(folder, array_zyx, description="t2_tse_tra", number=1, study_uid=None):
    """An axial MR series of 1.25 x 1.25 x 3 mm, a file without suffix for each slice."""
    folder.mkdir(parents=True)
    study_uid, series_uid = study_uid or generate_uid(), generate_uid()
    for k, plane in enumerate(array_zyx.astype(np.uint16)):
        item = pydicom.Dataset()
        item.SOPClassUID, item.SOPInstanceUID = MRImageStorage, generate_uid()
        item.StudyInstanceUID, item.SeriesInstanceUID = study_uid, series_uid
        item.Modality, item.PatientID, item.SeriesDescription = "MR", "p", description
        item.SeriesNumber, item.InstanceNumber = number, k + 1
        item.EchoTime, item.RepetitionTime = 100, 4000
        item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        item.ImagePositionPatient = [-15, -15, 3 * k]
        item.PixelSpacing, item.SliceThickness = [1.25, 1.25], 3
        item.Rows, item.Columns = plane.shape
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated = item.BitsStored = 16
        item.HighBit, item.PixelRepresentation = 15, 0
        item.PixelData = plane.tobytes()
        item.file_meta = pydicom.dataset.FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.save_as(folder / f"IM{k:04d}", enforce_file_format=True)
    return folder


def write_study(folder, descriptions=("t2_tse_tra",)):
    """A folder for each series: a bright box in noise."""
    study_uid = generate_uid()
    for number, description in enumerate(descriptions, 1):
        noise = np.random.default_rng(number).integers(0, 90, (10, 24, 24))
        noise[3:7, 8:16, 8:16] += 500
        write_series(folder / f"S{number}", noise, description, number, study_uid)
    return folder
