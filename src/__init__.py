"""V-Net for prostate MR volumes on MindSpore."""

__version__ = "1.0.0"
