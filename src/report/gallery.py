"""The augmentation gallery: each transform of src/augment.py applied to a phantom."""

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from .. import augment
from ..config import AUGMENT_KEYS, override_config, vnet_cfg
from ..data_manager import TrainingVolume, intensity_on_network_grid, mask_to_network_grid
from ..promise12.phantom import phantom_case
from ..utils.errors import DataError
from ..utils.files import write_files
from .figures import PREDICTION_COLOUR, REFERENCE_COLOUR, add_line_legend

CASES = 3  # phantoms; the first is shown, the last is the other case of some transforms
SAMPLES = 2  # with all transforms on
COLUMNS = 5
# Layout in inches: side of a view, gap between views, caption below a view, title at the top.
CELL, GAP, CAPTION, TITLE = 2.2, 0.14, 0.5, 0.5
DPI = 100
GRID_MM = 16  # spacing of the grid lines that show how the original was deformed
# Line styles: outline of the mask after and before the transform, grid lines.
AFTER: dict[str, Any] = {"colors": REFERENCE_COLOUR, "linewidths": 2.0, "alpha": 1}
BEFORE: dict[str, Any] = {"colors": PREDICTION_COLOUR, "linewidths": 1.2, "alpha": 1}
GRID: dict[str, Any] = {"colors": "white", "linewidths": 0.7, "alpha": 0.5}
SMOOTHING = 0.8  # Gaussian sigma in voxels; smooths the steps that voxels make in an outline


class Panel(NamedTuple):
    """One view of the gallery.

    `positions` is None for a transform of intensities only.
    """

    name: str
    caption: str  # the parameters
    intensity: np.ndarray  # (X, Y, Z)
    mask: np.ndarray  # (X, Y, Z)
    positions: np.ndarray | None  # (3, X, Y, Z): sampling positions, voxels of the original


def write_gallery(path: str | Path, seed: int) -> None:
    """Writes the gallery as a PNG: the original, each transform alone, all together.

    Args:
        path: of the PNG.
        seed: of the phantom and of the random parameters.

    Raises:
        UsageError: `seed` is below 0.
        DataError: the file is there already, or cannot be written.
    """
    if Path(path).exists():
        raise DataError(f"{path}: exists already; remove it, or choose another --out_path")
    config = override_config(vnet_cfg, [f"seed={seed}", *(f"{key}=1" for key in AUGMENT_KEYS)])
    volumes = [_phantom_volume(config, index) for index in range(CASES)]
    png = BytesIO()
    gallery_figure(gallery_panels(volumes, config), config.dstRes).savefig(png)
    write_files({Path(path): png.getvalue()})


def _phantom_volume(config: EasyDict, index: int) -> TrainingVolume:
    image, mask = phantom_case(config.seed, index)
    return TrainingVolume(
        intensity_on_network_grid(sitk.Cast(image, sitk.sitkFloat32), config),
        mask_to_network_grid(mask, config),
        "axial",
    )


def gallery_panels(volumes: list[TrainingVolume], config: EasyDict) -> list[Panel]:
    """Applies each transform, and samples of all together, to the first case.

    Args:
        volumes: two cases or more.
        config: with all transforms on.

    Returns:
        The original, a panel per transform, `SAMPLES` panels with all transforms.
    """

    def panel(name: str, caption: str, params: dict[str, Any]) -> Panel:
        moves = {key: value for key, value in params.items() if key in augment.SPATIAL}
        shape = volumes[0].mask.shape
        positions = augment.sampling_positions(shape, config.dstRes, **moves) if moves else None
        return Panel(name, caption, *augment.apply(params, volumes, 0, config.dstRes), positions)

    samples = [augment.draw(config, epoch, 0, len(volumes)) for epoch in range(SAMPLES)]
    strong = strong_parameters(samples[0], len(volumes))
    return [
        panel("original", "a phantom, on the network grid", {}),
        *(
            panel(name.replace("_", " "), describe(name, strong[name]), {name: strong[name]})
            for name in augment.TRANSFORMS
        ),
        *(panel("all", f"sample of epoch {i}", params) for i, params in enumerate(samples)),
    ]


def strong_parameters(params: dict[str, Any], case_count: int) -> dict[str, Any]:
    """Replaces random parameters by strong ones, whose effect is visible in a slice.

    Args:
        params: from `augment.draw` with all transforms on; deformation and noise are kept.
        case_count: number of cases; the last is the other case of histogram and transplant.

    Returns:
        {transform: parameters} at the end of the range that `augment.draw` draws from.
    """
    coil = np.linspace(-2, 2, augment.BIAS_MESH + 3) * augment.BIAS_SIGMA  # behind the prostate
    return {
        **params,
        "rotate": np.array([0, 0, augment.ROTATION_DEGREES]),
        "scale": np.full(3, augment.SCALE[1]),
        "shift": np.array([augment.SHIFT_MM, -augment.SHIFT_MM, 0]),
        "histogram": case_count - 1,
        "gamma": augment.GAMMA[1],
        "bias": np.broadcast_to(coil[:, None], (coil.size,) * 3),
        "low_resolution": (0, augment.LOW_RESOLUTION[1]),
        "blur": augment.BLUR_SIGMA_MM[1],
        "noise": (augment.NOISE_SIGMA[1], params["noise"][1]),
        "transplant": {"case": case_count - 1, "margin_mm": augment.TRANSPLANT_MARGIN_MM[1]},
    }


def describe(name: str, value: Any) -> str:
    """Returns the caption of a transform with one of the `strong_parameters`."""
    if name == "rotate":
        return f"by {value[2]:.0f}° in the plane, clockwise"
    if name == "scale":
        return f"{value[0]} times as large"
    if name == "shift":
        return f"{value[0]:.0f} mm to the right, {-value[1]:.0f} mm up"
    if name == "deform":
        return (
            f"{augment.DEFORM_MESH}x{augment.DEFORM_MESH}x{augment.DEFORM_MESH} mesh of B-splines"
        )
    if name == "low_resolution":
        return f"{value[1]:.0f} times coarser, left to right"
    if name == "noise":
        return f"{value[0]:.0%} of the intensities' spread"
    return {
        "flip": "left and right exchanged",
        "histogram": "that of another case",
        "gamma": f"intensity to the power of {value}",
        "bias": "brighter near a coil behind",
        "blur": f"Gaussian of {value} mm",
        "transplant": "the gland of another case",
    }[name]


def gallery_figure(shown: list[Panel], voxel_mm: list[float]) -> Figure:
    """Draws the panels in rows, each with its name and caption below.

    Args:
        shown: the first is the original.
        voxel_mm: (3,) of the network grid.
    """
    rows = -(-len(shown) // COLUMNS)
    width, height = COLUMNS * (CELL + GAP) + GAP, rows * (CELL + CAPTION) + TITLE
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for index, panel in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        left, bottom = GAP + column * (CELL + GAP), height - TITLE - row * (CELL + CAPTION) - CELL
        axes = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
        draw_panel(axes, panel, shown[0], voxel_mm)
        for text, below, style in (
            (panel.name, 0.17, {"fontsize": 11, "weight": "bold"}),
            (panel.caption, 0.33, {"fontsize": 9, "color": "#444444"}),
        ):
            figure.text(left / width, (bottom - below) / height, text, **style)
    figure.text(
        *(GAP / width, 1 - 0.31 / height),
        "Augmentations of one training case",
        fontsize=14,
        weight="bold",
    )
    lines = [
        ("prostate", REFERENCE_COLOUR, AFTER["linewidths"]),
        ("prostate of the original", PREDICTION_COLOUR, BEFORE["linewidths"]),
        (f"{GRID_MM} mm grid of the original", "#999999", GRID["linewidths"]),
    ]
    add_line_legend(figure, lines, (1 - GAP / width, 1 - 0.1 / height), fontsize=10)
    return figure


def draw_panel(axes: Axes, panel: Panel, original: Panel, voxel_mm: list[float]) -> None:
    """Draws the axial slice through the middle of the mask, in the grey range of the original.

    On it are the outline of the mask and, after a spatial transform, outline and grid of the
    original.
    """
    slice_, before = _middle_slice(panel.mask), _middle_slice(original.mask)
    x_mm, y_mm = (np.arange(n) * v for n, v in zip(panel.mask.shape[:2], voxel_mm[:2], strict=True))
    half = np.divide(voxel_mm, 2)
    axes.imshow(
        panel.intensity[slice_].T,
        cmap="gray",
        vmin=0,
        vmax=np.percentile(original.intensity[before], 99.5),
        extent=(-half[0], x_mm[-1] + half[0], y_mm[-1] + half[1], -half[1]),
        interpolation="bilinear",
    )
    if panel.positions is not None:
        for axis, along_mm in enumerate((x_mm, y_mm)):
            levels_mm = np.arange(along_mm[-1] / 2 % GRID_MM, along_mm[-1], GRID_MM)
            from_mm = panel.positions[axis][slice_].T * voxel_mm[axis]
            axes.contour(x_mm, y_mm, from_mm, levels_mm, **GRID)
        _outline(axes, x_mm, y_mm, original.mask[before], BEFORE)
    _outline(axes, x_mm, y_mm, panel.mask[slice_], AFTER)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _middle_slice(mask: np.ndarray) -> tuple:
    return ..., round(float(np.nonzero(mask)[2].mean()))


def _outline(
    axes: Axes, x_mm: np.ndarray, y_mm: np.ndarray, mask: np.ndarray, line: dict[str, Any]
) -> None:
    smooth = ndimage.gaussian_filter(mask.T.astype(np.float32), SMOOTHING)
    axes.contour(x_mm, y_mm, smooth, [0.5], **line)
