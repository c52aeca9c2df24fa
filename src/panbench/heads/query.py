"""The paper's head: label-blended semantics, and instances by Gaussian-modulated queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from panbench.errors import UserError
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.heads.base import GaussianLabels, LabelView, PanopticHead, StepContext
from panbench.heads.matching import Masks, assign, matching_cost, number_masks, pair_losses
from panbench.heads.seeding import seed_queries
from panbench.ops import LabelSums, LabelTargets, attend_shares, label_sums, take_rows, warping_loss
from panbench.scene import Frame, LabelSpace, PanopticMap, Scene


class QueryHead(PanopticHead):
    """Semantic and instance fields of Gaussians, supervised by unassociated 2D masks (PanopticSplatting, section III).

    Semantics: a feature per Gaussian, decoded by an MLP and a softmax, then blended (eq. 7). Instances: an attention
    A = sigmoid(f_q · f_g) · φ_q(x_g)/φ_q(x_q) between queries and visible Gaussians (eqs. 2–4), a softmax over queries
    (eq. 5), blended (eq. 6). Per frame a linear assignment pairs masks and queries.
    """

    decoder: nn.Sequential
    is_thing: Tensor
    active: Tensor
    shown: Tensor
    paired: Tensor
    class_votes: Tensor
    frames: Tensor
    paired_frames: Tensor

    def __init__(
        self,
        semantic_dim: int = 16,
        instance_dim: int = 32,
        hidden_dim: int = 32,
        blending: Literal["label", "feature"] = "label",
        attention: Literal["literal", "log"] = "log",
        temperature: float = 1.0,
        no_object: float = 0.02,
        seed_points: int = 3000,
        seed_cut: float = 0.5,
        max_queries: int = 150,
        prune_after: int = 5,
        prune_below: float = 0.1,
        semantic_lr: float = 0.05,
        instance_lr: float = 0.02,
        decoder_lr: float = 0.01,
        query_lr: float = 5e-3,
        query_mean_lr: float = 2e-3,
        query_scale_lr: float = 5e-3,
        lr_decay: float = 0.1,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        semantic_weight: float = 1.0,
        warp_weight: float = 1.0,
        warp_every: int = 4,
        warp_tolerance: float = 0.03,
        use_scores: bool = False,
    ) -> None:
        """Args:
        semantic_dim: width of a Gaussian's semantic feature.
        instance_dim: width of a Gaussian's instance feature and of a query's.
        hidden_dim: width of the hidden layer that decodes semantic features.
        blending: "label": decode each Gaussian, blend class probabilities (eq. 7); "feature": blend features, decode
            each pixel.
        attention: what the softmax over queries is taken of. "log": log A, so that the shares are the posterior of a
            mixture: they reach from 0 to 1 however many queries there are, and keep a gradient where A underflows.
            "literal": A itself, which is eq. 5; A ≤ 1 bounds the largest share by e^t / (e^t + Q − 1).
        temperature: t, the factor on the logits of that softmax (eq. 5: 1).
        no_object: A of a constant extra entry of that softmax, which takes the Gaussians that no query claims, so that
            surplus queries fall silent; 0: no such entry, as in eq. 5.
        seed_points: how many points of the masks are grouped into queries: more find smaller things and take longer.
        seed_cut: share of common views that must show two groups of points in one mask for them to be one query.
        max_queries: largest number of queries; the seeds with most points are taken.
        prune_after: passes over the training frames after which surplus queries are switched off, again and again;
            0: never. More than one, so that no query is lost to a single unlucky pairing.
        prune_below: a query is surplus if less than this share of its rendered pixels lay in the masks it was paired
            with: it is a fragment of an object that another query stands for, or a mask that few views confirm.
        semantic_lr, instance_lr: learning rates of the Gaussians' features.
        decoder_lr: learning rate of the MLP.
        query_lr, query_mean_lr, query_scale_lr: learning rates of the queries' features, of their means (metres), and
            of their log-scales and quaternions.
        lr_decay: factor by which all of these fall over the run.
        dice_weight, bce_weight, semantic_weight, warp_weight: weights of the loss terms (eq. 14); warp_weight 0 skips
            the second rendering that label warping needs.
        warp_every: steps between two label warpings: they cost a rendering each.
        warp_tolerance: largest difference of depth, relative, at which two views see the same surface.
        use_scores: weigh the cross-entropy of a pixel by its mask's score. Off, as in the paper.
        """
        super().__init__()
        if no_object < 0:
            raise UserError(f"head: no_object {no_object} must not be negative; 0 leaves it out")
        self.semantic_dim, self.instance_dim, self.hidden_dim = semantic_dim, instance_dim, hidden_dim
        self.blending, self.attention, self.temperature, self.no_object = blending, attention, temperature, no_object
        self.seed_points, self.seed_cut, self.max_queries = seed_points, seed_cut, max_queries
        self.prune_after, self.prune_below = prune_after, prune_below
        self.semantic_lr, self.instance_lr, self.decoder_lr, self.query_lr = (
            semantic_lr,
            instance_lr,
            decoder_lr,
            query_lr,
        )
        self.query_mean_lr, self.query_scale_lr, self.lr_decay = query_mean_lr, query_scale_lr, lr_decay
        self.dice_weight, self.bce_weight = dice_weight, bce_weight
        self.semantic_weight, self.warp_weight, self.warp_every = semantic_weight, warp_weight, warp_every
        self.warp_tolerance, self.use_scores = warp_tolerance, use_scores
        self.labels: LabelSpace | None = None
        self._latest: tuple[PanopticMap, Masks] | None = None

    def build(self, labels: LabelSpace) -> None:
        if self.labels is not None:
            return
        self.labels = labels
        self.classes = labels.size - 1
        self.decoder = nn.Sequential(
            nn.Linear(self.semantic_dim, self.hidden_dim), nn.ReLU(), nn.Linear(self.hidden_dim, self.classes)
        )
        thing = torch.from_numpy(labels.is_thing())
        self.register_buffer("is_thing", thing[1:], persistent=False)
        self._make_queries(0)

    def _make_queries(self, count: int) -> None:
        self.query_features = nn.Parameter(torch.zeros(count, self.instance_dim))
        self.query_means = nn.Parameter(torch.zeros(count, 3))
        self.query_log_scales = nn.Parameter(torch.zeros(count, 3))
        self.query_quats = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(count, 1))
        self.register_buffer("active", torch.ones(count, dtype=torch.bool))
        self.register_buffer("shown", torch.zeros(count))
        self.register_buffer("paired", torch.zeros(count))
        self.register_buffer("class_votes", torch.zeros(count, self.classes))
        self.register_buffer("frames", torch.tensor(1))
        self.register_buffer("paired_frames", torch.tensor(0))

    def seed(self, scene: Scene) -> None:
        seeds = seed_queries(scene, max_points=self.seed_points, cut=self.seed_cut)
        count = min(len(seeds.means), self.max_queries)
        largest = torch.bincount(torch.from_numpy(seeds.owner), minlength=len(seeds.means)).argsort(
            descending=True, stable=True
        )[:count]
        self._make_queries(count)
        self.frames.fill_(len(scene.train))
        with torch.no_grad():
            self.query_means.copy_(torch.from_numpy(seeds.means)[largest])
            self.query_log_scales.copy_(torch.from_numpy(seeds.log_scales)[largest] + math.log(1.5))
            self.query_quats.copy_(torch.from_numpy(seeds.quats)[largest])
            nn.init.normal_(self.query_features, std=0.5)

    def resize_like(self, state: Mapping[str, Tensor], prefix: str) -> None:
        self._make_queries(len(state[prefix + "query_means"]))

    def fields(self) -> Mapping[str, FieldSpec]:
        def random(width: int) -> Callable[[int], Tensor]:
            return lambda count: 0.1 * torch.randn(count, width)

        return {
            "semantic_features": FieldSpec(
                (self.semantic_dim,), random(self.semantic_dim), self.semantic_lr, self.semantic_lr * self.lr_decay
            ),
            "instance_features": FieldSpec(
                (self.instance_dim,), random(self.instance_dim), self.instance_lr, self.instance_lr * self.lr_decay
            ),
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        def group(name: str, params: list[nn.Parameter], lr: float) -> dict[str, Any]:
            return {"name": f"head.{name}", "params": params, "lr": lr, "lr_final": lr * self.lr_decay}

        return [
            group("decoder", list(self.decoder.parameters()), self.decoder_lr),
            group("query_features", [self.query_features], self.query_lr),
            group("query_means", [self.query_means], self.query_mean_lr),
            group("query_shapes", [self.query_log_scales, self.query_quats], self.query_scale_lr),
        ]

    def semantic_channels(self, gaussians: GaussianSet, ids: Tensor) -> Tensor:
        features = take_rows(gaussians["semantic_features"], ids)
        return features if self.blending == "feature" else self.decoder(features).softmax(-1)

    def instance_channels(self, gaussians: GaussianSet, ids: Tensor) -> Tensor:
        on = self.active
        rest = None
        if self.no_object > 0:
            rest = self.no_object if self.attention == "literal" else math.log(self.no_object)
        return attend_shares(
            take_rows(gaussians["instance_features"], ids),
            take_rows(gaussians["means"].detach(), ids),
            self.query_features[on],
            self.query_means[on],
            self.query_log_scales[on],
            self.query_quats[on],
            logarithm=self.attention == "log",
            temperature=self.temperature,
            rest=rest,
        )

    def channels(self, gaussians: GaussianSet, ids: Tensor) -> Tensor:
        return torch.cat([self.semantic_channels(gaussians, ids), self.instance_channels(gaussians, ids)], dim=1)

    @property
    def instance_count(self) -> int:
        return int(self.active.sum())

    def _semantic(self, channels: Tensor) -> Tensor:
        """Class probabilities of splatted channels."""
        if self.blending == "label":
            return channels[..., : self.classes]
        return self.decoder(channels[..., : self.semantic_dim]).softmax(-1)

    def targets(self, frame: Frame) -> LabelTargets | None:
        if frame.masks is None:
            return None
        numbered = self._numbered(frame.masks)
        # Blended features become classes only afterwards: then the queries alone are summed up on the way.
        classes, first_query = (self.classes,) * 2 if self.blending == "label" else (0, self.semantic_dim)
        return LabelTargets(
            frame.masks.semantic.int(),
            numbered.number,
            self._weight(frame.masks),
            len(numbered.votes),
            classes,
            first_query,
        )

    def _numbered(self, masks: PanopticMap) -> Masks:
        # Asked for twice in a step.
        if self._latest is None or self._latest[0] is not masks:
            self._latest = masks, number_masks(masks, self.classes)
        return self._latest[1]

    def _weight(self, masks: PanopticMap) -> Tensor:
        if self.use_scores and masks.score is not None:
            return masks.score
        return torch.ones_like(masks.semantic, dtype=self.query_means.dtype)

    def losses(self, view: LabelView, frame: Frame, gaussians: GaussianSet, context: StepContext) -> dict[str, Tensor]:
        targets = self.targets(frame)
        if frame.masks is None or targets is None:
            return {}
        assert view.sums is not None, "the view was rendered without the head's targets"
        numbered = self._numbered(frame.masks)
        semantic, entropy = view.channels, view.sums.entropy
        if self.blending == "feature":
            semantic = self._semantic(view.channels)
            decoded = targets._replace(classes=self.classes, first_query=self.classes)
            entropy = label_sums(semantic, decoded).entropy
        weight = (targets.weight * (targets.semantic > 0)).sum().clamp_min(1e-20)
        out = {"semantic": self.semantic_weight * entropy / weight}
        rows, columns = self._pair(view.sums, numbered)
        if len(columns):
            dice, bce = pair_losses(view.sums, numbered, rows, columns)
            out |= {"dice": self.dice_weight * dice, "bce": self.bce_weight * bce}
        if self.warp_weight > 0 and context.step % self.warp_every == 0:
            other = context.neighbor()
            if other is not None:
                with torch.no_grad():
                    seen = context.splat(other.camera, lambda ids: self.semantic_channels(gaussians, ids))
                    other_semantic = self._semantic(seen.channels)
                out["warp"] = self.warp_weight * warping_loss(
                    semantic,
                    self.classes,
                    frame.camera,
                    view.depth,
                    other.camera,
                    other_semantic,
                    seen.depth,
                    self.warp_tolerance,
                )
        return out

    @torch.no_grad()
    def _pair(self, sums: LabelSums, masks: Masks) -> tuple[Tensor, Tensor]:
        """Assign the frame's masks to queries, and remember how much of each query was seen, how much of that in its
        masks, and with which classes there.

        Returns:
            Numbers of the paired masks [P], and of their queries among the active ones [P].
        """
        cost = matching_cost(sums, masks)
        rows, columns = (torch.from_numpy(n).to(cost.device) for n in assign(cost))
        if len(rows):
            on = self.active.nonzero()[:, 0]
            inside = sums.overlap[0][rows, columns]
            self.shown[on] += sums.presence[0]
            self.paired_frames += 1
            self.paired[on[columns]] += inside
            # A mask has one class; where pixels disagree, it is that of most of them.
            self.class_votes[on[columns], masks.votes[rows].argmax(1)] += inside
        return rows, columns

    def after_step(self, step: int) -> None:
        # Frames come in permutations, so this many of them have shown every object at least prune_after − 1 times.
        if self.prune_after and int(self.paired_frames) >= self.prune_after * int(self.frames):
            self.active &= self.paired > self.prune_below * self.shown
            self.shown.zero_()
            self.paired.zero_()
            self.paired_frames.zero_()

    def query_classes(self) -> Tensor:
        """Thing class id of each query [Q]: the one most of its pixels had in its masks; 0 if it was never paired."""
        votes = self.class_votes * self.is_thing
        return torch.where(votes.sum(1) > 0, votes.argmax(1) + 1, 0)

    def decode(self, view: LabelView) -> PanopticMap:
        classes = self._semantic(view.channels).argmax(-1) + 1
        ids = torch.zeros_like(classes)
        queries = self.active.nonzero()[:, 0]
        if len(queries):
            thing = self.is_thing[classes - 1]
            best = queries[view.channels[..., -len(queries) :].argmax(-1)]
            voted = self.query_classes()[best]
            claimed = thing & (voted > 0)
            ids = torch.where(claimed, best + 1, ids)
            classes = torch.where(claimed, voted, classes)
        seen = view.alpha > 0.05
        return PanopticMap(torch.where(seen, classes, 0), torch.where(seen, ids, 0))

    @torch.no_grad()
    def label(self, gaussians: GaussianSet) -> GaussianLabels:
        if self.blending == "feature":
            raise UserError("labels of single Gaussians need label blending; set model.head.blending to label")
        ids = torch.arange(len(gaussians), device=gaussians["means"].device)
        score, index = self.semantic_channels(gaussians, ids).max(-1)
        semantic, instance = index + 1, torch.zeros_like(index)
        queries = self.active.nonzero()[:, 0]
        if len(queries):
            best = queries[self.instance_channels(gaussians, ids).argmax(-1)]
            voted = self.query_classes()[best]
            claimed = self.is_thing[index] & (voted > 0)
            instance = torch.where(claimed, best + 1, instance)
            semantic = torch.where(claimed, voted, semantic)
        return GaussianLabels(semantic, instance, score)
