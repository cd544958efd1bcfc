"""The Python interface: load a model and segment with it, evaluate, train.

The package exports it: `import vnet_mindspore; model = vnet_mindspore.load("vnet_prostate")`. The
commands evaluate and train by the same functions.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK as sitk
from easydict import EasyDict

from . import evaluation
from .config import (
    mapping_overrides,
    override_config,
    preset_overrides,
    training_config,
    vnet_cfg,
    with_preset,
)
from .data_manager import channel_of
from .ensemble import Ensemble, Member, find_members, origin_of_members
from .images.reading import check_volume, mr_image, read_image
from .mask_folders import masks_for, reference_cases
from .predictor import LazyNetwork, segment
from .promise12.splits import split_cases
from .report.painter import Painter
from .utils.errors import UsageError, naming
from .utils.process import no_garbage_collection

if TYPE_CHECKING:
    import pandas as pd
    from mindspore import nn

log = logging.getLogger(__name__)

_started: list[tuple[str, int]] = []  # the device of this process, once it is chosen
# Of `compare_masks` with references only, and with images and a split.
KEYS_OF_REFERENCES = ("labels", "dirPredictionImage")
KEYS_OF_MASKS = (*KEYS_OF_REFERENCES, "channel", "fold")
_computing = threading.RLock()  # MindSpore crashes where two threads compute


@dataclass(frozen=True)
class Model:
    """A trained V-Net, or several as one, from `load`.

    Attributes:
        network: in evaluation mode.
        members: the checkpoints that the weights come from, with their configurations.
        device_target: "Ascend", "GPU" or "CPU".
    """

    network: "nn.Cell | Ensemble"
    members: tuple[Member, ...]
    device_target: str

    @property
    def config(self) -> EasyDict:
        """The configuration of its training, of several networks that of the first.

        It has the overrides of `load`; see docs/configuration.md.
        """
        return self.members[0].config

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The files that the weights come from, one per network."""
        return tuple(member.checkpoint for member in self.members)

    @property
    def origin(self) -> dict[str, Any]:
        """These files with their SHA-256, see `src.ensemble.origin_of`."""
        return origin_of_members(self.members)

    @property
    def checkpoint(self) -> Path:
        """The file that the weights come from, the first one of several."""
        return self.checkpoints[0]

    def segment(self, image: sitk.Image | str | Path, series: str = "") -> sitk.Image:
        """Returns the mask of the prostate, the same as predict.py writes.

        Args:
            image: a 3-D scalar T2-weighted image of any voxel type and orientation; or the path of
                an image file or of DICOM (a file, a folder, a .zip of one study).
            series: the DICOM series to read from a path: its number, its UID or a pattern for its
                description; by default the axial T2.

        Returns:
            uint8, 1 in the prostate and 0 elsewhere, on the image's own grid.

        Raises:
            DataError: the image is not 3-D scalar, has a single slice, NaN, the same value
                everywhere, no contrast on the network grid or a sheared geometry, is a label map,
                or cannot be read; or the network's output has NaN.
            UsageError: neither an image nor a path, or `series` is given with an image.
        """
        return self._segment(image, series)[0]

    def probability(self, image: sitk.Image | str | Path, series: str = "") -> sitk.Image:
        """Returns the probability of the prostate, before threshold and postprocessing.

        Args:
            image, series: see `segment`.

        Returns:
            float32 in 0..1, on the image's own grid; 0 outside the network grid.

        Raises:
            DataError, UsageError: see `segment`.
        """
        return self._segment(image, series)[1]

    def _segment(
        self, image: sitk.Image | str | Path, series: str
    ) -> tuple[sitk.Image, sitk.Image]:
        if isinstance(image, sitk.Image):
            if series:
                raise UsageError(f"series={series!r}: goes with a path, not with an image")
            name: str | Path = "the image"
            check_volume(image, name)
            volume = mr_image(image, name)
        else:
            _check_path(image, "image", "a SimpleITK image or a path")
            name, volume = image, read_image(image, channel_of(self.config), series)
        with _computing, naming(name):
            return segment(self.network, volume, self.config)


def load(
    path: str | Path | Sequence[str | Path],
    device_target: str = "auto",
    device_id: int = 0,
    overrides: Mapping[str, object] | Sequence[str] = (),
) -> Model:
    """Loads a trained network, or several whose probabilities are averaged.

    Args:
        path: a checkpoint; the folder of a run or of a cross-validation; a release, its zip or the
            https address of that; or a list of these.
        device_target: "Ascend", "GPU" or "CPU"; "auto" takes the first of these that is available.
            The first call fixes the device of the process.
        device_id: number of the card.
        overrides: configuration keys to change, such as {"threshold": 0.4, "flip_average": True};
            or `--set` texts, such as ["threshold=0.4"].

    Returns:
        The model, ready to segment.

    Raises:
        DataError: the checkpoint is missing, damaged or of another network; of several two are the
            same, or differ in grid, intensity, threshold, flip averaging or recentring; or there is
            no such device.
        UsageError: an unknown key, a wrong value, or another device than the process already uses.
    """
    return _load(find_model(path, overrides), device_target, device_id)


def find_model(
    path: str | Path | Sequence[str | Path], overrides: Mapping[str, object] | Sequence[str]
) -> tuple[Member, ...]:
    """Returns the checkpoint files at a path, and their configurations with the overrides.

    Args:
        path, overrides: see `load`.

    Raises:
        DataError, UsageError: see `load`.
    """
    paths: list[Any] = list(path) if isinstance(path, list | tuple) else [path]
    for one in paths:
        _check_path(one, "path")
    return find_members(paths, _override_texts(overrides))


def _load(members: tuple[Member, ...], device_target: str, device_id: int) -> Model:
    with _computing:
        target = _start_device(device_target, device_id)
        return Model(evaluation.load_members(members, target), members, target)


def lazy_network(members: tuple[Member, ...], device_target: str, device_id: int) -> LazyNetwork:
    """Returns a network that is loaded while the first case is read.

    Args:
        members: of `find_model`.
        device_target, device_id: see `load`.
    """

    def load() -> "nn.Cell | Ensemble":
        with no_garbage_collection():  # MindSpore is imported here, which takes a second
            return _load(members, device_target, device_id).network

    return LazyNetwork(load)


def evaluate(
    model: Model | str | Path | Sequence[str | Path],
    data_path: str | Path,
    split: str | Path,
    output_path: str | Path | None = None,
    device_target: str = "auto",
    device_id: int = 0,
    overrides: Mapping[str, object] | Sequence[str] = (),
    *,
    painter: Painter | None = None,
    language: str = "en",
) -> "pd.DataFrame":
    """Evaluates a model on cases with reference masks.

    Args:
        model: from `load`; or a path or several, see `load`.
        data_path: folder with `img/` and `gt/`.
        split: file with the names of the cases, or a folder with such files.
        output_path: gets NAME_test.mhd of each case, metrics.csv, metrics.json, summary.json,
            overlays.png and report.html; by default `dirPredictionImage` of the configuration.
        device_target, device_id, overrides: see `load`; only with a path.
        painter: draws the pictures; None: this process does.
        language: of the report, one of `src.report.texts.LANGUAGES`.

    Returns:
        A row per case: "case" and the columns of metrics.csv, see docs/evaluation.md.

    Raises:
        DataError: a file is missing or cannot be used, or `output_path` holds files of these names
            that this program did not write.
        UsageError: see `load`.
    """
    _check_path(data_path, "data_path")
    _check_path(split, "split")
    if isinstance(model, Model):
        for name, value in (
            ("overrides", overrides),
            ("device_target", "" if device_target == "auto" else device_target),
            ("device_id", device_id),
        ):
            if value:
                raise UsageError(f"{name}={value!r}: the model is loaded; give it to load")
        members, network = model.members, model.network
    else:
        if not isinstance(model, list | tuple):
            _check_path(model, "model", "a Model of load, or a path")
        members = find_model(model, overrides)
        network = lazy_network(members, device_target, device_id)
    config = EasyDict(members[0].config)
    config.dirPredictionImage = str(output_path or config.dirPredictionImage)
    cases = split_cases(data_path, split, "val", config.fold)  # before the device starts
    shared = evaluation.trained_on((member.checkpoint for member in members), cases)
    origin = {**origin_of_members(members), "trained_on": shared}
    with _computing:
        rows = evaluation.evaluate(network, cases, config, origin, painter, language)
    return _metrics_table(rows)


def compare_masks(
    masks: str | Path,
    reference: str | Path | None = None,
    data_path: str | Path | None = None,
    split: str | Path | None = None,
    output_path: str | Path | None = None,
    overrides: Mapping[str, object] | Sequence[str] = (),
    *,
    painter: Painter | None = None,
    language: str = "en",
) -> "pd.DataFrame":
    """Evaluates the masks in a folder, such as another program's, without a network.

    Args:
        masks: folder with a mask for each case, named as docs/evaluation.md says.
        reference: folder of the reference masks; all of them are compared.
        data_path, split: instead of `reference`, see `evaluate`; the report then has the images.
        output_path: gets metrics.csv, metrics.json, summary.json, overlays.png and report.html; by
            default `dirPredictionImage` of the configuration.
        overrides: of `KEYS_OF_MASKS` or, with `reference`, `KEYS_OF_REFERENCES`; see `load`.
        painter, language: see `evaluate`.

    Returns:
        See `evaluate`.

    Raises:
        DataError: a case has no mask, a mask is on another grid than its reference, or see
            `evaluate`.
        UsageError: neither or both of `reference` and `data_path` with `split`; an override of
            another key; or see `load`.
    """
    _check_path(masks, "masks")
    texts = _override_texts(overrides)
    config = override_config(vnet_cfg, texts)
    used = KEYS_OF_MASKS if reference is None else KEYS_OF_REFERENCES
    for key in (text.partition("=")[0] for text in texts):
        if key not in used:
            raise UsageError(f"{key}: has no effect on masks that are there; leave it out")
    config.dirPredictionImage = str(output_path or config.dirPredictionImage)
    if reference is not None and data_path is None and split is None:
        _check_path(reference, "reference")
        cases = reference_cases(reference)
    elif reference is None and data_path is not None and split is not None:
        _check_path(data_path, "data_path")
        _check_path(split, "split")
        cases = split_cases(data_path, split, "val", config.fold)
    else:
        raise UsageError("expected either a folder of references, or data_path and split")
    metadata = {
        "masks": str(masks),
        "reference": str(data_path if reference is None else reference),
        "configuration": {"labels": config.labels, "channel": config.channel},
    }
    found = masks_for(cases, masks)
    rows = evaluation.compare_masks(cases, found, config, metadata, painter, language)
    return _metrics_table(rows)


def _metrics_table(rows: list[dict]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(rows).drop(columns="findings_text")


def train(
    data_path: str | Path,
    train_split: str | Path,
    val_split: str | Path | None = None,
    preset: str | None = None,
    resume: str | Path | bool = False,
    device_target: str = "auto",
    device_id: int = 0,
    overrides: Mapping[str, object] | Sequence[str] = (),
    device_num: int | None = None,
) -> Path | None:
    """Trains a V-Net.

    Args:
        data_path: folder with `img/` and `gt/`.
        train_split: file with the names of the training cases, or a folder with such files.
        val_split: the same for the validation cases; None: no validation and no `best.ckpt`.
        preset: "accurate" or "compact"; None: the zoo's settings.
        resume: folder of the run to continue; True: the newest run.
        device_target, device_id: see `load`.
        overrides: configuration keys to change, see `load`.
        device_num: number of processes that a launcher started to train together; None: this
            process trains alone.

    Returns:
        The folder of the run, which `load` takes. With several processes None on all but the first.

    Raises:
        DataError: a file or the device cannot be used, memory is too small, or the loss became NaN.
        UsageError: an unknown key or wrong value, or nothing left to train.
    """
    from .devices import device
    from .devices.ranks import Ranks
    from .training import trainer
    from .training.run_folder import configure_run

    _check_path(data_path, "data_path")
    _check_path(train_split, "train_split")
    if val_split is not None:
        _check_path(val_split, "val_split")
    if not isinstance(resume, bool):
        _check_path(resume, "resume", "True, False or the folder of a run")
    texts = with_preset(preset, _override_texts(overrides), bool(resume))
    training_config(device_target, texts)  # wrong settings fail before the device starts
    with _computing:
        target = _start_device(device_target, device_id)
        ranks = Ranks() if device_num is None else device.start_communication(device_num)
        config, run_folder = configure_run(resume, target, texts, ranks)
        return trainer.train(
            config, target, data_path, train_split, val_split, run_folder, ranks=ranks
        )


def continue_training(
    data_path: str | Path,
    train_split: str | Path,
    val_split: str | Path | None,
    preset: str | None,
    device_target: str,
    device_id: int,
    overrides: list[str],
) -> Path | None:
    """Continues the newest run of a task and fold, starts one if there is none.

    Args:
        data_path, train_split, val_split, device_target, device_id: see `train`.
        preset: see `train`; a run that is continued must have its settings.
        overrides: `--set` texts.

    Returns:
        The run's folder, also if it is complete and nothing is done.

    Raises:
        DataError: the run is complete, but of other or since edited cases, or its training differs
            from the preset; or see `train`.
        UsageError: see `train`.
    """
    from .training.run_folder import check_same_cases, check_same_preset, newest_state

    state = newest_state(overrides, val_split is not None)
    if state is not None:
        check_same_preset(state, preset, overrides)
    if state is not None and state.is_complete:
        check_same_cases(state, data_path, train_split, val_split)
        log.info(
            f"run: {state.folder}\nnothing is left to train after epoch {state.progress.epoch}"
        )
        return state.folder
    resume = False if state is None else state.folder
    return train(
        data_path,
        train_split,
        val_split,
        preset=preset if state is None else None,
        resume=resume,
        device_target=device_target,
        device_id=device_id,
        overrides=overrides,
    )


def estimate_training(
    cases: int,
    val_cases: int,
    device_target: str,
    device_id: int,
    preset: str | None,
    overrides: list[str],
    continues: bool,
) -> str:
    """Returns how long a training will take on this machine, as a line of text.

    Args:
        cases, val_cases: number of training and validation cases.
        device_target, device_id: see `load`.
        preset: see `train`.
        overrides: `--set` texts.
        continues: whether the newest run of the task and fold is continued, if there is one.

    Raises:
        DataError, UsageError: see `train`.
    """
    for name, count, least in (("cases", cases, 1), ("val_cases", val_cases, 0)):
        if count < least:
            raise UsageError(f"{name} is {count}, expected at least {least}")
    # Wrong settings fail before the device starts.
    training_config(device_target, [*preset_overrides(preset), *overrides])
    from .training.duration import measure_step_s, training_s
    from .training.progress import duration_text
    from .training.run_folder import newest_state

    state = newest_state(overrides, val_cases > 0) if continues else None
    if state is not None and state.is_complete:
        return f"{state.folder}: nothing is left to train"
    with _computing:
        target = _start_device(device_target, device_id)
        if state is not None:
            config, done = state.config, state.progress.epoch
        else:
            config, done = training_config(target, [*preset_overrides(preset), *overrides]), 0
        step_s = measure_step_s(config, target)
    estimate = duration_text(training_s(config, step_s, cases, val_cases, done))
    return (
        f"{config.epochs - done} epochs of {cases} cases will take about {estimate} on this "
        f"machine ({step_s:.2f} s per step, measured now)"
    )


def _check_path(value: object, name: str, expected: str = "a path") -> None:
    """Raises a UsageError for an argument that is no path."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} is of type {type(value).__name__}, expected {expected}")
    if not os.fspath(value):
        raise UsageError(f"{name} is empty, expected {expected}")


def _override_texts(overrides: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Converts overrides to the "key=value" texts of `--set`."""
    if isinstance(overrides, Mapping):
        return mapping_overrides(overrides)
    is_list = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not is_list or not all(isinstance(item, str) for item in overrides):
        raise UsageError(
            f"overrides={overrides!r}: expected keys and values such as {{'threshold': 0.4}}, or a "
            "list such as ['threshold=0.4']"
        )
    return list(overrides)


def _start_device(target: str, device_id: int) -> str:
    """Starts the device of this process unless it is started; returns "Ascend", "GPU" or "CPU"."""
    from .devices import device

    targets = ("auto", *device.DRIVER_HINTS)
    if target not in targets:
        raise UsageError(f"device_target {target!r}: expected one of {', '.join(targets)}")
    if not _started:
        chosen = device.choose_device(target)
        device.start_device(chosen, device_id)
        _started.append((chosen, device_id))
    running, running_id = _started[0]
    if target not in ("auto", running) or (running != "CPU" and device_id != running_id):
        raise UsageError(
            f"device {target} {device_id}: this process computes on {running} {running_id} already;"
            " start another process for another device"
        )
    return running
