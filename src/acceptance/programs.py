"""Do the programs run: training, resume, evaluation, export, and C++ inference on an Ascend 310?"""

import re
from pathlib import Path

from ..promise12.phantom import write_phantom
from ..utils.process import PACKAGE, ROOT, change_folder, module_command
from .processes import NO_CHECKOUT, output_of, run_program
from .table import Table

# A row of npu-smi's table begins with the number and the name of a chip; memory follows.
ASCEND_310 = re.compile(r"^\|\s*\d+\s+(Ascend)?310", re.MULTILINE)


def check_programs(target: str, table: Table, folder: Path, small: bool) -> None:
    """Trains, resumes, evaluates and exports, on phantoms; leaves the files in the folder.

    Args:
        target: "Ascend", "GPU" or "CPU".
        table: gets the checks.
        folder: for the files.
        small: whether one phantom is enough.
    """

    def passes(check: str, command: str, *words: str) -> bool:
        words = ("--device_target", target, *words)
        vnet = module_command(PACKAGE, command, *words, ends_with_parent=True)
        return run_program(vnet, table, check)

    with change_folder(folder):
        write_phantom("data", cases=1 if small else 3, seed=1)
        names = sorted(path.name for path in Path("data/img").glob("*.mhd"))
        Path("split.csv").write_text("".join(f"{name}\n" for name in names))
        settings = ["width=2", "VolSize=32,16,16", "dstRes=3,6,6", "batch_size=1", "cache_dir=off"]
        data = ["--data_path", "data"]
        train = [*data, "--train_split_file_path", "split.csv"]
        train += ["--val_split_file_path", "split.csv"]
        train += [word for setting in settings for word in ("--set", setting)]
        if not (
            passes("a training", "train", *train, "--set", "epochs=1")
            and passes("its resume", "train", *train, "--set", "epochs=2", "--resume")
        ):
            return
        best = next(Path("results/infer").glob("vnet.*/ckpt/best.ckpt"), "no checkpoint")
        evaluate = [*data, "--eval_split_file_path", "split.csv", "--ckpt_path", str(best)]
        if passes("its evaluation", "eval", *evaluate):
            passes("its export, loaded back", "export", "--ckpt_file", str(best))


def check_310(target: str, table: Table, folder: Path) -> None:
    """Runs the C++ program with MindSpore Lite if the chip is an Ascend 310.

    Args:
        target: "Ascend", "GPU" or "CPU".
        table: gets the check.
        folder: of `check_programs`, which exported the model.
    """
    check = "C++ program on an Ascend 310"
    chip = output_of("npu-smi", "info") if target == "Ascend" else ""
    script = ROOT / "scripts" / "run_infer_310.sh"
    if not ASCEND_310.search(chip):
        table.add(check, "-", "no Ascend 310 here", None)
    elif not script.is_file():
        table.add(check, "-", NO_CHECKOUT, None)
    elif not (folder / "vnet.mindir").is_file():
        table.add(check, "an exported model", "the export failed", False)
    else:
        with change_folder(folder):
            run_program(["bash", script, "vnet.mindir", "data", "split.csv"], table, check)
