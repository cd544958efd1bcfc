r"""Trains and evaluates a network for each of K folds of all cases.

    python tools/cross_validate.py --data_path data/TrainData --folds 5 --preset compact \
        --out_path results/cross_validation [--parallel 2] [--language zh]

Each network is validated and evaluated on the cases of its fold, which it was not trained on; the
network of its last epoch counts. evaluation/ in the folder gets metrics and report of all cases.
Afterwards the folder is an ensemble of the networks, for --ckpt_path of eval.py and predict.py, and
for tools/release.py.

The same command again goes on where it was: finished folds stay, an interrupted one is resumed.
"""

from argparse import ArgumentParser, Namespace

from .arguments import (
    add_config_arguments,
    add_data_argument,
    add_device_arguments,
    add_language_argument,
    overrides_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--device_id")
    add_data_argument(parser)
    parser.add_argument("--folds", type=int, required=True, metavar="K", help="number of folds")
    parser.add_argument(
        "--out_path",
        default="./results/cross_validation",
        metavar="FOLDER",
        help="folder of runs and results (default: ./results/cross_validation)",
    )
    parser.add_argument(
        "--split_seed",
        type=int,
        default=1,
        metavar="N",
        help="seed of the draw of the folds, as --seed of create_csv.py (default: 1)",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        default=1,
        metavar="N",
        help="folds at the same time; on a CPU they share the cores, on Ascend and GPU each takes "
        "a device, from --device_id on (default: 1)",
    )
    add_language_argument(parser)
    add_config_arguments(parser, "labels", "channel", has_preset=True)


def execute(args: Namespace) -> None:
    """Cross-validates."""
    from ..training.cross_validation import cross_validate

    cross_validate(
        args.data_path,
        args.folds,
        args.out_path,
        overrides_of(args),
        device_target=args.device_target,
        device_id=args.device_id,
        split_seed=args.split_seed,
        parallel=args.parallel,
        language=args.language,
    )
