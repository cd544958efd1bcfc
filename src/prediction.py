"""Prediction for many images without reference masks: masks, prostate volumes, report."""

import hashlib
import json
import logging
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from tqdm import tqdm

from .data_manager import channel_of
from .images.formats import suffix_of
from .images.grid import check_same_grid
from .images.reading import read_image, read_volume
from .metrics import volume_ml
from .predictor import LazyNetwork, loaded, network_inputs, segment_inputs
from .report.album import Album
from .report.findings import finding_fields, mask_findings, plane_findings
from .report.painter import Painter
from .report.planes import OverlayCase
from .report.results import (
    OVERLAYS,
    REPORT,
    volume_files,
    warn_about_case,
    write_pictures,
    write_volumes,
)
from .report.tables import VOLUMES_CSV, VOLUMES_JSON, VolumesTable, volumes_text
from .utils import output_folder
from .utils.ahead import Ahead
from .utils.errors import DataError, reason_of
from .utils.files import check_name, hash_file, printable

if TYPE_CHECKING:
    from mindspore import nn

log = logging.getLogger(__name__)

PREDICTION_FILES = (VOLUMES_CSV, VOLUMES_JSON, OVERLAYS, REPORT)
# Configuration keys that change a mask, given the weights and the image.
MASK_KEYS = (
    *("variant", "width", "intensity", "VolSize", "dstRes", "normDir"),
    *("threshold", "flip_average"),
)


def predict(
    network: "nn.Cell | LazyNetwork",
    images: dict[str, Path | DataError],
    config: EasyDict,
    metadata: dict,
    save_probability: bool = False,
    series: str = "",
    skip_existing: bool = False,
    report: bool = True,
    painter: Painter | None = None,
) -> list[dict]:
    """Segments images without references, each in its own geometry and format.

    `dirPredictionImage` gets NAME_test.<ext> (`.nii.gz` for DICOM), with `save_probability` also
    NAME_probability.<ext>; volumes.csv and volumes.json, both up to date after every image; and in
    the end overlays.png and report.html. Predictions of different images may write into one folder
    at the same time; the tables and the report then hold the images of all.

    Args:
        network: from `load_network`; a `LazyNetwork` is loaded while the first image is read.
        images: from `find_images`.
        config: network grid, threshold, flip averaging, `dirPredictionImage`.
        metadata: origin of the masks, for volumes.json and the report, such as "checkpoint".
        save_probability: also write the foreground probability (float32).
        series: the DICOM series to read, see `src.images.dicom.choose_series`.
        skip_existing: keep existing masks of the same images, checkpoint and settings, and the
            rows of other images.
        report: write overlays.png and report.html; without, earlier ones are removed.
        painter: draws them; None: one that does so in this process.

    Returns:
        A row per image, with the columns of volumes.csv (`src.report.tables.CSV_COLUMNS`) and what
        volumes.json has besides.

    Raises:
        DataError: an image could not be segmented (raised after all others were, or at once if it
            is the only one); the folder cannot be written, has files of these names that this
            program did not write, or another process writes the same there.
    """
    folder = Path(config.dirPredictionImage)
    check_name(folder)
    metadata = {**metadata, "configuration": dict(config)}
    outputs = {name: _outputs(name, source, save_probability) for name, source in images.items()}
    files = volume_files(file for names in outputs.values() for file in names.values())
    output_folder.check(folder, [*files, *PREDICTION_FILES])
    network_id = _network_id(metadata)
    reader = _Reader(config, series, network_id, set(images) if skip_existing else set())
    with Ahead(reader.prepare, images.items()) as prepared:
        album = Album(painter, metadata.get("checkpoint")) if report else None
        segmenter = _Segmenter(loaded(network), config, folder, series, album)
        is_only = len(images) == 1
        if is_only:  # one that cannot be read is an error before anything is written
            prepared.peek()
        with (
            output_folder.acquire(folder, images) as alone,
            output_folder.register(folder, PREDICTION_FILES),
        ):
            if alone and not skip_existing:
                output_folder.announce(folder, files)
            table = VolumesTable(folder, metadata)
            earlier = table.start(alone, keep=skip_existing)
            reader.perhaps_done.intersection_update(earlier)
            rows, kept_count = [], 0
            progress = tqdm(images.items(), desc="predicting", disable=None)
            for (name, source), ready in zip(progress, prepared, strict=False):
                row, is_kept = segmenter.process(
                    name, source, outputs[name], earlier.get(name), ready, is_only
                )
                kept_count += is_kept
                rows.append(row)
                table.add(row)
                _warn(row)
            if album is not None:
                _draw(folder, table, album, metadata)
            elif alone:
                pictures = output_folder.list_outputs(folder) & {OVERLAYS, REPORT}
                output_folder.remove(folder, pictures)
    return _summarize(folder, rows, kept_count, report)


def _outputs(name: str, source: Path | DataError, save_probability: bool) -> dict[str, str]:
    """The file names of an image's results, {kind: name}: first the mask, then the probability."""
    suffix = suffix_of(source) if isinstance(source, Path) and not source.is_dir() else None
    suffix = suffix or ".nii.gz"
    kinds = ("test", "probability") if save_probability else ("test",)
    return {kind: f"{name}_{kind}{suffix}" for kind in kinds}


class _Prepared(NamedTuple):
    """An image that is read."""

    image: sitk.Image
    fingerprint: str
    volumes: list[np.ndarray] | None  # `network_inputs`, if they were made


class _Reader(NamedTuple):
    """Reads and prepares images, in another thread than the network's."""

    config: EasyDict
    series: str
    network_id: str
    perhaps_done: set[str]  # names of images whose earlier mask may stay: these are only read

    def prepare(self, item: tuple[str, Path | DataError]) -> _Prepared:
        name, source = item
        if isinstance(source, DataError):
            raise source
        image = read_image(source, channel_of(self.config), self.series)
        fingerprint, volumes = _fingerprint(image, self.network_id), None
        if name not in self.perhaps_done:
            with suppress(MemoryError, RuntimeError, ValueError):  # raised again by `process`
                volumes = network_inputs(image, self.config)
        return _Prepared(image, fingerprint, volumes)


class _Segmenter(NamedTuple):
    """Segments the images of one prediction."""

    network: "nn.Cell"
    config: EasyDict
    folder: Path
    series: str
    album: Album | None

    def process(
        self,
        name: str,
        source: Path | DataError,
        outputs: dict[str, str],
        earlier: dict | None,
        prepared: "Future[_Prepared]",
        is_only: bool,
    ) -> tuple[dict, bool]:
        """Segments an image and writes its mask, or keeps an earlier mask.

        Args:
            name: of the image.
            source: its path, or what is wrong with it.
            outputs: see `_outputs`.
            earlier: the image's row of an earlier prediction, if there is one.
            prepared: of `_Reader.prepare`.
            is_only: whether it is the only image. Its error is raised; with several images, an
                error becomes the "problem" of the image's row.

        Returns:
            The image's row in the table, and whether the earlier mask was kept.
        """
        row = self._empty_row(name, source)
        try:
            image, row["fingerprint"], volumes = prepared.result()
            if earlier is not None and self._is_done(earlier, row, image, outputs):
                place = {key: row[key] for key in ("image", "series", "channel")}
                return {**earlier, **place}, True
            if volumes is None:
                volumes = network_inputs(image, self.config)
            results = segment_inputs(self.network, volumes, image, self.config)
        except (DataError, MemoryError, RuntimeError, ValueError) as error:
            if is_only:
                raise
            return {**row, "problem": printable(reason_of(error))}, False
        assert isinstance(source, Path)  # otherwise `prepare` has raised it
        write_volumes(self.folder, dict(zip(outputs.values(), results, strict=False)), source)
        mask = results[0]
        findings = plane_findings(image, self.config) | mask_findings(mask, self.config)
        volume = {"mask": outputs["test"], "prostate_ml": round(volume_ml(mask), 3)}
        row |= {**volume, **finding_fields(findings)}
        if self.album is not None:
            self.album.add(row, OverlayCase(name, image, mask))
        return row, False

    def _empty_row(self, name: str, source: Path | DataError) -> dict:
        return {
            "case": name,
            "image": printable(source.absolute()) if isinstance(source, Path) else None,
            "series": self.series,
            "channel": channel_of(self.config),
            "mask": None,
            "prostate_ml": None,
            **finding_fields({}),
            "problem": None,
            "fingerprint": None,
        }

    def _is_done(
        self, earlier: dict, row: dict, image: sitk.Image, outputs: dict[str, str]
    ) -> bool:
        """Whether an earlier prediction wrote the same results, and they are still there."""
        if earlier["fingerprint"] != row["fingerprint"]:
            return False
        files = volume_files(outputs.values())
        try:
            if output_folder.check(self.folder, files) != files:
                return False
            for path in (self.folder / name for name in outputs.values()):
                check_same_grid(image, row["image"], read_volume(path), path)
        except DataError:
            return False
        return True


# --- is an earlier mask still valid? --------------------------------------------------------------


def _network_id(metadata: dict) -> str:
    """Hash of the weights and of the settings that change a mask."""
    settings = [metadata["configuration"].get(key) for key in MASK_KEYS]
    digest = hashlib.sha256(json.dumps(settings).encode())
    with suppress(OSError):
        hash_file(metadata.get("checkpoint", ""), digest)
    return digest.hexdigest()


def _fingerprint(image: sitk.Image, network_id: str) -> str:
    """Hash of all that a mask depends on: network, geometry and voxels."""
    geometry = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    digest = hashlib.sha256(repr((network_id, geometry, image.GetSize())).encode())
    digest.update(sitk.GetArrayViewFromImage(image).data)
    return digest.hexdigest()


# --- results of all images ------------------------------------------------------------------------


def _warn(row: dict) -> None:
    if row["problem"]:
        warn_about_case(row["case"], [row["problem"]], "error")
    else:
        warn_about_case(row["case"], row["findings_text"])


def _draw(folder: Path, table: VolumesTable, album: Album, metadata: dict) -> None:
    """Writes overlays.png and report.html of all rows of the table.

    Holds the folder's lock, so that the last of several predictions draws the images of all.
    """

    def read_again(row: dict) -> OverlayCase:
        image = read_image(row["image"], row["channel"], row["series"])
        mask = read_volume(folder / row["mask"])
        check_same_grid(image, row["image"], mask, row["mask"])
        return OverlayCase(row["case"], image, mask)

    with output_folder.lock(folder):
        write_pictures(folder, table.rows(), album, metadata, read_again)


def _summarize(folder: Path, rows: list[dict], kept_count: int, report: bool) -> list[dict]:
    """Logs the rows of the images; raises a DataError if one has no mask."""
    log.info(volumes_text(rows))
    if kept_count:
        log.info(f"{kept_count} of {len(rows)} masks are of an earlier run")
    shown = f"shown in {folder / REPORT}" if report else f"listed in {folder / VOLUMES_CSV}"
    log.info(f"masks and volumes, {shown}")
    failed = sum(row["problem"] is not None for row in rows)
    if failed:
        raise DataError(
            f"{failed} of {len(rows)} images could not be segmented; {folder / VOLUMES_CSV} says "
            "why"
        )
    return rows
