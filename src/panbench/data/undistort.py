"""Lenses, and images as a pinhole camera in their place would have taken them (through OpenCV)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from panbench.data.scannet_files import Pinhole
from panbench.errors import UserError

_T = TypeVar("_T", bound=np.generic)
# Numbers of the parameters of COLMAP's camera models: fx, fy, cx, cy, then what OpenCV calls its coefficients.
_COLMAP = {
    "SIMPLE_PINHOLE": ("pinhole", (0, 0, 1, 2), ()),
    "PINHOLE": ("pinhole", (0, 1, 2, 3), ()),
    "SIMPLE_RADIAL": ("opencv", (0, 0, 1, 2), (3, None, None, None)),
    "RADIAL": ("opencv", (0, 0, 1, 2), (3, 4, None, None)),
    "OPENCV": ("opencv", (0, 1, 2, 3), (4, 5, 6, 7)),
    "FULL_OPENCV": ("opencv", (0, 1, 2, 3), (4, 5, 6, 7, 8, 9, 10, 11)),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", (0, 0, 1, 2), (3, None, None, None)),
    "RADIAL_FISHEYE": ("fisheye", (0, 0, 1, 2), (3, 4, None, None)),
    "OPENCV_FISHEYE": ("fisheye", (0, 1, 2, 3), (4, 5, 6, 7)),
}


@dataclass(frozen=True)
class Lens:
    """A camera with distortion.

    Attributes:
        model: "pinhole"; "opencv", with coefficients k1, k2, p1, p2 and as many more as OpenCV knows; "fisheye", with
            k1 … k4 of θ_d = θ (1 + k1 θ² + k2 θ⁴ + k3 θ⁶ + k4 θ⁸).
        width, height: of the image, pixels.
        fx, fy, cx, cy: pixels; the centre of pixel (i, j) is (i + 0.5, j + 0.5).
    """

    model: Literal["pinhole", "opencv", "fisheye"]
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    coefficients: tuple[float, ...] = ()

    @classmethod
    def from_colmap(cls, model: str, width: int, height: int, parameters: Sequence[float]) -> Lens:
        """The lens of one of COLMAP's camera models, whose pixel centres are at + 0.5 too.

        Raises:
            ValueError: the model is not one of those that OpenCV has, or the number of parameters is wrong.
        """
        if model not in _COLMAP:
            raise ValueError(f"camera model {model} is not supported, only {', '.join(_COLMAP)}")
        kind, place, coefficients = _COLMAP[model]
        if len(parameters) != 1 + max(*place, *(k for k in coefficients if k is not None)):
            raise ValueError(f"camera model {model} has {len(parameters)} parameters")
        fx, fy, cx, cy = (float(parameters[k]) for k in place)
        values = tuple(0.0 if k is None else float(parameters[k]) for k in coefficients)
        return cls(kind, width, height, fx, fy, cx, cy, values)  # pyright: ignore[reportArgumentType]

    def is_fisheye_of_less_than_half_a_turn(self) -> bool:
        """θ_d grows, and reaches the edges of the image in the directions of its axes, while θ is below a right angle.

        A fisheye lens of which that is not so has no pinhole camera in its place.
        """
        edge = max(max(self.cx, self.width - self.cx) / self.fx, max(self.cy, self.height - self.cy) / self.fy)
        theta = np.linspace(0, 0.99 * np.pi / 2, 1000)
        theta_d = theta * np.polyval([*self.coefficients[::-1], 1.0], theta**2)
        beyond = np.flatnonzero(theta_d >= edge)
        return bool(beyond.size and (np.diff(theta_d[: beyond[0] + 1]) > 0).all())


class Undistortion:
    """The way from images of a lens to those of a pinhole camera at the same place.

    Attributes:
        pinhole: the camera that results.
    """

    def __init__(self, lens: Lens, pinhole: Pinhole | None = None) -> None:
        """Args: the lens; the camera wanted. None: of the lens's image size, its centre in the middle of the image,
        and so wide that no pixel lies outside of the lens's image (ScanNet++'s recipe, with balance 0).

        Raises:
            UserError: OpenCV is not installed.
        """
        try:
            import cv2
        except ImportError as error:
            raise UserError("undistorting images needs OpenCV: pip install 'panbench[data]'") from error
        self._cv2 = cv2
        size = lens.width, lens.height
        # OpenCV puts the centre of the first pixel at 0.
        matrix = np.array([[lens.fx, 0, lens.cx - 0.5], [0, lens.fy, lens.cy - 0.5], [0, 0, 1]])
        coefficients = np.array(lens.coefficients or (0.0,) * 4)
        fisheye = lens.model == "fisheye"
        if pinhole is None:
            if fisheye:
                new = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
                    matrix, coefficients, size, np.eye(3), balance=0.0
                )
            else:
                new, _ = cv2.getOptimalNewCameraMatrix(matrix, coefficients, size, 0.0)
            pinhole = Pinhole(*size, float(new[0, 0]), float(new[1, 1]), lens.width / 2, lens.height / 2)
        self.pinhole = pinhole
        wanted = np.array([[pinhole.fx, 0, pinhole.cx - 0.5], [0, pinhole.fy, pinhole.cy - 0.5], [0, 0, 1]])
        make = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
        x, y = make(matrix, coefficients, np.eye(3), wanted, (pinhole.width, pinhole.height), cv2.CV_32FC1)
        # Far outside of the image OpenCV's mirror takes as many steps as there are images between.
        self._x, self._y = _near(np.asarray(x), lens.width), _near(np.asarray(y), lens.height)

    def color(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image [H, W, 3] as the pinhole camera sees it: bilinear, mirrored where the lens saw nothing."""
        cv2 = self._cv2
        out = cv2.remap(image, self._x, self._y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(out, dtype=np.uint8)

    def nearest(self, image: NDArray[_T]) -> NDArray[_T]:
        """The map [H, W] of ids or depth as the pinhole camera sees it; values are the map's, or 0 outside."""
        column, row = np.round(self._x).astype(np.int64), np.round(self._y).astype(np.int64)
        inside = (column >= 0) & (column < image.shape[1]) & (row >= 0) & (row < image.shape[0])
        out = np.zeros(inside.shape, dtype=image.dtype)
        out[inside] = image[row[inside], column[inside]]
        return out

    def hidden(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mask [H, W], 255 where nothing is hidden, as the pinhole camera sees it: 255 or 0."""
        cv2 = self._cv2
        out = cv2.remap(mask, self._x, self._y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=255.0)
        return np.where(np.asarray(out) < 255, 0, 255).astype(np.uint8)


def _near(places: NDArray[Any], size: int) -> NDArray[np.float32]:
    """No farther outside of 0 ... size than by size; what is not finite lies outside."""
    return np.clip(np.nan_to_num(places, nan=-size), -size, 2 * size).astype(np.float32)
