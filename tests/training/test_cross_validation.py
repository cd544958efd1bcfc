"""Cross-validations: cut and continued, their pooled results, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
import pytest

from src import checkpoint, predictor
from src.checkpoint import save_weights
from src.checkpoint_file import find_checkpoints
from src.commands import command_parser
from src.config import load_config, override_config, vnet_cfg
from src.data_manager import content_digest, find_cases, read_case
from src.ensemble import find_members
from src.training import cross_validation
from src.training.cross_validation import Pace, cross_validate
from src.training.folds import Fold
from src.training.run_folder import lock_run
from src.utils.errors import DataError, UsageError
from src.utils.files import LOCK_FILE, Lock
from src.vnet import create_vnet
from tests.helpers import ROOT, alive, run_program, tree, wait_until
from tests.runs import write_history, write_run

CASES = [f"Case{number}" for number in range(5)]
SETTINGS = ["width=1", "VolSize=32,16,16", "dstRes=2.5,2.5,2.5", "batch_size=1", "cache_dir=off"]
SETTINGS += ["epochs=2", "threshold=0.4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_case):
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(CASES):
        write_case(folder, name, ".mha", seed=number)
    return folder


class InThisProcess:
    """Stands for the processes of the folds: evaluates, and writes what a training leaves.

    The training of the fold `cut` ends after its first epoch.
    """

    def __init__(self, patch):
        self.calls = []
        self.cut, self.seed = None, 10
        patch.setattr(cross_validation, "PROCESSES", 0)
        patch.setattr(
            cross_validation._Work, "run_process", lambda _, words, path: self(words, path)
        )

    def __call__(self, words, path):
        command, *arguments = words
        self.calls.append((command, path.parent.name))
        if command == "eval":
            run_program(command, *arguments)
            return 0
        folder = Path(command_parser(command, "vnet").parse_args(arguments).resume)
        config = load_config(folder / "config.json")
        assert folder == path.parent and folder.name == f"fold{config.fold}"
        ms.set_seed(self.seed + config.fold)
        is_cut = folder.name == self.cut
        for epoch in range(1, config.epochs + 1 - is_cut):
            name = f"checkpoint_vnet-{epoch}_9.ckpt"
            save_weights(create_vnet(config), folder / "ckpt" / name)
            write_history(folder, *[0.5] * epoch)
        path.write_text("error: killed\nmore\n")
        return int(is_cut)


@pytest.fixture(scope="module")
def cut_and_continued(data, tmp_path_factory):
    """The folder of a cross-validation that was cut in its second fold, and the calls of both."""
    folder = tmp_path_factory.mktemp("cross") / "out"
    with pytest.MonkeyPatch.context() as patch:
        runner = InThisProcess(patch)
        runner.cut = "fold1"
        with pytest.raises(DataError) as error:
            cross_validate(data, 2, folder, SETTINGS, "CPU")
        first, runner.calls, runner.cut = runner.calls, [], None
        kept = tree(folder / "fold0")
        with pytest.raises(DataError, match="out: a cross-validation that has not ended"):
            find_checkpoints(folder)
        cross_validate(data, 2, folder, SETTINGS, "CPU", language="zh")
        assert tree(folder / "fold0") == kept | {LOCK_FILE: b""}
    return folder, first, runner.calls, str(error.value)


def test_it_goes_on_where_it_was_cut(cut_and_continued):
    folder, first, second, error = cut_and_continued
    assert first == [("train", "fold0"), ("eval", "fold0"), ("train", "fold1")]
    assert error.startswith("fold 1: train ended with exit code 1, error: killed;")
    assert str(folder / "fold1" / "train.log") in error
    assert second == [("train", "fold1"), ("eval", "fold1")]
    for number in range(2):
        config = load_config(folder / f"fold{number}" / "config.json")
        assert (config.fold, config.width, config.seed) == (number, 1, 1)


def test_the_pooled_metrics_are_those_of_the_folds(cut_and_continued):
    folder, *_ = cut_and_continued
    pooled = json.loads((folder / "evaluation" / "metrics.json").read_text())
    alone = []
    for number in range(2):
        fold = folder / f"fold{number}"
        content = json.loads((fold / "evaluation" / "metrics.json").read_text())
        names = (folder / "split" / f"val_fold{number}.csv").read_text().split()
        assert [f"{row['case']}.mha" for row in content["cases"]] == names
        assert content["checkpoint"].endswith("/checkpoint_vnet-2_9.ckpt")
        assert pooled["folds"][str(number)] == content["summary"]["dice"]
        alone += [{**row, "fold": number} for row in content["cases"]]
    assert pooled["cases"] == sorted(alone, key=lambda row: row["case"])
    assert [row["case"] for row in pooled["cases"]] == CASES  # each once
    dice = [row["dice"] for row in alone]
    assert pooled["summary"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    assert pooled["configuration"]["threshold"] == 0.4 and "fold" not in pooled["configuration"]
    table = pd.read_csv(folder / "evaluation" / "metrics.csv", index_col="case")
    assert table["fold"].to_dict() == {row["case"]: row["fold"] for row in alone}
    page = (folder / "evaluation" / "report.html").read_text("utf-8")
    assert "5 例（2 折）的平均值" in page and page.count("<article") == 5
    for row in alone:
        assert f'<td data-value="{row["fold"]}">{row["fold"]}</td>' in page


def test_a_language_is_that_of_reports_not_yet_written(cut_and_continued):
    folder, *_ = cut_and_continued
    pages = [folder / name / "evaluation" / "report.html" for name in ("fold0", "fold1", ".")]
    languages = [re.search('lang="(.*?)"', page.read_text("utf-8"))[1] for page in pages]
    assert languages == ["en", "zh-CN", "zh-CN"]


def test_it_leaves_an_ensemble(cut_and_continued, data):
    folder, *_ = cut_and_continued
    members = find_members(folder, [])
    for number, member in enumerate(members):
        assert member.checkpoint.parent == folder / f"fold{number}" / "ckpt"
        assert member.config.fold == number
    origin = json.loads((folder / "evaluation" / "metrics.json").read_text())["checkpoints"]
    assert origin == {str(member.checkpoint): member.sha256 for member in members}


def test_a_finished_one_computes_nothing_again(cut_and_continued, data, monkeypatch, capsys):
    folder, *_ = cut_and_continued
    before, runner = tree(folder), InThisProcess(monkeypatch)
    cross_validate(data, 2, folder, SETTINGS, "CPU", parallel=2)
    assert runner.calls == [] and tree(folder) == before
    assert str(folder / "evaluation" / "report.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gone", "again"),
    [("fold0/evaluation/report.html", [("eval", "fold0")]), ("**/Case0_test.mhd", [])],
)
def test_results_that_are_gone_are_written_again(
    cut_and_continued, data, tmp_path, monkeypatch, gone, again
):
    """Of a case whose mask is gone there is no picture, but the metrics."""
    folder = tmp_path / "out"
    shutil.copytree(cut_and_continued[0], folder)
    runner = InThisProcess(monkeypatch)
    for path in folder.glob(gone):
        path.unlink()
    (folder / "evaluation" / "report.html").unlink()
    cross_validate(data, 2, folder, SETTINGS, "CPU", parallel=2)
    assert runner.calls == again
    assert (folder / "evaluation" / "report.html").is_file()
    assert len(json.loads((folder / "evaluation" / "metrics.json").read_text())["cases"]) == 5


def test_a_fold_that_is_trained_again_changes_pool_and_ensemble(
    cut_and_continued, data, tmp_path, monkeypatch
):
    folder = tmp_path / "out"
    shutil.copytree(cut_and_continued[0], folder)
    shutil.rmtree(folder / "fold1")
    runner = InThisProcess(monkeypatch)
    runner.seed = 20
    cross_validate(data, 2, folder, SETTINGS, "CPU")
    assert runner.calls == [("train", "fold1"), ("eval", "fold1")]
    hashes = [member.sha256 for member in find_members(folder, [])]
    origin = json.loads((folder / "evaluation" / "metrics.json").read_text())["checkpoints"]
    assert list(origin.values()) == hashes
    before = [member.sha256 for member in find_members(cut_and_continued[0], [])]
    assert [a == b for a, b in zip(hashes, before, strict=True)] == [True, False]


def test_results_of_another_version_are_written_again(
    cut_and_continued, data, tmp_path, monkeypatch
):
    """Else masks of two versions would be pooled."""
    folder = tmp_path / "out"
    shutil.copytree(cut_and_continued[0], folder)
    monkeypatch.setattr(predictor, "POSTPROCESSING", 99)
    runner = InThisProcess(monkeypatch)
    cross_validate(data, 2, folder, SETTINGS, "CPU")
    assert runner.calls == [("eval", "fold0"), ("eval", "fold1")]
    pooled = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert pooled["processing"]["postprocessing"] == 99


def test_a_fold_of_another_version_of_preprocessing_is_refused(
    cut_and_continued, data, tmp_path, monkeypatch
):
    folder = tmp_path / "out"
    shutil.copytree(cut_and_continued[0], folder)
    runner = InThisProcess(monkeypatch)
    earlier = {"processing": {"preprocessing": 1, "postprocessing": 2}}
    monkeypatch.setattr(checkpoint, "read_progress", lambda _: earlier)
    with pytest.raises(DataError, match="fold0: was trained with a version.*choose another --out"):
        cross_validate(data, 2, folder, SETTINGS, "CPU")
    assert runner.calls == []


def test_a_fold_that_still_trains_is_waited_for_by_the_user(
    cut_and_continued, data, tmp_path, monkeypatch
):
    """Such as that of a call that was killed; to read its state would disturb its last write."""
    folder = tmp_path / "out"
    shutil.copytree(cut_and_continued[0], folder)
    for path in (folder / "fold1" / "ckpt").iterdir():
        path.unlink()
    runner = InThisProcess(monkeypatch)
    with (
        lock_run(folder / "fold1"),
        pytest.raises(DataError, match=r"fold1: another process is training this run; wait until"),
    ):
        cross_validate(data, 2, folder, SETTINGS, "CPU")
    assert runner.calls == []


def test_edited_data_are_refused(cut_and_continued, data, tmp_path, monkeypatch):
    """Else folds before and after the edit would be pooled."""
    folder = tmp_path / "out"
    shutil.copytree(cut_and_continued[0], folder)
    cases = find_cases(data, ["Case0.mha", "Case1.mha"])
    trained = {case.case_id: content_digest(*read_case(case, vnet_cfg)) for case in cases}
    runner = InThisProcess(monkeypatch)
    for fold1, edited in (({"Case1": "another"}, "Case1"), ({"Case2": "another"}, "Case2")):
        digests = {"fold0": trained, "fold1": fold1}
        monkeypatch.setattr(
            checkpoint, "read_progress", lambda ckpt, of=digests: {"digests": of[ckpt.parent.name]}
        )
        with pytest.raises(DataError, match=f"image or mask of {edited} was edited since the"):
            cross_validate(data, 2, folder, SETTINGS, "CPU")
    assert runner.calls == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"count": 3}, "folds=2, not folds=3"),
        ({"split_seed": 2}, "split_seed=1, not split_seed=2"),
        ({"overrides": [*SETTINGS, "threshold=0.5"]}, "threshold=0.4, not threshold=0.5"),
        ({"overrides": SETTINGS[1:]}, "width=1, not width=16"),
    ],
)
def test_other_arguments_are_refused(cut_and_continued, data, change, named, monkeypatch):
    folder, *_ = cut_and_continued
    before, runner = tree(folder), InThisProcess(monkeypatch)
    arguments = {"count": 2, "overrides": SETTINGS, **change}
    with pytest.raises(UsageError, match=f"out: was started with {named}; give the same"):
        cross_validate(data, out_path=folder, device_target="CPU", **arguments)
    assert tree(folder) == before and runner.calls == []


# Requests ----------------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch):
    """The commands of a cross-validation that does not train; each fails unless told otherwise."""
    calls = []

    def record(work, words, path):
        calls.append((words, work.environment))
        path.touch()
        return 1

    monkeypatch.setattr(cross_validation._Work, "run_process", record)
    return calls


def test_other_cases_are_refused(tmp_path, write_case, recorded):
    for number in range(3):
        write_case(tmp_path, f"Case{number}", ".mha")
    for _ in range(2):
        with pytest.raises(DataError, match="fold 0: train ended"):
            cross_validate(tmp_path, 2, tmp_path / "out", SETTINGS, "CPU")
    write_case(tmp_path, "Case3", ".mha")
    with pytest.raises(UsageError, match=r"cases=\[\], not cases=\['Case3\.mha'\]"):
        cross_validate(tmp_path, 2, tmp_path / "out", SETTINGS, "CPU")


def test_another_draw_of_the_same_request_is_refused(tmp_path, write_case, recorded):
    """Else a fold would be evaluated on cases that its network was trained on."""
    for name in ("sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1", "sub-3_ses-1"):
        write_case(tmp_path, name, ".mha")
    for _ in range(2):
        with pytest.raises(DataError, match="fold 0: train ended"):
            cross_validate(tmp_path, 2, tmp_path / "out", SETTINGS, "CPU")
    split = tmp_path / "out/split/val_fold1.csv"
    split.write_text("sub-1_ses-1.mha\nsub-3_ses-1.mha\n")
    with pytest.raises(
        DataError, match="val_fold1.csv: not the fold that is drawn now.*--out_path"
    ):
        cross_validate(tmp_path, 2, tmp_path / "out", SETTINGS, "CPU")
    assert split.read_text() == "sub-1_ses-1.mha\nsub-3_ses-1.mha\n"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"parallel": 0}, "--parallel 0"),
        ({"count": 1}, "--folds 1: expected 2 to 5"),
        ({"overrides": ["fold=1"]}, "fold=1: each fold has its own"),
        ({"overrides": ["dirResult=x"]}, "dirResult=x"),
        ({"overrides": ["widht=1"]}, "did you mean 'width'"),
    ],
)
def test_wrong_requests_leave_nothing(data, tmp_path, options, named):
    arguments = {"count": 2, "overrides": SETTINGS, **options}
    with pytest.raises(UsageError, match=named):
        cross_validate(data, out_path=tmp_path / "out", device_target="CPU", **arguments)
    assert not (tmp_path / "out").exists()


def test_two_do_not_write_to_one_folder(data, tmp_path):
    with Lock(tmp_path / LOCK_FILE) as lock:
        lock.acquire()
        with pytest.raises(DataError, match="another cross-validation is running there"):
            cross_validate(data, 2, tmp_path, SETTINGS, "CPU")


def test_a_folder_of_other_files_is_not_written_to(data, tmp_path):
    (tmp_path / "split").mkdir()
    with pytest.raises(DataError, match="split: not of a cross-validation; choose a new folder"):
        cross_validate(data, 2, tmp_path, SETTINGS, "CPU")
    assert [path.name for path in tmp_path.rglob("*")] == ["split"]


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_damaged_request_is_refused(data, tmp_path, text):
    (tmp_path / "cross_validation.json").write_text(text)
    with pytest.raises(DataError, match=r"cross_validation\.json: not of a cross-validation"):
        cross_validate(data, 2, tmp_path, SETTINGS, "CPU")


# Processes ---------------------------------------------------------------------------------------


@pytest.fixture
def work(data, tmp_path):
    """Function (device, parallel) -> what is left to do of three folds."""
    config = override_config(vnet_cfg, SETTINGS)
    folds = [Fold(number, tmp_path / f"fold{number}", config) for number in range(3)]

    def make(target="CPU", parallel=1):
        return cross_validation._Work(folds, data, tmp_path, target, 4, parallel, "zh")

    return make


def test_the_commands_are_those_that_a_user_would_give(work, recorded):
    for folds, (target, parallel) in enumerate([("CPU", 1), ("GPU", 2)]):
        recorded.clear()
        with pytest.raises(DataError, match="ended with exit code 1"):
            work(target, parallel).run()
        words = [words for words, _ in recorded]
        args = [command_parser(name, "vnet").parse_args(rest) for name, *rest in words]
        assert {vars(one)["device_target"] for one in args} == {target}
        assert {one.device_id for one in args} <= {4, 4 + folds}
        for one in args:  # of two at the same time either may be the first to fail
            fold = Path(one.resume).name
            assert fold in ("fold0", "fold1", "fold2")
            assert one.train_split_file_path.endswith(f"/split/train_{fold}.csv")
            assert one.val_split_file_path.endswith(f"/split/val_{fold}.csv")


def test_folds_at_the_same_time_share_the_cores(work, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("VNET_STATUS_FILE", "status.json")
    cores = len(os.sched_getaffinity(0))
    assert work(parallel=2).environment["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    for one in (work(parallel=1), work("GPU", parallel=3)):
        assert "OMP_NUM_THREADS" not in one.environment
        assert "VNET_STATUS_FILE" not in one.environment  # the cross-validation's own


def test_a_process_runs_this_program_wherever_it_is_started(work, tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("raise SystemExit('another one')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").write_text("before\n")
    assert work().run_process(["--version"], tmp_path / "log") == 0
    assert work().run_process(["trian"], tmp_path / "log") == 2
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "before" and lines[1].startswith("vnet_mindspore ")
    assert "did you mean 'train'" in lines[2]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -9 $$", "was ended by SIGKILL, by a user or for lack of memory;"),
        ("echo 'what(): it'; kill -ABRT $$", "was ended by SIGABRT, what(): it;"),
        ("exit 3", "ended with exit code 3;"),
        ("echo 'error: this one'; exit 1", "ended with exit code 1, error: this one;"),
    ],
)
def test_the_reason_is_that_of_this_call(work, monkeypatch, script, said):
    """Not that of an earlier one, whose output is in the same log."""
    command = ["sh", "-c", script]
    monkeypatch.setattr(cross_validation, "module_command", lambda *_, **__: command)
    left = work()
    fold = left.folds[0]
    fold.create()
    (fold.folder / "train.log").write_text("error: an earlier one\n")
    with pytest.raises(DataError, match=re.escape(f"fold 0: train {said}")):
        left.train(fold, 0)
    assert (fold.folder / "train.log").read_text().startswith("error: an earlier one\n")


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux")
def test_kill_9_leaves_no_training(tmp_path):
    """Which would hold the lock of its fold: the same command could not go on."""
    (tmp_path / "sleeper.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(99)"
    )
    parent = (
        f"import subprocess, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from src.utils.process import module_command\n"
        "subprocess.run(module_command('sleeper', ends_with_parent=True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        process.kill()
    wait_until(lambda: not alive(child))


# Progress ----------------------------------------------------------------------------------------


def test_the_progress_names_fold_rest_and_end(tmp_path, small_config):
    folds = [Fold(n, tmp_path / f"fold{n}", small_config("epochs=10")) for n in range(3)]
    write_run(folds[0], *[0.5] * 10, checkpoint=10)
    pace = Pace(folds)
    assert pace.line(940) == ""
    write_run(folds[1], 0.5)
    assert pace.line(999) == ""
    assert pace.line(1000) == "fold 1: epoch 1 of 10; folds trained: 1 of 3; epochs left: 19"
    write_run(folds[1], *[0.5] * 4)
    assert pace.line(1030) == ""
    line = pace.line(1090)  # three epochs in 90 s, 16 left
    assert line.startswith("fold 1: epoch 4 of 10; folds trained: 1 of 3; epochs left: 16; ")
    assert line.endswith("(in 8 min)")
    assert pace.line(1150).endswith("(in 7 min)")
    write_run(folds[1], *[0.5] * 10, checkpoint=10)
    assert pace.line(1210).startswith("evaluating; folds trained: 2 of 3; epochs left: 10; ")
    write_run(folds[2], *[0.5] * 10, checkpoint=10)
    assert pace.line(1300) == ""


# All of it ---------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_real_one_that_is_stopped_in_its_second_fold(data, tmp_path):
    settings = [x for item in (*SETTINGS, "epochs=20", "save_interval=1") for x in ("--set", item)]
    words = ["bash", ROOT / "scripts" / "cross_validate.sh", data, "2", "--out_path", "out"]
    environment = {**os.environ, "WAIT": "1", "PYTHON": sys.executable, "DEVICE_TARGET": "CPU"}

    def start():
        return subprocess.Popen(
            [*map(str, words), *settings],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    fold, final = tmp_path / "out" / "fold1", "ckpt/checkpoint_vnet-20_3.ckpt"
    process = start()
    wait_until(lambda: (fold / "ckpt" / "last_state.ckpt").exists(), 400)
    process.terminate()
    assert process.wait(60) == 143
    assert not (fold / final).exists() and not (tmp_path / "out" / "ensemble.json").exists()
    process = start()
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    log = (fold / "train.log").read_text()
    assert log.count(f"run: {fold}") == 2 and f"resuming {fold} after epoch" in log
    assert "fold 0: done before" in printed and "avg_dice: " in printed
    members = find_checkpoints(tmp_path / "out")
    assert len(members) == 2 and all(path.name == Path(final).name for path in members[1:])
