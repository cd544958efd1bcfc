"""Synthetic DICOM."""

import numpy as np
import pydicom
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

ORIGIN_MM = np.array([-15.0, -15.0, 0.0])
PIXEL_MM, STEP_MM = 1.25, 3.0


def write_series(
    folder,
    array_zyx,
    description="t2_tse_tra",
    number=1,
    study_uid=None,
    direction=None,
    patient="p",
    **tags,
):
    """An MR series of 1.25 x 1.25 x 3 mm, a file without suffix for each slice.

    Args:
        direction: (3, 3), columns are the directions of rows, of columns, and from slice to slice.
        tags: other attributes of all files; those that are None are left out.
    """
    direction = np.eye(3) if direction is None else np.asarray(direction)
    folder.mkdir(parents=True)
    uids = study_uid or generate_uid(), generate_uid(), generate_uid()
    order = np.random.default_rng(0).permutation(len(array_zyx))  # names are no order of slices
    for k, plane in enumerate(array_zyx.astype(np.uint16)):
        item = header(MRImageStorage, plane.shape, *uids)
        item.PatientID, item.SeriesDescription = patient, description
        item.SeriesNumber, item.InstanceNumber = number, k + 1
        item.ImageOrientationPatient = decimal(direction[:, :2].T)
        item.ImagePositionPatient = decimal(position(k, direction))
        item.PixelSpacing, item.SliceThickness = [PIXEL_MM, PIXEL_MM], 4.5  # not the step
        item.PixelData = plane.tobytes()
        save(item, tags, folder / f"IM{order[k]:04d}")
    return folder


def write_enhanced(path, array_zyx, order, direction=None, **tags):
    """The same in one file, whose frames are the slices in this order."""
    direction = np.eye(3) if direction is None else np.asarray(direction)
    path.parent.mkdir(parents=True)
    uids = [generate_uid() for _ in range(3)]
    item = header(EnhancedMRImageStorage, array_zyx.shape[1:], *uids)
    item.PatientID, item.SeriesDescription, item.SeriesNumber = "p", "t2_tse_tra", 1
    item.NumberOfFrames = len(order)
    orientation = group(ImageOrientationPatient=decimal(direction[:, :2].T))
    measures = group(PixelSpacing=[PIXEL_MM, PIXEL_MM], SliceThickness=4.5)
    item.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    item.PerFrameFunctionalGroupsSequence = [
        group(  # all of the geometry in each frame's own groups, as some scanners write it
            PlanePositionSequence=[group(ImagePositionPatient=decimal(position(k, direction)))],
            PlaneOrientationSequence=[orientation],
            PixelMeasuresSequence=[measures],
        )
        for k in order
    ]
    item.PixelData = array_zyx[list(order)].astype(np.uint16).tobytes()
    save(item, tags, path)
    return path


def position(k, direction):
    """Where the first voxel of slice k lies, in mm."""
    return ORIGIN_MM + STEP_MM * k * direction[:, 2]


def decimal(values):
    return [f"{value:.10g}"[:16] for value in np.ravel(values)]


def group(**tags):
    item = pydicom.Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return item


def header(sop_class, shape, study_uid, series_uid, frame_of_reference_uid):
    """What all files have."""
    item = pydicom.Dataset()
    item.SOPClassUID, item.SOPInstanceUID = sop_class, generate_uid()
    item.StudyInstanceUID, item.SeriesInstanceUID = study_uid, series_uid
    item.FrameOfReferenceUID = frame_of_reference_uid
    item.Modality, item.EchoTime, item.RepetitionTime = "MR", 100, 4000
    item.Rows, item.Columns = shape
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit, item.PixelRepresentation = 15, 0
    item.file_meta = pydicom.dataset.FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return item


def save(item, tags, path):
    for keyword, value in tags.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    item.save_as(path, enforce_file_format=True)


def write_study(folder, descriptions=("t2_tse_tra",), patient="p", slices=10):
    """A folder for each series: a bright box in noise."""
    study_uid = generate_uid()
    for number, description in enumerate(descriptions, 1):
        noise = np.random.default_rng(number).integers(0, 90, (slices, 24, 24))
        noise[slices * 3 // 10 : slices * 7 // 10, 8:16, 8:16] += 500
        write_series(folder / f"S{number}", noise, description, number, study_uid, patient=patient)
    return folder
