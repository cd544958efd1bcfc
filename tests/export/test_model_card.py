"""The model card: what it says is recorded or stated, everything else is said to be unknown."""

import json
from pathlib import Path

import pytest

from src.config import PRESETS, override_config, preset_overrides, save_config, vnet_cfg
from src.data_manager import Case
from src.ensemble import origin_of
from src.export.model_card import (
    Packed,
    Statement,
    describe_release,
    nearest_preset,
    render_card,
)
from src.metrics import METRICS
from src.predictor import processing_versions
from src.promise12.splits import ZOO_CASES, ZOO_EVALUATION
from src.run_record import read_record, record_session
from src.utils.command_line import RESEARCH_ONLY
from src.utils.errors import DataError
from src.utils.files import hash_file

HISTORY = (
    "epoch,step,learning_rate,train_loss,epoch_time_s,val_dice\n"
    "1,9,0.01,0.5,1800,0.7\n2,18,0.02,0.25,900,0.81234\n3,27,0.02,0.2,900,\n"
)
TRAINED = sorted(set(ZOO_CASES) - set(ZOO_EVALUATION))


@pytest.fixture
def config():
    return override_config(
        vnet_cfg, [*preset_overrides("accurate"), "epochs=300", "task=mine", "num_workers=3"]
    )


@pytest.fixture
def run(tmp_path, config):
    """A run with two checkpoints whose weights nobody loads here; its folder."""
    folder = tmp_path / "run"
    (folder / "ckpt").mkdir(parents=True)
    for name in ("best.ckpt", "checkpoint_vnet-1_9.ckpt"):
        (folder / "ckpt" / name).write_bytes(name.encode())
    save_config(config, folder / "config.json")
    (folder / "history.csv").write_text(HISTORY)
    return folder


def cases(names):
    return [Case(name, None, None) for name in names]


def described(run, config, statement=Statement(), metrics=None, name="best.ckpt"):  # noqa: B008
    path = run / "ckpt" / name
    network = Packed(path, config, hash_file(path), "vnet.ckpt", 1234)
    return describe_release([network], statement, metrics)


def metrics_of(run, config, names, checkpoint="best.ckpt", **changes):
    values = {"mean": 0.5, "std": 0.25, "median": 0.5, "worst": 0.125}
    content = {
        **origin_of({run / "ckpt" / checkpoint: hash_file(run / "ckpt" / checkpoint)}),
        "processing": processing_versions(),
        "configuration": dict(config) | changes,
        "summary": {metric.key: values for metric in METRICS},
        "cases": [{"case": name} for name in names],
    }
    path = run / "metrics.json"
    path.write_text(json.dumps(content))
    return path


def test_what_is_not_known_is_said(run, config):
    for name in ("history.csv",):
        (run / name).unlink()
    found = described(run, config)
    assert found["licence"] is None and found["metrics"] is None
    assert found["data"] == {
        **{"description": None, "licence": None, "training_cases": None},
        **{"validation_cases": None, "split": "not recorded"},
    }
    (network,) = found["networks"]
    assert set(network["training"].values()) == {None}
    card = render_card(found)
    for line in (
        "Licence of the weights: not stated",
        "- Data: not stated",
        "- Licence of the data: not stated",
        "- Cases for training: not recorded; for validation: not recorded",
        "- Machine: not recorded",
        "- Training: not recorded",
    ):
        assert line in card.splitlines() or line in card.partition("##")[0]
    assert RESEARCH_ONLY in card and "None" not in card


@pytest.mark.parametrize(
    ("checkpoint", "epochs", "text"),
    [
        ("best.ckpt", 3, "3 epochs, 1.00 h in training steps, weights of epoch 2"),
        ("checkpoint_vnet-1_9.ckpt", 1, "1 epoch, 0.50 h in training steps, weights of epoch 1"),
        ("last.ckpt", 3, "3 epochs, 1.00 h in training steps, epoch of the weights not recorded"),
    ],
)
def test_the_line_about_the_training(run, config, checkpoint, epochs, text):
    (run / "ckpt" / checkpoint).write_bytes(b"weights")
    (run / "history.csv").write_text("".join(HISTORY.splitlines(True)[: 1 + epochs]))
    card = render_card(described(run, config, name=checkpoint))
    assert f"- Training: {text}" in card.splitlines()


@pytest.mark.parametrize(("cores", "text"), [(1, " with 1 core"), (8, " with 8 cores"), (None, "")])
def test_the_line_about_the_machine(run, config, cores, text):
    session = {
        "devices": 1,
        "device": "CPU",
        "processor": "P",
        "cores": cores,
        "mindspore": "2.10.0",
    }
    (run / "training.json").write_text(json.dumps({"sessions": [session]}))
    card = render_card(described(run, config))
    assert f"- Machine: 1 x CPU on P{text}, MindSpore 2.10.0" in card.splitlines()


def test_the_card_of_a_recorded_run(run, config):
    for epoch in (0, 2):
        record_session(run, cases(TRAINED), cases(ZOO_EVALUATION), "CPU", 1, epoch)
    statement = Statement("50 scans of a hospital", "CC BY 4.0", "Apache-2.0")
    found = described(run, config, statement, metrics_of(run, config, ZOO_EVALUATION))
    assert found["input"]["field_of_view_mm"] == [112.0, 112.0, 96.0]
    assert (found["input"]["voxels"], found["input"]["spacing_mm"]) == (
        [80, 80, 48],
        [1.4, 1.4, 2.0],
    )
    assert found["data"] == {
        "description": "50 scans of a hospital",
        "licence": "CC BY 4.0",
        "training_cases": 40,
        "validation_cases": 10,
        "split": "by its names the MindSpore model zoo's split of PROMISE12",
    }
    (network,) = found["networks"]
    assert network["packed_from_sha256"] == hash_file(run / "ckpt" / "best.ckpt")
    assert (network["preset"], network["differences"]) == ("accurate", {"epochs": 300})
    training = network["training"]
    assert (training["epochs"], training["epoch_of_checkpoint"]) == (3, 2)
    assert (training["hours"], training["validation_dice"]) == (1.0, 0.8123)
    assert [session["epochs_before"] for session in training["sessions"]] == [0, 2]
    card = render_card(found)
    assert "preset `accurate`, but `epochs=300`" in card and "1.00 h in training steps" in card
    assert "10 of them are the validation cases" in card
    assert "| Dice | 0.500 | 0.250 | 0.500 | 0.125 |" in card
    assert "| Average boundary distance, apex (mm) |" in card
    assert "112 x 112 x 96 mm" in card and card.count("1 x CPU on ") == 1
    published = json.dumps(found) + card
    assert not any(name in published for name in ZOO_CASES) and str(run) not in published


def test_cases_that_were_trained_on_are_named_as_such(run, config):
    record_session(run, cases(["a", "b"]), cases(["c"]), "CPU", 1, 0)
    found = described(run, config, metrics=metrics_of(run, config, ["a", "c", "d"]))
    assert found["metrics"]["of_them_trained_on"] == 1
    assert found["data"]["split"] == "another than the MindSpore model zoo's"
    assert "**1 of them were used for training" in render_card(found)


def test_a_cross_validation_is_of_networks_that_did_not_see_the_cases(tmp_path, config):
    """Each network was trained on the other's cases."""
    folds = {}
    for name, own, other in (("fold0", "a", "b"), ("fold1", "b", "a")):
        checkpoint = tmp_path / name / "ckpt" / "best.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_text(name)
        save_config(config, tmp_path / name / "config.json")
        record_session(tmp_path / name, cases([other]), cases([own]), "CPU", 1, 0)
        folds[str(checkpoint)] = hash_file(checkpoint)
    path = metrics_of(tmp_path, config, [], checkpoint)
    content = json.loads(path.read_text())
    del content["checkpoint"], content["checkpoint_sha256"]
    content |= {"checkpoints": folds, "folds": {"0": {}, "1": {}}}
    content["cases"] = [{"case": "a", "fold": 0}, {"case": "b", "fold": 1}]
    path.write_text(json.dumps(content))
    networks = [
        Packed(Path(name), config, hash_file(name), "vnet.ckpt", 1) for name in reversed(folds)
    ]
    found = describe_release(networks, Statement(), path)
    assert {key: found["metrics"][key] for key in ("cases", "folds", "of_them_trained_on")} == {
        **{"cases": 2, "folds": 2, "of_them_trained_on": 0}
    }
    assert "From a cross-validation of 2 folds" in render_card(found)
    assert "were used for training" not in render_card(found)
    del content["folds"]  # the mean of both networks, on the same cases
    path.write_text(json.dumps(content))
    found = describe_release(networks, Statement(), path)
    assert (found["metrics"]["folds"], found["metrics"]["of_them_trained_on"]) == (None, 2)
    assert "**2 of them were used for training" in render_card(found)


def test_the_epoch_of_a_numbered_checkpoint(run, config):
    (network,) = described(run, config, name="checkpoint_vnet-1_9.ckpt")["networks"]
    assert network["training"]["epoch_of_checkpoint"] == 1
    assert network["training"]["validation_dice"] == 0.7


def test_metrics_of_weights_that_a_training_has_replaced_are_refused(run, config):
    """A resumed training writes a better best.ckpt under the same name."""
    path = metrics_of(run, config, ["a"])
    (run / "ckpt" / "best.ckpt").write_bytes(b"better")
    with pytest.raises(DataError, match=r"best\.ckpt has now; evaluate what you release"):
        described(run, config, metrics=path)
    content = json.loads(path.read_text())
    del content["checkpoint_sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not the metrics.json of an evaluation of checkpoints"):
        described(run, config, metrics=path)


def test_metrics_without_a_statistic_are_refused(run, config):
    path = metrics_of(run, config, ["a"])
    content = json.loads(path.read_text())
    del content["summary"]["dice"]["worst"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not the metrics.json of an evaluation of checkpoints"):
        described(run, config, metrics=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": "checkpoint_vnet-1_9.ckpt"}, "evaluate what you release"),
        ({"threshold": 0.5}, "evaluated with threshold=0.5, the release has 0.45"),
        ({"dstRes": [1.0, 1.0, 1.0]}, "give both the same --set dstRes="),
    ],
)
def test_metrics_of_something_else_are_refused(run, config, change, words):
    path = metrics_of(run, config, ["a"], **change)
    with pytest.raises(DataError) as error:
        described(run, config, metrics=path)
    assert words in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("processing", [None, {**processing_versions(), "postprocessing": 1}])
def test_metrics_of_another_version_are_refused(run, config, processing):
    path = metrics_of(run, config, ["a"])
    content = json.loads(path.read_text()) | {"processing": processing}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"made by another version of this program, whose masks"):
        described(run, config, metrics=path)


def test_the_card_says_whether_the_grid_is_moved(run, config):
    without = override_config(config, ["recentre=false"])
    assert "cut off. Other" in render_card(described(run, without))
    assert "cut off unless enough of it is seen to move there. Other" in render_card(
        described(run, config)
    )


def test_damaged_files_are_named(run, config):
    (run / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="metrics.json: not the metrics"):
        described(run, config, metrics=run / "metrics.json")
    (run / "history.csv").write_text("epoch\nx\n")
    with pytest.raises(DataError, match="history.csv: not the history"):
        described(run, config)


@pytest.mark.parametrize("name", [None, *PRESETS])
def test_the_nearest_preset(name):
    config = override_config(vnet_cfg, [*preset_overrides(name), "seed=7", "cache_dir=off"])
    assert nearest_preset(config) == (name, {"seed": 7})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sessions": 1}'])
def test_a_damaged_record_counts_as_none(tmp_path, content):
    (tmp_path / "training.json").write_text(content)
    assert read_record(tmp_path) == {}
    record_session(tmp_path, cases(["a"]), [], "CPU", 2, 0)
    record = read_record(tmp_path)
    assert record["training_cases"] == ["a"] and record["sessions"][0]["devices"] == 2
