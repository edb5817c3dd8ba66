"""Matter that displacements move, on periodic grids: density from modes of the linear density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

VOID, VOID_EDGE = -1.0, 0.2  # smooth linear density below which nothing is smoothed away, and how gently
_PARTICLES = 2**16  # moved at a time: they stay in the cache, and large maps take little memory


@dataclass(frozen=True)
class Grid:
    """What depends on a map's size alone, on ``rfft2``'s modes.

    Attributes:
        wave: Wave number in h/Mpc, (H, W // 2 + 1).
        gradient: From k . psi to the displacement in pixels, (2, H, W // 2 + 1), imaginary parts.
        position: Of every pixel, in pixels, (2, H, W).
    """

    wave: Tensor
    gradient: Tensor
    position: Tensor

    @staticmethod
    @lru_cache(maxsize=8)
    @torch.inference_mode(mode=False)
    def of(height: int, width: int, pixel: float, device: torch.device) -> Grid:
        """The grid of maps of H x W pixels of a side in Mpc/h."""
        rows = (2 * math.pi / pixel * torch.fft.fftfreq(height, device=device))[:, None].expand(-1, width // 2 + 1)
        columns = (2 * math.pi / pixel * torch.fft.rfftfreq(width, device=device)).expand(height, -1)
        nyquist = 0.999 * math.pi / pixel  # odd functions have no mode there
        waves = torch.stack([rows * (rows.abs() < nyquist), columns * (columns < nyquist)])
        square = rows.square() + columns.square()
        square[0, 0] = math.inf
        axes = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        position = torch.stack(axes).to(device, torch.float32)
        return Grid(torch.hypot(rows, columns), waves / square / pixel, position)


def displaced(source: Tensor, smooth: Tensor, grid: Grid) -> Tensor:
    """Density of sheets of matter that a displacement has moved, averaged over the sheets, 1 on average.

    Smooth displacements everywhere, and in voids what was smoothed away as well: matter there has met no other.
    Matter starts on a lattice of half the pixels' spacing, on which displacements are interpolated: without that, the
    lattice shows in the voids.

    Args:
        source: Modes of k . psi, the linear density, (B, S, H, W // 2 + 1), of each sheet.
        smooth: What smoothing leaves of them, (B, H, W // 2 + 1).
        grid: Of the maps.

    Returns:
        (B, H, W).
    """
    # Each sheet is moved by itself: in projection they pass through each other.
    height, width = grid.position.shape[1:]
    total = source.real.new_zeros(len(source), height + 1, width + 1)  # a row and a column more: see _deposit
    for sheet in source.unbind(1):
        # In voids the small scales are put back, since matter there has met no other; elsewhere they stay away.
        kept = sheet * smooth
        void = torch.sigmoid((VOID - torch.fft.irfft2(kept, s=(height, width))) / VOID_EDGE)
        y, x = (
            (_along(sheet - kept, axis, width) * void).add_(_along(kept, axis, width)).add_(position)
            for axis, position in zip(grid.gradient, grid.position, strict=True)
        )

        # Particles on the lattice of pixels and half way between them, in rows, columns and both.
        for rows, columns in ((0, 0), (0, 1), (1, 0), (1, 1)):
            _deposit(total, _between(y, rows, columns, height, 0), _between(x, rows, columns, 0, width))

    # The row and the column beyond the box belong to the first ones, which are their periodic images.
    total[:, 0] += total[:, height]
    total[:, :, 0] += total[:, :, width]
    return total[:, :height, :width] / (4 * source.shape[1])


def _along(source: Tensor, gradient: Tensor, width: int) -> Tensor:
    """Displacement (B, H, W) along one axis, of modes of k . psi (B, H, W // 2 + 1)."""
    turned = torch.view_as_complex(torch.stack([-source.imag, source.real], -1) * gradient[..., None])
    return torch.fft.irfft2(turned, s=(source.shape[1], width))  # type: ignore[no-any-return]


def _between(place: Tensor, rows: int, columns: int, down: float, right: float) -> Tensor:
    """Positions (B, H, W) half a row, half a column further, which grow by ``down`` and ``right`` around the box."""
    if rows:
        below = place.roll(-1, 1)
        below[:, -1] += down
        place = 0.5 * (place + below)
    if columns:
        beside = place.roll(-1, 2)
        beside[:, :, -1] += right
        place = 0.5 * (place + beside)
    return place


def _deposit(total: Tensor, y: Tensor, x: Tensor) -> None:
    """Add particles of mass 1 at positions (B, H, W), in pixels, to total (B, H + 1, W + 1): cloud in cell.

    What belongs into the first row and column may lie in the last ones, so one index does for all four pixels.
    """
    size, flat, stride = y.shape[1:], total.flatten(1), total.shape[2]
    step = max(1, _PARTICLES // len(y))
    for above, left in zip(y.flatten(1).split(step, 1), x.flatten(1).split(step, 1), strict=True):
        row, column = above.floor(), left.floor()
        down, right = above - row, left - column
        for cell, side in ((row, size[0]), (column, size[1])):
            cell.sub_((cell + 0.5).div_(side).floor_().mul_(side))  # periodic
        index = row.long().mul_(stride).add_(column.long())
        both = down * right
        for offset, weight in (
            (0, 1 - down - right + both),
            (1, right - both),
            (stride, down - both),
            (stride + 1, both),
        ):
            flat[:, offset:].scatter_add_(1, index, weight)
