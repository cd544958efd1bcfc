"""Drawings of cases, made as the cases come, so that no volume is kept or read again."""

from typing import NamedTuple

from .overlays import OverlayCase, OverlayRow, orient_to_lps, overlay_cases, overlay_row
from .page import CasePictures, case_pictures, report_cases


class Drawing(NamedTuple):
    """What overlays.png and report.html show of a case."""

    overlay: OverlayRow
    pictures: CasePictures


def draw_case(case: OverlayCase) -> Drawing:
    """Draws a case.

    Raises:
        ValueError: a mask has another grid than the image.
    """
    volumes = orient_to_lps(case)
    return Drawing(overlay_row(case, volumes), case_pictures(case.case, volumes))


class Album:
    """Drawings of the cases that the results will show, as far as the rows until now tell.

    Their number is bounded; of a native case a drawing takes some 2 MB.
    """

    def __init__(self) -> None:
        self.drawings: dict[str, Drawing] = {}
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
        shown = {*overlay_cases(self._rows), *report_cases(self._rows)}
        if case.case in shown:
            self.drawings[case.case] = draw_case(case)
        self.drawings = {name: drawn for name, drawn in self.drawings.items() if name in shown}
