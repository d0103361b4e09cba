"""A drawn abdomen in Hounsfield units: soft shapes with noise and blur, and the truth that goes with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

WIDTH, HEIGHT = 380.0, 180.0  # millimetres across (x, y) and along (z)
AIR, FAT, MUSCLE, BOWEL = -1000.0, -105.0, 55.0, 25.0
POINT_SPREAD = 0.9  # millimetres
NOISE = 22.0  # HU before blurring


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and half axes in mm (x to the patient's left, y to the back, z to the head), turned about z."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    degrees: float = 0.0

    def inside(self, x: NDArray, y: NDArray, z: float) -> NDArray[np.bool_]:
        """Whether points of one plane lie inside; x, y (J, I) mm."""
        turn = np.deg2rad(self.degrees)
        dx, dy, dz = x - self.centre[0], y - self.centre[1], (z - self.centre[2]) / self.axes[2]
        if abs(dz) >= 1:
            return np.zeros(x.shape, dtype=bool)
        u = (dx * np.cos(turn) + dy * np.sin(turn)) / self.axes[0]
        v = (dy * np.cos(turn) - dx * np.sin(turn)) / self.axes[1]
        return np.asarray(u * u + v * v + dz * dz < 1)


@dataclass(frozen=True)
class Organ:
    """Parts that are joined, parts cut away, and the mean value in HU."""

    parts: tuple[Ellipsoid, ...]
    value: float
    without: tuple[Ellipsoid, ...] = ()

    def inside(self, x: NDArray, y: NDArray, z: float) -> NDArray[np.bool_]:
        """Whether points of one plane lie inside; x, y (J, I) mm."""
        mask = np.zeros(x.shape, dtype=bool)
        for part in self.parts:
            mask |= part.inside(x, y, z)
        for part in self.without:
            mask &= ~part.inside(x, y, z)
        return mask


BODY = Ellipsoid((0, 0, 90), (172, 128, 1e4))
CAVITY = Ellipsoid((0, -4, 90), (150, 106, 1e4))
VISCERA = Ellipsoid((0, -14, 90), (136, 88, 1e4))
BACK = (Ellipsoid((-36, 74, 90), (30, 26, 1e4), 12), Ellipsoid((36, 74, 90), (30, 26, 1e4), -12))
BOWELS = tuple(
    Ellipsoid((x, y, z), (17, 13, 24), turn)
    for x, y, z, turn in [
        (0, -62, 20, 10),
        (38, -55, 42, 60),
        (-30, -66, 52, 20),
        (70, -42, 16, 80),
        (-68, -30, 8, 0),
    ]
)
ORGANS = {
    "liver": Organ(
        (Ellipsoid((-72, -22, 112), (66, 62, 58), 25), Ellipsoid((-14, -54, 122), (54, 26, 34), -8)),
        108.0,
        without=(Ellipsoid((-58, 34, 62), (44, 32, 40)),),
    ),
    "spleen": Organ(
        (Ellipsoid((104, 22, 118), (24, 44, 40), -24),), 122.0, (Ellipsoid((74, 14, 118), (20, 24, 30)),)
    ),
    "stomach": Organ((Ellipsoid((54, -42, 124), (36, 30, 38), 30),), 32.0),
    "right kidney": Organ(
        (Ellipsoid((-62, 40, 62), (25, 31, 46), 20),), 168.0, (Ellipsoid((-42, 34, 62), (13, 9, 14)),)
    ),
    "left kidney": Organ(
        (Ellipsoid((64, 42, 72), (25, 31, 46), -20),), 168.0, (Ellipsoid((44, 36, 72), (13, 9, 14)),)
    ),
    "spine": Organ((Ellipsoid((0, 56, 90), (24, 18, 1e4)), Ellipsoid((0, 92, 90), (7, 26, 1e4))), 230.0),
    "aorta": Organ((Ellipsoid((9, 26, 90), (11.5, 11, 1e4)),), 158.0),
}
CANAL = Ellipsoid((0, 79, 90), (9, 8, 1e4))
GAS = Ellipsoid((54, -60, 126), (20, 10, 20))


def draw_abdomen(
    shape: tuple[int, int, int] = (256, 256, 60), seed: int = 0
) -> tuple[NDArray[np.int16], dict[str, NDArray[np.bool_]], tuple[float, float, float]]:
    """An axial CT: HU (I, J, K) int16, truth name -> (I, J, K) bool, and the spacing in mm.

    Axes i to the patient's left, j to the back, k to the head, in Fortran order. Each seed bends the anatomy
    a little differently.
    """
    columns, rows, slices = shape
    spacing = (WIDTH / columns, WIDTH / rows, HEIGHT / slices)
    random = np.random.default_rng(seed)
    phase = random.uniform(0, 2 * np.pi, 8)
    values = np.empty((slices, rows, columns), dtype=np.int16)
    truth = {name: np.empty((slices, rows, columns), dtype=bool) for name in ORGANS}
    y, x = np.meshgrid(
        (np.arange(rows, dtype=np.float32) + 0.5) * spacing[1] - WIDTH / 2,
        (np.arange(columns, dtype=np.float32) + 0.5) * spacing[0] - WIDTH / 2,
        indexing="ij",
    )
    blur = (POINT_SPREAD / spacing[1], POINT_SPREAD / spacing[0])
    for k in range(slices):
        z = (k + 0.5) * spacing[2]
        bent_x = x + 5 * np.sin(y / 37 + phase[0] + z / 61) + 2.5 * np.sin(y / 13 + x / 19 + phase[1])
        bent_y = y + 4 * np.sin(x / 41 + phase[2] + z / 53) + 2.0 * np.sin(x / 11 - y / 17 + phase[3])
        plane, masks = _draw_plane(x, y, bent_x, bent_y, z)
        noise = NOISE * random.standard_normal(plane.shape, dtype=np.float32)
        values[k] = np.rint(ndimage.gaussian_filter(plane, blur) + ndimage.gaussian_filter(noise, 0.6))
        for name, mask in masks.items():
            truth[name][k] = mask
    return values.T, {name: mask.T for name, mask in truth.items()}, spacing


def _draw_plane(
    x: NDArray, y: NDArray, bent_x: NDArray, bent_y: NDArray, z: float
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.bool_]]]:
    plane = np.full(x.shape, AIR, dtype=np.float32)
    plane[BODY.inside(bent_x, bent_y, z)] = FAT
    plane[CAVITY.inside(bent_x, bent_y, z)] = MUSCLE
    plane[VISCERA.inside(bent_x, bent_y, z)] = FAT + 15
    for part in BACK:
        plane[part.inside(bent_x, bent_y, z)] = MUSCLE
    for part in BOWELS:
        plane[part.inside(bent_x, bent_y, z)] = BOWEL
    taken = np.zeros(x.shape, dtype=bool)
    masks = {}
    for name, organ in ORGANS.items():
        mask = organ.inside(bent_x, bent_y, z)
        if name == "spine":
            mask &= ~CANAL.inside(bent_x, bent_y, z)
        mask &= ~taken
        taken |= mask
        plane[mask] = organ.value
        masks[name] = mask
    plane[CANAL.inside(bent_x, bent_y, z)] = 30
    plane[masks["stomach"] & GAS.inside(x, y, z)] = AIR + 60
    return plane, masks
