"""What a comparison found, as data and JSON."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calogen.errors import ConfigError, GateError, did_you_mean
from calogen.families import Family

from .metrics.conditioning import Fits
from .metrics.maps import FEWEST, MapStatistics
from .metrics.permutation import P_VALUE
from .metrics.registry import Metric, Metrics
from .numbers import number, with_error
from .observables.maps import wave_numbers
from .observables.observable import Observable
from .origins import Costs
from .survey.plan import SurveyPlan
from .survey.selections import ALL
from .survey.survey import Survey, histogram

if TYPE_CHECKING:
    import hist

    from .metrics.classifiers import Classification

Painter = Callable[["Report", str, Path], Path]
SCHEMA = 1
_NEAR = 12  # metrics named when one is not known
SCHEMA_DOCS = {
    "schema": "Version of this layout; additions do not change it.",
    "docs": "This description.",
    "family": "Name of the family: geometry, units and conditions.",
    "settings": "What the comparison was asked for: bins, seed, classifier, training; inference.",
    "bins": "Ranges of conditions in which everything is repeated, [low, high) in the condition's unit; 'name' is what "
    "keys print in square brackets; 'inside' tells a held-out range (true) from everything but it (false).",
    "notes": "Sentences to read before believing any number.",
    "reference": "provenance: one entry for each kind of file; samples: how many; resolution: fits of sigma/E = "
    "a/sqrt(E) (+) b/E (+) c, E in GeV, terms stochastic (a), noise (b), constant (c), for the half width of the "
    "central 68 % over the median (core_resolution) and standard deviation over mean (rms_resolution).",
    "power": "Of maps, beside 'samples' of each side: mean P(k) of all maps and of each quarter of the conditions' "
    "plane, its error, and between which values the central 68 % of single maps lie; k are the wave numbers.",
    "training": "Provenance and samples of the training samples, null if none were given.",
    "generated": "By name: provenance, samples, resolution, metrics, classifier (null if none was asked for), costs, "
    "verdict (what it comes to, in a sentence), "
    "and for several seeds of one surrogate 'seeds', each with its own; metrics are then means over seeds, and their "
    "errors contain the spread between seeds.",
    "quantities": "Title and meaning of every quantity that metrics have.",
    "metrics": "By key 'quantity/observable[bin]', without [bin] for all samples: value, error (one standard "
    "deviation), floor (the same for reference against reference), floor_error, pull = (value - floor) / "
    "sqrt(error^2 + floor_error^2), n (samples on each side), unit (sd: standard deviations of the reference), and of "
    "the permutation statistic 'statistic', the key of the largest distance; 'lower_limit' is true where the value is "
    "one. null: undefined.",
    "costs": "Of training and generation, as far as the files say, on the machines that did it: network, objective, "
    "parameters, training_steps, training_seconds, training_device; samples_per_second is of one process.",
    "classifier": "tell_tales: observables that give the generated samples away, most telling first; controls: what "
    "known defects of the reference give with the same classifier; notes.",
}


@dataclass(frozen=True)
class Report:
    """What a comparison found. Figures and pages are drawn from it and compute nothing themselves.

    Attributes:
        plan: Family, selections and axes that all sides share.
        reference: The reference's survey.
        generated: The survey of each set of generated samples, by name; seeds of one surrogate are ``NAME #1``, ...
        metrics: By name of the surrogate; its metrics are found by key or text (:class:`Metrics`). For several seeds
            their mean; the error is that of one seed and the spread between seeds, in quadrature.
        notes: Sentences a reader must know before believing any number.
        training: The survey of the training samples, if they were given.
        settings: What was asked for.
        seeds: Names in ``generated`` of the seeds of a surrogate that has several.
        seed_metrics: The metrics of every seed by its name in ``generated``.
        fits: Fits of the resolution by side, ``reference`` and names in ``generated``; empty without energies.
        classifications: What classifiers found, by names in ``generated``.
        maps: Statistics of density maps by side, like ``fits``; empty for showers.
        costs: What training and generation cost, by names in ``metrics`` and ``reference``, where the files say.
        verdicts: What each surrogate comes to, in a sentence, by names in ``metrics``.
        painter: Draws one figure into a file: a report draws nothing itself.
        places: Where the samples of each side come from, in a few words, by names in ``metrics`` and ``reference``.
    """

    plan: SurveyPlan
    reference: Survey
    generated: Mapping[str, Survey]
    metrics: Mapping[str, Metrics]
    notes: tuple[str, ...] = ()
    training: Survey | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed_metrics: Mapping[str, Metrics] = field(default_factory=dict)
    fits: Mapping[str, Fits] = field(default_factory=dict)
    classifications: Mapping[str, Classification] = field(default_factory=dict)
    maps: Mapping[str, MapStatistics] = field(default_factory=dict)
    costs: Mapping[str, Costs] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    painter: Painter | None = field(default=None, repr=False, compare=False)

    @property
    def family(self) -> Family:
        """What the samples are."""
        return self.plan.family

    @property
    def observables(self) -> dict[str, Observable]:
        """The observables compared, by name."""
        return self.plan.observables

    def members(self, name: str) -> tuple[str, ...]:
        """Names in ``generated`` of one surrogate: its own, or those of its seeds."""
        return self.seeds.get(name, (name,))

    @property
    def sides(self) -> dict[str, tuple[Survey, ...]]:
        """The reference first, then the surrogates with all their seeds, by the name a legend prints."""
        surrogates = {name: tuple(self.generated[m] for m in self.members(name)) for name in self.metrics}
        return {"reference": (self.reference,), **surrogates}

    def histogram(self, name: str, selection: str = "") -> hist.Hist[Any]:
        """The histogram of an observable, or of single voxels (``voxel``, ``pixel``), on every side.

        Args:
            name: The observable; its name is that of the second axis, the first is ``side``.
            selection: Name of a bin, as keys print it in brackets; empty for all samples.

        Raises:
            ConfigError: If there is no such observable or bin.
        """
        return histogram(self.plan, self.sides, name, selection)

    def figure(self, name: str, path: str | Path) -> Path:
        """Draw one figure.

        Args:
            name: Of an observable, whose histograms are drawn with their ratio: ``response``, or in a bin of the
                conditions, ``response[1:25.75GeV]``; or of a figure of the report, as its file is called.
            path: ``.pdf``, ``.png`` or ``.svg``.

        Raises:
            ConfigError: If there is no such observable or figure, or the format is unknown.
            StorageError: If the file cannot be written.
        """
        if self.painter is None:
            raise ConfigError("this report draws no figures", hint="make it with calogen.compare")
        return self.painter(self, name, Path(path))

    def __repr__(self) -> str:
        sides = ", ".join(f"{name} {self.count(name)}" for name in self.metrics)
        return f"Report({self.family.name}: reference {self.reference.count}, {sides})"

    def _repr_html_(self) -> str:
        """Verdicts and headline metrics, for notebooks."""
        heads = "".join(f"<th>{head}</th>" for head in ("metric", "value", "reference against reference", "pull"))
        parts = []
        for name, found in self.metrics.items():
            parts.append(f"<p><b>{escape(name)}</b>: {escape(self.verdicts.get(name, ''))}</p><table><tr>{heads}</tr>")
            for key, m in found.items():
                if key.quantity.headline and not key.selection.suffix:
                    cells = (with_error(m.value, m.error), number(m.floor), "" if m.pull is None else f"{m.pull:+.1f}")
                    row = "".join(f"<td>{escape(cell)}</td>" for cell in (key.quantity.title, *cells))
                    parts.append(f"<tr title={escape(key)!r}>{row}</tr>")
            parts.append("</table>")
        return "".join(parts)

    def p_value(self, observable: str, name: str = "") -> float:
        """How often chance makes a larger difference than an observable has, corrected for all others looked at.

        Args:
            observable: Its name.
            name: The surrogate; empty if there is only one.

        Raises:
            ConfigError: If there is no such observable or surrogate.
        """
        if name not in self.metrics and (name or len(self.metrics) > 1):
            raise ConfigError("which surrogate?", expected=", ".join(self.metrics), found=name or "none named")
        name = name or next(iter(self.metrics))
        found = {key.observable: metric.value for key, metric in self.metrics[name].select(P_VALUE).items()}
        if (p := found.get(observable)) is None:
            raise ConfigError(
                "there is no p-value of this observable",
                expected=", ".join(found) or "20 samples or more on each side",
                found=observable,
                hint=did_you_mean(observable, found),
            )
        return p

    def count(self, name: str) -> int:
        """Samples of one surrogate, all its seeds together."""
        return sum(self.generated[member].count for member in self.members(name))

    def problems(self, name: str) -> dict[str, int]:
        """How many samples or voxels of one surrogate are unphysical, by kind, all its seeds together."""
        sides = [self.generated[member].problems for member in self.members(name)]
        return {kind: sum(side[kind] for side in sides) for kind in sides[0]}

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``, which :data:`SCHEMA_DOCS` describes and the file repeats under ``docs``.

        No number in it is NaN or infinite, None stands for those.
        """
        measured = dict.fromkeys(key.quantity for found in self.metrics.values() for key in found)
        content = {
            "schema": SCHEMA,
            "docs": SCHEMA_DOCS,
            "family": self.family.name,
            "settings": self.settings,
            "bins": [asdict(s) for s in self.plan.selections[1:]],
            "notes": self.notes,
            "reference": {
                **_source_json(self.reference),
                **self._curves_json("reference"),
                "resolution": self._fits_json("reference"),
                "costs": self._costs_json("reference"),
            },
            "training": None if self.training is None else _source_json(self.training),
            "quantities": {q.name: {"title": q.title, "meaning": q.meaning} for q in measured},
            "generated": {name: self._generated_json(name) for name in self.metrics},
        }
        text = json.dumps(content, default=_plain)
        cleaned: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)  # NaN and infinity
        return cleaned

    def _generated_json(self, name: str) -> dict[str, Any]:
        costs = {"costs": self._costs_json(name), "verdict": self.verdicts.get(name, "")}
        if name not in self.seeds:
            return self._member_json(name) | costs
        members = self.members(name)
        return {
            "provenance": [entry for member in members for entry in self.generated[member].provenance],
            "samples": self.count(name),
            "metrics": _metrics_json(self.metrics[name]),
            "seeds": {member: self._member_json(member) for member in members},
            **costs,
        }

    def _member_json(self, name: str) -> dict[str, Any]:
        classification = self.classifications.get(name)
        classifier = classification and {
            "tell_tales": classification.tell_tales,
            "controls": _metrics_json(classification.controls),
            "notes": classification.notes,
        }
        return {
            **_source_json(self.generated[name]),
            **self._curves_json(name),
            "resolution": self._fits_json(name),
            "classifier": classifier,
            "metrics": _metrics_json(self.seed_metrics.get(name) or self.metrics[name]),
        }

    def _curves_json(self, name: str) -> dict[str, Any]:
        """Power spectra of one side's maps, of all of them and in quarters of the conditions' plane; else nothing."""
        if name not in self.maps:
            return {}
        maps, k = self.maps[name].power, wave_numbers(self.family)
        units = ("h/Mpc", "(Mpc/h)^2") if self.family.box_size else ("1/pixel", "pixel^2")
        found: dict[str, Any] = {"k": k.tolist(), "unit": units[1], "k_unit": units[0]}
        for part in (ALL, *self.maps["reference"].yardstick.quarters):
            members = maps.members(part)
            if np.count_nonzero(members) < FEWEST and part is not ALL:
                continue
            curve, single = maps.curve(k, maps.columns["power"], members), maps.columns["power"][members]
            found[part.name or "all"] = {
                "maps": len(single),
                "mean": curve.y.tolist(),
                "error": curve.error.tolist(),
                "central_68": np.quantile(single.astype(np.float64), (0.16, 0.84), axis=0).tolist(),
            }
        return {"power": found}

    def _costs_json(self, name: str) -> dict[str, Any]:
        return self.costs[name].known() if name in self.costs else {}

    def _fits_json(self, name: str) -> dict[str, Any]:
        return {kind: None if fit is None else fit.to_json() for kind, fit in self.fits.get(name, {}).items()}

    def check(self, limits: Mapping[str, float]) -> None:
        """Compare metrics with limits: a metric passes if its absolute value is at most the limit.

        Args:
            limits: Largest allowed value by key; a key applies to every set of generated samples.

        Raises:
            ConfigError: If a key is not a metric of this report, or a limit not a number.
            GateError: If a value is above its limit, or undefined; lists all that are.
        """
        failed = []
        for key, limit in limits.items():
            if math.isnan(limit):
                raise ConfigError(f"the limit of '{key}' is not a number", where=key, found=limit)
            for name, found in self.metrics.items():
                if key not in found:
                    raise ConfigError(f"there is no metric '{key}'", found=key, hint=_near(key, found))
                value = found[key].value
                if value is None or not abs(value) <= limit:
                    failed.append(f"{key} of {name}: {number(value)} > {limit:g}")
        if failed:
            raise GateError(
                f"{len(failed)} of {len(limits) * len(self.metrics)} limits not met",
                found="; ".join(failed),
                hint="the report shows which observables differ, and by how much more than the floor",
            )


def _near(key: str, known: Metrics) -> str:
    """The metric meant, or the nearest few of the thousands that there are."""
    if near := difflib.get_close_matches(key, known, n=_NEAR):
        return did_you_mean(key, near) or ""
    some = difflib.get_close_matches(key, known, n=_NEAR, cutoff=0.0)
    return f"among {len(known)} metrics the nearest are {', '.join(some)}; metrics.json has all"


def _source_json(side: Survey) -> dict[str, Any]:
    return {"provenance": list(side.provenance), "samples": side.count}


def _metrics_json(found: Mapping[Any, Metric]) -> dict[str, Any]:
    return {str(key): metric.to_json() for key, metric in found.items()}


def _plain(value: Any) -> Any:
    """What JSON has no form for: numbers of numpy as Python's, anything else as text."""
    return value.item() if isinstance(value, np.generic) else str(value)
