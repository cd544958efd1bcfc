r"""Segments images without reference masks.

    python predict.py --ckpt_path RUN --input scan.nii.gz --output_path masks \
        [--output_type image dicom_seg seg_nrrd] [--save_probability] [--skip_existing] \
        [--no_report] [--language zh] [--set flip_average=true]

--input takes image files, folders of images, and DICOM: a file, a folder tree or a .zip of a study,
of which --series chooses the series; of a folder of studies, each is segmented and gets a folder of
its own. Each mask has the geometry of its image; volumes.csv and volumes.json list volumes,
diameters and what to look at, report.html shows them. The other images are segmented even if one
cannot be.
"""

from argparse import ArgumentParser, Namespace

from ..images.formats import OUTPUT_TYPES
from ..report.painter import PROCESSES, Painter
from ..utils.errors import UsageError
from ..utils.process import no_garbage_collection
from .arguments import (
    add_checkpoint_argument,
    add_config_arguments,
    add_device_arguments,
    add_language_argument,
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
        "--output_type",
        nargs="+",
        choices=OUTPUT_TYPES,
        default=["image"],
        help="image: the image's own format (default); dicom_seg: DICOM Segmentation, for DICOM "
        "images, needs highdicom; seg_nrrd: segmentation of 3D Slicer; or several of these",
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
        help="keep earlier masks of the same images, checkpoint and settings, and edited ones, "
        "which are told",
    )
    parser.add_argument(
        "--no_report",
        action="store_true",
        help="write masks and lists only, without overlays.png and report.html",
    )
    add_language_argument(parser)
    add_config_arguments(parser, "channel")


def execute(args: Namespace) -> None:
    """Segments the images."""
    keys = [text.partition("=")[0] for text in args.overrides]
    if args.output_path and "dirPredictionImage" in keys:
        raise UsageError(
            "--output_path: names the folder, as --set dirPredictionImage does; give one"
        )
    with Painter(0 if args.no_report else PROCESSES) as painter:
        with no_garbage_collection():
            from ..api import find_model, lazy_network
            from ..ensemble import origin_of_members
            from ..input_images import find_images
            from ..prediction import Outputs, predict

        images = find_images(args.input, args.series)
        members = find_model(args.ckpt_path, overrides_of(args))
        config = members[0].config
        config.dirPredictionImage = args.output_path or config.dirPredictionImage
        predict(
            lazy_network(members, args.device_target, args.dev_id),
            images,
            config,
            origin_of_members(members),
            Outputs(
                types=args.output_type,
                probability=args.save_probability,
                report=not args.no_report,
                language=args.language,
            ),
            skip_existing=args.skip_existing,
            painter=painter,
        )
