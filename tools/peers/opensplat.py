"""OpenSplat's CPU rasterizer, compiled from a checkout that the user names. It is AGPL software and no part of this."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panbench.errors import UserError
from panbench.ops.build import cache_folder
from panbench.scene import Camera

_SOURCES = Path("rasterizer/gsplat-cpu")
_FAR = 100.0  # metres; only the order of depths follows from it


@cache
def module(checkout: Path) -> Any:
    """The compiled rasterizer of a checkout.

    Raises:
        UserError: no checkout of OpenSplat, or it does not compile.
    """
    folder = (checkout / _SOURCES).resolve()
    source = folder / "gsplat_cpu.cpp"
    if not source.is_file():
        raise UserError(f"{checkout} is no checkout of OpenSplat: it has no {_SOURCES / 'gsplat_cpu.cpp'}")
    from torch.utils import cpp_extension

    key = hashlib.sha256(f"{folder} {torch.__version__}".encode()).hexdigest()[:16]
    build = cache_folder() / "peers" / f"opensplat-{key}"
    build.mkdir(parents=True, exist_ok=True)
    try:
        return cpp_extension.load(
            name="panbench_opensplat",
            sources=[str(source), str(Path(__file__).with_suffix(".cpp"))],
            extra_include_paths=[str(folder)],
            extra_cflags=["-O3"],
            build_directory=str(build),
        )
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{source} does not compile: {(str(error).splitlines() or ['unknown cause'])[0]}") from error


def commit(checkout: Path) -> str:
    """Commit of a checkout, for the results; "unknown" if git cannot say."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


class OpenSplatRasterizer:
    """Ellipsoids with three channels. Projection is torch's, rasterization serial C++."""

    def __init__(self, checkout: Path, geometry: tuple[Tensor, ...], features: Tensor, near: float) -> None:
        """Args: geometry: means [N, 3], quats [N, 4], log_scales [N, 3], opacity_logits [N]. features: [N, 3]."""
        self._module = module(checkout)
        self._geometry, self._features, self._near = geometry, features, near

    def forward(self, camera: Camera) -> Tensor:
        """Image [H, W, 3]."""
        with torch.no_grad():
            return self._render(self._geometry, self._features, camera)

    def forward_backward(self, camera: Camera, grad_image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Image [H, W, 3] and the gradients of the geometry and of the features of all Gaussians."""
        leaves = [t.detach().requires_grad_() for t in (*self._geometry, self._features)]
        image = self._render(tuple(leaves[:4]), leaves[4], camera)
        return image.detach(), torch.autograd.grad(image, leaves, grad_image)

    def _render(self, geometry: tuple[Tensor, ...], features: Tensor, camera: Camera) -> Tensor:
        means, quats, log_scales, logits = geometry
        view = camera.world_to_camera.contiguous()
        screen = self._module.project(
            means,
            log_scales.exp(),
            quats,
            view,
            _clip(camera, self._near) @ view,
            *(camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, self._near),
        )
        return _Rasterize.apply(self._module, camera.width, camera.height, *screen, features, logits.sigmoid()[:, None])


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, native: Any, width: int, height: int, *inputs: Tensor) -> Tensor:
        centers, conics, covariances, depths, colors, opacities = (t.detach().contiguous() for t in inputs)
        arguments = (width, height, centers, conics, colors, opacities, torch.zeros(3), covariances, depths)
        image, left, hits = native.rasterize(*arguments)
        ctx.native, ctx.arguments, ctx.left, ctx.hits = native, arguments, left, hits
        return image

    @staticmethod
    def backward(ctx: Any, grad_image: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centers, conics, colors, opacities = ctx.native.rasterize_backward(
            *ctx.arguments, ctx.left, ctx.hits, grad_image.contiguous()
        )
        return None, None, None, centers, conics, None, None, colors, opacities


def _clip(camera: Camera, near: float) -> Tensor:
    """Camera axes to clip space [4, 4]: after division by the fourth, the image and the depths fill −1 … 1."""
    out = torch.zeros(4, 4)
    out[0, 0], out[0, 2] = 2 * camera.fx / camera.width, 2 * camera.cx / camera.width - 1
    out[1, 1], out[1, 2] = 2 * camera.fy / camera.height, 2 * camera.cy / camera.height - 1
    out[2, 2], out[2, 3] = (_FAR + near) / (_FAR - near), -2 * _FAR * near / (_FAR - near)
    out[3, 2] = 1.0
    return out
