"""LI-GS on RGB-D: discs held to planes fitted to the measured points, and to measured depth and normals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from scipy.spatial import KDTree
from torch import Tensor

from panbench import ops
from panbench.errors import UserError
from panbench.gaussians.density import DensityContext, SurfaceDensityControl
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.init import PointCloud, first_points
from panbench.gaussians.mixture import NEIGHBORS, PlaneMixture
from panbench.gaussians.rotation import quats_with_normal, rotation_matrices
from panbench.heads.base import PanopticHead
from panbench.models.base import View
from panbench.models.twodgs import TwoDGS
from panbench.scene import Frame, Scene

REFRESH = 100
"""Steps from one search for the nearest components to the next; each change of density calls for one too."""
MIXTURE_POINTS = 1_000_000
UNCOVERED = 0.05
"""Points farther than this from every component get a Gaussian of their own, metres."""


@dataclass(frozen=True, eq=False)
class DiscCloud(PointCloud):
    """Points with the discs that start there: quats [N, 4], log_scales [N, 2]."""

    quats: Tensor
    log_scales: Tensor


class LiGS(TwoDGS):
    """Jiang et al. 2024, LI-GS*: re-implemented from its abstract and figures, with a geometry prior from RGB-D.

    Theirs: 2DGS discs, a mixture of thin plane-constrained Gaussians fitted to the scan, from which discs start; a
    local term that holds centre, shape and normal of each visible disc to its nearest components all along; depth and
    normal terms; growth and pruning that know the distance to the mixture. **Ours, as we have seen none of their
    equations: every formula and number of these** (docs/ligs.md), and points from depth frames in place of LiDAR.
    """

    def __init__(
        self,
        head: PanopticHead,
        near: float = 0.1,
        depth_weight: float = 0.2,
        normal_weight: float = 0.05,
        mixture_weight: float = 1.0,
        mixture_stride: int = 4,
        mixture_reach: float = 0.1,
        mixture_voxel: float = 0.02,
        mixture_radius: float = 0.03,
        mixture_tolerance: float = 0.02,
        init: Literal["points", "mixture"] = "points",
        init_radius: float = 0.0175,
        consistency_start: int = 1000,
        distortion_weight: float = 0.0,
        **settings: Any,
    ) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        near: as in 2DGS; a little nearer, as rooms are small.
        depth_weight: of the mean difference to the measured depth, metres; less for far pixels.
        normal_weight: of 1 − cosine between blended normals and those of the measured depth.
        mixture_weight: λ_G of the term that holds visible discs to the mixture; 0: none. Theirs is said to be 1, of
            reductions that we do not know. With 1 and ours, its gradient by the centres is 8 % of the photo's at step
            1000 on the tiny room, by the rotations 13 %.
        mixture_stride: a step looks at every n-th visible disc, the next step at those after them; 4 quarters what
            the term costs, 1 is as published.
        mixture_reach: farthest component that a disc is held to, metres. What no plane covers, as thin and round
            things, would be pulled to the next wall.
        mixture_voxel: edge of the grid on which depth is averaged for the mixture, metres.
        mixture_radius: two standard deviations of its components in their plane, metres.
        mixture_tolerance: largest rms distance of points to a plane of it, metres.
        init: where discs start. "points": at the points of ``voxel`` and ``flat_voxel``; "mixture": several on each
            component, and on the points that no component covers.
        init_radius: with "mixture", about the standard deviation of a disc, metres.
        consistency_start: as in 2DGS; early, as the first points lie on the surfaces.
        distortion_weight: as in 2DGS; 0, as measured depth says more of where a surface is.
        settings: of 2DGS and of every base model; see TwoDGS and GaussianModule.

        Raises:
            UserError: settings out of range.
        """
        super().__init__(
            head,
            near=near,
            depth_weight=depth_weight,
            consistency_start=consistency_start,
            distortion_weight=distortion_weight,
            **settings,
        )
        for name, value in (
            ("mixture_reach", mixture_reach), ("mixture_voxel", mixture_voxel), ("mixture_radius", mixture_radius),
            ("mixture_tolerance", mixture_tolerance), ("init_radius", init_radius),
        ):  # fmt: skip
            if value <= 0:
                raise UserError(f"model: {name} is {value}; it must be positive")
        if mixture_weight < 0:
            raise UserError(f"model: mixture_weight is {mixture_weight}; it must not be negative, 0: no mixture term")
        if mixture_stride < 1:
            raise UserError(f"model: mixture_stride is {mixture_stride}; it must be at least 1")
        self.normal_weight = normal_weight
        self.mixture_stride = mixture_stride
        self.mixture_weight = mixture_weight
        self.mixture_reach = mixture_reach
        self.mixture_voxel, self.mixture_radius = mixture_voxel, mixture_radius
        self.mixture_tolerance = mixture_tolerance
        self.init, self.init_radius = init, init_radius
        self.mixture = PlaneMixture()

    # ------------------------------------------------------------------------------------------------- construction

    def prepare(self, cloud: PointCloud, scene: Scene) -> PointCloud:
        cloud = super().prepare(cloud, scene)
        if not (self.mixture_weight or self.init == "mixture" or isinstance(self.densify, SurfaceDensityControl)):
            return cloud
        self.mixture.cpu()  # the points are there; what calls this moves the whole model back
        fine = first_points(
            scene, voxel=self.mixture_voxel, max_points=MIXTURE_POINTS, seed=0, max_depth=self.max_depth
        )
        self.mixture.fit(
            fine.positions,
            fine.colors,
            fine.normals,
            counts=fine.count,
            spacing=fine.voxel,
            radius=self.mixture_radius,
            tolerance=self.mixture_tolerance,
        )
        return self._on_components(cloud, fine) if self.init == "mixture" else cloud

    def _on_components(self, cloud: PointCloud, fine: PointCloud) -> DiscCloud:
        """Discs on the mixture, in the colours of the nearest points, and on those points that it does not cover."""
        discs = self.mixture.discs(self.init_radius)
        _, source = KDTree(fine.positions.numpy()).query(discs.positions.numpy())
        apart, _ = KDTree(self.mixture.centers.numpy()).query(cloud.positions.numpy())
        rest = torch.from_numpy(apart > UNCOVERED)
        kept = PointCloud(
            cloud.positions[rest], cloud.colors[rest], cloud.normals[rest], cloud.count[rest], cloud.voxel
        )
        return DiscCloud(
            torch.cat([discs.positions, kept.positions]),
            torch.cat([fine.colors[source], kept.colors]),
            torch.cat([self.mixture.normals[discs.component], kept.normals]),
            torch.cat([fine.count[source], kept.count]),
            cloud.voxel,
            torch.cat([discs.quats, quats_with_normal(kept.normals)]),
            torch.cat([discs.radii.log(), super().first_log_scales(kept)]),
        )

    def fields(self, cloud: PointCloud, scene: Scene) -> Mapping[str, FieldSpec]:
        out = dict(super().fields(cloud, scene))
        if isinstance(cloud, DiscCloud):
            out["quats"] = replace(out["quats"], init=cloud.quats)
        if self.mixture_weight > 0:
            # Fields, so that surgery keeps them aligned and a resumed run goes on with the same components.
            out["mixture_ids"] = FieldSpec((NEIGHBORS,), lambda n: torch.full((n, NEIGHBORS), -1))
            out["mixture_weights"] = FieldSpec((NEIGHBORS,), lambda n: torch.zeros(n, NEIGHBORS))
        return out

    def first_log_scales(self, cloud: PointCloud) -> Tensor:
        return cloud.log_scales if isinstance(cloud, DiscCloud) else super().first_log_scales(cloud)

    # ----------------------------------------------------------------------------------------------------- training

    def regularisers(self, view: View, frame: Frame) -> dict[str, Tensor]:
        out = super().regularisers(view, frame)
        if frame.depth is not None:
            # Differences between points three pixels to either side drown less in the sensor's depth noise.
            measured = ops.depth_normals(frame.depth, frame.camera, step=3)
            out["normal"] = self.normal_weight * ops.normal_loss(view.normal, measured)
        if self.mixture_weight > 0:
            if self.global_step % REFRESH == 0:
                self._search()
            out["mixture"] = self.mixture_weight * self.mixture_term(
                view.projected.ids[self.global_step % self.mixture_stride :: self.mixture_stride].contiguous()
            )
        return out

    def mixture_term(self, ids: Tensor) -> Tensor:
        """The local term over the discs ``ids`` [M], ascending (:func:`panbench.ops.mixture_loss`)."""
        g, mixture = self.gaussians, self.mixture
        return ops.mixture_loss(
            g["means"],
            g["quats"],
            g["scales"],
            ids,
            g["mixture_ids"],
            g["mixture_weights"],
            mixture.centers,
            mixture.normals,
        )

    @torch.no_grad()
    def _search(self) -> None:
        """The nearest components of every disc, and their weights, which stay until the next search."""
        g = self.gaussians
        ids = self.mixture.nearest(g["means"], rotation_matrices(g["quats"])[..., 2], self.mixture_reach)
        g["mixture_ids"].copy_(ids)
        g["mixture_weights"].copy_(self.mixture.weights(g["means"], ids))

    def after_density(self) -> None:
        super().after_density()
        # At a step of the search it comes by itself.
        if self.mixture_weight > 0 and self.global_step % REFRESH:
            self._search()

    def density_context(self) -> DensityContext:
        return replace(
            super().density_context(),
            surface_distance=self.mixture.distance,
            surface_project=self.mixture.project,
        )

    # ------------------------------------------------------------------------------------------------- checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.mixture.resize_like(checkpoint["state_dict"], "mixture.")
