"""Synthetic T2-weighted pelvis cases in PROMISE12's layout, for the demo and the tests.

The anatomy is defined in patient space (LPS mm): x to the patient's left, y to the back, z to the
head. It is a list of ellipsoids painted over one another, deformed and textured by smooth random
fields of the position, so that any grid, axial or oblique, samples the same patient. NumPy volumes
have axes (z, y, x).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from ..images.grid import image_like
from ..images.orientation import direction_matrix
from ..images.writing import move_volumes, write_volume
from ..utils.errors import DataError, UsageError, reason_of
from ..utils.files import temporary_folder

# Mean T2 signal (urine is 1), amplitudes of the fine and the coarse texture, depth of the septa.
# Peripheral zone and fat, and transition zone, muscle and bowel wall have overlapping signals, so
# that no threshold separates the gland.
TISSUES = {
    "fat": (0.72, 0.03, 0.06, 0.30),
    "muscle": (0.22, 0.03, 0.03, -0.15),
    "cortex": (0.06, 0.01, 0.00, 0.00),
    "marrow": (0.52, 0.04, 0.06, 0.00),
    "urine": (1.00, 0.00, 0.00, 0.00),
    "wall": (0.33, 0.05, 0.05, 0.00),
    "gas": (0.03, 0.00, 0.00, 0.00),
    "stool": (0.40, 0.06, 0.12, 0.00),
    "fluid": (0.85, 0.00, 0.00, 0.00),
    "veins": (0.34, 0.08, 0.15, 0.00),
    "vesicle": (0.68, 0.24, 0.10, 0.00),
    "capsule": (0.16, 0.03, 0.03, 0.00),
    "peripheral": (0.78, 0.08, 0.09, 0.25),
    "transition": (0.48, 0.07, 0.11, 0.10),
    "stroma": (0.20, 0.04, 0.03, 0.00),
    "nodule": (0.66, 0.08, 0.12, 0.00),
    "lesion": (0.30, 0.04, 0.03, 0.00),
}
# Random fields: correlation length in mm and number of plane waves.
FIELDS = {
    "bend_x": (22, 24),
    "bend_y": (22, 24),
    "bend_z": (22, 24),
    "bias": (70, 8),
    "lobes": (11, 32),
    "coarse": (3.5, 160),
    "fine": (1.3, 240),
}
EDGE_MM = 1.0  # width of the soft edge between two tissues
BEND_MM = 2.0  # standard deviation of the bending, per axis
VOLUME_ML = (20.0, 96.0)  # of the gland before it is bent and the rectum presses into it
# Voxel sizes in-plane and across slices in mm, as in PROMISE12's four centres.
PROTOCOLS = ((0.27, 3.6), (0.4, 3), (0.5, 3), (0.625, 3.6), (0.625, 2.2), (0.75, 4), (1, 2))


def rotation_matrix(degrees: ArrayLike) -> np.ndarray:
    """Returns the (3, 3) matrix of rotations about x, then y, then z."""
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid (axes x, y, z), rotated about x, then y, then z, with an optional inner rim."""

    tissue: str
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    tilt_deg: tuple[float, float, float] = (0, 0, 0)
    rim: str = ""
    rim_mm: float = 0
    name: str = ""

    def distance_mm(self, at: np.ndarray) -> np.ndarray:
        """Signed distances of points (3, N), negative inside; exact along the shortest axis."""
        to_unit = (rotation_matrix(self.tilt_deg) / self.radii_mm).T.astype(np.float32)
        unit = to_unit @ at - (to_unit @ np.array(self.centre_mm, np.float32))[:, None]
        return (np.sqrt(np.einsum("in,in->n", unit, unit)) - 1) * np.float32(min(self.radii_mm))


@dataclass(frozen=True)
class Anatomy:
    """One patient; `pelvis` is painted before the gland, `front` after it."""

    centre_mm: np.ndarray  # of the gland, LPS
    rotation: np.ndarray  # of the pelvis relative to the patient axes
    gland_rotation: np.ndarray  # of the gland relative to the pelvis
    gland_radii_mm: np.ndarray
    taper: float  # relative widening from the middle to the base
    coil: float  # strength of an endorectal coil's near field; 0: no coil
    pelvis: list[Ellipsoid]
    gland: list[Ellipsoid]  # in coordinates in which the gland is a ball of the same volume
    front: list[Ellipsoid]
    waves: dict[str, np.ndarray]  # of each random field, see `random_waves`


def random_waves(rng: np.random.Generator, length_mm: float, count: int) -> np.ndarray:
    """Draws plane waves whose sum is a random field with a Gaussian covariance.

    Random Fourier features, Rahimi and Recht 2007.

    Args:
        rng: random numbers.
        length_mm: correlation length.
        count: of waves.

    Returns:
        (count, 4): wave vectors in rad/mm, and phases.
    """
    vectors = rng.normal(0, 1 / length_mm, (count, 3))
    return np.column_stack([vectors, rng.uniform(0, 2 * np.pi, count)])


def geometry(grid: sitk.Image) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Returns size (x, y, z), origin, and the steps in mm along the index axes, as rows (3, 3)."""
    steps = direction_matrix(grid).T * np.array(grid.GetSpacing())[:, None]
    return grid.GetSize(), np.array(grid.GetOrigin()), steps


def sample_field(waves: np.ndarray, grid: sitk.Image) -> np.ndarray:
    """Samples a random field at the voxels of `grid`: (N,) in z, y, x order, variance about 1.

    On a grid a plane wave is a product of one factor per axis, so one matrix product sums all.
    """
    size, origin, steps = geometry(grid)
    vectors, phases = waves[:, :3], waves[:, 3]
    x, y, z = (
        np.exp(1j * np.outer(np.arange(n), vectors @ step))
        for n, step in zip(size, steps, strict=True)
    )
    zy = (z[:, None] * (y * np.exp(1j * (vectors @ origin + phases)))).reshape(-1, len(waves))
    summed = zy.astype(np.complex64) @ x.T.astype(np.complex64)
    return summed.real.ravel() * np.float32(np.sqrt(2 / len(waves)))


def sample_points(grid: sitk.Image) -> np.ndarray:
    """Returns the patient coordinates of the voxels of `grid`, (3, N) float32 in z, y, x order."""
    size, origin, steps = geometry(grid)
    x, y, z = (np.outer(step, np.arange(n)) for n, step in zip(size, steps, strict=True))
    at = origin[:, None, None, None] + z[:, :, None, None] + y[:, None, :, None] + x[:, None, None]
    return at.astype(np.float32).reshape(3, -1)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draws one patient; sizes, positions and contents vary, neighbouring structures touch."""

    def one(tissue, centre, radii, tilt=(0, 0, 0), rim="", rim_mm=0, name=""):
        centre, tilt = centre + rng.normal(0, 1.5, 3), tilt + rng.normal(0, 3, 3)
        return Ellipsoid(tissue, centre, radii * rng.normal(1, 0.05, 3), tilt, rim, rim_mm, name)

    def pair(tissue, centre, radii, tilt=(0, 0, 0), *rim):
        mirror = np.array([-1, 1, 1])
        return [
            one(tissue, np.array(centre), radii, tilt, *rim),
            one(tissue, mirror * centre, radii, -mirror * tilt, *rim),
        ]

    volume_ml = np.exp(rng.uniform(*np.log(VOLUME_ML)))
    r = np.cbrt(volume_ml * 1000 / (4 / 3 * np.pi))
    shape = np.array([1.22, 0.88, 1.0]) * np.exp(rng.normal(0, 0.06, 3))
    a, b, c = gland_radii = r * shape / np.cbrt(shape.prod())
    t = r * np.interp(volume_ml, VOLUME_ML, (0.74, 0.86)) * rng.uniform(0.95, 1.04)
    coil = rng.uniform(1, 2.5) * (rng.random() < 0.35)
    lumen = rng.choice(["gas", "gas", "gas", "fluid"] if coil else ["gas", "stool", "stool"])
    bowel = rng.uniform(17, 21) if coil else rng.uniform(10, 18)
    full = rng.uniform(0.7, 1.3)
    side, back, top = max(a + 8, 31), b + bowel + 1, c + 22 * full - 4
    pelvis = [
        Ellipsoid("fat", (0, 0, 0), (999, 999, 999)),
        *pair("muscle", (60, 78, 10), (46, 22, 90), (0, 0, -30)),  # gluteus maximus
        *pair("marrow", (side + 34, 4, 8), (21, 34, 60), (0, 0, -14), "cortex", 2),  # hip bone
        *pair("muscle", (side + 12, 2, 4), (11, 42, 50), (0, 0, -14)),  # obturator internus
        *pair("muscle", (46, -b - 42, -15), (36, 13, 34), (0, 0, 18)),  # pectineus
        *pair("marrow", (24, -b - 22, -6), (27, 10, 17), (20, 0, 30), "cortex", 2),  # pubis
        one("wall", (0, -b - 29, -8), (4, 10, 17)),  # symphysis
        one("marrow", (0, back + 42, 12), (14, 9, 34), (-25, 0, 0), "cortex", 2),  # coccyx
        one("fat", (0, 20, 26), (side + 1, b + 30, 66), (0, 0, 0), "muscle", 5),  # levator ani
        one("fat", (0, -b - 9, 5), (side, 14, 40)),  # retropubic space
        one("urine", (0, -0.7 * b, top), np.array((38, 27, 25)) * full, (-12, 0, 0), "wall", 3.5),
        *pair("vesicle", (14, 0.55 * b, c + 3), (17, 6, 7), (0, -14, 12), "wall", 1),
    ]
    gland = _draw_gland(rng, r, t)
    front = [
        one(lumen, (0, back, 5), (bowel, bowel, 75), (8, 0, 0), "wall", 3.5, "rectum"),
        one("stool", (0, back + 5, -c - 32), (11, 13, 34), (-15, 0, 0), "wall", 7, "canal"),
    ]
    if coil:
        front.append(Ellipsoid("gas", (0, back, 5), (4, 4, 70), (8, 0, 0), "stool", 1.5))
    return Anatomy(
        centre_mm=rng.normal((0, 10, -20), (5, 15, 25)),
        rotation=rotation_matrix(rng.normal(0, 4, 3)),
        gland_rotation=rotation_matrix(rng.normal((12, 0, 0), (6, 3, 3))),
        gland_radii_mm=gland_radii,
        taper=rng.uniform(0.05, 0.25),
        coil=coil,
        pelvis=pelvis,
        gland=gland,
        front=front,
        waves={name: random_waves(rng, *shape) for name, shape in FIELDS.items()},
    )


def _draw_gland(rng, r, t):
    """Structures of a gland that is a ball of radius `r` mm, its transition zone of radius `t`."""
    gland = [
        Ellipsoid("veins", (0, -3, 0), (r + 5, r + 5, r + 5)),
        Ellipsoid("peripheral", (0, 0, 0), (r, r, r), (0, 0, 0), "capsule", 1.5, "gland"),
        Ellipsoid("transition", (0, t - r, 0.3 * (r - t)), (t, t, t), (0, 0, 0), "capsule", 1),
        Ellipsoid("stroma", (0, -0.88 * r, 0), (0.35 * r, 0.14 * r, 0.6 * r)),
        Ellipsoid("fluid", (0, 0.1 * r, -0.2 * r), (1.5, 2, 0.35 * r)),  # urethra
    ]
    for _ in range(rng.integers(3, 9)):  # of benign hyperplasia
        spot = np.array((0, t - r, 0.3 * (r - t))) + t * rng.uniform(-0.5, 0.5, 3)
        size = t * rng.uniform(0.15, 0.42) * rng.normal(1, 0.2, 3)
        tissue = rng.choice(["nodule", "nodule", "transition", "lesion"])
        gland.append(Ellipsoid(tissue, spot, size, (0, 0, 0), "capsule", 0.6))
    if rng.random() < 0.5:
        spot = r * np.array((rng.choice([-0.55, 0.55]), 0.6, rng.uniform(-0.4, 0.3)))
        gland.append(Ellipsoid("lesion", spot, r * rng.uniform(0.12, 0.25, 3)))
    return gland


def draw_grid(rng: np.random.Generator, anatomy: Anatomy) -> sitk.Image:
    """Draws the grid of the scan around the gland, oblique in half of the cases."""
    width_mm = max(rng.uniform(100, 180), 3.2 * anatomy.gland_radii_mm[0])
    height_mm = 2 * anatomy.gland_radii_mm[2] + rng.uniform(30, 44)
    fitting = [p for p in PROTOCOLS if 3.2 * anatomy.gland_radii_mm[0] < 320 * p[0]]
    spacing, thickness = rng.choice([p for p in fitting if height_mm < 40 * p[1]])
    side = int(np.clip(16 * round(width_mm / spacing / 16), 128, 320))
    slices = max(16, round(height_mm / thickness))
    direction = rotation_matrix(rng.normal(0, (12, 4, 4)) * rng.integers(2))
    grid = sitk.Image((side, side, slices), sitk.sitkUInt8)
    grid.SetSpacing((spacing, spacing, thickness))
    grid.SetDirection(direction.ravel())
    half_mm = (np.array(grid.GetSize()) - 1) / 2 * grid.GetSpacing()
    shift_mm = np.clip(rng.normal((0, 3, 0), (3, 5, 2)), -9, 9)
    grid.SetOrigin(anatomy.centre_mm + direction @ (shift_mm - half_mm))
    return grid


def paint(
    anatomy: Anatomy, at: np.ndarray, fields: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluates a patient at points.

    Args:
        anatomy: of the patient.
        at: (3, N) points in LPS mm.
        fields: values (N,) of each random field at the points.

    Returns:
        Signal (N,) float32, urine about 1, and gland (N,) bool.
    """
    at = anatomy.rotation.T.astype(np.float32) @ (
        at - anatomy.centre_mm.astype(np.float32)[:, None]
    )
    at += BEND_MM * np.stack([fields["bend_x"], fields["bend_y"], fields["bend_z"]])
    # In the gland's frame the gland is a ball: lobed, wider at the base than at the apex.
    r = np.cbrt(anatomy.gland_radii_mm.prod())
    to_ball = anatomy.gland_rotation.T * (r / anatomy.gland_radii_mm)[:, None]
    ball = to_ball.astype(np.float32) @ at * (1 + 0.04 * fields["lobes"])
    ball[:2] /= 1 + anatomy.taper * np.clip(ball[2] / r, -1.5, 1.5)

    signal, distances = np.zeros(at.shape[1], np.float32), {}
    layers = [(at, anatomy.pelvis), (ball, anatomy.gland), (at, anatomy.front)]
    for points, structure in ((points, one) for points, layer in layers for one in layer):
        distance = distances[structure.name] = structure.distance_mm(points)
        near = np.flatnonzero(distance < EDGE_MM / 2)
        for tissue, depth_mm in ((structure.rim, 0), (structure.tissue, structure.rim_mm)):
            if tissue and near.size:
                mean, fine, coarse, septa = TISSUES[tissue]
                value = mean + fine * fields["fine"][near] + coarse * fields["coarse"][near]
                value -= septa * np.exp(-((fields["lobes"][near] / 0.08) ** 2))
                weight = np.clip(0.5 - (distance[near] + depth_mm) / EDGE_MM, 0, 1)
                signal[near] += weight * (value - signal[near])

    gland = (distances["gland"] < 0) & (distances["rectum"] > 0) & (distances["canal"] > 0)
    signal *= np.exp(0.12 * fields["bias"])
    if anatomy.coil:
        signal *= 0.6 + anatomy.coil / (1 + (np.maximum(distances["rectum"], 0) / 9) ** 2)
    return np.maximum(signal, 0), gland


def render(anatomy: Anatomy, grid: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Samples a patient on a grid: signal and gland, see `paint`, both (z, y, x)."""
    shape = grid.GetSize()[::-1]
    at = sample_points(grid).reshape(3, shape[0], -1)
    fields = {k: sample_field(v, grid).reshape(shape[0], -1) for k, v in anatomy.waves.items()}
    slices = [  # one slice at a time fits the processor's cache
        paint(anatomy, at[:, z], {name: values[z] for name, values in fields.items()})
        for z in range(shape[0])
    ]
    signal, gland = (np.reshape(part, shape) for part in zip(*slices, strict=True))
    return signal, gland


def phantom_case(seed: int, index: int) -> tuple[sitk.Image, sitk.Image]:
    """Generates one case, reproducibly from seed and index.

    Other processors may round a grey level or an edge voxel differently.

    Args:
        seed: of the whole set, 0 or more.
        index: of the case in the set, 0 or more.

    Returns:
        The T2 image (int16) and the reference mask (uint8, 0 and 1) of the gland without the
        seminal vesicles, with the same geometry.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    anatomy = draw_anatomy(rng)
    grid = draw_grid(rng, anatomy)
    signal, gland = render(anatomy, grid)
    signal = ndimage.gaussian_filter(signal, (0.45, 0.6, 0.6))  # partial volume, sigma in voxels
    noise = rng.uniform(0.015, 0.045) * rng.standard_normal((2, *signal.shape), np.float32)
    white = np.exp(rng.uniform(*np.log((200, 2500))))  # scanner units of signal 1
    magnitude = white * np.hypot(signal + noise[0], noise[1])  # Rician noise
    image = image_like(np.rint(magnitude).clip(0, 32767).astype(np.int16), grid)
    return image, image_like(gland.astype(np.uint8), grid)


def write_phantom(out_path: str | Path, cases: int, seed: int, first: int = 0) -> None:
    """Writes `img/CaseNN.mhd` and `gt/CaseNN_segmentation.mhd`, all cases or none.

    Args:
        out_path: folder, created if absent.
        cases: number of cases.
        seed: see `phantom_case`.
        first: number of the first case.

    Raises:
        UsageError: `cases` below 1, `seed` or `first` below 0.
        DataError: a file of such a case exists, or the folder cannot be written.
    """
    for name, value, least in (("cases", cases, 1), ("seed", seed, 0), ("first", first, 0)):
        if value < least:
            raise UsageError(f"{name} is {value}; expected a whole number from {least} on")
    out_path = Path(out_path)
    names = {index: f"Case{index:02d}" for index in range(first, first + cases)}
    for name in names.values():
        for found in [*out_path.glob(f"img/{name}.*"), *out_path.glob(f"gt/{name}_segmentation.*")]:
            raise DataError(f"{found}: there already; choose another folder, or move it away")
    try:
        with temporary_folder(out_path, ".phantom-") as folder:
            for index, name in tqdm(names.items(), "phantom", unit="case", disable=None):
                image, mask = phantom_case(seed, index)
                write_volume(image, folder / "img" / f"{name}.mhd")
                write_volume(mask, folder / "gt" / f"{name}_segmentation.mhd")
            move_volumes(folder, out_path)
    except OSError as error:
        raise DataError(
            f"{out_path}: cannot be written ({reason_of(error)}); choose another folder"
        ) from None
