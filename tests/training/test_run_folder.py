"""The folder of a run: found, locked, restored, and refused where it cannot go on."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import pytest
from mindspore import nn

from src import api, checkpoint
from src.checkpoint import TrainingCells
from src.commands import command_parser
from src.commands import train as train_command
from src.config import load_config, preset_overrides, save_config, vnet_cfg
from src.data_manager import content_digest, find_cases, read_case
from src.devices.ranks import Ranks
from src.training.progress import Progress
from src.training.run_folder import (
    configure_run,
    lock_run,
    new_run_folder,
    newest_run,
    newest_state,
    open_run,
    restore_run,
)
from src.utils.errors import DataError, UsageError
from tests.helpers import tree


@pytest.fixture(autouse=True)
def in_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def dense_cells(value=0.0):
    network = nn.Dense(1, 1, has_bias=False)
    network.weight.set_data(ms.Tensor([[value]], ms.float32))
    return TrainingCells(network, nn.TrainOneStepCell(network, nn.Adam(network.trainable_params())))


def test_a_new_run_has_its_configuration_and_a_name_of_its_own(small_config):
    config = small_config("task=a", "dirResult=runs")
    folders = [new_run_folder(config) for _ in range(3)]
    assert len(set(folders)) == 3 and newest_run(config) == folders[-1]
    for folder in folders:
        assert folder.name.startswith("vnet.a.") and (folder / "ckpt").is_dir()
        assert load_config(folder / "config.json") == config


def test_a_result_folder_that_cannot_be_made_is_named(small_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/runs/vnet.*choose another dirResult"):
        new_run_folder(small_config("dirResult=file/runs"))


def test_resume_finds_the_newest_run_of_the_task(tmp_path, small_config):
    for name in ("vnet.a.20260101_000000", "vnet.a.20260102_000000", "vnet.b.20260103_000000"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        save_config(small_config("task=a", "width=4"), tmp_path / "runs" / name / "config.json")
    config, folder = configure_run(True, "CPU", ["task=a", "dirResult=runs"])
    assert folder.name == "vnet.a.20260102_000000"
    assert config.width == 4, "the run's own configuration holds"
    with pytest.raises(DataError, match=r"no run vnet\.c\.\* to resume"):
        configure_run(True, "CPU", ["task=c", "dirResult=runs"])
    with pytest.raises(DataError, match="not the folder of a run"):
        configure_run(str(tmp_path), "CPU", [])


def test_a_resume_that_names_a_fold_finds_its_newest_run(tmp_path, small_config):
    for name, fold in (("20260101_000000", 0), ("20260102_000000", 0), ("20260103_000000", 1)):
        run = tmp_path / "runs" / f"vnet.a.{name}"
        run.mkdir(parents=True)
        save_config(small_config("task=a", f"fold={fold}"), run / "config.json")
    words = ["task=a", "dirResult=runs"]
    for further, expected in (([], "0103"), (["fold=1"], "0103"), (["fold=0"], "0102")):
        assert expected in configure_run(True, "CPU", [*words, *further])[1].name
    with pytest.raises(DataError, match=r"no run vnet\.a\.\* of fold 2 to resume"):
        configure_run(True, "CPU", [*words, "fold=2"])
    with pytest.raises(UsageError, match="fold"):  # a run keeps its own
        configure_run(str(run), "CPU", [*words, "fold=0"])


@pytest.mark.parametrize(
    "key",
    [
        *("VolSize=32,32,32", "batch_size=3", "seed=5", "width=4", "loss=dice_ce"),
        *("ema_decay=0.9", "augment_flip=0.5"),
    ],
)
def test_a_resumed_run_cannot_change_what_its_steps_rest_on(tmp_path, small_config, key):
    save_config(small_config(), tmp_path / "config.json")
    with pytest.raises(UsageError, match=f"{key.split('=')[0]}=.*leave it out"):
        configure_run(str(tmp_path), "CPU", [key])


@pytest.mark.parametrize(
    ("overrides", "resumes", "same"),
    [(["lr=0.5"], False, True), (["lr=0.1"], False, False), (["lr=0.5"], True, False)],
)
def test_ranks_that_were_started_differently_are_told(small_config, overrides, resumes, same):
    """Rank 0 was started with these overrides, and perhaps resumes."""
    request = {"overrides": overrides, "resumes": resumes}
    record = json.dumps({"config": small_config("lr=0.5"), "request": request})
    second = SimpleNamespace(rank=1, count=2, is_first=False, text_from_first=lambda text: record)
    if same:
        config, run_folder = configure_run(False, "CPU", ["lr=0.5"], second)
        assert (config, run_folder) == (small_config("lr=0.5"), None)
        return
    with pytest.raises(DataError, match="rank 1 .*rank 0 .*start every host with the same"):
        configure_run(False, "CPU", ["lr=0.5"], second)


def test_a_run_is_locked_while_it_is_open(small_config):
    config, initial_progress = small_config("dirResult=runs"), Progress(case_ids=["a"])
    with open_run(None, config, dense_cells(), initial_progress, Ranks()) as (folder, progress):
        assert progress == initial_progress
        with (
            pytest.raises(DataError, match="another process is training this run"),
            open_run(folder, config, dense_cells(), initial_progress, Ranks()),
        ):
            pass
    with lock_run(folder):
        pass


# A run of seven epochs of the cases a and b on one device ---------------------------------------

FIXED = {"batch_size": 2, "threshold": 0.5}
DIGESTS = {"a": "0", "b": "1", "v": "2"}
DONE = Progress(7, 70, 0.5, 2, ["a", "b"], val_case_ids=["v"], fixed=FIXED, digests=DIGESTS)


@pytest.fixture
def run(small_config):
    """Function settings -> (folder of the run, configuration to resume with)."""

    def make(*settings, saved=True):
        config = small_config("dirResult=runs", "epochs=9", *settings)
        folder = new_run_folder(config)
        if saved:
            checkpoint.save_last(folder / "ckpt", dense_cells(7.0), vars(DONE))
        return folder, config

    return make


def test_a_run_is_restored_with_its_weights_and_the_new_configuration(run, capsys):
    folder, config = run()
    config.epochs = 12
    cells = dense_cells()
    initial_progress = Progress(case_ids=["a", "b"], val_case_ids=["v"], fixed=FIXED)
    assert restore_run(folder, config, cells, initial_progress) == DONE
    assert cells.network.weight.asnumpy() == 7
    assert load_config(folder / "config.json").epochs == 12
    out = capsys.readouterr().out
    assert f"{folder} after epoch 7" in out and "history.csv is gone" in out


def test_a_run_without_a_checkpoint_starts_from_its_beginning(run, capsys):
    folder, config = run(saved=False)
    initial_progress = Progress(case_ids=["a"])
    assert restore_run(folder, config, dense_cells(), initial_progress) == initial_progress
    assert f"{folder} from its beginning" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "initial_progress", "error", "words"),
    [
        ([], {"case_ids": ["a", "c"]}, DataError, ["(b differs)", "same split"]),
        ([], {"case_ids": ["b", "a"]}, DataError, ["(their order differs)"]),
        ([], {"device_num": 2}, DataError, ["on 1 device(s), not 2"]),
        (
            [],
            {"fixed": {**FIXED, "batch_size": 4}},
            DataError,
            ["batch_size=4, but", "=2; restore"],
        ),
        ([], {"digests": {**DIGESTS, "b": "3"}}, DataError, ["image or mask of b;", "restore"]),
        ([], {"digests": {"v": "3"}}, DataError, ["image or mask of v;"]),
        ([], {"val_case_ids": ["v", "w"]}, DataError, ["other validation cases (w differs)"]),
        ([], {"val_case_ids": []}, DataError, ["chosen by 1 validation", "--val_split_file_path"]),
        (["epochs=7"], {}, UsageError, ["all 7 epochs are trained", "--set epochs=N"]),
        (["early_stop=2"], {}, UsageError, ["epoch 7", "0.5000", "--set early_stop=N"]),
    ],
)
def test_a_run_that_cannot_go_on_is_left_as_it_is(run, settings, initial_progress, error, words):
    folder, config = run(*settings)
    before = tree(folder)
    with pytest.raises(error) as raised:
        same = {"case_ids": ["a", "b"], "val_case_ids": ["v"]}
        initial_progress = Progress(**{**same, **initial_progress})
        restore_run(folder, config, dense_cells(), initial_progress)
    assert all(word in str(raised.value) for word in [str(folder), *words])
    assert tree(folder) == before


def test_a_run_of_another_versions_processing_is_refused(run):
    """Its networks saw other images, or its best Dice is of other masks."""
    folder, config = run()
    now = {"preprocessing": 8, "postprocessing": 2}
    asked = replace(DONE, processing=now)
    restored = restore_run(folder, config, dense_cells(), asked)  # before versions were recorded
    assert restored.processing == now
    for other in ({**now, "preprocessing": 7}, {**now, "postprocessing": 3}):
        earlier = replace(DONE, processing=other)
        checkpoint.save_last(folder / "ckpt", dense_cells(7.0), vars(earlier))
        with pytest.raises(DataError, match="prepares images or masks in another way; resume"):
            restore_run(folder, config, dense_cells(), asked)


def test_a_later_early_stop_lets_a_run_go_on(run):
    folder, config = run("early_stop=3")
    initial_progress = Progress(case_ids=["a", "b"], val_case_ids=["v"], fixed=FIXED)
    assert restore_run(folder, config, dense_cells(), initial_progress) == DONE


def test_a_run_without_validation_can_get_one(run):
    folder, config = run()
    checkpoint.save_last(
        folder / "ckpt", dense_cells(7.0), vars(Progress(7, 70, case_ids=["a", "b"]))
    )
    initial_progress = Progress(case_ids=["a", "b"], val_case_ids=["v", "w"])
    restored = restore_run(folder, config, dense_cells(), initial_progress)
    assert restored == Progress(7, 70, case_ids=["a", "b"], val_case_ids=["v", "w"])


def test_ranks_with_other_cases_than_the_first_are_told(small_config):
    first = json.dumps(vars(Progress(case_ids=["a"], val_case_ids=["v"])))
    second = SimpleNamespace(rank=1, count=2, is_first=False, text_from_first=lambda text: first)
    for case_ids, val_ids in ((["b"], ["v"]), (["a"], ["w"])):
        initial_progress = Progress(case_ids=case_ids, val_case_ids=val_ids)
        with (
            pytest.raises(DataError, match="rank 1 was given other cases than rank 0"),
            open_run(None, small_config(), dense_cells(), initial_progress, second),
        ):
            pass


def test_ranks_with_other_files_than_the_first_are_told(small_config):
    first = json.dumps(vars(Progress(case_ids=["a", "b"], digests={"a": "0", "b": "1"})))
    second = SimpleNamespace(rank=1, count=2, is_first=False, text_from_first=lambda text: first)
    initial_progress = Progress(case_ids=["a", "b"], digests={"a": "0", "b": "3"})
    with (
        pytest.raises(DataError, match="rank 1 was given another image or mask of b than rank 0"),
        open_run(None, small_config(), dense_cells(), initial_progress, second),
    ):
        pass


# --continue --------------------------------------------------------------------------------------


@pytest.fixture
def saved_run(small_config):
    """Function Progress's values -> a run of 4 epochs with that progress; its folder."""

    def save(**values):
        folder = new_run_folder(small_config("task=a", "dirResult=runs", "epochs=4"))
        checkpoint.save_last(folder / "ckpt", dense_cells(), asdict(Progress(**values)))
        return folder

    return save


@pytest.mark.parametrize(
    ("values", "overrides", "has_validation", "is_complete"),
    [
        ({"epoch": 3}, [], True, False),
        ({"epoch": 4}, [], True, True),
        ({"epoch": 4}, ["epochs=5"], True, False),
        ({"epoch": 3, "validations_since_best": 2}, ["early_stop=2"], True, True),
        ({"epoch": 3, "validations_since_best": 2}, ["early_stop=2"], False, False),
        ({"epoch": 3, "validations_since_best": 2}, ["early_stop=3"], True, False),
    ],
)
def test_how_far_the_newest_run_is(saved_run, values, overrides, has_validation, is_complete):
    saved_run(epoch=1)
    folder = saved_run(**values)
    state = newest_state(["task=a", "dirResult=runs", *overrides], has_validation)
    assert (state.folder, state.progress.epoch) == (folder, values["epoch"])
    assert state.is_complete == is_complete


def test_a_run_without_a_checkpoint_and_no_run(small_config):
    assert newest_state(["task=a", "dirResult=runs"], True) is None
    folder = new_run_folder(small_config("task=a", "dirResult=runs"))
    state = newest_state(["task=a", "dirResult=runs"], True)
    assert (state.folder, state.progress) == (folder, Progress())
    assert newest_state(["task=a", "dirResult=runs", "fold=1"], True) is None
    with (
        lock_run(folder),
        pytest.raises(DataError, match="another process is training this run"),
    ):
        newest_state(["task=a", "dirResult=runs"], True)


@pytest.fixture
def continued(monkeypatch):
    """Function arguments -> what `train.py --continue` asks api.train for, None if nothing."""
    asked = []
    monkeypatch.setattr(api, "train", lambda *_, **named: asked.append(named))

    def go_on(*arguments):
        words = ["--continue", "--set", "task=a", "--set", "dirResult=runs", *arguments]
        train_command.execute(command_parser("train", "train.py").parse_args(words))
        return asked.pop() if asked else None

    return go_on


def test_continue_starts_resumes_or_has_nothing_to_do(saved_run, continued, capsys):
    fresh = continued("--preset", "compact")
    assert fresh["resume"] is False and fresh["preset"] == "compact"
    folder = saved_run(epoch=3)
    resumed = continued("--set", "epochs=9")
    assert resumed["resume"] == folder
    assert resumed["overrides"] == ["task=a", "dirResult=runs", "epochs=9"]
    folder = saved_run(epoch=4, case_ids=["a", "b"])
    Path("train.csv").write_text("a.mhd\nb.mhd\n")
    capsys.readouterr()
    assert continued("--train_split_file_path", "train.csv") is None
    assert capsys.readouterr().out.splitlines() == [
        f"run: {folder}",
        "nothing is left to train after epoch 4",
    ]


@pytest.mark.parametrize("epoch", [3, 4], ids=["unfinished", "complete"])
def test_a_run_of_other_settings_is_not_taken_for_a_presets(small_config, continued, capsys, epoch):
    """Else the zoo's network would be evaluated and released as that of the preset."""
    settings = [*preset_overrides("compact"), "task=a", "dirResult=runs", "epochs=4"]
    folder = new_run_folder(small_config(*settings))
    progress = asdict(Progress(epoch=epoch, case_ids=["a"]))
    checkpoint.save_last(folder / "ckpt", dense_cells(), progress)
    Path("train.csv").write_text("a.mhd\n")
    where = ["--train_split_file_path", "train.csv"]
    asked = continued("--preset", "compact", "--set", "epochs=4", *where)
    assert (asked is None) == (epoch == 4)
    with pytest.raises(DataError, match=r"started with VolSize=\[64, 64, 32\], --preset accurate"):
        continued("--preset", "accurate", "--set", "epochs=4", *where)
    capsys.readouterr()
    continued("--preset", "compact", *where)
    said = "--preset compact: the run keeps its own epochs=4 (not 1200); --set changes them"
    assert said in capsys.readouterr().out


def test_a_complete_run_of_other_cases_is_not_taken_for_this_one(saved_run, continued):
    saved_run(epoch=4, case_ids=["a", "b"])
    Path("train.csv").write_text("a.mhd\nc.mhd\n")
    with pytest.raises(DataError, match=r"other cases for training \(b differs\).*--set task=NAME"):
        continued("--train_split_file_path", "train.csv")


def test_a_complete_run_of_other_validation_or_edited_cases_is_told(
    saved_run, continued, write_training, tmp_path
):
    write_training(tmp_path, train=[0, 1], val=[2], other=[1])
    cases = find_cases(tmp_path / "data", ["Case00.mha", "Case01.mha", "Case02.mha"])
    digests = {case.case_id: content_digest(*read_case(case, vnet_cfg)) for case in cases}
    ids = list(digests)
    saved_run(epoch=4, case_ids=ids[:2], val_case_ids=ids[2:], digests=digests)
    paths = ["--data_path", str(tmp_path / "data")]
    paths += ["--train_split_file_path", str(tmp_path / "train.csv")]
    assert continued(*paths, "--val_split_file_path", str(tmp_path / "val.csv")) is None
    with pytest.raises(DataError, match=r"other cases for validation \(Case01 differs\)"):
        continued(*paths, "--val_split_file_path", str(tmp_path / "other.csv"))
    shutil.copy(cases[0].image_path, cases[2].image_path)
    with pytest.raises(DataError, match="another image or mask of Case02; restore the files"):
        continued(*paths, "--val_split_file_path", str(tmp_path / "val.csv"))


def test_continue_is_for_one_process(continued):
    with pytest.raises(UsageError, match="--continue: for one process"):
        continued("--run_distribute", "1")
