r"""Evaluates a checkpoint on cases with reference masks.

    python eval.py --ckpt_path RUN --data_path data --eval_split_file_path split/val.csv \
        [--set flip_average=true]

Masks, metrics.csv, metrics.json, overlays.png and report.html go to results/prediction
(key dirPredictionImage).
"""

from argparse import ArgumentParser, Namespace

from .arguments import (
    add_case_arguments,
    add_checkpoint_argument,
    add_config_arguments,
    add_device_arguments,
    overrides_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--dev_id")
    add_checkpoint_argument(parser, "--ckpt_path", "evaluate")
    add_case_arguments(parser, "--eval_split_file_path")
    add_config_arguments(parser, "labels", "channel")


def execute(args: Namespace) -> None:
    """Evaluates."""
    from ..checkpoint import find_checkpoint
    from ..config import config_of_checkpoint
    from ..devices.device import choose_device, start_device
    from ..evaluation import evaluate, load_network
    from ..promise12.splits import split_cases

    checkpoint = find_checkpoint(args.ckpt_path)
    config = config_of_checkpoint(checkpoint, overrides_of(args))
    cases = split_cases(args.data_path, args.eval_split_file_path, "val", config.fold)
    target = choose_device(args.device_target)
    start_device(target, args.dev_id)
    network = load_network(checkpoint, config, target)
    evaluate(network, cases, config, {"checkpoint": str(checkpoint)})
