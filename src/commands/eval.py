r"""Evaluates a checkpoint, or masks of any program, on cases with reference masks.

    python eval.py --ckpt_path RUN --data_path data --eval_split_file_path split/val.csv \
        [--language zh] [--set flip_average=true]
    python eval.py --masks nnunet_results --data_path data --eval_split_file_path split/val.csv
    python eval.py --masks nnunet_results --reference labelsTs

Masks, metrics.csv, metrics.json, summary.json (the same for readers of nnU-Net's), overlays.png and
report.html go to results/prediction (key dirPredictionImage).
"""

from argparse import ArgumentParser, Namespace

from ..report.painter import PROCESSES, Painter
from ..utils.errors import UsageError
from ..utils.process import no_garbage_collection
from .arguments import (
    DATA_PATH,
    VAL_SPLIT,
    add_case_arguments,
    add_checkpoint_argument,
    add_config_arguments,
    add_device_arguments,
    add_language_argument,
    overrides_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--dev_id")
    evaluated = parser.add_mutually_exclusive_group(required=True)
    add_checkpoint_argument(evaluated, "--ckpt_path", "evaluate", required=False)
    evaluated.add_argument(
        "--masks",
        metavar="FOLDER",
        help="instead of a checkpoint: folder of masks, named NAME, NAME_test or NAME_segmentation",
    )
    parser.add_argument(
        "--reference",
        metavar="FOLDER",
        help="with --masks: folder of the reference masks, all of which are compared, instead of "
        "--data_path and --eval_split_file_path",
    )
    add_case_arguments(parser, "--eval_split_file_path")
    parser.set_defaults(data_path=None, eval_split_file_path=None)  # as --reference takes neither
    add_language_argument(parser)
    add_config_arguments(parser, "labels", "channel")


def execute(args: Namespace) -> None:
    """Evaluates."""
    if args.reference is not None and args.masks is None:
        raise UsageError("--reference: goes with --masks, the masks to compare with it")
    data_path, split = args.data_path, args.eval_split_file_path
    if args.reference is None:
        data_path, split = data_path or DATA_PATH, split or VAL_SPLIT
    elif (data_path, split) != (None, None):
        raise UsageError("--reference: all its masks are compared; leave out data and split")
    with Painter(PROCESSES) as painter:
        with no_garbage_collection():
            from ..api import KEYS_OF_MASKS, KEYS_OF_REFERENCES, compare_masks, evaluate
            from ..config import file_overrides

        report = {"painter": painter, "language": args.language}
        if args.masks is None:
            evaluate(
                args.ckpt_path,
                data_path,
                split,
                device_target=args.device_target,
                device_id=args.dev_id,
                overrides=overrides_of(args),
                **report,
            )
        else:
            of_file = file_overrides(args.config)  # may be that of a training
            used = KEYS_OF_MASKS if args.reference is None else KEYS_OF_REFERENCES
            overrides = [text for text in of_file if text.partition("=")[0] in used]
            overrides += args.overrides
            compare_masks(
                args.masks, args.reference, data_path, split, overrides=overrides, **report
            )
