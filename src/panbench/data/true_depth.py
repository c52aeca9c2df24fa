"""Noise-free depth of rendered scenes, which lies beside the files of the data set's own layout.

::

    <scene>/gt/depth_gt.npz    depth u16 [F, H, W] in units of metres_per_unit; stems [F]: the frames' names
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panbench.data.npy import parse_npy
from panbench.data.zip_file import list_zip
from panbench.errors import UserError

FILE = Path("gt") / "depth_gt.npz"
_LARGEST = 1 << 30  # bytes of depth unpacked; the largest rooms have 120 million


class TrueDepth:
    """Depth of some frames of a scene. The file is read when the first frame is asked for.

    Args:
        folder: the scene's folder.
        names: the frames that will be asked for; others are not kept.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.path = folder / FILE
        self._names = frozenset(names)
        self._frames: dict[str, NDArray[np.float32]] | None = None

    def get(self, name: str) -> NDArray[np.float32] | None:
        """z-depth [H, W] of a frame, metres, 0 = nothing hit; None where it is not known.

        Raises:
            UserError: the file is damaged.
        """
        if name not in self._names:
            return None
        if self._frames is None:
            self._frames = self._read() if self.path.is_file() else {}
        return self._frames.get(name)

    def _read(self) -> dict[str, NDArray[np.float32]]:
        try:
            arrays = {m.stem: m.read_bytes() for m in list_zip(self.path, (".npy",), _LARGEST)}
            depth, unit = parse_npy(arrays["depth"]), float(parse_npy(arrays["metres_per_unit"]))
            stems = [str(stem) for stem in parse_npy(arrays["stems"], "U").tolist()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: cannot be read as depth, metres_per_unit and stems ({error}): make the scene again, "
                "or remove the file"
            ) from error
        if depth.ndim != 3 or len(depth) != len(stems):
            raise UserError(f"{self.path}: depth is {depth.shape} for {len(stems)} frames: make the scene again")
        return {
            name: frame.astype(np.float32) * np.float32(unit)
            for name, frame in zip(stems, depth, strict=True)
            if name in self._names
        }
