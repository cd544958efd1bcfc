"""Packs a checkpoint for others: float16 weights, configuration, checksums.

    python tools/release.py --ckpt_file RUN --out_path vnet_prostate

writes vnet.ckpt, config.json and SHA256SUMS into the folder. Its recipient checks it there with
`sha256sum -c SHA256SUMS` and gives the folder to eval.py, predict.py and export.py.

Of several checkpoints, or the folder of a cross-validation, each gets a folder of its own in it,
network0, network1, ..., and ensemble.json lists them.
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
    from ..ensemble import find_members
    from ..export.release import release_members

    release_members(find_members(args.ckpt_file, overrides_of(args)), args.out_path)
