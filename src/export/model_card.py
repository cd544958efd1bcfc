"""The card of a release: metadata.json for programs, README.md with the same for people.

Everything comes from the configuration, from what the training recorded, or from the user. What is
not known is null in the one and "not stated" or "not recorded" in the other; docs/export.md has the
schema.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from easydict import EasyDict
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .. import __version__
from ..checkpoint_file import BEST, epoch_and_step, is_numbered
from ..config import (
    GRID_KEYS,
    MACHINE_KEYS,
    OUTPUT_KEYS,
    PRESETS,
    config_path_of,
    value_text,
    vnet_cfg,
)
from ..metrics import METRICS
from ..predictor import processing_versions
from ..promise12.splits import ZOO_CASES, ZOO_EVALUATION
from ..report.texts import Texts
from ..run_record import read_history, record_of
from ..utils.command_line import RESEARCH_ONLY
from ..utils.errors import DataError, reason_of

README, METADATA = "README.md", "metadata.json"
SCHEMA = 1
INTENDED_USE = (
    "Research on the segmentation of the whole prostate in T2-weighted MR volumes. Not for "
    "diagnosis, treatment or any other clinical decision."
)
# Keys that do not belong to the recipe of a training: places, names, the machine, bookkeeping.
NO_RECIPE = (
    *("task", "fold", "plane", "save_interval", "keep_checkpoint_max"),
    *MACHINE_KEYS,
)
# Keys that decide what the metrics of a network are; all networks of an ensemble share them.
SHARED = (*GRID_KEYS, *OUTPUT_KEYS)
NOT_RECORDED = "not recorded"
STATISTICS = ("mean", "std", "median", "worst")  # of the metrics


class Statement(NamedTuple):
    """What only the user can say; empty: not stated."""

    data: str = ""  # what the network was trained on
    data_licence: str = ""
    licence: str = ""  # of the released weights


class Packed(NamedTuple):
    """A network of a release."""

    checkpoint: Path  # to pack
    config: EasyDict
    sha256: str  # of the checkpoint
    name: str  # of the packed file, relative to the release
    parameters: int


def describe_release(
    networks: Sequence[Packed], statement: Statement, metrics_path: str | Path | None
) -> dict[str, Any]:
    """Returns the content of metadata.json, without the hashes of the packed files.

    Args:
        networks: of the release, at least one.
        statement: of the user.
        metrics_path: metrics.json of an evaluation of these networks, None for none.

    Raises:
        DataError: `metrics_path` cannot be read or is of other networks or settings.
    """
    config, records = networks[0].config, [record_of(n.checkpoint) for n in networks]
    trained = [record.get("training_cases") for record in records]
    validated = [record.get("validation_cases") for record in records]
    sides_mm = np.multiply(config.VolSize, config.dstRes)
    return {
        "schema": SCHEMA,
        "name": "V-Net segmentation of the prostate",
        "version": __version__,
        "released": time.strftime("%Y-%m-%d", time.gmtime()),
        "medical_device": False,
        "intended_use": INTENDED_USE,
        "licence": statement.licence or None,
        "networks": [_network(n, r) for n, r in zip(networks, records, strict=True)],
        "input": {
            "modality": "T2-weighted MR",
            "plane": "axial" if config.plane == "auto" else config.plane,
            "voxels": config.VolSize,
            "spacing_mm": config.dstRes,
            "field_of_view_mm": [round(float(side), 3) for side in sides_mm],
            "intensity": config.intensity,
        },
        "output": {key: config[key] for key in ("threshold", "flip_average", "recentre")},
        "data": {
            "description": statement.data or None,
            "licence": statement.data_licence or None,
            "training_cases": _count_if_known(trained),
            "validation_cases": _count_if_known(validated),
            "split": _split(trained, validated),
        },
        "metrics": None if metrics_path is None else _metrics(metrics_path, networks, records),
    }


def _count_if_known(lists: Sequence[list[str] | None]) -> int | None:
    """Number of different cases, None if it is not recorded for every network."""
    known = [cases for cases in lists if cases is not None]
    return len(set().union(*known)) if len(known) == len(lists) else None


def _split(trained: Sequence[list[str] | None], validated: Sequence[list[str] | None]) -> str:
    """What the names of the cases say; the names themselves may be patients'."""
    if None in [*trained, *validated]:
        return NOT_RECORDED
    if len(trained) > 1:
        return "one for each network"
    has_zoo_names = set(trained[0] or ()) == set(ZOO_CASES) - set(ZOO_EVALUATION)
    if has_zoo_names and set(validated[0] or ()) == set(ZOO_EVALUATION):
        return "by its names the MindSpore model zoo's split of PROMISE12"
    return "another than the MindSpore model zoo's"


def _network(network: Packed, record: dict[str, Any]) -> dict[str, Any]:
    preset, differences = nearest_preset(network.config)
    return {
        "file": network.name,
        "sha256": "",  # of a file that is not written yet
        "packed_from_sha256": network.sha256,
        "variant": network.config.variant,
        "width": network.config.width,
        "parameters": network.parameters,
        "preset": preset,
        "differences": differences,
        "training": _training(network, record),
    }


def nearest_preset(config: EasyDict) -> tuple[str | None, dict[str, Any]]:
    """Returns the preset that a configuration is nearest to, and what differs from it.

    Returns:
        Its name, None for the zoo's settings; and {key: value} of the keys with another value,
        without those that do not change what is trained.
    """
    found: list[tuple[str | None, dict[str, Any]]] = []
    for name, overrides in ((None, {}), *PRESETS.items()):
        preset = {**vnet_cfg, **overrides}
        other = {k: v for k, v in config.items() if k not in NO_RECIPE and v != preset[k]}
        found.append((name, other))
    return min(found, key=lambda item: len(item[1]))


def _training(network: Packed, record: dict[str, Any]) -> dict[str, Any]:
    """What the run's history and record say about the training of a checkpoint."""
    config_path = config_path_of(network.checkpoint)
    training: dict[str, Any] = {
        **{"epochs": None, "epoch_of_checkpoint": None, "hours": None, "validation_dice": None},
        "sessions": record.get("sessions") or None,
    }
    if config_path is None:
        return training
    history = read_history(config_path.parent).set_index("epoch")
    if history.empty:
        return training
    dice = history["val_dice"].dropna()
    epoch = _epoch_of(network.checkpoint, dice)
    return training | {
        "epochs": int(history.index.max()),
        "epoch_of_checkpoint": epoch,
        "hours": round(float(history["epoch_time_s"].sum()) / 3600, 3),
        "validation_dice": round(float(dice[epoch]), 4) if epoch in dice.index else None,
    }


def _epoch_of(checkpoint: Path, dice: pd.Series) -> int | None:
    if is_numbered(checkpoint):
        return epoch_and_step(checkpoint)[0]
    return int(dice.idxmax()) if checkpoint.name == BEST and len(dice) else None


def _metrics(
    path: str | Path, networks: Sequence[Packed], records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Summary of an evaluation, which must be of these networks with these settings."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        folds = len(content.get("folds", ()))
        summary = {
            m.key: {name: float(content["summary"][m.key][name]) for name in STATISTICS}
            for m in METRICS
        }
        configuration = content["configuration"]
        evaluated = content.get("checkpoints")
        if evaluated is None:
            evaluated = {content["checkpoint"]: content["checkpoint_sha256"]}
        digests = list(evaluated.values())
        # {case: the networks that segmented it}; in a cross-validation that of its fold alone.
        used = {
            row["case"]: [digests[row["fold"]]] if folds else digests for row in content["cases"]
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not the metrics.json of an evaluation of checkpoints ({reason_of(error)}); "
            "run eval.py again"
        ) from None
    packed = [network.sha256 for network in networks]
    if sorted(digests) != sorted(packed):
        raise DataError(
            f"{path}: of other weights ({', '.join(evaluated)} as it was then) than "
            f"{networks[0].checkpoint} has now; evaluate what you release"
        )
    if content.get("processing") != processing_versions():
        raise DataError(
            f"{path}: made by another version of this program, whose masks may differ; run eval.py "
            "again"
        )
    config = networks[0].config
    for key in SHARED:
        if configuration.get(key) != config[key]:
            raise DataError(
                f"{path}: evaluated with {key}={configuration.get(key)}, the release has "
                f"{config[key]}; give both the same --set {key}="
            )

    def count(kind: str) -> int | None:
        """Number of cases that a network that segmented them had among its own of this kind."""
        if any(kind not in record for record in records):
            return None
        lists = {digest: record[kind] for digest, record in zip(packed, records, strict=True)}
        return sum(any(case in lists[digest] for digest in used[case]) for case in used)

    return {
        "cases": len(used),
        "folds": folds or None,
        "of_them_trained_on": count("training_cases"),
        "of_them_validated_on": count("validation_cases"),
        "summary": summary,
    }


# --- README.md -----------------------------------------------------------------------------------


def render_card(metadata: dict[str, Any]) -> str:
    """Returns README.md, the content of metadata.json for people; the template is model_card.md."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "known": lambda value: NOT_RECORDED if value is None else value,
        "machines": _machines,
        "measure": _metric_name,
        "setting": value_text,
        "sizes": lambda sides: " x ".join(f"{side:g}" for side in sides),
        "statistics": lambda summary: [summary[name] for name in STATISTICS],
    }
    card = environment.get_template("model_card.md").render(
        **metadata, research_only=RESEARCH_ONLY, measures=METRICS
    )
    return f"{card.strip()}\n"


def _machines(sessions: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The different machines of a training's sessions; keys that were not recorded are None."""
    keys = ("devices", "device", "processor", "mindspore", "cores")
    machines = [{key: session.get(key) for key in keys} for session in sessions or ()]
    return [machine for i, machine in enumerate(machines) if machine not in machines[:i]]


def _metric_name(key: str) -> str:
    """The name of a metric, such as "Dice, apex"."""
    part, _, whole = key.partition("_")
    text = Texts("en")
    return f"{text(whole)}, {part}" if part in ("apex", "base") else text(key)
