"""Drawings of cases, made as the cases come, so that no volume is kept or read again."""

from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from .page import TrainingCurves, report_cases
from .painter import Painter
from .planes import (
    CasePictures,
    OverlayCase,
    OverlayRow,
    axial_planes,
    cropped_masks,
    orient_to_lps,
    overlay_row,
)


class Drawing(NamedTuple):
    """What overlays.png and report.html show of a case."""

    overlay: OverlayRow
    pictures: "Future[CasePictures]"


def draw_case(case: OverlayCase, painter: Painter) -> Drawing:
    """Cuts the slices of a case, and has them drawn.

    Raises:
        ValueError: a mask has another grid than the image.
    """
    volumes = orient_to_lps(case)
    overlay = overlay_row(case, volumes)
    pictures = painter.submit(
        "case_pictures", overlay.planes, axial_planes(volumes), cropped_masks(volumes)
    )
    return Drawing(overlay, pictures)


class Album:
    """Drawings of the cases that the results will show, as far as the rows until now tell.

    Their number is bounded; of a native case a drawing takes some 2 MB.

    Args:
        painter: draws; None: one that does so in this process.
        checkpoint: whose training curves are shown, if its run has them.
        language: of the report, one of `src.report.texts.LANGUAGES`.
    """

    def __init__(
        self,
        painter: Painter | None = None,
        checkpoint: str | Path | None = None,
        language: str = "en",
    ) -> None:
        self.painter, self.language = painter or Painter(), language
        self.drawings: dict[str, Drawing] = {}
        self.training: Future[TrainingCurves | None] | None = None
        if checkpoint is not None:
            self.training = self.painter.submit("training_curves_of", str(checkpoint))
        self._rows: list[dict] = []

    def add(self, row: dict, case: OverlayCase) -> None:
        """Draws a case if it is among those to show, and drops one that no longer is.

        Args:
            row: of the case in the results.
            case: its image and masks.

        Raises:
            ValueError: a mask has another grid than the image.
        """
        self._rows.append(row)
        shown = report_cases(self._rows)
        if case.case in shown:
            self.drawings[case.case] = draw_case(case, self.painter)
        self.drawings = {name: drawn for name, drawn in self.drawings.items() if name in shown}
