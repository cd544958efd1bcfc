import SimpleITK as sitk


def is_dicom(path):
    return False


def dicom_files(path):
    return []


def read_dicom(path, series=""):
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
