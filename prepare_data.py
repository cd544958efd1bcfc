"""Brings PROMISE12, or volumes of your own, into img/ and gt/, and checks them.

the challenge's data from Zenodo (324 MB for training_data.zip), laid out and checked:
    python prepare_data.py --download --out_path data
zip files or folders that are here already:
    python prepare_data.py --source training_data.zip test_data.zip --out_path data
    python prepare_data.py --source my_volumes --out_path data
only check what is laid out:
    python prepare_data.py --check data/TrainData
"""

import argparse
from pathlib import Path

from src.cli import run


def main():
    """Parses the arguments, lays the data out and checks it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--download", action="store_true", help="fetch Zenodo record 8026660")
    task.add_argument("--source", type=Path, nargs="+", metavar="PATH", help="zip files, folders")
    task.add_argument("--check", type=Path, metavar="DATA_PATH", help="check only, write nothing")
    parser.add_argument(
        "--out_path",
        type=Path,
        help="gets TrainData, TestData, LiveTestData, each with img/ and gt/",
    )
    args = parser.parse_args()

    from src.promise12 import check, download, lay_out, report

    if not args.check:
        if args.out_path is None:
            parser.error("--out_path is needed to say where the data goes")
        lay_out(args.source or download(args.out_path / "download"), args.out_path)
    report(check(args.check or args.out_path))


if __name__ == "__main__":
    run(main)
