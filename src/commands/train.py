r"""Trains a V-Net.

    python train.py --device_target CPU --data_path data --train_split_file_path split/train.csv \
        --val_split_file_path split/val.csv --set epochs=100 --set batch_size=2
    python train.py ... --preset accurate        with our recipe instead of the zoo's settings
    python train.py ... --preset compact         with the same for a smaller network
    python train.py ... --resume                 goes on with the newest run
    python train.py ... --resume RUN_FOLDER      goes on with this one

scripts/train_distribute.sh, train_distribute_gpu.sh and train_msrun.sh start it on several devices.

All that comes of it lies in results/infer/vnet.TASK.DATE/ (src/config.py: dirResult, task).
"""

from argparse import ArgumentParser, Namespace

from ..utils.command_line import (
    add_channel_argument,
    add_device_arguments,
    add_labels_argument,
    add_preset_argument,
    add_set_argument,
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
    parser.add_argument("--device_num", type=int, default=1, help="how many they are (default: 1)")
    parser.add_argument("--data_path", default="./promise", help="folder with img/ and gt/")
    parser.add_argument("--train_split_file_path", default="./split/train.csv")
    parser.add_argument("--val_split_file_path", help="without it there is no validation")
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN_FOLDER")
    add_preset_argument(parser)
    add_labels_argument(parser)
    add_channel_argument(parser)
    add_set_argument(parser)


def execute(args: Namespace) -> None:
    """Trains."""
    from ..config import preset, training_config
    from ..devices.device import start_communication, start_device
    from ..devices.ranks import Ranks
    from ..training.run_folder import configured_run
    from ..training.trainer import train

    overrides = preset(args.preset, args.resume is not None) + args.overrides
    training_config(args.device_target, overrides)  # wrong words are told before all else
    start_device(args.device_target, args.device_id)
    ranks = start_communication(args.device_num) if args.run_distribute else Ranks()
    config, run_folder = configured_run(args.resume, args.device_target, overrides, ranks)
    train(
        config,
        args.device_target,
        args.data_path,
        args.train_split_file_path,
        args.val_split_file_path,
        run_folder,
        ranks=ranks,
    )
