"""Writes a scene of the exported ScanNet layout as the iPhone's part of a ScanNet++ scene."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from panbench.data.images import read_color, read_integers, resize_nearest
from panbench.data.iphone import DEPTH_SIZE, frame_stem
from panbench.data.room_export import write_json
from panbench.data.scannet_files import list_numbered
from panbench.data.scannetpp_export import camera_to_world, copy_masks, write_room
from panbench.errors import UserError
from panbench.scene import Scene

Packing = Literal["lz4", "deflate", "one stream"]
_RATE = 60  # frames a second
_MILLIMETRES = 1000.0
# H.264 with pictures between that refer forwards and backwards, as cameras and encoders make them.
_CODED = {"g": "30", "bf": "2"}
_LOSSY = ("libx264", "yuv420p", {**_CODED, "crf": "16"})
_LOSSLESS = ("libx264rgb", "rgb24", {**_CODED, "qp": "0", "preset": "veryfast"})


def write_iphone(room: Path, out: Path, packing: Packing = "lz4", *, lossless: bool = False) -> Path:
    """Write the room as ``out/<name>`` with a video, ``depth.bin`` and poses; frames at which the room's tracker was
    lost are in the video, with a pose of -inf. Depth is brought to the iPhone's 256x192, never interpolated.

    Args:
        room: folder of a scene in the exported ScanNet layout, with depth, mesh and aggregation.
        out: folder of scenes; made if missing.
        packing: of ``depth.bin`` (:mod:`panbench.data.iphone`).
        lossless: code the colours without loss; else as H.264 usually does, with half the resolution of colour.

    Returns:
        The scene's folder. It appears in one step when it is complete; a room of that name that was there is replaced.

    Raises:
        UserError: the room is damaged, a scene is there that is no room, the folder cannot be written, or PyAV or lz4
            is not installed.
    """

    def write(draft: Path, scene: Scene) -> None:
        color, depth = list_numbered(room / "color", (".jpg",)), list_numbered(room / "depth", (".png",))
        if list(color) != list(range(len(color))) or not color or list(depth) != list(color):
            raise UserError(f"{room}: its colour and depth images are not numbered 0, 1, 2, ...: make the room again")
        folder = draft / "iphone"
        folder.mkdir()
        write_video(folder / "rgb.mkv", (read_color(path) for path in color.values()), lossless=lossless)
        small = (resize_nearest(read_integers(path), *DEPTH_SIZE).astype(np.uint16) for path in depth.values())
        (folder / "depth.bin").write_bytes(pack_depth(list(small), packing))
        write_json(folder / "pose_intrinsic_imu.json", _poses(scene, list(color)))
        write_json(folder / "exif.json", {frame_stem(number): {} for number in color})
        for masks in sorted(room.glob("masks_*/")):
            copy_masks(masks, draft / masks.name, scene, lambda name: frame_stem(int(name)))

    return write_room(room, out, write)


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], *, lossless: bool = False) -> None:
    """Code pictures [H, W, 3] of one size, both sides even, as H.264 in Matroska, 60 a second.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError("writing a video needs PyAV: pip install 'panbench[data]'") from error
    codec, pixels, settings = _LOSSLESS if lossless else _LOSSY
    with av.open(str(path), "w") as container:
        stream: Any = None
        for number, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=_RATE, options=settings)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixels
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, _RATE)
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode(None))


def pack_depth(frames: Sequence[NDArray[np.uint16]], packing: Packing) -> bytes:
    """The bytes of a ``depth.bin`` of depth images [192, 256], millimetres.

    Raises:
        UserError: lz4 is not installed.
    """
    if packing == "lz4":
        try:
            import lz4.block as lz4_block
        except ImportError as error:
            raise UserError("the iPhone's depth.bin needs lz4: pip install 'panbench[data]'") from error
        blocks = [lz4_block.compress(frame.astype("<u2").tobytes(), store_size=False) for frame in frames]
    elif packing == "deflate":
        blocks = [_deflate([frame]) for frame in frames]
    else:
        return _deflate(frames)
    return b"".join(len(block).to_bytes(4, "little") + block for block in blocks)


def _deflate(frames: Sequence[NDArray[np.uint16]]) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = [packer.compress((frame / _MILLIMETRES).astype("<f4").tobytes()) for frame in frames]
    return b"".join([*packed, packer.flush()])


def _poses(scene: Scene, numbers: Sequence[int]) -> dict[str, object]:
    source = scene.source
    by_number = {int(source.name(i)): source.camera(i) for i in range(len(source))}
    first = source.camera(0)
    intrinsic = [[first.fx, 0.0, first.cx], [0.0, first.fy, first.cy], [0.0, 0.0, 1.0]]
    lost = np.full((4, 4), -np.inf)
    out: dict[str, object] = {}
    for number in numbers:
        camera = by_number.get(number)
        pose = lost if camera is None else camera_to_world(camera.world_to_camera.numpy().astype(np.float64))
        out[frame_stem(number)] = {
            "timestamp": number / _RATE,
            "pose": pose.tolist(),
            "aligned_pose": pose.tolist(),
            "intrinsic": intrinsic,
            "imu": {},
        }
    return out
