import SimpleITK as sitk


def read_nifti(path, channel=None):
    return sitk.ReadImage(str(path))


def write_nifti(image, path, like=None):
    sitk.WriteImage(image, str(path), True)
