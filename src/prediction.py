"""Images without reference masks: which ones, their masks, and what became of each."""

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import SimpleITK as sitk
from easydict import EasyDict
from mindspore import nn
from tqdm import tqdm

from .data_manager import channel_of
from .evaluation import REPORT, draw_results
from .images.dicom import dicom_files
from .images.formats import SUFFIXES, is_named_as_mask, stem, suffix_of
from .images.reading import check_same_grid, read_image, read_volume
from .images.writing import write_volume
from .metrics import volume_ml
from .predictor import segment
from .promise12.names import is_other_contrast
from .report.figures import OverlayCase
from .report.findings import mask_findings, plane_findings
from .utils import output_folder
from .utils.errors import DataError, reason_of
from .utils.files import check_name, hash_file, write_files

log = logging.getLogger(__name__)

CSV, JSON = "volumes.csv", "volumes.json"
PREDICTION_FILES = (CSV, JSON, "overlays.png", REPORT)
CSV_COLUMNS = ["case", "prostate_ml", "mask", "findings", "problem"]
COLUMNS = {
    *CSV_COLUMNS,
    "image",
    "series",
    "channel",
    "findings_text",
    "fingerprint",
}  # of the JSON
SINGLE_FILE_SUFFIXES = (".zip", ".dcm", ".dicom", ".ima")  # no part of a case's name
# What decides over a mask, besides the weights and the image.
SETTINGS = (
    *("variant", "width", "intensity", "VolSize", "dstRes", "normDir"),
    *("threshold", "flip_average"),
)


# --- which images --------------------------------------------------------------------------------


def find_images(inputs: Iterable[str | Path]) -> dict[str, Path | DataError]:
    """The images that a command line names.

    Args:
        inputs: image files, folders of image files, and DICOM: a file, a folder tree or a .zip of
            one study.

    Returns:
        {name: path}, or what is wrong with a folder in place of its path. Masks, by their names,
        and our own earlier results are left out of folders; a line says how many masks.

    Raises:
        DataError: two of the same name, or what is wrong with the only input.
    """
    found, places = {}, {}
    for item in map(Path, inputs):
        try:
            sources = {path: path for path in _images_of(item)}
        except DataError as error:
            sources = {item: error}
        for path, source in sources.items():
            name = _case_name(path)
            if name in places:
                raise DataError(f"{path}: also called {name}, like {places[name]}; rename one")
            found[name], places[name] = source, path
    if len(found) == 1 and isinstance(source, DataError):
        raise source
    return found


def _case_name(path):
    if path.is_dir():
        name = path.resolve().name  # "." has no name of its own
    else:
        name = path.stem if path.suffix.lower() in SINGLE_FILE_SUFFIXES else stem(path)
    return _as_text(name)


def _as_text(name):
    """A name that can be printed and written, also one that is no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _images_of(item):
    """The images that one input means."""
    if not item.is_dir():
        if is_named_as_mask(item):
            log.info(f"{item}: a mask by its name; segmented because it was given as input")
        elif is_other_contrast(item) and suffix_of(item):
            log.info(f"{item}: no axial T2 by its name; segmented because it was given as input")
        return [item]
    volumes = list(_volumes_below(item))
    masks = [path for path in volumes if is_named_as_mask(path)]
    images = [path for path in volumes if path not in masks]
    dicom = dicom_files(item)
    if dicom and images:
        raise DataError(
            f"{item}: holds images ({images[0]}) and DICOM files ({dicom[0]}); give the ones that "
            "are meant by their own path"
        )
    if masks:
        log.info(f"{item}: {len(masks)} mask(s) left out, by name or folder, such as {masks[0]}")
    if zips := sorted(item.glob("*.zip")):
        log.info(
            f"{item}: {len(zips)} .zip file(s) left out, such as {zips[0]}; give them themselves"
        )
    if dicom:
        return [item]
    others = [path for path in images if is_other_contrast(path)]
    if others and (images := [path for path in images if path not in others]):
        log.info(
            f"{item}: {len(others)} image(s) of another contrast or plane left out, by name, such "
            f"as {others[0]}; give them themselves if they are meant"
        )
    here = [path for path in images if path.parent == item]
    below = len(images) - len(here)
    if not here:
        only = f"only in folders below it, such as {images[0]}" if images else "nor DICOM"
        only = "only masks, by name or folder" if masks and not images else only
        only = f"only other contrasts or planes, by name, such as {others[0]}" if others else only
        raise DataError(f"{item}: no image there ({', '.join(SUFFIXES)}), {only}; give the images")
    _check_no_channels(item, here)
    if below:
        log.info(f"{item}: {below} image(s) in folders below it left out; give these folders too")
    return here


def _check_no_channels(folder, images):
    """nnU-Net's images of one case are of several contrasts: imagesTs/NAME_0000, NAME_0001."""
    if folder.resolve().name not in ("imagesTr", "imagesTs"):
        return
    first = {}
    for path in images:
        name = re.fullmatch(r"(.+)_\d{4}", stem(path))
        if name and first.setdefault(name[1], path) != path:
            raise DataError(
                f"{folder}: {first[name[1]].name} and {path.name} are channels of one case; give "
                f"the T2 images themselves, such as {folder}/*_0000{suffix_of(path)}"
            )


def _volumes_below(folder):
    """Volume files of a folder tree, without what this program wrote."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        ours = output_folder.outputs_in(place)
        for name in sorted(names):
            if suffix_of(name) and not name.startswith(".") and name not in ours:
                yield Path(place, name)


# --- their masks ---------------------------------------------------------------------------------


def predict(
    network: nn.Cell,
    images: dict[str, Path | DataError],
    config: EasyDict,
    about: dict,
    save_probability: bool = False,
    series: str = "",
    skip_existing: bool = False,
) -> pd.DataFrame:
    """Segments images without references, each in its own geometry and format.

    `dirPredictionImage` gets NAME_test.<ext> (`.nii.gz` for DICOM), with `save_probability` also
    NAME_probability.<ext>, volumes.csv and volumes.json, both up to date after every image, and in
    the end overlays.png and report.html. Predictions of different images may write into one folder
    at the same time; the tables and the report then hold the images of all.

    Args:
        network: from `load_network`.
        images: from `find_images`.
        config: network grid, threshold, flip averaging, `dirPredictionImage`.
        about: what else JSON and report should say, such as the checkpoint (see `evaluate_masks`).
        save_probability: also write the float32 probability.
        series: which DICOM series, see `src.images.dicom.choose_series`.
        skip_existing: keep the masks that are there of the same images, checkpoint and settings,
            and the rows of other images.

    Returns:
        A row per image: `CSV_COLUMNS`.

    Raises:
        DataError: after all others were segmented, that an image could not be; at once, if it is
            the only one. The folder cannot be written, holds other people's files of these names,
            or another process writes the same there.
    """
    folder = Path(config.dirPredictionImage)
    check_name(folder)
    outputs = {name: _outputs(name, source, save_probability) for name, source in images.items()}
    names = [*_with_voxels(file for files in outputs.values() for file in files.values())]
    output_folder.check(folder, [*names, *PREDICTION_FILES])
    about = {**about, "configuration": dict(config)}
    job = _Job(network, config, folder, series, _network_id(about))
    # What is wrong with the only image is said before anything is written.
    only = job.read(*images.values()) if len(images) == 1 else None
    with (
        output_folder.running(folder, images) as alone,
        output_folder.writing(folder, PREDICTION_FILES),
    ):
        if alone and not skip_existing:
            output_folder.announce(folder, names)
        table = _Table(folder, about)
        earlier = table.start(alone, skip_existing)
        rows = []
        for name, source in tqdm(images.items(), desc="predicting", disable=None):
            row = job.row(name, source, outputs[name], earlier.get(name), only)
            table.add(row)
            _warn(row)
            rows.append(row)
        _draw(folder, table, about)
    return _told(folder, rows, kept=sum(row is earlier.get(row["case"]) for row in rows))


class _Job(NamedTuple):
    """What all images of a prediction have in common."""

    network: nn.Cell
    config: EasyDict
    folder: Path
    series: str
    network_id: str

    def read(self, source: Path | DataError) -> sitk.Image:
        if isinstance(source, DataError):
            raise source
        return read_image(source, channel_of(self.config), self.series)

    def row(self, name, source, files, earlier, only) -> dict:
        """Segments an image and writes its mask, or finds out why not; its row of the table.

        Args:
            name, source: of the image.
            files: of `_outputs`.
            earlier: its row of an earlier run, returned where all would come out the same; or None.
            only: the image where it is the only one, read already; it fails for itself.
        """
        row = _empty_row(name, source, self)
        try:
            image = self.read(source) if only is None else only
            row["fingerprint"] = _fingerprint(image, self.network_id)
            if _is_done(self.folder, earlier, row, image, files):
                earlier |= {
                    key: row[key] for key in ("image", "series", "channel")
                }  # may have moved
                return earlier
            results = segment(self.network, image, self.config)
        except (DataError, MemoryError, RuntimeError, ValueError) as error:
            if only is not None:
                raise
            return {**row, "problem": _as_text(reason_of(error))}
        with output_folder.writing(self.folder, _with_voxels(files.values())):
            for result, file in zip(results, files.values(), strict=False):
                write_volume(result, self.folder / file, like=source)
        mask = results[0]
        found = plane_findings(image, self.config) | mask_findings(mask, self.config)
        return row | {
            "mask": files["test"],
            "prostate_ml": round(volume_ml(mask), 3),
            "findings": list(found),
            "findings_text": list(found.values()),
        }


def _outputs(name, source, save_probability):
    """{kind: file name} of what an image gets."""
    is_file = isinstance(source, Path) and not source.is_dir()
    suffix = (is_file and suffix_of(source)) or ".nii.gz"
    kinds = ("test", "probability") if save_probability else ("test",)
    return {kind: f"{name}_{kind}{suffix}" for kind in kinds}


def _with_voxels(names):
    """The names, and of each .mhd the file of its voxels."""
    return [
        file
        for name in names
        for file in ([name, f"{name[:-4]}.zraw"] if name.endswith(".mhd") else [name])
    ]


# --- masks of an earlier run ---------------------------------------------------------------------


def _network_id(about):
    """What tells one network with its settings from others."""
    digest = hashlib.sha256(
        json.dumps([about["configuration"].get(key) for key in SETTINGS]).encode()
    )
    with suppress(OSError):
        hash_file(about.get("checkpoint", ""), digest)
    return digest.hexdigest()


def _fingerprint(image, network_id):
    """What tells the mask that a network makes of an image from others."""
    geometry = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    digest = hashlib.sha256(repr((network_id, geometry, image.GetSize())).encode())
    digest.update(sitk.GetArrayViewFromImage(image))
    return digest.hexdigest()


def _is_done(folder, earlier, row, image, files):
    """Whether an earlier run made of the same image, alike, what is wanted now, and it is there."""
    if earlier is None or earlier.get("fingerprint") != row["fingerprint"]:
        return False
    names = _with_voxels(files.values())
    try:
        if output_folder.check(folder, names) != names:
            return False
        for file in files.values():
            check_same_grid(image, row["image"], read_volume(folder / file), folder / file)
    except DataError:
        return False
    return True


# --- what became of each -------------------------------------------------------------------------


def _empty_row(name, source, job):
    """The row of an image that nothing is known of yet."""
    return {
        "case": name,
        "image": _as_text(source.absolute()) if isinstance(source, Path) else None,
        "series": job.series,
        "channel": channel_of(job.config),
        "mask": None,
        "prostate_ml": None,
        "findings": [],
        "findings_text": [],
        "problem": None,
        "fingerprint": None,
    }


class _Table:
    """volumes.csv and volumes.json of a folder, to which several processes may add."""

    def __init__(self, folder: Path, about: dict):
        self.folder, self.about = folder, about

    def start(self, alone: bool, keep: bool) -> dict[str, dict]:
        """Empties the table unless others are adding to it; with `keep` masks keep their rows.

        Returns:
            {case: row} of earlier masks with `keep`, else nothing.
        """
        with output_folder.locked(self.folder):
            ours = output_folder.outputs_in(self.folder)
            rows = self.rows()
            earlier = {row["case"]: row for row in rows if row["mask"] in ours} if keep else {}
            if alone:
                self._write(list(earlier.values()))
        return earlier

    def add(self, row: dict) -> None:
        """Puts a row at the end, in place of an earlier one of the case."""
        with output_folder.locked(self.folder):
            self._write([*(other for other in self.rows() if other["case"] != row["case"]), row])

    def rows(self) -> list[dict]:
        try:
            content = json.loads(Path(self.folder, JSON).read_text("utf-8"))
            rows = content["cases"]
            return rows if all(row.keys() >= COLUMNS for row in rows) else []
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return []  # none yet, or of another version

    def _write(self, rows):
        content = {
            **self.about,
            "flagged": [row["case"] for row in rows if row["findings"] or row["problem"]],
            "cases": rows,
        }
        text = json.dumps(content, indent=2, allow_nan=False, default=os.fspath, ensure_ascii=False)
        write_files(
            {
                self.folder / CSV: _csv(rows).to_csv(index=False).encode(),
                self.folder / JSON: f"{text}\n".encode(errors="backslashreplace"),
            }
        )


def _csv(rows):
    """Rows as volumes.csv has them."""
    rows = [{**row, "findings": ";".join(row["findings"])} for row in rows]
    return pd.DataFrame(rows, columns=CSV_COLUMNS)


def _warn(row):
    """Says on standard error what somebody should look at; where nobody listens, in silence."""
    text = row["problem"] or "; ".join(row["findings_text"])
    if text:
        with suppress(OSError, ValueError):
            kind = "error" if row["problem"] else "warning"
            tqdm.write(f"{kind}: {row['case']}: {text}", file=sys.stderr)


def _draw(folder, table, about):
    """overlays.png and report.html of all rows; in turn, so that the last has the rows of all."""

    def drawn():
        for row in rows:
            if row["problem"] is None:
                with suppress(DataError):  # gone or changed since: no picture
                    image = read_image(row["image"], row["channel"], row["series"])
                    mask = read_volume(folder / row["mask"])
                    check_same_grid(image, row["image"], mask, row["mask"])
                    yield OverlayCase(row["case"], image, mask)

    with output_folder.locked(folder):
        rows = table.rows()
        draw_results(folder, rows, drawn, about)


def _told(folder, rows, kept):
    """Prints what became of the images; raises a DataError where one has no mask."""
    table = _csv(rows)
    empty = [name for name in ("findings", "problem") if not table[name].any()]
    log.info(table.drop(columns=empty).fillna("-").to_string(index=False))
    if kept:
        log.info(f"{kept} of {len(rows)} masks are of an earlier run")
    log.info(f"masks and volumes, shown in {folder / REPORT}")
    failed = int(table["problem"].notna().sum())
    if failed:
        raise DataError(
            f"{failed} of {len(rows)} images could not be segmented; {folder / CSV} says why"
        )
    return table
