"""The validation of a training: the mean Dice of cases that are prepared once."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from mindspore import nn

from ..data_manager import Case, content_digest, read_case, worker_count, xyz
from ..devices.ranks import Ranks
from ..metrics import dice
from ..predictor import network_inputs, segment_inputs
from ..report.planes import OverlayCase
from ..utils.errors import naming
from ..utils.stopping import stop_if_asked


class PreparedCase(NamedTuple):
    """What a validation needs of a case."""

    case: Case
    inputs: list[np.ndarray]  # `network_inputs` of the image
    reference: sitk.Image  # uint8, 0 and 1, with the image's geometry
    image: sitk.Image | None  # float32, of a case to draw
    digest: str  # `content_digest` of the case

    @property
    def nbytes(self) -> int:
        """Memory in bytes; the mirror image of `flip_average` shares that of the volume."""
        voxel_bytes = 1 if self.image is None else 1 + 4
        return self.inputs[0].nbytes + voxel_bytes * self.reference.GetNumberOfPixels()


def prepare_case(case: Case, config: EasyDict, is_drawn: bool = False) -> PreparedCase:
    """Reads a case and prepares it for the network.

    Args:
        case: to read.
        config: see `read_case` and `network_inputs`.
        is_drawn: whether to keep the image.

    Raises:
        DataError: see `read_case`, `network_inputs`.
    """
    image, reference = read_case(case, config)
    with naming(case.image_path):
        inputs = network_inputs(image, config)
    digest = content_digest(image, reference)
    return PreparedCase(case, inputs, reference, image if is_drawn else None, digest)


class ValidationSet:
    """Cases on which a network is scored again and again.

    All are read and prepared at the start, so that a broken file stops a training there; they are
    kept in memory up to a bound. Cases beyond it are read and prepared at each validation.

    Args:
        cases: with reference masks; each rank keeps its share.
        config: see `prepare_case`, `segment_on_grids`; `num_workers`.
        budget_bytes: of memory for the prepared cases of this rank.
        ranks: that validate together, with the same cases.
        drawn: number of cases, the first of this rank, whose masks are kept in `overlays`.

    Attributes:
        overlays: the drawn cases with the masks of the last validation.
        digests: case ID -> `content_digest`, of the cases of all ranks.

    Raises:
        DataError: a case cannot be read.
    """

    def __init__(
        self,
        cases: list[Case],
        config: EasyDict,
        budget_bytes: float,
        ranks: Ranks = Ranks(),  # noqa: B008, it is frozen
        drawn: int = 0,
    ) -> None:
        self.config = config
        self.ranks = ranks
        self.case_count = len(cases)
        self.share: list[Case | PreparedCase] = []
        self.overlays: list[OverlayCase] = []
        own = ranks.share(cases)
        self.drawn_ids = {case.case_id for case in own[:drawn]}
        digests = {}
        with ThreadPoolExecutor(worker_count(config)) as pool:
            prepared_cases = pool.map(self._prepare, own)
            for case, prepared in zip(own, prepared_cases, strict=True):
                digests[case.case_id] = prepared.digest
                budget_bytes -= prepared.nbytes
                self.share.append(prepared if budget_bytes >= 0 else case)
        self.digests: dict[str, str] = {}
        for text in ranks.gather_texts(json.dumps(digests)):
            self.digests |= json.loads(text)

    def mean_dice(self, network: nn.Cell) -> float:
        """Returns the mean Dice of the cases on their own grids; all ranks call this together.

        Args:
            network: in evaluation mode.
        """
        self.overlays = []
        scores = [self._dice(network, case) for case in self.share]
        return float(np.mean(self.ranks.gather(scores, self.case_count)))

    def _prepare(self, case: Case) -> PreparedCase:
        return prepare_case(case, self.config, case.case_id in self.drawn_ids)

    def _dice(self, network: nn.Cell, case: Case | PreparedCase) -> float:
        stop_if_asked()
        if isinstance(case, Case):
            case = self._prepare(case)

        def read_again() -> sitk.Image:
            return read_case(case.case, self.config)[0]

        mask = segment_inputs(network, case.inputs, case.reference, self.config, read_again).mask
        if case.image is not None:
            drawn = OverlayCase(case.case.case_id, case.image, mask, case.reference)
            self.overlays.append(drawn)
        return dice(xyz(case.reference) > 0, xyz(mask) > 0)
