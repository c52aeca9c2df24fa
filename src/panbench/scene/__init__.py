"""The types everyone speaks: cameras, frames, label spaces, panoptic maps, point clouds, scenes."""

from panbench.scene.camera import Camera
from panbench.scene.frame import Frame
from panbench.scene.labels import VOID, LabelClass, LabelSpace, id_colors
from panbench.scene.panoptic import PanopticMap
from panbench.scene.points import Points
from panbench.scene.scene import FrameSource, Scene

__all__ = [
    "VOID", "Camera", "Frame", "FrameSource", "LabelClass", "LabelSpace", "PanopticMap", "Points", "Scene", "id_colors",
]  # fmt: skip
