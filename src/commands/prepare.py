r"""Brings PROMISE12, or volumes of your own, into img/ and gt/, and checks them.

the challenge's data from Zenodo (324 MB for training_data.zip), laid out and checked:
    python prepare_data.py --download --out_path data
zip files or folders that are here already:
    python prepare_data.py --source training_data.zip test_data.zip --out_path data
    python prepare_data.py --source my_volumes --out_path data
data sets in nnU-Net's, the Decathlon's or PI-CAI's layout, one folder per patient, DICOM:
    python prepare_data.py --source Task05_Prostate --labels 1,2 --out_path data
    python prepare_data.py --source scans --image_pattern '{case}/t2*.nii.gz' \
        --mask_pattern 'masks/{case}_gland.nii.gz' --out_path data
only check what is laid out:
    python prepare_data.py --check data/TrainData
the reverse, a raw data set of nnU-Net:
    python prepare_data.py --export_nnunet nnUNet_raw/Dataset500_Prostate --data_path data
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..utils.errors import UsageError


def label_values(text: str) -> tuple[int, ...]:
    """`1,2` -> (1, 2)."""
    labels = tuple(int(value) for value in text.split(","))
    if min(labels) < 1:
        raise ValueError
    return labels


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--download", action="store_true", help="fetch Zenodo record 8026660")
    task.add_argument("--source", type=Path, nargs="+", metavar="PATH", help="zip files, folders")
    task.add_argument("--check", type=Path, metavar="DATA_PATH", help="check only, write nothing")
    task.add_argument(
        "--export_nnunet",
        type=Path,
        metavar="DatasetNNN_NAME",
        help="folder that --data_path is written to as nnU-Net's raw data set",
    )
    parser.add_argument(
        "--out_path",
        type=Path,
        help="gets TrainData, TestData, LiveTestData, each with img/ and gt/",
    )
    parser.add_argument("--data_path", type=Path, help="what --export_nnunet writes")
    parser.add_argument(
        "--labels",
        type=label_values,
        default=(),
        metavar="1,2",
        help="mask values that together are the prostate; --source merges them to 1",
    )
    parser.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="which volume of 4-D files, or which channel of nnU-Net's, is the T2 image, from 0",
    )
    parser.add_argument(
        "--series", default="", help="which DICOM series: number, UID, pattern on the description"
    )
    parser.add_argument(
        "--image_pattern",
        default="",
        metavar="PATTERN",
        help="images below the source; {case} stands for the case's name, * for anything else in "
        "one name, **/ for any folders",
    )
    parser.add_argument("--mask_pattern", default="", metavar="PATTERN", help="masks, in this way")


def execute(args: Namespace) -> None:
    """Lays the data out and checks it, or exports it."""
    from ..promise12 import Options, check, download, export_nnunet, lay_out, report

    if args.export_nnunet:
        if args.data_path is None:
            raise UsageError("--export_nnunet: --data_path is needed to say what is exported")
        export_nnunet(args.data_path, args.export_nnunet, args.labels, args.channel)
        return
    channel = args.channel
    if not args.check:
        if args.out_path is None:
            raise UsageError("--out_path is needed to say where the data goes")
        options = Options(args.labels, channel, args.series, args.image_pattern, args.mask_pattern)
        lay_out(args.source or download(args.out_path / "download"), args.out_path, options)
    report(check(args.check or args.out_path, args.labels, channel))
