r"""Trains a V-Net.

    python train.py --data_path data --train_split_file_path split/train.csv \
        --val_split_file_path split/val.csv --set epochs=100 --set batch_size=2
    python train.py ... --preset accurate        this project's settings, not the model zoo's
    python train.py ... --preset compact         the same on a coarser grid, twice as fast
    python train.py ... --config settings.yaml   settings from a file
    python train.py ... --resume                 continue the newest run
    python train.py ... --resume RUN_FOLDER      continue this run
    python train.py ... --continue               start or continue, whatever is left to do

scripts/train_distribute.sh, train_distribute_gpu.sh and train_msrun.sh start it on several devices.

A run writes everything to results/infer/vnet.TASK.DATE/ (keys dirResult, task).
"""

from argparse import ArgumentParser, Namespace
from contextlib import nullcontext

from ..utils.errors import UsageError
from .arguments import (
    add_config_arguments,
    add_data_argument,
    add_device_arguments,
    own_overrides_of,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_device_arguments(parser, "--device_id")
    parser.add_argument(
        "--run_distribute",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: one of several processes, which a launcher started (default: 0)",
    )
    parser.add_argument(
        "--device_num",
        type=int,
        default=1,
        metavar="N",
        help="number of processes with --run_distribute 1 (default: 1)",
    )
    add_data_argument(parser)
    parser.add_argument(
        "--train_split_file_path",
        default="./split/train.csv",
        metavar="FILE",
        help="file that lists the training cases, or a folder of splits "
        "(default: ./split/train.csv)",
    )
    parser.add_argument(
        "--val_split_file_path",
        metavar="FILE",
        help="the same for the validation cases; without it there is no validation",
    )
    resume = parser.add_mutually_exclusive_group()
    resume.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="RUN_FOLDER",
        help="continue a run, the newest one of the task if none is named",
    )
    resume.add_argument(
        "--continue",
        action="store_true",
        dest="go_on",
        help="continue the newest run of the task and fold; start one if there is none; only "
        "look at its data if it is complete",
    )
    add_config_arguments(parser, "labels", "channel", has_preset=True)


def execute(args: Namespace) -> None:
    """Trains."""
    from ..utils.stopping import listen

    # With several ranks the launcher ends those that wait for one that has stopped.
    with nullcontext() if args.run_distribute else listen():
        _train(args)


def _train(args: Namespace) -> None:
    from ..api import continue_training, train

    if args.device_num != 1 and not args.run_distribute:
        raise UsageError(
            "--device_num: goes with --run_distribute 1, for which scripts/train_msrun.sh and the "
            "like start the processes"
        )
    settings = {
        "preset": args.preset,
        "device_target": args.device_target,
        "device_id": args.device_id,
        "overrides": own_overrides_of(args),
    }
    where = args.data_path, args.train_split_file_path, args.val_split_file_path
    if not args.go_on:
        device_num = args.device_num if args.run_distribute else None
        train(*where, resume=args.resume, device_num=device_num, **settings)
    elif args.run_distribute:
        raise UsageError("--continue: for one process; several take --resume")
    else:
        continue_training(*where, **settings)
