"""Noise of a structured-light depth camera (Structure Sensor, Kinect 1 class).

Disparity is measured in eighths of a pixel of a 640-column sensor with Gaussian noise of ``disparity_ticks`` eighths;
at 0.4 the noise of flat surfaces is 3.0, 4.9, 7.8, 12.3, 19.3 mm at 1.3, 1.7, 2.2, 2.8, 3.6 m, within about a tenth of
the law of Nguyen et al. 2012, σ_z = 1.2 mm + 1.9 mm (z/m − 0.4)².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, maximum_filter, minimum_filter
from scipy.special import ndtr

Floats = NDArray[np.floating]

_REFERENCE_FOCAL = 571.6
_REFERENCE_WIDTH = 640


@dataclass(frozen=True)
class DepthSensor:
    """Settings.

    Attributes:
        baseline: between projector and camera, metres.
        lateral: standard deviation of the pixel that a measurement really looks at, pixels.
        disparity_ticks: standard deviation of disparity, in eighths of a reference pixel.
        edge_loss: share lost where depth jumps by more than 3 % + 2 cm within a pixel.
        grazing_loss: share lost beyond 80° of incidence.
        dark_loss: share lost on surfaces of less than 3 % albedo.
        base_loss: share lost anywhere, in blobs.
        near, far: working range, metres.
    """

    baseline: float = 0.075
    lateral: float = 0.35
    disparity_ticks: float = 0.4
    edge_loss: float = 0.35
    grazing_loss: float = 0.25
    dark_loss: float = 0.15
    base_loss: float = 0.01
    near: float = 0.35
    far: float = 8.0

    def measure(
        self, depth: Floats, cosine: Floats, focal: float, rng: np.random.Generator, albedo: Floats | None = None
    ) -> Floats:
        """Sensor reading of a view.

        Args:
            depth: true z-depth [H, W], metres, 0 = nothing.
            cosine: of the angle of incidence [H, W].
            focal: focal length, pixels of this image.
            rng: noise.
            albedo: mean albedo [H, W], or None.

        Returns:
            z-depth [H, W], metres in whole millimetres, 0 = no measurement.
        """
        height, width = depth.shape
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        shift = rng.standard_normal((2, height, width), dtype=np.float32) * self.lateral
        seen = map_coordinates(depth, [rows + shift[0], columns + shift[1]], order=0, mode="nearest")
        safe = np.maximum(seen, 0.05)
        scale = _REFERENCE_FOCAL * self.baseline
        ticks = 8 * scale / safe + self.disparity_ticks * rng.standard_normal(depth.shape, dtype=np.float32)
        measured = 8 * scale / np.maximum(np.round(ticks), 1)

        step = maximum_filter(depth, 3) - minimum_filter(depth, 3)
        loss = np.full(depth.shape, self.base_loss, dtype=np.float32)
        loss = np.where(step > 0.03 * depth + 0.02, np.maximum(loss, self.edge_loss), loss)
        loss = np.where(cosine < np.cos(np.radians(80)), np.maximum(loss, self.grazing_loss), loss)
        if albedo is not None:
            loss = np.where(albedo < 0.03, np.maximum(loss, self.dark_loss), loss)
        blobs = gaussian_filter(
            rng.standard_normal(depth.shape, dtype=np.float32), 2.0 * width / _REFERENCE_WIDTH, mode="wrap"
        )
        lost = ndtr(blobs / blobs.std()) < loss
        lost |= _in_projector_shadow(depth, focal, self.baseline)
        lost |= (depth <= 0) | (measured < self.near) | (measured > self.far)
        return np.where(lost, 0.0, np.round(measured * 1000) / 1000).astype(np.float32)


def _in_projector_shadow(depth: Floats, focal: float, baseline: float) -> NDArray[np.bool_]:
    """Pixels [H, W] whose surface the projector, ``baseline`` metres to the camera's side, does not light.

    In the projector's columns a pixel lies at u − f·b/z; it is hidden when a nearer surface further right in the
    picture lies further left there.
    """
    columns = np.arange(depth.shape[1], dtype=np.float32) - focal * baseline / np.maximum(depth, 0.05)
    nearest_right = np.minimum.accumulate(columns[:, ::-1], axis=1)[:, ::-1]
    return columns > nearest_right + 0.5
