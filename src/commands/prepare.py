r"""Brings PROMISE12, or your own volumes, into img/ and gt/, and checks them.

download the challenge's data from Zenodo (324 MB for training_data.zip), lay it out and check it:
    python prepare_data.py --download --out_path data
zip files or folders on this machine:
    python prepare_data.py --source training_data.zip test_data.zip --out_path data
    python prepare_data.py --source my_volumes --out_path data
data sets in the layout of nnU-Net, the Decathlon or PI-CAI, with a folder per patient, or DICOM:
    python prepare_data.py --source Task05_Prostate --labels 1,2 --out_path data
    python prepare_data.py --source scans --image_pattern '{case}/t2*.nii.gz' \
        --mask_pattern 'masks/{case}_gland.nii.gz' --out_path data
only check a folder with img/ and gt/:
    python prepare_data.py --check data/TrainData
export to a raw data set of nnU-Net:
    python prepare_data.py --export_nnunet nnUNet_raw/Dataset500_Prostate --data_path data
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..config import override_config, vnet_cfg
from ..utils.errors import UsageError

# What each task takes beside --labels and --channel.
LAYOUT_OPTIONS = ("out_path", "series", "image_pattern", "mask_pattern")
TASK_OPTIONS = {
    "download": LAYOUT_OPTIONS,
    "source": LAYOUT_OPTIONS,
    "check": (),
    "export_nnunet": ("data_path",),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--download", action="store_true", help="download Zenodo record 8026660")
    task.add_argument(
        "--source", type=Path, nargs="+", metavar="PATH", help="zip files or folders of the data"
    )
    task.add_argument(
        "--check",
        type=Path,
        metavar="DATA_PATH",
        help="check only, write nothing; DATA_PATH has img/ and gt/, or the folders of all sets",
    )
    task.add_argument(
        "--export_nnunet",
        type=Path,
        metavar="DatasetNNN_NAME",
        help="write --data_path to this folder as a raw data set of nnU-Net",
    )
    parser.add_argument(
        "--out_path",
        type=Path,
        metavar="FOLDER",
        help="folder that gets TrainData, TestData, LiveTestData, each with img/ and gt/",
    )
    parser.add_argument(
        "--data_path", type=Path, metavar="FOLDER", help="data with img/ and gt/ to export"
    )
    parser.add_argument(
        "--labels",
        metavar="1,2",
        help="mask values that together are the prostate; --source merges them to 1",
    )
    parser.add_argument(
        "--channel",
        metavar="N",
        help="index of the T2 image in 4-D files, or its channel in nnU-Net's, from 0",
    )
    parser.add_argument(
        "--series",
        default="",
        metavar="SERIES",
        help="DICOM series: number, UID or a pattern on its description (default: the axial T2)",
    )
    parser.add_argument(
        "--image_pattern",
        default="",
        metavar="PATTERN",
        help="paths of the images below the source; {case} stands for the case's name, * for any "
        "part of a name, **/ for any folders",
    )
    parser.add_argument(
        "--mask_pattern", default="", metavar="PATTERN", help="paths of the masks, in the same form"
    )


def execute(args: Namespace) -> None:
    """Lays the data out and checks it, or exports it."""
    from ..data_manager import channel_of
    from ..promise12.checking import check, print_report
    from ..promise12.downloading import download
    from ..promise12.layouts import Options
    from ..promise12.nnunet import export_nnunet
    from ..promise12.placing import lay_out

    _check_options(args)
    given = {key: getattr(args, key) for key in ("labels", "channel")}
    try:
        config = override_config(vnet_cfg, [f"{k}={v}" for k, v in given.items() if v is not None])
    except UsageError as error:
        raise UsageError(f"--{str(error).removeprefix('--set ')}") from None
    labels, channel = tuple(config.labels), channel_of(config)
    if args.export_nnunet:
        if args.data_path is None:
            raise UsageError("--export_nnunet: --data_path is needed, the folder to export")
        export_nnunet(args.data_path, args.export_nnunet, labels, channel)
        return
    if not args.check:
        if args.out_path is None:
            raise UsageError("--out_path is needed, the folder for the data")
        options = Options(labels, channel, args.series, args.image_pattern, args.mask_pattern)
        lay_out(args.source or download(args.out_path / "download"), args.out_path, options)
        print_report(check(args.out_path))  # its masks have 0 and 1, its images one channel
    else:
        print_report(check(args.check, labels, channel))


def _check_options(args: Namespace) -> None:
    """Raises a UsageError for an option that the chosen task would ignore."""
    task = next(name for name in TASK_OPTIONS if getattr(args, name))
    for option in (*LAYOUT_OPTIONS, "data_path"):
        if getattr(args, option) and option not in TASK_OPTIONS[task]:
            raise UsageError(f"--{option}: --{task} does not take it")
