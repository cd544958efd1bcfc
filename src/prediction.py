"""Prediction for many images without reference masks: masks, prostate volumes, report."""

import logging
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from tqdm import tqdm

from .data_manager import channel_of
from .earlier_masks import fingerprint, image_hash, is_valid, left_over, network_id, study_hash
from .images.grid import check_same_grid
from .images.reading import read_image
from .images.writing import volume_files
from .input_images import InputImage
from .measurements import MEASURES, measure_gland
from .predictor import (
    LazyNetwork,
    Segmentation,
    cut_share,
    loaded,
    network_inputs,
    segment_inputs,
)
from .report.album import Album
from .report.findings import finding_fields, mask_findings, plane_findings
from .report.painter import Painter
from .report.planes import OverlayCase
from .report.results import OVERLAYS, REPORT, warn_about_case, write_pictures
from .report.tables import (
    LATER_KEYS,
    METRICS_JSON,
    VOLUMES_CSV,
    VOLUMES_JSON,
    VolumesTable,
    volumes_text,
)
from .result_files import (
    ResultFiles,
    check_types,
    read_mask,
    result_files,
    write_volumes,
    writers_of,
)
from .utils import output_folder
from .utils.errors import DataError, naming, reason_of
from .utils.files import check_name, printable
from .utils.prefetch import Prefetch

if TYPE_CHECKING:
    from mindspore import nn

    from .ensemble import Ensemble
    from .images.dicom.segmentation import Source

log = logging.getLogger(__name__)

PREDICTION_FILES = (VOLUMES_CSV, VOLUMES_JSON, OVERLAYS, REPORT)


class Outputs(NamedTuple):
    """What a prediction writes beside its tables."""

    types: Collection[str] = ("image",)  # of the masks, one or more of `OUTPUT_TYPES`
    probability: bool = False  # NAME_probability.<ext>, of the foreground (float32)
    report: bool = True  # overlays.png and report.html; without, earlier ones are removed
    language: str = "en"  # of the report, one of `src.report.texts.LANGUAGES`


def predict(
    network: "nn.Cell | Ensemble | LazyNetwork",
    images: Sequence[InputImage],
    config: EasyDict,
    metadata: dict,
    outputs: Outputs = Outputs(),  # noqa: B008, it is immutable
    *,
    skip_existing: bool = False,
    painter: Painter | None = None,
) -> list[dict]:
    """Segments images without references, each in its own geometry and format.

    `dirPredictionImage` gets NAME_test.<ext> (`.nii.gz` for DICOM) in each of the output types,
    which appear together, while an image's files of other types, of an earlier prediction, are
    removed; volumes.csv and volumes.json, both up to date after every image; and in the end the
    report. Predictions of different images may write into one folder at the same time; the tables
    and the report then hold the images of all.

    Args:
        network: from `load_network` or `load_members`; a `LazyNetwork` is loaded while the first
            image is read.
        images: from `find_images`; no two of one name.
        config: network grid, threshold, flip averaging, recentring, `dirPredictionImage`.
        metadata: origin of the masks, for volumes.json and the report, see
            `src.ensemble.origin_of`.
        outputs: what is written.
        skip_existing: keep existing masks of the same images, checkpoint and settings, and the
            rows of other images.
        painter: draws the report's pictures; None: one that does so in this process.

    Returns:
        A row per image, with the columns of volumes.csv (`src.report.tables.CSV_COLUMNS`) and what
        volumes.json has besides.

    Raises:
        DataError: an image could not be segmented (raised after all others were, or at once if it
            is the only one); the folder cannot be written, has files of these names that this
            program did not write or that were edited since, or another process writes the same
            there.
        UsageError: an output type that an image cannot have, or whose package is not installed.
    """
    types = check_types(outputs.types, images)
    files = {image.name: result_files(image, types, outputs.probability) for image in images}
    metadata = {**metadata, "configuration": dict(config)}
    metadata["network_id"] = network_id(metadata)
    table = VolumesTable(Path(config.dirPredictionImage), metadata)
    _check_folder(table, files.values(), skip_existing)
    perhaps_done = set(files) if skip_existing else set()
    reader = _Reader(config, perhaps_done, "dicom_seg" in types)
    with Prefetch(reader.prepare, images) as prepared:
        album = None
        if outputs.report:
            album = Album(painter, metadata.get("checkpoint"), outputs.language)
        segmenter = _Segmenter(loaded(network), config, table, album, len(images) == 1)
        if segmenter.is_only:  # one that cannot be read is an error before anything is written
            prepared.peek()
        with _writing(table, files) as alone:
            if alone and not skip_existing:
                output_folder.announce(table.folder, _written(files.values()))
            earlier = table.start(alone, files, keep=skip_existing)
            perhaps_done.intersection_update(earlier)
            rows, kept_count = segmenter.process_all(images, files, earlier, prepared)
            if album is not None:
                _draw(table, album)
            elif alone:
                _remove(table.folder, {OVERLAYS, REPORT})
    return _summarize(table.folder, rows, kept_count, outputs.report)


def _check_folder(table: VolumesTable, files: Collection[ResultFiles], skip_existing: bool) -> None:
    """Raises a DataError for files in the results folder that may not be replaced or removed."""
    folder, written = table.folder, _written(files)
    check_name(folder)
    # Files that have a row are looked at when their image comes.
    listed = table.files() if skip_existing else set()
    output_folder.check(folder, [*written, *PREDICTION_FILES], may_be_edited=listed)
    others = set().union(*(names.others for names in files))
    output_folder.check_unedited(folder, others - listed)
    if METRICS_JSON in output_folder.list_outputs(folder):
        raise DataError(
            f"{folder / METRICS_JSON}: of an evaluation; choose another folder for the prediction, "
            "--output_path"
        )


def _written(files: Collection[ResultFiles]) -> list[str]:
    return [file for names in files for file in names.written]


@contextmanager
def _writing(table: VolumesTable, cases: Collection[str]) -> Iterator[bool]:
    """Acquires the results folder; yields whether no other process writes there.

    Puts the tables back where the block fails before its first row, and nobody else writes.
    """
    with (
        output_folder.acquire(table.folder, cases) as alone,
        output_folder.register(table.folder, PREDICTION_FILES, shared=True),
    ):
        try:
            yield alone
        except BaseException:
            with suppress(DataError):
                table.restore(cases)
            raise


def _remove(folder: Path, names: set[str]) -> None:
    """Removes those of the files that an earlier prediction wrote."""
    output_folder.remove(folder, names & output_folder.list_outputs(folder))


class _Prepared(NamedTuple):
    """An image that is read."""

    image: sitk.Image
    image_sha256: str
    volumes: list[np.ndarray] | None  # `network_inputs`, if they were made
    dicom: "Source | None"  # what a DICOM segmentation refers to, if one is wanted


class _Reader(NamedTuple):
    """Reads and prepares images, in another thread than the network's."""

    config: EasyDict
    perhaps_done: set[str]  # names of images whose earlier mask may stay: these are only read
    refers_to_dicom: bool  # whether to read what a DICOM segmentation refers to

    def prepare(self, case: InputImage) -> _Prepared:
        source = case.source
        if isinstance(source, DataError):
            raise source
        if self.refers_to_dicom:
            from .images.dicom import choose_series, find_series
            from .images.dicom.segmentation import make_segmentation, read_source

            series = choose_series(find_series(source), case.series, source)
            image = read_image(source, channel_of(self.config), series)
            dicom = read_source(series)
            # Headers that no segmentation may have are told before the network runs.
            make_segmentation(sitk.Image(image.GetSize(), sitk.sitkUInt8), dicom)
        else:
            image, dicom = read_image(source, channel_of(self.config), case.series), None
        volumes = None
        if case.name not in self.perhaps_done:
            # Those that are suppressed are raised again by `_Segmenter`.
            with suppress(MemoryError, RuntimeError, ValueError), naming(source):
                volumes = network_inputs(image, self.config)
        return _Prepared(image, image_hash(image), volumes, dicom)


class _Segmenter(NamedTuple):
    """Segments the images of one prediction."""

    network: "nn.Cell | Ensemble"
    config: EasyDict
    table: VolumesTable
    album: Album | None
    is_only: bool  # whether there is one image, whose error is raised; else its row tells it

    def process_all(
        self,
        images: Sequence[InputImage],
        files: dict[str, ResultFiles],
        earlier: dict[str, dict],
        prepared: "Prefetch[InputImage, _Prepared]",
    ) -> tuple[list[dict], int]:
        """Segments the images; removes their files of other output types.

        Args:
            images: to segment.
            files: of each, by its name.
            earlier: rows of an earlier prediction, by their image's name.
            prepared: the images, read by `_Reader.prepare`.

        Returns:
            The rows, and how many of the masks are earlier ones.
        """
        rows, kept_count = [], 0
        outdated: set[str] = set()
        progress = tqdm(images, desc="predicting", disable=None)
        for case, ready in zip(progress, prepared, strict=False):
            names = files[case.name]
            row, is_kept = self._process(case, names, earlier.get(case.name), ready)
            rows.append(row)
            kept_count += is_kept
            if row["mask"] is not None and not is_kept:
                outdated |= names.others
            self.table.add(row)
            _warn(row)
        _remove(self.table.folder, outdated)
        return rows, kept_count

    def _process(
        self,
        case: InputImage,
        files: ResultFiles,
        earlier: dict | None,
        prepared: "Future[_Prepared]",
    ) -> tuple[dict, bool]:
        """Segments an image and writes its mask, or keeps an earlier mask.

        Returns:
            The image's row in the table, and whether the earlier mask was kept.
        """
        row = self._empty_row(case)
        folder, source = self.table.folder, case.source
        try:
            image, row["image_sha256"], volumes, dicom = prepared.result()
            assert isinstance(source, Path)  # otherwise `prepare` has raised it
            network_id = self.table.metadata["network_id"]
            row["fingerprint"] = fingerprint(row["image_sha256"], network_id, source)
            if dicom is not None:
                row["study_sha256"] = study_hash(dicom)
            if earlier is not None and is_valid(folder, earlier, row, files.names):
                place = {key: row[key] for key in ("image", "series", "channel")}
                return {**earlier, **place, "problem": None}, True
            with naming(source):
                if volumes is None:
                    volumes = network_inputs(image, self.config)
                found = segment_inputs(self.network, volumes, image, self.config)
            writers = writers_of(files.names, found.mask, found.probability, source, dicom)
        except (DataError, MemoryError, RuntimeError, ValueError) as error:
            if self.is_only:
                raise
            problem = printable(reason_of(error))
            if earlier is not None:
                return {**earlier, "problem": f"{problem}; its earlier mask stays"}, True
            problem += left_over(folder, files.others.union(files.names.values()))
            return {**row, "problem": problem}, False
        write_volumes(folder, writers)
        row |= {
            "mask": next(iter(files.names.values())),
            "outputs": files.names,
            **_measures(image, found, self.config),
        }
        if self.album is not None:
            self.album.add(row, OverlayCase(case.name, image, found.mask))
        return row, False

    def _empty_row(self, case: InputImage) -> dict:
        source = case.source
        return {
            "case": case.name,
            "image": printable(source.absolute()) if isinstance(source, Path) else None,
            "series": case.series,
            "channel": channel_of(self.config),
            "mask": None,
            "outputs": {},
            **dict.fromkeys(LATER_KEYS),
            **dict.fromkeys(MEASURES),
            **finding_fields({}),
            "problem": None,
            "fingerprint": None,
        }


def _measures(image: sitk.Image, found: Segmentation, config: EasyDict) -> dict:
    """What a row tells of a gland: its measures, and what to look at."""
    cut = cut_share(found.mask, found.probability, config.threshold)
    findings = plane_findings(image, config)
    findings |= mask_findings(found.mask, config, found.centre_mm, cut)
    measures = _rounded(measure_gland(found.mask, found.probability))
    return {**measures, **finding_fields(findings)}


def _rounded(measures: dict[str, float | None]) -> dict[str, float | None]:
    return {key: value if value is None else round(value, 3) for key, value in measures.items()}


def _warn(row: dict) -> None:
    if row["problem"]:
        warn_about_case(row["case"], [row["problem"]], "error")
    else:
        warn_about_case(row["case"], row["findings_text"])


def _draw(table: VolumesTable, album: Album) -> None:
    """Writes overlays.png and report.html of all rows of the table.

    Holds the folder's lock, so that the last of several predictions draws the images of all.
    """
    folder = table.folder

    def read_again(row: dict) -> OverlayCase:
        output_folder.check_unedited(folder, volume_files([row["mask"]]), is_locked=True)
        image = read_image(row["image"], row["channel"], row["series"])
        if row["image_sha256"] not in (None, image_hash(image)):
            raise DataError(f"{row['image']}: another image than {row['mask']} was made of")
        mask = read_mask(folder / row["mask"])
        check_same_grid(image, row["image"], mask, row["mask"])
        return OverlayCase(row["case"], image, mask)

    with output_folder.lock(folder), output_folder.rewriting(folder, (OVERLAYS, REPORT)):
        write_pictures(folder, table.rows(), album, table.metadata, read_again)


def _summarize(folder: Path, rows: list[dict], kept_count: int, report: bool) -> list[dict]:
    """Logs the rows of the images; raises a DataError if one has no mask."""
    log.info(volumes_text(rows))
    if kept_count:
        log.info(f"{kept_count} of {len(rows)} masks are of an earlier run")
    shown = f"shown in {folder / REPORT}" if report else f"listed in {folder / VOLUMES_CSV}"
    log.info(f"masks and volumes, {shown}")
    problems = [row for row in rows if row["problem"] is not None]
    failed = sum(row["mask"] is None for row in problems)
    stayed = f"{len(problems) - failed} of {len(rows)} earlier masks could not be made anew"
    if problems:
        raise DataError(
            (f"{failed} of {len(rows)} images could not be segmented" if failed else stayed)
            + f"; {folder / VOLUMES_CSV} says why"
        )
    return rows
