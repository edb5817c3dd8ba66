"""Runs side by side: what they were asked for, as far as it differs, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .checkpoint import Card
from .find import load_model
from .folder import RunFolder

_RESULTS = ("score", "start", "floor", "best_step", "steps", "seconds")
_SAME_THING = ("family",)  # a run's family is compared by its name; its card has all of it


def table(models: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Runs side by side, one record for each: settings that differ between them, scores, times and best steps.

    Example:
        >>> table(["calogan-gamma", "calogan-eplus"])[0]["run"]
        'calogan-gamma'

    Args:
        models: Run folders, checkpoint folders, or names of surrogates that come with calogen.

    Returns:
        Each with ``run``; the settings that differ, by their keys (``training.learning_rate``), and ``data``, the
        beginning of its digest, where that differs; then ``score`` (of the best checkpoint), ``start`` (of step 0),
        ``floor``, ``best_step``, ``steps`` and ``seconds`` of training; None where that is not known.

    Raises:
        ConfigError: If there are none.
        CheckpointError: If one of them is no model, or damaged.
    """
    if not models:
        raise ConfigError("no run is named", where="`models`", hint="give run folders")
    cards = [load_model(model).card for model in models]
    settings = [_settings(card) for card in cards]
    keys = dict.fromkeys(key for mine in settings for key in mine)
    differing = [key for key in keys if len({repr(mine.get(key)) for mine in settings}) > 1]
    return [
        {"run": str(model), **{key: mine.get(key) for key in differing}, **_results(model, card)}
        for model, card, mine in zip(models, cards, settings, strict=True)
    ]


def _settings(card: Card) -> dict[str, Any]:
    """Every setting by its key; of data their digest, the family by its name."""
    config = card.config.model_dump(mode="json")
    found = {key: value for key, value in _flat(config) if key.partition(".")[0] not in _SAME_THING}
    digest = card.provenance.get("data")
    return {
        "family": card.family.name,
        "data": digest[:8] if isinstance(digest, str) else None,
        "training_samples": card.provenance.get("training_samples"),
        **found,
    }


def _flat(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in entry.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _results(model: str | Path, card: Card) -> dict[str, Any]:
    """What came of a run: from its log where there is one, since that goes on after the best checkpoint."""
    folder = RunFolder(Path(model))
    records = [record for record in folder.lines() if record is not None] or list(card.history)
    last = max(records, key=lambda record: record.get("step") or 0, default={})
    times = [record["seconds"] for record in records if record.get("seconds") is not None]
    start = next((record for record in records if record.get("step") == 0 and "score" in record), {})
    found = (card.score, start.get("score"), start.get("floor"), card.step, last.get("step"), max(times, default=None))
    return dict(zip(_RESULTS, found, strict=True))
