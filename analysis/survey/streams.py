"""What is accumulated over every sample of a source: observables' histograms, voxel spectra, means and covariance."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.families import varies
from calogen.shards.samples import Samples

from ..observables.catalogue import observe
from .histograms import Histograms
from .plan import SurveyPlan
from .selections import Parts, Selection, disjoint

Array = NDArray[np.float64]
THREADS = 2
_COVARIANCE_VOXELS = 1000  # largest samples whose voxel covariance is accumulated
_BLOCK_VALUES = 2**17  # voxels held in float64 at a time: 1 MiB stays in the cache


class Streams:
    """Accumulators of one pass; each is filled by one thread at a time, so results do not depend on their number.

    Args:
        plan: Selections, axes and edges.
        threads: How many work at the same time (default: 2).

    Attributes:
        histograms: Of every observable and of single voxels in each selection.
        means: Mean sample of each selection.
        covariance: Of vectors given to :meth:`fill`; None for samples of more than 1,000 voxels.
    """

    def __init__(self, plan: SurveyPlan, *, threads: int | None = None) -> None:
        voxels = plan.family.voxels
        self.plan, self.threads = plan, threads or THREADS
        self.histograms = Histograms(plan.edges)
        self.means = Means(voxels, plan.selections)
        self.covariance = Covariance(voxels) if voxels <= _COVARIANCE_VOXELS else None

    def fill(self, samples: Samples, vectors: NDArray[np.float32] | None = None) -> Array:
        """Take in the next samples.

        Args:
            samples: N samples in physical units, all finite.
            vectors: The same as vectors for the covariance, (N, V).

        Returns:
            Their observables in the order of the catalogue, (K, N).
        """
        members = np.stack([s.of(samples.conditions, len(samples)) for s in self.plan.selections])
        parts, covariance = disjoint(members), self.covariance
        work = [
            lambda: self.histograms.fill(self.plan.axis.name, samples.values, parts),
            lambda: self.means.fill(samples.values, parts),
        ]
        if covariance is not None and vectors is not None:
            work.insert(0, lambda: covariance.fill(vectors))
        with ThreadPoolExecutor(max(1, self.threads - 1)) as pool:
            share = pool.map if self.threads > 1 else map
            beside = share(lambda job: job(), work)
            observed = observe(samples, self.plan.shower_axis)
            for name, values in observed.items():
                self.histograms.fill(name, values.astype(np.float32), parts)
            list(beside)  # waits, and raises what went wrong there
        return np.stack(list(observed.values()))


class Means:
    """Streaming mean of every voxel, for each selection."""

    def __init__(self, voxels: int, selected: tuple[Selection, ...]) -> None:
        self.selections = selected
        self.count = np.zeros(len(selected), dtype=np.int64)
        self._sum = np.zeros((len(selected), voxels))

    def fill(self, samples: NDArray[np.float32], parts: Parts) -> None:
        """Add samples (N, ...); ``parts`` says where each belongs, see :func:`disjoint`."""
        flat = samples.reshape(len(samples), -1)
        size = max(1, _BLOCK_VALUES // flat.shape[1])
        for chosen, rows in parts:
            self.count[chosen] += len(rows)
            for start in range(0, len(rows), size):
                block = flat[rows[start : start + size]]
                self._sum[chosen] += np.ones(len(block)) @ block.astype(np.float64)

    def merge(self, other: Means) -> Means:
        """Those of the samples of both."""
        found = copy.copy(self)
        found.count, found._sum = self.count + other.count, self._sum + other._sum
        return found

    @property
    def mean(self) -> Array:
        """Mean samples, (selections, V); zero for an empty selection."""
        return self._sum / np.maximum(self.count, 1)[:, None]


class Covariance:
    """Streaming mean and covariance of vectors (N, V), of about the same size in all voxels.

    Products are of differences from the first vectors' mean, so that little cancels. They are summed in float32 over a
    thousand vectors, which halves the time and costs some millionths, and beyond that in float64.
    """

    def __init__(self, voxels: int) -> None:
        self.count = 0
        self._shift: NDArray[np.floating[Any]] | None = None
        self._sum = np.zeros(voxels)
        self._products = np.zeros((voxels, voxels))

    def fill(self, vectors: NDArray[np.float32]) -> None:
        """Add vectors (N, V)."""
        if not len(vectors):
            return
        if self._shift is None:
            self._shift = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.count += len(vectors)
        for start in range(0, len(vectors), 1024):
            block = vectors[start : start + 1024] - self._shift
            self._sum += block.sum(axis=0, dtype=np.float64)
            self._products += block.T @ block

    def merge(self, other: Covariance) -> Covariance:
        """That of the vectors of both.

        Source: Chan, Golub and LeVeque 1979: products about each mean, and that of the difference of the means.
        """
        count, apart = self.count + other.count, other.mean - self.mean
        found = Covariance(len(apart))
        found.count = count
        found._shift = (self.count * self.mean + other.count * other.mean) / max(count, 1)
        between = self.count * other.count / max(count, 1) * np.outer(apart, apart)
        found._products = self.count * self.covariance + other.count * other.covariance + between
        return found

    @property
    def mean(self) -> Array:
        """Mean vector, (V,)."""
        shift = 0.0 if self._shift is None else self._shift
        return np.asarray(shift + self._sum / max(self.count, 1))

    @property
    def covariance(self) -> Array:
        """Covariance with 1/N, (V, V)."""
        mean = self._sum / max(self.count, 1)
        return np.asarray(self._products / max(self.count, 1) - np.outer(mean, mean))

    @property
    def correlation(self) -> Array:
        """Pearson correlations, (V, V); 0 for voxels that never change."""
        covariance = self.covariance
        size = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        known = varies(size, np.abs(self.mean))
        scale = np.outer(size, size)
        where = np.outer(known, known)
        return np.asarray(np.divide(covariance, scale, out=np.zeros_like(covariance), where=where))
