"""The paper's head: label-blended semantics, and instances by Gaussian-modulated queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from panbench.errors import UserError
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.heads.base import GaussianLabels, LabelView, PanopticHead, StepContext
from panbench.heads.label_init import start_instances, start_semantics, vote_logits
from panbench.heads.matching import Masks, assign, matching_cost, number_masks, pair_losses
from panbench.heads.scattering import seeds_from_surfaces, seeds_from_voxels
from panbench.heads.seeding import Seeds, seed_queries
from panbench.heads.votes import class_pixels, class_votes
from panbench.heads.warping import Norm, warping_term
from panbench.ops import LabelSums, LabelTargets, attend, attend_shares, label_sums, take_rows
from panbench.scene import Frame, LabelSpace, PanopticMap, Scene


class QueryHead(PanopticHead):
    """Semantic and instance fields of Gaussians, supervised by unassociated 2D masks (PanopticSplatting, section III).

    Semantics: a feature per Gaussian, decoded by an MLP and a softmax, then blended (eq. 7). Instances: an attention
    A = sigmoid(f_q · f_g) · φ_q(x_g)/φ_q(x_q) between queries and visible Gaussians (eqs. 2–4), a softmax over queries
    (eq. 5), blended (eq. 6). Per frame a linear assignment pairs masks and queries.
    """

    decoder: nn.Sequential
    is_thing: Tensor
    known: Tensor
    class_weights: Tensor
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
        scope: Literal["local", "global"] = "local",
        temperature: float = 1.0,
        temperature_lr: float = 0.0,
        no_object: float = 0.02,
        seeding: Literal["masks", "voxels", "random"] = "masks",
        seed_points: int = 3000,
        seed_cut: float = 0.5,
        max_queries: int = 150,
        prune_after: int = 5,
        prune_below: float = 0.1,
        label_init: Literal["random", "masks"] = "random",
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
        class_weighting: Literal["none", "inverse_sqrt"] = "none",
        label_smoothing: float = 0.0,
        use_scores: bool = False,
        warp_weight: float = 1.0,
        warp_every: int = 4,
        warp_tolerance: float = 0.03,
        warp_labels: Literal["semantic", "all"] = "semantic",
        warp_norm: Norm = "l2",
    ) -> None:
        """``configs/head/query_paper.yaml`` has the values of the paper's text, docs/head.md the choices side by side.

        Args:
        semantic_dim: width of a Gaussian's semantic feature; 16 in the paper.
        instance_dim: width of a Gaussian's instance feature and of a query's; 32 in the paper.
        hidden_dim: width of the hidden layer that decodes semantic features; the paper gives none.
        blending: "label": decode each Gaussian, blend class probabilities (eq. 7), the paper's choice, which makes each
            Gaussian answer for its class in all views; "feature": blend features, decode each pixel.
        attention: what the softmax over queries is taken of. "log": log A, so that the shares are the posterior of a
            mixture: they reach from 0 to 1 however many queries there are, and keep a gradient where A underflows.
            "literal": A itself, which is eq. 5; A ≤ 1 bounds the largest share by e^t / (e^t + Q − 1).
        scope: "local": attention of the visible Gaussians only, as in the paper, so that nothing of size [N, Q] is
            made; "global": of all N, then the visible rows are taken. Same values, more memory (Table IV).
        temperature: t, the factor on the logits of that softmax. 1, as in eq. 5.
        temperature_lr: learning rate of log t, which then starts at ``temperature``, is trained and saved, and costs
            three more tensors [M, Q]; 0: t stays. Not trained, as in eq. 5.
        no_object: A of a constant extra entry of that softmax, which takes the Gaussians that no query claims, so that
            surplus queries fall silent (our inference: the paper does not say what becomes of them); 0: no such entry,
            as in eq. 5.
        seeding: where queries start. "masks": at groups of mask points that views show in one mask (ours, the default,
            as the paper is silent and each object gets about one query); "voxels": at mask points thinned to 0.8 m, as
            in the predecessor PanopticRecon++; "random": uniform over the surfaces, to show what seeding is worth.
        seed_points: of "masks": how many points are grouped into queries: more find smaller things and take longer.
        seed_cut: of "masks": share of common views that must show two groups of points in one mask for them to be one
            query. Half: the majority of views.
        max_queries: largest number of queries; of "masks", the seeds with most points are taken. 150, as in the
            predecessor.
        prune_after: passes over the training frames after which surplus queries are switched off, again and again;
            0: never, as in the paper's text. More than one, so that no query is lost to a single unlucky pairing.
        prune_below: a query is surplus if less than this share of its rendered pixels lay in the masks it was paired
            with: it is a fragment of an object that another query stands for, or a mask that few views confirm. 0: only
            queries that were never paired, as in the predecessor.
        label_init: "random": features start as noise, as in the paper; "masks": Gaussians start with the classes that
            most views' masks give them, and with the query of the nearest seed point if that is a thing (after
            OmniIndoor3D; see :mod:`panbench.heads.label_init`). Costs a pass over the training frames.
        semantic_lr, instance_lr: learning rates of the Gaussians' features.
        decoder_lr: learning rate of the MLP.
        query_lr, query_mean_lr, query_scale_lr: learning rates of the queries' features, of their means (metres), and
            of their log-scales and quaternions.
        lr_decay: factor by which all of these fall over the run.
        dice_weight, bce_weight, semantic_weight, warp_weight: weights of the loss terms, 1 as in eq. 14; warp_weight 0
            skips the second rendering that label warping needs.
        class_weighting: weight of a pixel's cross-entropy by the class of its mask. "none": 1, as in eq. 12;
            "inverse_sqrt": 1/√(pixels of the class in all masks), scaled to a mean of 1 over these pixels, so that rare
            classes are heard without small, often wrong masks taking over as with the plain inverse.
        label_smoothing: ε, the target (1 − ε) one-hot + ε / classes. 0, as in eq. 12. Above 0 the uniform part is
            computed in torch, a few more tensors of the size of the class image, forward and backward.
        use_scores: weigh the cross-entropy of a pixel by its mask's score. Off, as in the paper.
        warp_every: steps between two label warpings: they cost a rendering each. 1: always, as in the paper. One
            neighbour is drawn at a time among the base's ``neighbors`` (adjacency K_m), where eq. 10 sums over them.
        warp_tolerance: largest difference of depth, relative, at which two views see the same surface (our inference:
            without it, labels leak from what hides a point); 0: hidden points are compared too, as in the text.
        warp_labels: "semantic", as in eq. 10; "all": the instance labels too, each in a norm of its own.
        warp_norm: of eq. 10, which does not say which. "l2": the usual reading of an unmarked norm; "l1".

        Raises:
            UserError: a value that a key does not allow.
        """
        super().__init__()
        _check_choices(
            blending=(blending, ("label", "feature")),
            attention=(attention, ("literal", "log")),
            scope=(scope, ("local", "global")),
            seeding=(seeding, ("masks", "voxels", "random")),
            label_init=(label_init, ("random", "masks")),
            class_weighting=(class_weighting, ("none", "inverse_sqrt")),
            warp_labels=(warp_labels, ("semantic", "all")),
            warp_norm=(warp_norm, ("l2", "l1")),
        )
        if no_object < 0:
            raise UserError(f"head: no_object {no_object} must not be negative; 0 leaves it out")
        if temperature <= 0:
            raise UserError(f"head: temperature {temperature} must be positive; eq. 5 has 1")
        if temperature_lr < 0:
            raise UserError(f"head: temperature_lr {temperature_lr} must not be negative; 0 keeps temperature fixed")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"head: label_smoothing {label_smoothing} must lie in [0, 1); 0 leaves it out")
        if warp_tolerance < 0:
            raise UserError(f"head: warp_tolerance {warp_tolerance} must not be negative; 0: no occlusion check")
        self.semantic_dim, self.instance_dim, self.hidden_dim = semantic_dim, instance_dim, hidden_dim
        self.blending, self.attention, self.scope = blending, attention, scope
        self.first_temperature, self.temperature_lr, self.no_object = temperature, temperature_lr, no_object
        self.seeding, self.seed_points, self.seed_cut, self.max_queries = seeding, seed_points, seed_cut, max_queries
        self.prune_after, self.prune_below, self.label_init = prune_after, prune_below, label_init
        self.semantic_lr, self.instance_lr, self.decoder_lr = semantic_lr, instance_lr, decoder_lr
        self.query_lr, self.query_mean_lr, self.query_scale_lr = query_lr, query_mean_lr, query_scale_lr
        self.lr_decay = lr_decay
        self.dice_weight, self.bce_weight, self.semantic_weight = dice_weight, bce_weight, semantic_weight
        self.class_weighting, self.label_smoothing, self.use_scores = class_weighting, label_smoothing, use_scores
        self.warp_weight, self.warp_every, self.warp_tolerance = warp_weight, warp_every, warp_tolerance
        self.warp_labels = warp_labels
        self.warp_norm: Norm = warp_norm
        self.labels: LabelSpace | None = None
        self._latest: tuple[PanopticMap, Masks] | None = None
        self._seed_points: tuple[Tensor, Tensor] | None = None

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
        self.register_buffer("known", torch.tensor([c.id - 1 for c in labels.classes]), persistent=False)
        if self.temperature_lr > 0:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(self.first_temperature)))
        if self.class_weighting != "none":
            self.register_buffer("class_weights", torch.ones(self.classes))
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
        seeds = self._seeds(scene)
        count = min(len(seeds.means), self.max_queries)
        owner = torch.from_numpy(seeds.owner)
        largest = torch.bincount(owner, minlength=len(seeds.means)).argsort(descending=True, stable=True)[:count]
        self._make_queries(count)
        self.frames.fill_(len(scene.train))
        with torch.no_grad():
            self.query_means.copy_(torch.from_numpy(seeds.means)[largest])
            self.query_log_scales.copy_(torch.from_numpy(seeds.log_scales)[largest])
            self.query_quats.copy_(torch.from_numpy(seeds.quats)[largest])
            nn.init.normal_(self.query_features, std=0.5)
        if self.label_init == "masks":
            query = torch.full((len(seeds.means),), -1)
            query[largest] = torch.arange(count)
            kept = query[owner] >= 0
            self._seed_points = torch.from_numpy(seeds.points)[kept], query[owner][kept]
        if self.class_weighting != "none":
            pixels = class_pixels(scene, self.classes).double()
            # A class that no mask shows is never asked for its weight.
            weights = torch.where(pixels > 0, pixels.clamp_min(1).rsqrt(), 0.0)
            self.class_weights.copy_(weights * (pixels.sum() / (weights * pixels).sum().clamp_min(1e-12)))

    def _seeds(self, scene: Scene) -> Seeds:
        if self.seeding == "voxels":
            return seeds_from_voxels(scene, self.max_queries)
        if self.seeding == "random":
            return seeds_from_surfaces(scene, self.max_queries)
        seeds = seed_queries(scene, max_points=self.seed_points, cut=self.seed_cut)
        # Wider than the points they came from, so that the rim of an object is not far away.
        return replace(seeds, log_scales=seeds.log_scales + np.float32(math.log(1.5)))

    @torch.no_grad()
    def initialise(self, gaussians: GaussianSet, scene: Scene) -> None:
        if self.label_init == "random":
            return
        assert self._seed_points is not None, "initialise comes after seed"
        (points, owner), self._seed_points = self._seed_points, None
        means = gaussians["means"].detach().cpu().float()
        votes = class_votes(scene, means, self.classes)
        start_semantics(gaussians["semantic_features"], self.decoder, vote_logits(votes))
        things = ((votes.sum(1) > 0) & self.is_thing.cpu()[votes.argmax(1)]).nonzero()[:, 0]
        features = gaussians["instance_features"][things]
        start_instances(features, means[things], self.query_features, points, owner)
        gaussians["instance_features"][things] = features

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

        out = [
            group("decoder", list(self.decoder.parameters()), self.decoder_lr),
            group("query_features", [self.query_features], self.query_lr),
            group("query_means", [self.query_means], self.query_mean_lr),
            group("query_shapes", [self.query_log_scales, self.query_quats], self.query_scale_lr),
        ]
        if self.temperature_lr > 0:
            out.append(group("temperature", [self.log_temperature], self.temperature_lr))
        return out

    def semantic_channels(self, gaussians: GaussianSet, ids: Tensor) -> Tensor:
        features = take_rows(gaussians["semantic_features"], ids)
        return features if self.blending == "feature" else self.decoder(features).softmax(-1)

    def instance_channels(self, gaussians: GaussianSet, ids: Tensor) -> Tensor:
        features, means = gaussians["instance_features"], gaussians["means"].detach()
        if self.scope == "global":
            return take_rows(self._shares(features, means), ids)
        return self._shares(take_rows(features, ids), take_rows(means, ids))

    def _shares(self, features: Tensor, means: Tensor) -> Tensor:
        """Share of each query that is on in Gaussians with these instance features and centres (eq. 5)."""
        on, logarithm = self.active, self.attention == "log"
        inputs = (
            features,
            means,
            self.query_features[on],
            self.query_means[on],
            self.query_log_scales[on],
            self.query_quats[on],
        )
        rest = None
        if self.no_object > 0:
            rest = math.log(self.no_object) if logarithm else self.no_object
        if self.temperature_lr == 0:
            return attend_shares(*inputs, logarithm=logarithm, temperature=self.first_temperature, rest=rest)
        # The kernel of the shares takes a number and has no gradient for it.
        logits = attend(*inputs, logarithm=logarithm)
        if rest is not None:
            logits = torch.cat([logits, logits.new_full((len(logits), 1), rest)], dim=1)
        shares = (self.log_temperature.exp() * logits).softmax(-1)
        return shares if rest is None else shares[:, :-1]

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
        weight = torch.ones_like(masks.semantic, dtype=self.query_means.dtype)
        if self.use_scores and masks.score is not None:
            weight = masks.score
        if self.class_weighting != "none":
            # Void pixels count nowhere, whatever they take here.
            weight = weight * self.class_weights[(masks.semantic.long() - 1).clamp_min(0)]
        return weight

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
        if self.label_smoothing > 0:
            entropy = torch.lerp(entropy, self._uniform_entropy(semantic, targets), self.label_smoothing)
        weight = (targets.weight * (targets.semantic > 0)).sum().clamp_min(1e-20)
        out = {"semantic": self.semantic_weight * entropy / weight}
        rows, columns = self._pair(view.sums, numbered)
        if len(columns):
            dice, bce = pair_losses(view.sums, numbered, rows, columns)
            out |= {"dice": self.dice_weight * dice, "bce": self.bce_weight * bce}
        if self.warp_weight > 0 and context.step % self.warp_every == 0:
            other = context.neighbor()
            if other is not None:
                out["warp"] = self.warp_weight * self._warp(view, semantic, frame, other, gaussians, context)
        return out

    def _uniform_entropy(self, semantic: Tensor, targets: LabelTargets) -> Tensor:
        """Σ over labelled pixels of w times the mean over classes of −log(S + ε)."""
        labelled = targets.semantic > 0
        rows = semantic[labelled][:, self.known]
        return (targets.weight[labelled] * -(rows + targets.epsilon).log().mean(1)).sum()

    def _warp(
        self,
        view: LabelView,
        semantic: Tensor,
        frame: Frame,
        other: Frame,
        gaussians: GaussianSet,
        context: StepContext,
    ) -> Tensor:
        """Eq. 10 for one neighbouring frame."""
        queries = self.instance_count if self.warp_labels == "all" else 0
        shown = self.channels if queries else self.semantic_channels
        with torch.no_grad():
            seen = context.splat(other.camera, lambda ids: shown(gaussians, ids))
            other_semantic = self._semantic(seen.channels)
        pairs = [(semantic, self.classes, other_semantic)]
        if queries:
            pairs.append((view.channels[..., -queries:], queries, seen.channels[..., -queries:]))
        terms = [
            warping_term(
                mine,
                count,
                frame.camera,
                view.depth,
                other.camera,
                theirs,
                seen.depth,
                tolerance=self.warp_tolerance,
                norm=self.warp_norm,
            )
            for mine, count, theirs in pairs
        ]
        return torch.stack(terms).sum()

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
    def confidence(self, gaussians: GaussianSet) -> Tensor:
        """Probability of each Gaussian's most likely class [N]."""
        return self._classified(gaussians)[0]

    def _classified(self, gaussians: GaussianSet) -> tuple[Tensor, Tensor]:
        """Probability of each Gaussian's most likely class [N], and its channel [N]."""
        if self.blending == "feature":
            raise UserError("labels of single Gaussians need label blending; set model.head.blending to label")
        probability, index = self.decoder(gaussians["semantic_features"]).softmax(-1).max(-1)
        return probability, index

    @torch.no_grad()
    def label(self, gaussians: GaussianSet) -> GaussianLabels:
        score, index = self._classified(gaussians)
        ids = torch.arange(len(gaussians), device=index.device)
        semantic, instance = index + 1, torch.zeros_like(index)
        queries = self.active.nonzero()[:, 0]
        if len(queries):
            best = queries[self.instance_channels(gaussians, ids).argmax(-1)]
            voted = self.query_classes()[best]
            claimed = self.is_thing[index] & (voted > 0)
            instance = torch.where(claimed, best + 1, instance)
            semantic = torch.where(claimed, voted, semantic)
        return GaussianLabels(semantic, instance, score)


def _check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    """Raises: UserError: a key, given with its value and what it allows, has another value."""
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"head: {key} {value} must be one of {', '.join(allowed)}")
