"""Splits the cases into training and validation, one image file name per line.

the model zoo's 40/10 of PROMISE12, as train.csv and val.csv:
    python create_csv.py --out_path data
20 % of the cases for validation, drawn at random:
    python create_csv.py --out_path data --random 1 --seed 7
train_fold0.csv, val_fold0.csv, ... of the cases in a folder:
    python create_csv.py --out_path data --data_path data/TrainData --folds 5
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..utils.errors import UsageError


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "--out_path",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="folder of the csv files (default: the current one)",
    )
    parser.add_argument(
        "--random",
        type=int,
        choices=(0, 1),
        default=0,
        help="0: validate on the model zoo's ten cases (default); 1: on 20 %% drawn at random",
    )
    parser.add_argument(
        "--folds", type=int, metavar="K", help="K folds drawn at random, instead of one split"
    )
    parser.add_argument(
        "--data_path",
        type=Path,
        metavar="FOLDER",
        help="take the cases of its img/ and gt/ instead of Case00 to Case49",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the random draws (default: 1)"
    )


def execute(args: Namespace) -> None:
    """Writes the split files."""
    from ..promise12.splits import draw_splits, list_cases, write_splits

    if args.random and args.folds is not None:
        raise UsageError("--random: goes with one split, not with --folds; leave one out")
    if args.seed is not None and not args.random and args.folds is None:
        raise UsageError("--seed: goes with --random 1 or --folds K, nothing else is drawn")
    cases = list_cases(args.data_path) if args.data_path else None
    seed = 1 if args.seed is None else args.seed
    write_splits(args.out_path, draw_splits(cases, args.random == 1, args.folds, seed))
