"""Draws each augmentation of the training cases on a synthetic case: augmentation.png.

    python tools/augment_gallery.py
another case, other random parameters, another file:
    python tools/augment_gallery.py --seed 7 --out_path augmentation7.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.utils.command_line import new_parser, run


def main():
    """Parses the arguments and draws."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--out_path",
        type=Path,
        default="augmentation.png",
        metavar="FILE",
        help="PNG to write (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="seed of case and parameters (default: 1)"
    )
    args = parser.parse_args()

    from src.report.gallery import write_gallery

    write_gallery(args.out_path, args.seed)
    print(f"{args.out_path}: written")


if __name__ == "__main__":
    run(main)
