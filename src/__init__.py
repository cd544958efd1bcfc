"""V-Net segmentation of the prostate in MR volumes, on MindSpore."""

__version__ = "1.0.0"
