r"""Packs a checkpoint, or several as an ensemble, for others.

    python tools/release.py --ckpt_file RUN --out_path vnet_prostate \
        [--metrics results/prediction/metrics.json] [--data TEXT] [--data_licence TEXT] \
        [--licence TEXT] [--zip]

writes vnet.ckpt with float16 weights, config.json, the model card (README.md and metadata.json) and
SHA256SUMS into the folder. Its recipient checks it there with `sha256sum -c SHA256SUMS` and gives
the folder, a zip of it, or the https address of such a zip to predict.py, eval.py and export.py.

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
    parser.add_argument(
        "--metrics",
        metavar="FILE",
        help="metrics.json of eval.py with this checkpoint, for the card",
    )
    for name, what in (
        ("data", "what it was trained on"),
        ("data_licence", "licence of these data"),
        ("licence", "licence of the weights"),
    ):
        parser.add_argument(
            f"--{name}",
            default="",
            metavar="TEXT",
            help=f"{what}, for the card (default: not stated)",
        )
    parser.add_argument("--zip", action="store_true", help="write the release to FOLDER.zip, too")
    add_config_arguments(parser)


def execute(args: Namespace) -> None:
    """Packs."""
    from ..ensemble import find_members
    from ..export.model_card import Statement
    from ..export.release import release

    release(
        find_members(args.ckpt_file, overrides_of(args)),
        args.out_path,
        Statement(args.data, args.data_licence, args.licence),
        metrics_path=args.metrics,
        zipped=args.zip,
    )
