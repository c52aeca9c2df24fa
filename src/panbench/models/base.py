"""The training step of every Gaussian base model, and the view it renders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from panbench import ops
from panbench.errors import UserError
from panbench.gaussians.density import DensityContext, DensityControl
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.gaussians.init import PointCloud, first_points, neighbour_scale
from panbench.gaussians.optim import build_optimizer
from panbench.gaussians.rotation import quats_with_normal
from panbench.heads.base import LabelView, PanopticHead, StepContext
from panbench.losses.geometric import depth_loss
from panbench.losses.photometric import psnr
from panbench.ops.backend import resolve
from panbench.scene import Camera, Frame, PanopticMap, Scene
from panbench.training.finite import check_loss
from panbench.training.write_predictions import PredictedView

CHECKPOINT_FORMAT = 2
LabelGradient = Literal["all", "semantic", "none"]
_DC = 0.28209479177387814


@dataclass(frozen=True, eq=False)
class View:
    """A rendered view.

    Attributes:
        projected: what the camera sees. image: colour [H, W, 3]. normal: blended camera-space normals [H, W, 3], not
            re-normalised. labels: the head's channels [H, W, C]. alpha: [H, W].
        depth: expected depth Σ w d / Σ w [H, W], metres; 0 where alpha is below 1e-3.
        median: median depth [H, W], metres.
        distortion: Σ_{j<i} w_i w_j (1/d_i − 1/d_j)² [H, W], 1/m²; None where the base does not ask for it.
        sums: of the labels against targets; None without targets.
        absolute: leaf [M, 2] that collects the absolute screen gradients of the centres; None unless asked for.
    """

    projected: ops.Projected
    image: Tensor
    normal: Tensor
    labels: Tensor
    alpha: Tensor
    depth: Tensor
    median: Tensor
    distortion: Tensor | None = None
    sums: ops.LabelSums | None = None
    absolute: Tensor | None = None


class GaussianModule(L.LightningModule):
    """Base of all Gaussian base models: subclasses give the primitive, the first fields and the regularisers.

    One optimiser with a named group per field; a step renders colour, normal and every label channel in one pass.

    A subclass may override: ``fields`` and ``first_log_scales`` (what a Gaussian has, and how it starts), ``prepare``
    (what is made of the point cloud before that), ``project``, ``extra_channels`` and ``depth_map`` (how it is drawn),
    ``regularisers``, ``distorts``, ``photo_scale`` (the losses), ``density_context`` (what its density control knows).
    """

    kind: ClassVar[ops.Kind]

    def __init__(
        self,
        head: PanopticHead,
        densify: DensityControl | None = None,
        voxel: float = 0.04,
        flat_voxel: float = 0.08,
        max_points: int = 300_000,
        sh_degree: int = 1,
        sh_every: int = 500,
        near: float = 0.05,
        initial_opacity: float = 0.7,
        initial_scale: float = 0.45,
        means_lr: float = 1.6e-4,
        scales_lr: float = 5e-3,
        quats_lr: float = 1e-3,
        opacities_lr: float = 0.05,
        colors_lr: float = 5e-3,
        lr_decay: float = 0.1,
        ssim_weight: float = 0.2,
        depth_weight: float = 0.0,
        max_depth: float = 6.0,
        label_start: int = 0,
        label_every: int = 2,
        label_weight: float = 0.1,
        label_gradient: LabelGradient = "all",
        geometry_stop: int = 0,
        neighbors: int = 4,
    ) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        densify: density control; null: the first Gaussians are all there will be, since points from depth
            already cover the surfaces.
        voxel: edge of the grid on which depth is averaged, metres; one Gaussian for each voxel.
        flat_voxel: edge of the grid used instead where the surface is flat, metres; 0: nowhere.
        max_points: largest number of first Gaussians; more make both grids coarser.
        sh_degree: highest degree of the spherical harmonics of colour.
        sh_every: steps between one degree and the next.
        near: z-depth of centres, and of hits on discs, in front of which nothing is drawn, metres.
        initial_opacity: of the first Gaussians.
        initial_scale: their standard deviation, in distances to the neighbours.
        means_lr: learning rate of the centres in scene extents; falls to a hundredth over the run.
        scales_lr, quats_lr, opacities_lr: learning rates of log-scales, quaternions and opacity logits.
        colors_lr: learning rate of the constant colour; a twentieth of it for higher degrees.
        lr_decay: factor by which all but means_lr fall over the run.
        ssim_weight: λ of (1 − λ) L1 + λ (1 − SSIM).
        depth_weight: of the mean difference to the measured depth, metres; 0: photos only.
        max_depth: measured depth from here on is not supervised, metres.
        label_start: step of the first labels.
        label_every: steps from one with labels to the next; 2 halves the time that label channels take.
        label_weight: factor on all terms of the head; 0.1 keeps the photo in charge of geometry.
        label_gradient: which labels move Gaussians. "all": classes and instances, as the paper's sum of losses does,
            since thin things are found by their labels; "semantic": classes alone; "none": geometry sees photo and
            depth only.
        geometry_stop: step from which geometry and colour stay as they are, and every step is spent on the labels; 0:
            never, as in the paper. Labels on finished geometry cannot bend it, but cannot mend it either.
        neighbors: number of nearest training frames among which label warping draws; 0: no label warping.
        """
        super().__init__()
        self.automatic_optimization = False
        self.head = head
        self.densify = densify
        self.voxel, self.flat_voxel, self.max_points = voxel, flat_voxel, max_points
        self.sh_degree, self.sh_every = sh_degree, sh_every
        self.near = near
        self.initial_opacity, self.initial_scale = initial_opacity, initial_scale
        self.means_lr, self.scales_lr, self.quats_lr = means_lr, scales_lr, quats_lr
        self.opacities_lr, self.colors_lr, self.lr_decay = opacities_lr, colors_lr, lr_decay
        self.ssim_weight = ssim_weight
        self.depth_weight, self.max_depth = depth_weight, max_depth
        self.label_start, self.label_every, self.label_weight = label_start, label_every, label_weight
        self.label_gradient: LabelGradient = label_gradient
        self.geometry_stop = geometry_stop
        self.neighbors = neighbors
        self.gaussians = GaussianSet(0)
        self.latest: dict[str, Tensor] = {}
        self._adjacent: list[list[int]] = []
        self._scene: Scene | None = None

    # ------------------------------------------------------------------------------------------------ construction

    def configure_model(self) -> None:
        """Declare the fields, still without Gaussians. Idempotent."""
        if len(list(self.gaussians)):
            return
        scene: Scene = self.trainer.datamodule.scene  # pyright: ignore[reportAttributeAccessIssue]
        self._scene = scene
        self.head.build(scene.labels)
        self._declare(_empty_cloud(self.voxel), scene)
        if self.densify:
            self.densify.extent = scene.extent()
            self.densify.max_steps = max(self.trainer.max_steps, 1)
            self.densify.frames = len(scene.train)
        self._adjacent = _adjacent_frames(scene, self.neighbors)

    def _initialise(self, scene: Scene) -> None:
        """First Gaussians and queries of a new run, from the scene's RGB-D frames and masks."""
        cloud = first_points(scene, voxel=self.voxel, flat_voxel=self.flat_voxel, max_points=self.max_points, seed=0)
        cloud = self.prepare(cloud, scene)
        self.head.seed(scene)
        self._declare(cloud, scene)
        self.head.initialise(self.gaussians, scene)
        self.to(self.device)

    def prepare(self, cloud: PointCloud, scene: Scene) -> PointCloud:
        """Called once at the start of a new run: the points at which Gaussians start."""
        return cloud

    def _declare(self, cloud: PointCloud, scene: Scene) -> None:
        fields = {**self.fields(cloud, scene), **(self.densify.fields() if self.densify else {})}
        self.gaussians = GaussianSet(len(cloud.positions))
        self.gaussians.add(fields)
        self.gaussians.add(self.head.fields())

    def fields(self, cloud: PointCloud, scene: Scene) -> Mapping[str, FieldSpec]:
        """Geometry and colour fields, started from a point cloud (3DGS; specs of each model in the subclasses)."""
        count = len(cloud.positions)
        decay = self.lr_decay
        extent = scene.extent()
        rest = (self.sh_degree + 1) ** 2 - 1
        logit = torch.tensor(self.initial_opacity).logit()
        scales = self.first_log_scales(cloud)
        return {
            "means": FieldSpec((3,), cloud.positions, self.means_lr * extent, self.means_lr * extent * 0.01),
            "scales": FieldSpec((len(scales.T),), scales, self.scales_lr, self.scales_lr * decay),
            "quats": FieldSpec((4,), quats_with_normal(cloud.normals), self.quats_lr, self.quats_lr * decay),
            "opacities": FieldSpec((), logit.expand(count).clone(), self.opacities_lr, self.opacities_lr * decay),
            "features_dc": FieldSpec((3,), (cloud.colors - 0.5) / _DC, self.colors_lr, self.colors_lr * decay),
            "features_rest": FieldSpec(
                (rest, 3), torch.zeros(count, rest, 3), self.colors_lr / 20, self.colors_lr / 20 * decay
            ),
        }

    def first_log_scales(self, cloud: PointCloud) -> Tensor:
        """Log-scales [N, 3], of discs [N, 2], of isotropic Gaussians as wide as the distance to the neighbours."""
        axes = 2 if self.kind == "disc" else 3
        scale = self.initial_scale * neighbour_scale(cloud.positions, cloud.voxel)
        return scale.log()[:, None].expand(-1, axes).clone()

    def configure_optimizers(self) -> Any:
        # Lightning loads a checkpoint before it asks for optimisers: an empty set now is a new run.
        if not len(self.gaussians) and self._scene is not None:
            self._initialise(self._scene)
        optimizer, scheduler = build_optimizer(
            self.gaussians, self.head.parameter_groups(), max(self.trainer.max_steps, 1)
        )
        return [optimizer], [scheduler]

    # --------------------------------------------------------------------------------------------------- rendering

    def render(
        self,
        camera: Camera,
        *,
        labels: bool = True,
        targets: ops.LabelTargets | None = None,
        absolute: bool = False,
        frozen: bool = False,
    ) -> View:
        """Colour, normal, depth and (if asked for) the head's channels of a view, in one pass.

        Args:
            targets: what the head's channels are compared with on the way.
            absolute: collect the absolute screen gradients of the centres.
            frozen: nothing but the head's channels gets a gradient.
        """
        g = self.gaussians
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            projected = self.project(camera)
            colors = ops.spherical_harmonics(
                g["features_dc"], g["features_rest"], g["means"], camera.position, projected.ids, self.active_sh_degree
            )
            features = torch.cat([colors, projected.normals, self.extra_channels(camera, projected)], dim=1)
        leaf = features.new_zeros(len(features), 2, requires_grad=True) if absolute else None
        blended = self.blend(
            camera,
            projected,
            features,
            labels=self.head.channels(g, projected.ids) if labels else None,
            detached=frozen or self._detached,
            targets=targets,
            distort=self.distorts and not frozen,
            absolute=leaf,
        )
        # One split: its gradient is one concatenation, not a full image of zeros for every part.
        color, normal, extra = blended.image.split([3, 3, features.shape[1] - 6], dim=-1)
        return View(
            projected,
            color,
            normal,
            blended.labels,
            blended.alpha,
            self.depth_map(camera, blended, extra),
            blended.median,
            blended.distortion,
            blended.sums,
            leaf,
        )

    @property
    def _detached(self) -> bool | int:
        """Which label channels send no gradient into geometry, in the words of :func:`panbench.ops.blend`."""
        if self.label_gradient == "semantic":
            return self.head.instance_count
        return self.label_gradient == "none"

    @property
    def distorts(self) -> bool:
        """Whether views carry the distortion of depth at this step; a map costs a little time."""
        return False

    def extra_channels(self, camera: Camera, projected: ops.Projected) -> Tensor:
        """Channels [M, K] that ``depth_map`` needs blended."""
        return projected.normals[:, :0]

    def depth_map(self, camera: Camera, blended: ops.Blended, extra: Tensor) -> Tensor:
        """Depth [H, W] in metres, 0 where alpha is below 1e-3, of a blended view with its extra channels [H, W, K]."""
        return expected(blended.depth, blended.alpha)

    def project(self, camera: Camera) -> ops.Projected:
        """The Gaussians that a camera sees."""
        g = self.gaussians
        return ops.project(g["means"], g["quats"], g["scales"], g["opacities"], camera, kind=self.kind, near=self.near)

    def blend(
        self,
        camera: Camera,
        projected: ops.Projected,
        features: Tensor,
        labels: Tensor | None,
        *,
        detached: bool | int,
        targets: ops.LabelTargets | None = None,
        distort: bool = False,
        absolute: Tensor | None = None,
    ) -> ops.Blended:
        """Blend features [M, C] and labels [M, L] of the projected Gaussians; see :func:`panbench.ops.blend`."""
        size = (camera.width, camera.height)
        bins = ops.bin(projected.geometry, *size, kind=self.kind)
        return ops.blend(
            projected.geometry,
            features,
            bins,
            *size,
            kind=self.kind,
            near=self.near,
            labels=labels,
            detached=detached,
            targets=targets,
            distort=distort,
            absolute=absolute,
        )

    def splat(self, camera: Camera, channels: Callable[[Tensor], Tensor]) -> LabelView:
        """Render channels [M, C] given for visible ids [M]; nothing moves geometry."""
        projected = self.project(camera)
        values = channels(projected.ids)
        blended = self.blend(camera, projected, self.extra_channels(camera, projected), values, detached=True)
        depth = self.depth_map(camera, blended, blended.image)
        return LabelView(blended.labels, blended.alpha.detach(), depth.detach())

    @property
    def active_sh_degree(self) -> int:
        """Degree of spherical harmonics in use: one more every ``sh_every`` steps."""
        if self._trainer is None or not self.training:
            return self.sh_degree
        return min(self.global_step // max(self.sh_every, 1), self.sh_degree)

    # ---------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Frame, batch_idx: int) -> None:
        step = self.global_step
        frozen = 0 < self.geometry_stop <= step
        density = None if frozen else self.densify
        frame = reduced(batch, self.photo_scale(step))
        labels = step >= self.label_start and (frozen or step % self.label_every == 0)
        watch = density is not None and density.watches(step)
        view = self.render(
            frame.camera,
            labels=labels,
            targets=self.head.targets(frame) if labels else None,
            absolute=density is not None and watch and density.absolute,
            frozen=frozen,
        )
        if watch:
            view.projected.geometry.retain_grad()
        photo = frame.color.to(view.image.dtype) / 255
        terms: dict[str, Tensor] = {}
        if not frozen:
            terms["photometric"] = ops.photometric_loss(view.image, photo, self.ssim_weight)
            terms |= self.regularisers(view, frame)
        if density is not None:
            terms |= density.regularisers(self.gaussians)
        if labels:
            head = self.head.losses(_label_view(view), frame, self.gaussians, self._context(frame, step))
            terms |= {name: self.label_weight * term for name, term in head.items()}
        check_loss(terms, self.gaussians, step, frame.name)
        loss = torch.stack(list(terms.values())).sum() if terms else view.image.new_zeros(())

        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad(set_to_none=True)
        if terms:  # none on frozen geometry, where the frame has no masks
            self.manual_backward(loss)
        if density is not None and watch:
            self._observe(density, frame.camera, view)
        optimizer.step()
        cast(LRScheduler, self.lr_schedulers()).step()
        self.head.after_step(step + 1)
        if density is not None:
            # Seeded by the step, so that a resumed run places children where the uninterrupted one does.
            generator = torch.Generator(self.gaussians["means"].device).manual_seed(step + 1)
            if density.due(step + 1):
                density.apply(self.gaussians, optimizer.optimizer, step + 1, generator, self.density_context())
                self.after_density()
            density.after_step(self.gaussians, optimizer.optimizer, step + 1, generator)
        self.latest = {"loss": loss.detach(), "psnr": psnr(view.image.detach(), photo)}
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            logged = {f"loss/{name}": term.detach() for name, term in terms.items()}
            self.log_dict({**self.latest, **logged, "gaussians": float(len(self.gaussians))})

    def regularisers(self, view: View, frame: Frame) -> dict[str, Tensor]:
        """Weighted loss terms of the base model beside the photometric one."""
        if self.depth_weight <= 0 or frame.depth is None:
            return {}
        return {"depth": self.depth_weight * depth_loss(view.depth, frame.depth, view.alpha, self.max_depth)}

    def photo_scale(self, step: int) -> int:
        """Factor by which frames are reduced at a step."""
        return 1

    def density_context(self) -> DensityContext:
        """What the density control may know beside the Gaussians."""
        return DensityContext(label_confidence=lambda: self.head.confidence(self.gaussians))

    def after_density(self) -> None:
        """Called when the density control has changed the rows."""

    def _context(self, frame: Frame, step: int) -> StepContext:
        def neighbor() -> Frame | None:
            near = self._adjacent[frame.index] if self._adjacent else []
            if not near or self._scene is None:
                return None
            # Drawn by a seed of the step: a plain remainder would share factors with the head's own rhythm.
            draw = torch.randint(len(near), (), generator=torch.Generator().manual_seed(step))
            return self._scene.source.load(near[int(draw)]).to(self.device)

        return StepContext(step, neighbor, self.splat)

    def _observe(self, density: DensityControl, camera: Camera, view: View) -> None:
        """Hand the screen-space gradient in NDC units to the density control."""
        grad = view.projected.geometry.grad
        assert grad is not None
        geometry = view.projected.geometry.detach()
        half = geometry.new_tensor([camera.width / 2, camera.height / 2])
        if self.kind == "ellipsoid":
            screen = grad[:, :2] * half
            determinant = geometry[:, 2] * geometry[:, 4] - geometry[:, 3].square()
            radii = 3 * (torch.maximum(geometry[:, 2], geometry[:, 4]) / determinant).sqrt()
        else:
            # A shift of the disc parallel to the screen: d/d(M_u, M_v)[2] times the depth of the centre.
            screen = grad[:, [2, 5]] * geometry[:, 12:13] * half
            radii = torch.ones_like(geometry[:, 0])
        if view.absolute is not None:
            assert view.absolute.grad is not None
            screen = view.absolute.grad * half
        density.observe(self.gaussians, view.projected.ids, screen.norm(dim=-1), radii)

    # -------------------------------------------------------------------------------------------------- evaluation

    def on_fit_start(self) -> None:
        if not len(self.gaussians):
            raise UserError("no Gaussian could be initialised: no training frame has usable depth")
        resolve(device=self.device.type)  # may compile for a minute, which is not to be counted as training

    def validation_step(self, batch: Frame, batch_idx: int) -> None:
        view = self.render(batch.camera, labels=False)
        self.log("val/psnr", psnr(view.image, batch.color.to(view.image.dtype) / 255), batch_size=1, prog_bar=True)

    def test_step(self, batch: Frame, batch_idx: int) -> PredictedView:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.predict_view(batch.camera)

    def predict_step(self, batch: Frame, batch_idx: int) -> PredictedView:
        return self.predict_view(batch.camera)

    @torch.no_grad()
    def predict_view(self, camera: Camera) -> PredictedView:
        """Panoptic map, colour, depth and normals of a view."""
        view = self.render(camera)
        return PredictedView(
            self.head.decode(_label_view(view)),
            (view.image.clamp(0, 1) * 255).round().to(torch.uint8),
            view.depth,
            torch.nn.functional.normalize(view.normal, dim=-1),
        )

    # ------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["panbench_format"] = CHECKPOINT_FORMAT

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get("panbench_format")
        if found != CHECKPOINT_FORMAT:
            raise UserError(
                f"the checkpoint has format {found}, this panbench reads {CHECKPOINT_FORMAT}: train again, or use the "
                "version that wrote it (manifest.json beside it says which)"
            )
        self.gaussians.resize_like(checkpoint["state_dict"], "gaussians.")
        self.head.resize_like(checkpoint["state_dict"], "head.")


def _label_view(view: View) -> LabelView:
    return LabelView(view.labels, view.alpha.detach(), view.depth.detach(), view.sums)


def expected(depth: Tensor, alpha: Tensor) -> Tensor:
    """Σ w d / Σ w, and 0 where hardly anything was hit."""
    return torch.where(alpha > 1e-3, depth / alpha.clamp_min(1e-3), 0.0)


def reduced(frame: Frame, scale: int) -> Frame:
    """The frame at 1 / scale of its size: colours averaged, depth and masks those of single pixels."""
    if scale == 1:
        return frame
    camera = frame.camera.resized(max(frame.camera.width // scale, 1), max(frame.camera.height // scale, 1))
    size = (camera.height, camera.width)

    def picked(values: Tensor) -> Tensor:
        return functional.interpolate(values[None, None].double(), size, mode="nearest-exact")[0, 0].to(values.dtype)

    color = functional.interpolate(frame.color.permute(2, 0, 1)[None].float(), size, mode="area")[0].permute(1, 2, 0)
    masks = frame.masks and PanopticMap(
        picked(frame.masks.semantic),
        picked(frame.masks.instance),
        None if frame.masks.score is None else picked(frame.masks.score),
    )
    return replace(
        frame,
        camera=camera,
        color=color.round().to(torch.uint8).contiguous(),
        depth=None if frame.depth is None else picked(frame.depth),
        masks=masks,
        truth=None,
    )


def _empty_cloud(voxel: float) -> PointCloud:
    return PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), voxel)


def _adjacent_frames(scene: Scene, count: int) -> list[list[int]]:
    """For each frame index, the ``count`` training frames of least camera baseline that look the same way (< 60°)."""
    out: list[list[int]] = [[] for _ in range(len(scene.source))]
    train = list(scene.train)
    if count < 1 or len(train) < 2:
        return out
    positions = scene.camera_positions(train)
    forward = torch.stack([scene.source.camera(i).rotation[2] for i in train])
    baseline = torch.cdist(positions, positions)
    baseline = torch.where(forward @ forward.T > 0.5, baseline, torch.inf)
    baseline.fill_diagonal_(torch.inf)
    for row, index in enumerate(train):
        nearest = baseline[row].argsort()[:count]
        out[index] = [train[int(j)] for j in nearest if baseline[row, j].isfinite()]
    return out
