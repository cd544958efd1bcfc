"""Exports a checkpoint for other runtimes, with a description of its inputs and outputs.

    python export.py --ckpt_file RUN --file_format MINDIR

writes vnet.mindir, vnet.vnet (for the C++ program on a CPU), vnet_lite.mindir (2-D operators only,
MindIR version 1, for MindSpore Lite) and descriptions, vnet.json and vnet_lite.json: names, shapes,
grid, intensities, threshold. `--file_format ONNX` writes vnet.onnx and vnet.json, `VNET` vnet.vnet
and vnet.json. Each model is loaded back and compared with the checkpoint.

Of several checkpoints each becomes a model, vnet_0, vnet_1, ..., whose description names them all:
the mean of their probabilities is thresholded.
"""

from argparse import ArgumentParser, Namespace

from ..export.formats import MINDIR_VERSIONS, MODEL_FORMATS
from .arguments import (
    add_checkpoint_argument,
    add_config_arguments,
    add_device_arguments,
    overrides_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--device_id")
    add_checkpoint_argument(parser, "--ckpt_file", "export")
    parser.add_argument(
        "--file_format",
        choices=MODEL_FORMATS,
        default="MINDIR",
        help="VNET: for the C++ program on a CPU; AIR is written on Ascend only (default: MINDIR)",
    )
    parser.add_argument(
        "--file_name",
        default="vnet",
        metavar="NAME",
        help="path of the model without its ending (default: vnet)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=1, metavar="N", help="volumes per call (default: 1)"
    )
    parser.add_argument(
        "--conv2d", action="store_true", help="2-D operators only, for runtimes without Conv3D"
    )
    parser.add_argument(
        "--mindir_version",
        type=int,
        choices=MINDIR_VERSIONS,
        default=3,
        help="1 for MindSpore Lite 2.0 (default: 3, what MindSpore 2.10 writes)",
    )
    add_config_arguments(parser)


def execute(args: Namespace) -> None:
    """Exports."""
    from ..export.exporter import export_checkpoints

    export_checkpoints(
        args.ckpt_file,
        overrides_of(args),
        args.file_format,
        args.file_name,
        conv2d=args.conv2d,
        mindir_version=args.mindir_version,
        batch_size=args.batch_size,
        device_target=args.device_target,
        device_id=args.device_id,
    )
