r"""Segments images without reference masks.

    python predict.py --ckpt_path RUN --input scan.nii.gz --output_path masks \
        [--save_probability] [--skip_existing] [--no_report] [--set flip_average=true]

--input takes image files, folders of images, and DICOM: a file, a folder tree or a .zip of a study,
of which --series chooses the series. Each mask has the geometry and format of its image;
volumes.csv and volumes.json list the prostate volumes in ml and what to look at, report.html shows
them. The other images are segmented even if one cannot be.
"""

from argparse import ArgumentParser, Namespace

from .arguments import (
    add_checkpoint_argument,
    add_config_arguments,
    add_device_arguments,
    overrides_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--dev_id")
    add_checkpoint_argument(parser, "--ckpt_path", "predict with")
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, folders of images, DICOM files, folders or .zip files",
    )
    parser.add_argument(
        "--output_path", metavar="FOLDER", help="folder of the masks (default: dirPredictionImage)"
    )
    parser.add_argument(
        "--save_probability",
        action="store_true",
        help="write the foreground probability of each image too",
    )
    parser.add_argument(
        "--series",
        default="",
        metavar="SERIES",
        help="DICOM series: number, UID or a pattern on its description (default: the axial T2)",
    )
    parser.add_argument(
        "--skip_existing",
        action="store_true",
        help="keep earlier masks of the same images, checkpoint and settings",
    )
    parser.add_argument(
        "--no_report",
        action="store_true",
        help="write masks and lists only, without overlays.png and report.html",
    )
    add_config_arguments(parser, "channel")


def execute(args: Namespace) -> None:
    """Segments the images."""
    from ..api import load
    from ..input_images import find_images
    from ..prediction import predict

    images = find_images(args.input)
    model = load(args.ckpt_path, args.device_target, args.dev_id, overrides_of(args))
    config = model.config
    config.dirPredictionImage = args.output_path or config.dirPredictionImage
    predict(
        model.network,
        images,
        config,
        {"checkpoint": str(model.checkpoint)},
        args.save_probability,
        args.series,
        args.skip_existing,
        report=not args.no_report,
    )
