"""Exports a checkpoint for other runtimes, with a description of what surrounds it.

    python export.py --ckpt_file RUN/ckpt/best.ckpt --file_format MINDIR --device_target CPU

writes vnet.mindir, vnet_lite.mindir (2-D operators only, MindIR version 1, for MindSpore Lite) and
beside each its .json: names, shapes, grid, intensities, threshold. `--file_format ONNX` writes
vnet.onnx and vnet.json. What is written is loaded back and compared with the checkpoint.
"""

from argparse import ArgumentParser, Namespace

from ..utils.command_line import (
    MINDIR_VERSIONS,
    MODEL_FORMATS,
    add_device_arguments,
    add_set_argument,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--device_id")
    parser.add_argument("--ckpt_file", required=True, help="checkpoint to export")
    parser.add_argument("--file_format", choices=MODEL_FORMATS, default="MINDIR")
    parser.add_argument("--file_name", default="vnet", help="of the model (default: vnet)")
    parser.add_argument("--batch_size", type=int, default=1, help="volumes per call (default: 1)")
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
    add_set_argument(parser)


def execute(args: Namespace) -> None:
    """Exports."""
    from ..checkpoint import find_checkpoint
    from ..config import config_of_checkpoint
    from ..devices.device import start_device
    from ..export.exporter import comparing_device, export_model, planned

    exports = planned(
        args.file_format,
        args.file_name,
        args.conv2d,
        args.mindir_version,
        args.device_target,
        args.batch_size,
    )
    checkpoint = find_checkpoint(args.ckpt_file)
    config = config_of_checkpoint(checkpoint, args.overrides)
    start_device(comparing_device(args.device_target), args.device_id)
    export_model(checkpoint, config, args.device_target, exports, args.batch_size, args.device_id)
