"""Makes synthetic T2-weighted prostate cases in PROMISE12's layout: OUT/img and OUT/gt.

thirty cases to try everything on, without patients' data:
    python tools/create_phantom.py --out_path data/phantom --cases 30
others of the same kind; the same seed gives the same cases:
    python tools/create_phantom.py --out_path data/phantom2 --cases 10 --seed 7
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.utils.command_line import new_parser, run


def main():
    """Parses the arguments and writes the cases."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--out_path",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder that gets img/ and gt/",
    )
    parser.add_argument(
        "--cases", type=int, default=30, metavar="N", help="number of cases (default: 30)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="seed of the whole set (default: 1)"
    )
    args = parser.parse_args()

    from src.promise12.phantom import write_phantom

    write_phantom(args.out_path, args.cases, args.seed)
    print(f"{args.cases} cases in {args.out_path}: img/ holds the images, gt/ the masks")


if __name__ == "__main__":
    run(main)
