"""Packs a checkpoint for others: float16 weights, configuration, checksums.

    python release.py --ckpt_file RUN/ckpt/best.ckpt --out_path vnet_prostate

writes vnet.ckpt, config.json and SHA256SUMS into the folder. Who gets it checks it with
`sha256sum -c SHA256SUMS` there and gives its vnet.ckpt to eval.py, predict.py and export.py.
"""

from argparse import ArgumentParser, Namespace

from ..utils.command_line import add_set_argument


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--ckpt_file", required=True, help="checkpoint to pack")
    parser.add_argument("--out_path", default="./release", help="folder to make")
    add_set_argument(parser)


def execute(args: Namespace) -> None:
    """Packs."""
    from ..checkpoint import find_checkpoint
    from ..config import config_of_checkpoint
    from ..export.release import release

    checkpoint = find_checkpoint(args.ckpt_file)
    release(checkpoint, config_of_checkpoint(checkpoint, args.overrides), args.out_path)
