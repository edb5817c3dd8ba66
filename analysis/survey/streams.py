"""What is accumulated over every sample of a source: observables' histograms, voxel spectra, means and covariance."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from calogen.shards.samples import Samples

from ..observables.catalogue import observe
from .histograms import Histograms
from .moments import Covariance, Means
from .plan import SurveyPlan
from .selections import disjoint

THREADS = 2
_COVARIANCE_VOXELS = 1000  # largest samples whose voxel covariance is accumulated


class Streams:
    """Accumulators of one pass; each is filled by one thread at a time, so results do not depend on their number.

    Args:
        plan: Selections, axes and edges.
        threads: How many work at the same time (default: 2).
        covariance: Whether to accumulate the covariance of voxels, where there are at most 1,000.

    Attributes:
        histograms: Of every observable and of single voxels in each selection.
        means: Mean sample of each selection.
        covariance: Of vectors given to :meth:`fill`; None for larger samples or if not wanted.
    """

    def __init__(self, plan: SurveyPlan, *, threads: int | None = None, covariance: bool = True) -> None:
        voxels = plan.family.voxels
        self.plan = plan
        self.histograms = Histograms(plan.edges)
        self.means = Means(voxels, plan.selections)
        self.covariance = Covariance(voxels) if covariance and voxels <= _COVARIANCE_VOXELS else None
        self._running: list[Future[None]] = []
        threads = threads or THREADS
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def fill(self, samples: Samples, vectors: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """Take in the next samples.

        Args:
            samples: N samples in physical units, all finite.
            vectors: The same as vectors for the covariance, (N, V).

        Returns:
            Their observables in the order of the catalogue, (K, N).
        """
        members = np.stack([s.of(samples.conditions, len(samples)) for s in self.plan.selections])
        parts = disjoint(members)
        covariance = self.covariance
        if covariance is not None and vectors is not None:
            self._start(lambda: covariance.fill(vectors))
        self._start(lambda: self.histograms.fill(self.plan.axis.name, samples.values, parts))
        self._start(lambda: self.means.fill(samples.values, parts))
        observed = observe(samples)
        for name, values in observed.items():
            self.histograms.fill(name, values.astype(np.float32), parts)
        while self._running:
            self._running.pop().result()
        return np.stack(list(observed.values()))

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()

    def _start(self, work: Callable[[], None]) -> None:
        if self._pool is None:
            work()
        else:
            self._running.append(self._pool.submit(work))
