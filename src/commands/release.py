"""Packs a checkpoint for others: float16 weights, configuration, checksums.

    python tools/release.py --ckpt_file RUN --out_path vnet_prostate

writes vnet.ckpt, config.json and SHA256SUMS into the folder. Its recipient checks it there with
`sha256sum -c SHA256SUMS` and gives the folder to eval.py, predict.py and export.py.
"""

from argparse import ArgumentParser, Namespace

from .arguments import add_checkpoint_argument, add_config_arguments, overrides_of


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_checkpoint_argument(parser, "--ckpt_file", "pack")
    parser.add_argument(
        "--out_path",
        default="./release",
        metavar="FOLDER",
        help="folder to make (default: ./release)",
    )
    add_config_arguments(parser)


def execute(args: Namespace) -> None:
    """Packs."""
    from ..checkpoint_file import find_checkpoint
    from ..config import config_of_checkpoint
    from ..export.release import release

    checkpoint = find_checkpoint(args.ckpt_file)
    release(checkpoint, config_of_checkpoint(checkpoint, overrides_of(args)), args.out_path)
