"""The formats of exported models; without MindSpore, for the command line."""

MODEL_FORMATS = ("MINDIR", "ONNX", "AIR", "VNET")
MINDIR_VERSIONS = (3, 1)  # what MindSpore 2.10 writes; what MindSpore Lite 2.0 reads
