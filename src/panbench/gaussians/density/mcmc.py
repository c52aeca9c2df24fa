"""3DGS as Markov chain Monte Carlo: a fixed budget, relocation instead of pruning, noise instead of cloning."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.optim import Optimizer

from panbench.gaussians import surgery
from panbench.gaussians.density.composition import relocate
from panbench.gaussians.density.control import (
    DensityChange,
    DensityContext,
    DensityControl,
    check_settings,
    not_negative,
    opacities_of,
    schedule_rules,
)
from panbench.gaussians.gaussian_set import GaussianSet, rows_of
from panbench.gaussians.rotation import rotation_matrices

log = logging.getLogger(__name__)

# Of the sigmoid that takes the noise off opaque Gaussians.
_STEEPNESS = 100.0


class MCMC(DensityControl):
    """Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo". All defaults are theirs.

    Dead Gaussians are moved onto living ones, drawn in proportion to opacity; the set grows by a share each time until
    it is full; after every step faint Gaussians walk at random inside their own covariance. N never falls and no
    opacity is reset. A Gaussian with a value that is not finite is dead, and so comes back to life.

    Of the model it wants a low start: published are opacity 0.5 and a tenth of the distance to the neighbours as scale.
    """

    def __init__(
        self,
        start: int = 500,
        stop: int = 25_000,
        every: int = 100,
        max_gaussians: int = 1_000_000,
        growth: float = 0.05,
        min_opacity: float = 0.005,
        noise_lr: float = 5e5,
        opacity_weight: float = 0.01,
        scale_weight: float = 0.01,
    ) -> None:
        """Args:
        start, stop, every: relocate and grow at the multiples of ``every`` in (start, stop); published 500, 25 000 and
            100. ``stop`` 0: never. The noise is added after every step of the run.
        max_gaussians: the cap on N; published 1 M, which fixes memory and makes runs comparable. More first Gaussians
            than that stay.
        growth: share of N that is added each time; published 5 %.
        min_opacity: up to here a Gaussian is dead; copies get no less. Published 0.005.
        noise_lr: factor of the noise on top of the learning rate of the means; published 5e5. 0: no noise. The noise
            goes with covariance times that rate, so it depends on the unit of length; published for COLMAP's.
        opacity_weight: of the mean opacity, a loss term; published 0.01.
        scale_weight: of the mean scale in metres, a loss term; published 0.01.

        Raises:
            UserError: settings out of range.
        """
        check_settings(
            *schedule_rules(start, stop, every, max_gaussians),
            *not_negative(growth=growth, noise_lr=noise_lr, opacity_weight=opacity_weight, scale_weight=scale_weight),
            (0 < min_opacity < 1, f"min_opacity is {min_opacity}; it must be between 0 and 1"),
        )
        self.start = start
        self.stop = stop
        self.every = every
        self.max_gaussians = max_gaussians
        self.growth = growth
        self.min_opacity = min_opacity
        self.noise_lr = noise_lr
        self.opacity_weight = opacity_weight
        self.scale_weight = scale_weight

    def regularisers(self, gaussians: GaussianSet) -> dict[str, Tensor]:
        """``mcmc_opacity``: w · mean o; ``mcmc_scale``: w · mean s over all axes."""
        terms: dict[str, Tensor] = {}
        if self.opacity_weight > 0:
            terms["mcmc_opacity"] = self.opacity_weight * gaussians["opacities"].sigmoid().mean()
        if self.scale_weight > 0:
            terms["mcmc_scale"] = self.scale_weight * gaussians["scales"].exp().mean()
        return terms

    def due(self, step: int) -> bool:
        return self.start < step < self.stop and step % self.every == 0

    def apply(
        self,
        gaussians: GaussianSet,
        optimizer: Optimizer | None,
        step: int,
        generator: torch.Generator,
        context: DensityContext,
    ) -> DensityChange:
        if not self.due(step):
            return DensityChange(0, 0, 0, False, len(gaussians))
        relocated = self._relocate_dead(gaussians, optimizer, step, generator)
        added = self._grow(gaussians, optimizer, generator)
        change = DensityChange(added, 0, 0, False, len(gaussians), relocated)
        log.debug("step %d: %s", step, change)
        return change

    def after_step(self, gaussians: GaussianSet, optimizer: Optimizer, step: int, generator: torch.Generator) -> None:
        """μ += Σ ε · sigmoid(−100 (o − min_opacity)) · lr of the means · noise_lr, ε ~ N(0, I)."""
        if self.noise_lr == 0:
            return
        rate = next(group["lr"] for group in optimizer.param_groups if group["name"] == "means")
        means, scales = gaussians["means"].detach(), gaussians["scales"].detach()
        noise = torch.randn(means.shape, generator=generator, device=generator.device).to(means)
        axes = rotation_matrices(gaussians["quats"].detach())[..., : scales.shape[-1]]
        spread = (axes @ ((2 * scales).exp() * (axes.mT @ noise[..., None]).squeeze(-1))[..., None]).squeeze(-1)
        amount = (-_STEEPNESS * (opacities_of(gaussians) - self.min_opacity)).sigmoid() * (rate * self.noise_lr)
        means.add_(spread * amount[:, None])

    def _relocate_dead(
        self, gaussians: GaussianSet, optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> int:
        """Put every dead Gaussian in the place of a living one. Returns how many there were."""
        dead = ~_alive(gaussians, self.min_opacity)
        targets = dead.nonzero().squeeze(-1)
        if len(targets) == len(gaussians):
            log.warning("step %d: every Gaussian is dead; none is relocated (the training has gone astray)", step)
            return 0
        if len(targets):
            sources = _draw(gaussians, ~dead, len(targets), generator)
            rows = self._copies(gaussians, sources, optimizer)
            surgery.overwrite(gaussians, targets, rows, optimizer)
        return len(targets)

    def _grow(self, gaussians: GaussianSet, optimizer: Optimizer | None, generator: torch.Generator) -> int:
        """Append copies of living Gaussians up to this time's target. Returns how many."""
        count = len(gaussians)
        added = max(min(self.max_gaussians, int((1 + self.growth) * count)) - count, 0)
        alive = _alive(gaussians, 0.0)
        if added == 0 or not alive.any():
            return 0
        sources = _draw(gaussians, alive, added, generator)
        surgery.append(gaussians, self._copies(gaussians, sources, optimizer), optimizer)
        return added

    def _copies(self, gaussians: GaussianSet, sources: Tensor, optimizer: Optimizer | None) -> dict[str, Tensor]:
        """Change the drawn rows ``sources`` [K] to what they share with their copies, and return the copies' rows."""
        originals, which, times = sources.unique(return_inverse=True, return_counts=True)
        rows = {name: gaussians[name].detach()[originals] for name in gaussians}
        logits, log_factor = relocate(rows["opacities"].reshape(len(originals)), times + 1)
        lowest = torch.tensor(self.min_opacity, dtype=torch.float64).logit().item()
        rows["opacities"] = logits.clamp(min=lowest).reshape(rows["opacities"].shape)
        rows["scales"] = rows["scales"] + log_factor[:, None]
        surgery.overwrite(gaussians, originals, rows, optimizer)
        return rows_of(gaussians, originals[which])


def _alive(gaussians: GaussianSet, above: float) -> Tensor:
    """Gaussians more opaque than ``above`` whose geometry is finite: bool [N]."""
    alive = opacities_of(gaussians) > above
    for name in ("means", "quats", "scales"):
        alive &= gaussians[name].detach().isfinite().all(-1)
    return alive


def _draw(gaussians: GaussianSet, among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows among the marked [N], with replacement, in proportion to opacity."""
    weights = opacities_of(gaussians).double().masked_fill(~among, 0.0)
    draws = torch.multinomial(weights.to(generator.device), count, replacement=True, generator=generator)
    return draws.to(weights.device)
