"""Prediction for many images without reference masks: masks, prostate volumes, report."""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from tqdm import tqdm

from .config import GRID_KEYS, OUTPUT_KEYS
from .data_manager import PREPROCESSING, channel_of
from .evaluation import evaluated_masks
from .images.formats import OUTPUT_TYPES, suffix_of
from .images.grid import check_same_grid
from .images.reading import read_image, read_volume
from .images.seg_nrrd import save_seg_nrrd
from .images.writing import check_volume_name, save_volume, volume_files, write_together
from .measurements import MEASURES, measure_gland
from .predictor import (
    POSTPROCESSING,
    LazyNetwork,
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
from .utils import output_folder
from .utils.errors import DataError, UsageError, naming, reason_of
from .utils.files import check_name, printable
from .utils.prefetch import Prefetch

if TYPE_CHECKING:
    from mindspore import nn

    from .ensemble import Ensemble
    from .images.dicom.segmentation import Source

log = logging.getLogger(__name__)

PREDICTION_FILES = (VOLUMES_CSV, VOLUMES_JSON, OVERLAYS, REPORT)
# Configuration keys that change a mask, given the weights and the image.
MASK_KEYS = ("variant", "width", *GRID_KEYS, *OUTPUT_KEYS)


def predict(
    network: "nn.Cell | Ensemble | LazyNetwork",
    images: dict[str, Path | DataError],
    config: EasyDict,
    metadata: dict,
    *,
    save_probability: bool = False,
    series: str = "",
    skip_existing: bool = False,
    report: bool = True,
    painter: Painter | None = None,
    output_types: Iterable[str] = ("image",),
    studies: Collection[str] = (),
    language: str = "en",
) -> list[dict]:
    """Segments images without references, each in its own geometry and format.

    `dirPredictionImage` gets NAME_test.<ext> (`.nii.gz` for DICOM) in each of the output types,
    with `save_probability` also NAME_probability.<ext>; volumes.csv and volumes.json, both up to
    date after every image; and in the end overlays.png and report.html. Predictions of different
    images may write into one folder at the same time; the tables and the report then hold the
    images of all.

    Args:
        network: from `load_network` or `load_members`; a `LazyNetwork` is loaded while the first
            image is read.
        images: from `find_images`.
        config: network grid, threshold, flip averaging, recentring, `dirPredictionImage`.
        metadata: origin of the masks, for volumes.json and the report, see
            `src.ensemble.origin_of`.
        save_probability: also write the foreground probability (float32).
        series: the DICOM series to read, see `src.images.dicom.choose_series`.
        skip_existing: keep existing masks of the same images, checkpoint and settings, and the
            rows of other images.
        report: write overlays.png and report.html; without, earlier ones are removed.
        painter: draws them; None: one that does so in this process.
        output_types: of the masks, at least one of `OUTPUT_TYPES`. All files of an image appear
            together; those of other types, of an earlier prediction, are removed.
        studies: names of images whose files get a folder of their own, called like the image.
        language: of the report, one of `src.report.texts.LANGUAGES`.

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
    types = _check_types(output_types, images.values())
    folder = Path(config.dirPredictionImage)
    check_name(folder)
    metadata = {**metadata, "configuration": dict(config)}
    outputs = {
        name: _outputs(name, source, types, save_probability, name in studies)
        for name, source in images.items()
    }
    files = volume_files(file for names in outputs.values() for file in names.values())
    others = {
        name: _other_outputs(name, source, outputs[name], name in studies)
        for name, source in images.items()
    }
    table = VolumesTable(folder, metadata)
    # Files that have a row are looked at when their image comes.
    listed = table.files() if skip_existing else set()
    output_folder.check(folder, [*files, *PREDICTION_FILES], may_be_edited=listed)
    output_folder.check_unedited(folder, set().union(*others.values()) - listed)
    if evaluated := evaluated_masks(folder).intersection(files):
        raise DataError(
            f"{folder / min(evaluated)}: of an evaluation, listed in {METRICS_JSON}; choose "
            "another folder"
        )
    network_id = metadata["network_id"] = _network_id(metadata)
    perhaps_done = set(images) if skip_existing else set()
    reader = _Reader(config, series, perhaps_done, "dicom_seg" in types)
    with Prefetch(reader.prepare, images.items()) as prepared:
        album = Album(painter, metadata.get("checkpoint"), language) if report else None
        segmenter = _Segmenter(loaded(network), config, network_id, folder, series, album)
        is_only = len(images) == 1
        if is_only:  # one that cannot be read is an error before anything is written
            prepared.peek()
        with (
            output_folder.acquire(folder, images) as alone,
            output_folder.register(folder, PREDICTION_FILES, shared=True),
            _restored_on_failure(table, images),
        ):
            if alone and not skip_existing:
                output_folder.announce(folder, files)
            earlier = table.start(alone, images, keep=skip_existing)
            reader.perhaps_done.intersection_update(earlier)
            rows, kept_count = [], 0
            outdated: set[str] = set()
            progress = tqdm(images.items(), desc="predicting", disable=None)
            for (name, source), ready in zip(progress, prepared, strict=False):
                row, is_kept = segmenter.process(
                    name, source, outputs[name], earlier.get(name), ready, is_only
                )
                kept_count += is_kept
                if row["mask"] is None:
                    row["problem"] += _left_over(folder, {*others[name], *outputs[name].values()})
                elif not is_kept:
                    outdated |= others[name]
                rows.append(row)
                table.add(row)
                _warn(row)
            output_folder.remove(folder, outdated & output_folder.list_outputs(folder))
            if album is not None:
                _draw(folder, table, album, metadata)
            elif alone:
                pictures = output_folder.list_outputs(folder) & {OVERLAYS, REPORT}
                output_folder.remove(folder, pictures)
    return _summarize(folder, rows, kept_count, report)


def _check_types(
    output_types: Iterable[str], sources: Collection[Path | DataError]
) -> tuple[str, ...]:
    """Returns the output types in the order of `OUTPUT_TYPES`; raises the UsageErrors."""
    wanted = set(output_types)
    if unknown := wanted.difference(OUTPUT_TYPES):
        raise UsageError(
            f"--output_type {min(unknown)}: expected one or several of {', '.join(OUTPUT_TYPES)}"
        )
    if "dicom_seg" in wanted:
        from .images.dicom.segmentation import check_highdicom

        check_highdicom()
        for source in sources:
            if isinstance(source, Path) and not source.is_dir() and suffix_of(source):
                raise UsageError(
                    f"--output_type dicom_seg: {printable(source)} is no DICOM series, which a "
                    "DICOM segmentation refers to; give the series, or another output type"
                )
    return tuple(kind for kind in OUTPUT_TYPES if kind in wanted) or ("image",)


def _outputs(
    name: str,
    source: Path | DataError,
    types: Iterable[str],
    save_probability: bool,
    has_folder: bool,
) -> dict[str, str]:
    """The file names of an image's results, {output type or "probability": name}; masks first."""
    suffix = suffix_of(source) if isinstance(source, Path) and not source.is_dir() else None
    suffix = suffix or ".nii.gz"
    place = f"{name}/{name}" if has_folder else name
    files = {kind: f"{place}_test{OUTPUT_TYPES[kind] or suffix}" for kind in types}
    return files | ({"probability": f"{place}_probability{suffix}"} if save_probability else {})


def _other_outputs(
    name: str, source: Path | DataError, outputs: dict[str, str], has_folder: bool
) -> set[str]:
    """Files that an image had of an earlier prediction with other output types."""
    possible = _outputs(name, source, OUTPUT_TYPES, True, has_folder)
    return set(volume_files(possible.values())).difference(volume_files(outputs.values()))


def _writers(
    outputs: dict[str, str],
    mask: sitk.Image,
    probability: sitk.Image,
    source: Path,
    dicom: "Source | None",
) -> dict[str, Callable[[Path], None]]:
    """What writes the results of an image, {file name: function of a path}.

    Raises:
        DataError: the series cannot have a DICOM segmentation, or a file not this name.
    """
    for file in outputs.values():
        check_volume_name(file)
    writers = {
        "image": partial(save_volume, mask, like=source),
        "seg_nrrd": partial(save_seg_nrrd, mask),
        "probability": partial(save_volume, probability, like=source),
    }
    if dicom is not None:
        from .images.dicom.segmentation import make_segmentation, save_segmentation

        writers["dicom_seg"] = partial(save_segmentation, make_segmentation(mask, dicom), mask)
    return {file: writers[kind] for kind, file in outputs.items()}


def _read_mask(path: Path) -> sitk.Image:
    """Reads a mask of any output type."""
    if path.name.endswith(OUTPUT_TYPES["dicom_seg"]):
        from .images.dicom.segmentation import read_segmentation

        return read_segmentation(path)
    return read_volume(path)


class _Prepared(NamedTuple):
    """An image that is read."""

    image: sitk.Image
    image_sha256: str
    volumes: list[np.ndarray] | None  # `network_inputs`, if they were made
    dicom: "Source | None"  # what a DICOM segmentation refers to, if one is wanted


class _Reader(NamedTuple):
    """Reads and prepares images, in another thread than the network's."""

    config: EasyDict
    series: str
    perhaps_done: set[str]  # names of images whose earlier mask may stay: these are only read
    refers_to_dicom: bool  # whether to read what a DICOM segmentation refers to

    def prepare(self, item: tuple[str, Path | DataError]) -> _Prepared:
        name, source = item
        if isinstance(source, DataError):
            raise source
        if self.refers_to_dicom:
            from .images.dicom import choose_series, find_series
            from .images.dicom.segmentation import make_segmentation, read_source

            series = choose_series(find_series(source), self.series, source)
            image = read_image(source, channel_of(self.config), series)
            dicom = read_source(series)
            # Headers that no segmentation may have are told before the network runs.
            make_segmentation(sitk.Image(image.GetSize(), sitk.sitkUInt8), dicom)
        else:
            image, dicom = read_image(source, channel_of(self.config), self.series), None
        volumes = None
        if name not in self.perhaps_done:
            # Those that are suppressed are raised again by `process`.
            with suppress(MemoryError, RuntimeError, ValueError), naming(source):
                volumes = network_inputs(image, self.config)
        return _Prepared(image, _image_hash(image), volumes, dicom)


class _Segmenter(NamedTuple):
    """Segments the images of one prediction."""

    network: "nn.Cell | Ensemble"
    config: EasyDict
    network_id: str
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
            image, row["image_sha256"], volumes, dicom = prepared.result()
            row["fingerprint"] = _fingerprint(row["image_sha256"], self.network_id)
            if dicom is not None:
                row["study_sha256"] = _study_hash(dicom)
            if earlier is not None:
                self._check_earlier(earlier, row)
                if self._is_done(earlier, row, outputs):
                    place = {key: row[key] for key in ("image", "series", "channel")}
                    return {**earlier, **place, "problem": None}, True
            assert isinstance(source, Path)  # otherwise `prepare` has raised it
            with naming(source):
                if volumes is None:
                    volumes = network_inputs(image, self.config)
                mask, probability, centre_mm = segment_inputs(
                    self.network, volumes, image, self.config
                )
            writers = _writers(outputs, mask, probability, source, dicom)
        except (DataError, MemoryError, RuntimeError, ValueError) as error:
            if is_only:
                raise
            problem = printable(reason_of(error))
            if earlier is not None:
                return {**earlier, "problem": f"{problem}; its earlier mask stays"}, True
            return {**row, "problem": problem}, False
        write_volumes(self.folder, writers)
        findings = plane_findings(image, self.config) | mask_findings(mask, self.config, centre_mm)
        row |= {
            "mask": next(iter(outputs.values())),
            "outputs": outputs,
            **_rounded(measure_gland(mask, probability)),
            **finding_fields(findings),
        }
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
            "outputs": {},
            **dict.fromkeys(LATER_KEYS),
            **dict.fromkeys(MEASURES),
            **finding_fields({}),
            "problem": None,
            "fingerprint": None,
        }

    def _is_done(self, earlier: dict, row: dict, outputs: dict[str, str]) -> bool:
        """Whether an earlier prediction wrote the same results, and they are still there."""
        if earlier["fingerprint"] != row["fingerprint"]:
            return False
        if row["study_sha256"] not in (None, earlier["study_sha256"]):
            return False
        files = volume_files(outputs.values())
        are_listed = outputs.items() <= earlier["outputs"].items()
        return are_listed and all((self.folder / name).exists() for name in files)

    def _check_earlier(self, earlier: dict, row: dict) -> None:
        """Raises a DataError if an earlier mask was edited, or is of another image of its name."""
        output_folder.check_unedited(self.folder, volume_files(earlier["outputs"].values()))
        is_same_file = Path(earlier["image"]).resolve() == Path(row["image"]).resolve()
        if not is_same_file and earlier["image_sha256"] not in (None, row["image_sha256"]):
            raise DataError(
                f"{self.folder / earlier['mask']}: of {earlier['image']}; rename one of the "
                "images, or choose another folder"
            )


def _left_over(folder: Path, names: Collection[str]) -> str:
    """What to say of earlier results of an image that cannot be segmented any more."""
    left = sorted(output_folder.list_outputs(folder).intersection(names))
    return f"; {folder / left[0]} is of an earlier prediction" if left else ""


def _study_hash(dicom: "Source") -> str:
    """Hash of what a DICOM segmentation says about patient, study and images."""
    return hashlib.sha256(repr(dicom.identity()).encode()).hexdigest()


def _rounded(measures: dict[str, float | None]) -> dict[str, float | None]:
    return {key: value if value is None else round(value, 3) for key, value in measures.items()}


def write_volumes(folder: Path, writers: dict[str, Callable[[Path], None]]) -> None:
    """Writes volumes into a results folder, where only our own earlier files may be replaced.

    Args:
        folder: of the results.
        writers: see `write_together`.

    Raises:
        DataError: a file cannot be written, or is there and not ours, or edited since.
    """
    with output_folder.register(folder, volume_files(writers)):
        write_together(folder, writers)


# --- is an earlier mask still valid? --------------------------------------------------------------


def _network_id(metadata: dict) -> str:
    """Hash of the weights and of the settings that change a mask."""
    configuration = metadata["configuration"]
    settings = [configuration.get(key) for key in MASK_KEYS]
    settings += [PREPROCESSING, POSTPROCESSING]
    digest = hashlib.sha256(json.dumps(settings).encode())
    weights = [metadata.get("checkpoint_sha256", ""), *metadata.get("checkpoints", {}).values()]
    digest.update("".join(weights).encode())
    return digest.hexdigest()


def _image_hash(image: sitk.Image) -> str:
    """Hash of an image's geometry and voxels."""
    geometry = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    digest = hashlib.sha256(repr((geometry, image.GetSize())).encode())
    digest.update(sitk.GetArrayViewFromImage(image).data)
    return digest.hexdigest()


def _fingerprint(image_sha256: str, network_id: str) -> str:
    """Hash of all that a mask depends on: image, network and settings."""
    return hashlib.sha256(f"{image_sha256}{network_id}".encode()).hexdigest()


@contextmanager
def _restored_on_failure(table: VolumesTable, cases: Collection[str]) -> Iterator[None]:
    """Puts the tables back where the block fails before its first row, and nobody else writes."""
    try:
        yield
    except BaseException:
        with suppress(DataError):
            table.restore(cases)
        raise


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
        mask = _read_mask(folder / row["mask"])
        check_same_grid(image, row["image"], mask, row["mask"])
        return OverlayCase(row["case"], image, mask)

    with output_folder.lock(folder), output_folder.rewriting(folder, (OVERLAYS, REPORT)):
        write_pictures(folder, table.rows(), album, metadata, read_again)


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
