r"""Evaluates a checkpoint on cases with reference masks.

    python eval.py --device_target CPU --ckpt_path RUN/ckpt/best.ckpt --data_path data \
        --eval_split_file_path split/val.csv [--set flip_average=true]

Masks, metrics.csv, metrics.json, overlays.png and report.html go to results/prediction
(dirPredictionImage).
"""

from argparse import ArgumentParser, Namespace

from ..utils.command_line import (
    add_channel_argument,
    add_device_arguments,
    add_labels_argument,
    add_set_argument,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--dev_id")
    parser.add_argument("--ckpt_path", required=True, help="checkpoint to evaluate")
    parser.add_argument("--data_path", default="./promise", help="folder with img/ and gt/")
    parser.add_argument("--eval_split_file_path", default="./split/val.csv")
    add_labels_argument(parser)
    add_channel_argument(parser)
    add_set_argument(parser)


def execute(args: Namespace) -> None:
    """Evaluates."""
    from ..checkpoint import find_checkpoint
    from ..config import config_of_checkpoint
    from ..devices.device import start_device
    from ..evaluation import evaluate, load_network
    from ..promise12.splits import split_cases

    checkpoint = find_checkpoint(args.ckpt_path)
    config = config_of_checkpoint(checkpoint, args.overrides)
    cases = split_cases(args.data_path, args.eval_split_file_path, "val", config.fold)
    start_device(args.device_target, args.dev_id)
    network = load_network(checkpoint, config, args.device_target)
    evaluate(network, cases, config, {"checkpoint": str(checkpoint)})
