"""Volumetric cutting: which points of rendered depth lie where the surfels really are (Gaussian surfels, section 3.4).

Depth blended across an edge floats between two surfaces. No surfel is there, so a grid of summed opacity tells it from
depth on a surface. What is left is ready for a surface reconstruction; panbench has none yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians.rotation import rotation_matrices

MAX_CELLS = 512  # on the longest side, as published
MARGIN = 0.1  # of the box around the centres, as published
ALPHA_MIN = 1 / 255
_BATCH = 2_000_000  # samples that are summed at a time


@dataclass(frozen=True, eq=False)
class OccupancyGrid:
    """Summed opacity of surfels on a grid.

    Attributes:
        density: [X, Y, Z], Σ o exp(−½ r²) of the surfels whose plane passes within half an edge of a cell's centre.
        origin: lower corner [3], metres. edge: of a cell, metres.
    """

    density: Tensor
    origin: Tensor
    edge: float

    def occupied(self, points: Tensor, least: float = 1.0) -> Tensor:
        """Which points [..., 3] lie in a cell whose density is above ``least`` (published: 1); none outside."""
        cell = ((points - self.origin) / self.edge).floor().long()
        size = cell.new_tensor(self.density.shape)
        inside = ((cell >= 0) & (cell < size)).all(-1)
        x, y, z = cell.minimum(size - 1).clamp_min(0).unbind(-1)
        return inside & (self.density[x, y, z] > least)


@torch.no_grad()
def occupancy(means: Tensor, quats: Tensor, log_scales: Tensor, opacities: Tensor, edge: float) -> OccupancyGrid:
    """Sum the opacity of surfels over the cells that they pass through.

    A surfel is sampled on its plane every half edge, as far as its opacity reaches 1/255; a cell counts it once, with
    the sample nearest to the surfel's centre.

    Args:
        means: [N, 3], metres. quats: [N, 4], the third axis is the normal. log_scales: [N, 2 or 3], the third unused.
        opacities: [N], in [0, 1].
        edge: of a cell, metres.

    Raises:
        UserError: no surfel, or more than 512 cells on the longest side.
    """
    if not len(means):
        raise UserError("volumetric cutting: there is no surfel")
    low, high = means.amin(0), means.amax(0)
    span = high - low
    low, high = low - MARGIN * span - edge, high + MARGIN * span + edge
    size = ((high - low) / edge).ceil().long()
    if int(size.max()) > MAX_CELLS:
        least = float((high - low).max()) / MAX_CELLS
        raise UserError(
            f"volumetric cutting: cells of {edge:g} m make a grid of {int(size.max())} on its longest side, of "
            f"{MAX_CELLS} at most; take {least:.2g} m or more"
        )
    axes = rotation_matrices(quats)
    scales = log_scales[:, :2].exp()
    reach = (2 * (255 * opacities).clamp_min(1).log()).sqrt()
    half = (reach[:, None] * scales / (edge / 2)).floor().long()  # samples to either side
    counts = (2 * half + 1).prod(1)
    density = torch.zeros(int(size.prod()), dtype=torch.float32, device=means.device)
    ends = counts.cumsum(0)
    first = 0
    while first < len(means):
        # As many whole surfels as fit into a batch, and at least one.
        limit = (int(ends[first - 1]) if first else 0) + _BATCH
        last = max(int(torch.searchsorted(ends, limit, right=True)), first + 1)
        rows = torch.arange(first, last, device=means.device)
        owner = rows.repeat_interleave(counts[rows])
        number = (
            torch.arange(len(owner), device=means.device)
            - (ends - counts)[owner]
            + (int(ends[first - 1]) if first else 0)
        )
        wide = 2 * half[owner, 0] + 1
        steps = torch.stack([number % wide, number // wide], 1) - half[owner]
        along = steps * (edge / 2)
        alpha = opacities[owner] * torch.exp(-0.5 * (along / scales[owner]).square().sum(1))
        points = means[owner] + (axes[owner, :, :2] * along[:, None]).sum(-1)
        cell = ((points - low) / edge).floor().long()
        seen = (alpha >= ALPHA_MIN) & ((cell >= 0) & (cell < size)).all(1)
        owner, alpha, cell = owner[seen], alpha[seen], cell[seen]
        flat = (cell[:, 0] * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
        # One entry per surfel and cell: the largest.
        key, inverse = torch.unique(owner * len(density) + flat, return_inverse=True)
        largest = torch.zeros(len(key), dtype=alpha.dtype, device=alpha.device)
        largest.scatter_reduce_(0, inverse, alpha, "amax")
        density.index_add_(0, key % len(density), largest.to(density))
        first = last
    return OccupancyGrid(density.view(*size.tolist()), low, edge)
