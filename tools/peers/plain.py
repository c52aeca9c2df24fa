"""The plain C++ rasterizer (``plain.cpp``) on tensors, in its common and in its strong form."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from panbench.scene import Camera
from peers import native


class Gradients(NamedTuple):
    """Gradients of a view.

    Attributes:
        geometry: of means, quats, log_scales and opacity_logits, [N, …].
        ids: [M], int64, the visible Gaussians, in any order. features: [M, C], theirs.
    """

    geometry: tuple[Tensor, ...]
    ids: Tensor
    features: Tensor


class PlainRasterizer:
    """Ellipsoids, forward and backward.

    Holds the hit lists of the last view, which ``backward`` goes through.
    """

    def __init__(
        self, geometry: tuple[Tensor, ...], features: Tensor, near: float, low_pass: float = 0.3, *, threaded: bool
    ) -> None:
        """Args:
        geometry: means [N, 3], quats [N, 4], log_scales [N, 3], opacity_logits [N]. features: [N, C].
        near: centres at or in front of this depth are dropped, metres. low_pass: added to both variances, px².
        threaded: the strong form, in ``torch.get_num_threads()`` threads; else the common, serial one.
        """
        self._library = native.load("plain", native.STRONG_FLAGS if threaded else native.COMMON_FLAGS)
        self._library.plain_open.restype = ctypes.c_void_p
        for function in ("plain_forward", "plain_visible", "plain_blocks"):
            getattr(self._library, function).restype = ctypes.c_int64
        self._geometry = tuple(t.contiguous() for t in geometry)
        self._features = features.contiguous()
        self._near, self._low_pass = near, low_pass
        self._state = ctypes.c_void_p(self._library.plain_open())

    def __del__(self) -> None:
        self._library.plain_close(self._state)

    def forward(self, camera: Camera) -> tuple[Tensor, int]:
        """Image [H, W, C], and how many (pixel, Gaussian) pairs were blended."""
        count, channels = self._features.shape
        image = torch.empty(camera.height, camera.width, channels)
        pose = camera.world_to_camera.contiguous()
        lens = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy, self._near, self._low_pass])
        hits = self._library.plain_forward(
            self._state,
            ctypes.c_int64(count),
            *map(_pointer, (*self._geometry, self._features)),
            channels,
            *map(_pointer, (pose, lens)),
            camera.width,
            camera.height,
            _pointer(image),
        )
        return image, int(hits)

    def blocks(self) -> int:
        """Pairs of a Gaussian and a block of 4 × 4 pixels in which the last view blended it."""
        return int(self._library.plain_blocks(self._state))

    def backward(self, grad_image: Tensor) -> Gradients:
        """Gradients of the view that ``forward`` rendered last, given that of its image [H, W, C]."""
        visible = self._library.plain_visible(self._state)
        grads = tuple(torch.empty_like(t) for t in self._geometry)
        ids = torch.empty(visible, dtype=torch.int64)
        features = torch.empty(visible, self._features.shape[1])
        grad_image = grad_image.contiguous()
        self._library.plain_backward(self._state, *map(_pointer, (grad_image, *grads, ids, features)))
        return Gradients(grads, ids, features)


def contributions(geometry: tuple[Tensor, ...], camera: Camera, near: float) -> tuple[int, int]:
    """How many (pixel, Gaussian) pairs a view blends: alpha ≥ 1/255, and more than 1e-4 of the light is left behind.

    Returns:
        these, and the pairs of a block of 4 × 4 pixels and a Gaussian that they lie in.
    """
    rasterizer = PlainRasterizer(geometry, torch.zeros(len(geometry[0]), 1), near, threaded=True)
    return rasterizer.forward(camera)[1], rasterizer.blocks()


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
