"""Configuration: frozen models of all settings of a training run. TOML in, resolved JSON out."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import ConfigError, did_you_mean
from .families import ENERGY_UNITS, Family, Symmetry, resolve_family
from .storage import read_toml

_Width = Annotated[int, Field(ge=1, le=2**16)]
_Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GeneratorConfig(_Frozen):
    """Shape of the generator. What is absent is filled in by the network; what the network does not use is refused.

    Attributes:
        network: One of :data:`calogen.models.registry.NETWORKS`, or ``auto``: the default for the family.
        latent: Latent numbers, as the network uses them: factors of a shower, channels of a map's latent grid.
        hidden: Widths of hidden layers.
        channels: Channels of convolutions, from the smallest grid up; of ``pixelcnn``, block by block.
        blocks: How often the network repeats its building block, such as the transforms of a flow.
        scale: The constant a of 2x / (x + a) - 1, which maps pass through (``dcgan``; none: fitted).
        size: Pixels a side of the maps that a surrogate makes where no other size is asked for (``zeldovich``; none: as
            many as the maps trained on have).
    """

    network: str = "auto"
    latent: int | None = Field(default=None, ge=1, le=4096)
    hidden: tuple[_Width, ...] | None = None
    channels: tuple[_Width, ...] | None = Field(default=None, min_length=1)
    blocks: int | None = Field(default=None, ge=1, le=64)
    scale: float | None = Field(default=None, gt=0)
    size: int | None = Field(default=None, ge=4, le=65536)


class CriticConfig(_Frozen):
    """Shape of the critic; absent and unused settings as for the generator.

    Attributes:
        hidden: Widths of hidden layers.
        channels: Channels of convolutions, from the largest grid down.
    """

    hidden: tuple[_Width, ...] | None = None
    channels: tuple[_Width, ...] | None = Field(default=None, min_length=1)


class TrainingConfig(_Frozen):
    """How to train. One step is one generator update.

    Attributes:
        update: How the generator learns. ``projected``: steps are rounds of fresh critics, whose slope is projected on
            the few changes that the generator's refinement can make, and which end when there is nothing more to
            learn; of the settings from ``batch_size`` to ``tune_transform`` it uses the penalty alone. ``adam``:
            gradients through all its networks. ``auto``: projected where there is a refinement and there are training
            samples enough.
        objective: Losses of generator and critic, one of :data:`calogen.training.objectives.OBJECTIVES`; ``likelihood``
            is for networks that have a loss of their own, and no critic; ``matching`` compares batches by summary
            statistics instead of a critic (network ``zeldovich``).
        steps: Generator updates in all; 0: the fitted start alone.
        time: Seconds that the run may take (none: limited by steps alone), data, fit and earlier sessions included, so
            that a resumed run has what is left of them. Not for the limit of a single job: schedulers end one by a
            signal, which leaves a checkpoint to resume from. With it, learning rates depend on the machine's speed, and
            no run repeats another bit for bit.
        batch_size: Samples per update.
        critic_steps: Critic updates before each generator update.
        penalty: Weight of the objective's penalty (none: the objective's own, 10 for ``wgan-gp``).
        penalty_every: Take the penalty in every n-th critic step only, with n times the weight (lazy; saves time).
        clip: Bound on the critic's weights (``wgan-clip``).
        learning_rate: Of the generator (Adam).
        critic_learning_rate: Of the critic (Adam).
        betas: Adam's averaging constants.
        decay: Last fraction of the steps, or of the time if that is further, over which both learning rates fall to 0
            (cosine).
        ema: Averaging constant of the generator's weights; the average is what is kept.
        augment: Apply the symmetries used to both reference and generated samples, conditions included.
        tune_transform: Let training refine the fitted voxel distributions too.
        log_every: Steps between lines of the log.
        validate_every: Steps between validations.
        validation_size: Samples of the validation split used for the score.
        checkpoint_every: Steps between checkpoints.
        patience: Stop after so many validations in a row without a better score (none: never).
        reuse_fit: Whether to take the fit of an earlier run with the same data, settings and code from the user's cache
            folder, and to keep fits that took long there.
        tensorboard: Whether to write the log as TensorBoard events, too (``pip install "calogen[tensorboard]"``).
        memory: Bytes of training data to hold in memory at a time; more is streamed in windows.
    """

    update: Literal["auto", "adam", "projected"] = "auto"
    objective: str = "wgan-gp"
    steps: int = Field(default=20_000, ge=0)
    time: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=256, ge=2)
    critic_steps: int = Field(default=3, ge=1)
    penalty: float | None = Field(default=None, ge=0)
    penalty_every: int = Field(default=1, ge=1)
    clip: float = Field(default=0.01, gt=0)
    learning_rate: float = Field(default=2e-5, gt=0)
    critic_learning_rate: float = Field(default=2e-4, gt=0)
    betas: tuple[_Fraction, _Fraction] = (0.0, 0.9)
    decay: float = Field(default=0.3, ge=0, le=1)
    ema: float = Field(default=0.999, ge=0, lt=1)
    augment: bool = True
    tune_transform: bool = False
    log_every: int = Field(default=50, ge=1)
    validate_every: int = Field(default=500, ge=1)
    validation_size: int = Field(default=2000, ge=16)
    checkpoint_every: int = Field(default=500, ge=1)
    patience: int | None = Field(default=None, ge=1)
    reuse_fit: bool = True
    tensorboard: bool = False
    memory: int = Field(default=4 * 2**30, ge=2**20)


_UNITS = {"energy": tuple(ENERGY_UNITS), "voxels": tuple(ENERGY_UNITS), "theta": ("rad", "deg"), "phi": ("rad", "deg")}


class Reading(_Frozen):
    """What files of others do not say of themselves. Files that calogen wrote say all of it, and are not asked.

    Attributes:
        unit: Units by name: ``energy`` (of the voxels, too, where these have none of their own), ``voxels``, ``theta``,
            ``phi``.
        columns: What the columns of a table of parameters hold, in order; ``_`` for one that is not used.
        maps_per_simulation: How many maps that follow each other are of one simulation.
        box: Side of the maps in Mpc/h.
        log10: Whether maps are logarithms to base 10; false: they are not, whatever they look like.
        unweight: Keep samples in proportion to their weights, instead of refusing weighted files.
        signed: Scale s of fields with negative values, such as convergence: they are read as exp(field / s).
        parameters: Whether maps must come with their parameters.
    """

    unit: dict[str, str] = {}
    columns: tuple[str, ...] | None = None
    maps_per_simulation: int | None = Field(default=None, ge=1)
    box: float | None = Field(default=None, gt=0)
    log10: bool | None = None
    unweight: bool = False
    signed: float | None = Field(default=None, gt=0)
    parameters: bool = True

    @field_validator("unit")
    @classmethod
    def _known(cls, unit: dict[str, str]) -> dict[str, str]:
        for name, value in unit.items():
            if value not in _UNITS.get(name, ()):
                known = "; ".join(f"{name}={'|'.join(units)}" for name, units in _UNITS.items())
                raise ValueError(f"'{name}={value}' is no unit that can be given: {known}")
        return unit

    @property
    def given(self) -> dict[str, Any]:
        """What was said, as JSON-able values."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"parameters"})


PLAIN = Reading()
"""Nothing is said."""


class Config(_Frozen):
    """All settings of a training run.

    Attributes:
        family: As :func:`calogen.families.resolve_family` takes it; none: that of the data.
        conditions: Names of the conditions (none: all that the family has; empty: unconditional).
        symmetries: Symmetries of the read-out to try on the training showers (none: all that its layers allow; empty:
            no symmetry). Those that the showers do not reject are used by fit and augmentation; the log says which.
        prior: A surrogate of the same layers and conditions, of which the fit takes over what few samples cannot say.
        seed: Random seed.
        device: ``auto`` takes a GPU where there is one.
        threads: CPU threads (none: all available cores).
        drop_bad: Drop and count bad rows instead of refusing the file.
        holdout: Ranges of conditions left out of training, in their units.
        reading: What the data files do not say of themselves.
        split: How unsplit data are: ``stratified``, a seeded tenth of every part of the conditions' range validates; or
            ``last``, their last tenth.
    """

    family: str | Family | None = None
    conditions: tuple[str, ...] | None = None
    symmetries: tuple[Symmetry, ...] | None = None
    prior: str | None = None
    seed: int = Field(default=1, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    drop_bad: bool = False
    holdout: dict[str, tuple[float, float]] = {}
    reading: Reading = PLAIN
    split: Literal["stratified", "last"] = "stratified"
    generator: GeneratorConfig = GeneratorConfig()
    critic: CriticConfig = CriticConfig()
    training: TrainingConfig = TrainingConfig()

    def __init__(self, **sections: Any) -> None:
        try:
            super().__init__(**sections)
        except ValidationError as error:
            raise _explain(error) from None

    @field_validator("holdout")
    @classmethod
    def _ordered(cls, holdout: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in holdout.items():
            if not low < high:
                raise ValueError(f"holdout '{name}': low must be below high, got {low} and {high}")
        return holdout

    @classmethod
    def build(cls, tree: Mapping[str, Any], *, where: object = None) -> Config:
        """Validate a nested mapping.

        Raises:
            ConfigError: Names the key, what it holds, and the nearest known key.
        """
        try:
            config = cls(**tree)
        except ConfigError as error:
            error.where = _place(str(error.where), where)
            raise
        for key, found in _truths(tree, config.model_dump()):
            raise _bad_value(key, _place(key, where), "Input should be a number, not true or false", found)
        return config

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
        """Read a TOML file and apply overrides.

        Args:
            path: TOML file (none: the defaults). A relative ``family = "x.xml"`` (``.toml``) is looked for beside it.
                A table ``[detector]`` is the simulator's.
            overrides: ``key=value`` or ``section.key=value``; values are read as TOML, else taken as text.

        Raises:
            ConfigError: If the file cannot be read or a key or value is wrong.
        """
        tree: dict[str, Any] = {}
        if path is not None:
            path = Path(path)
            tree = read_toml(path)
            tree.pop("detector", None)  # what is simulated, in a file that describes a calorimeter in full
            family = tree.get("family")
            name = family.partition(",")[0] if isinstance(family, str) else ""
            if name.endswith((".xml", ".toml")) and (path.parent / name).exists():
                tree["family"] = str(path.parent / str(family))
        for override in overrides:
            _override(tree, override)
        return cls.build(tree, where=path)

    def __repr__(self) -> str:
        changed = self.model_dump(exclude_defaults=True)
        return f"Config({', '.join(f'{key}={value!r}' for key, value in changed.items())})"

    def resolved_family(self) -> Family | None:
        """The family the configuration names, or none."""
        return None if self.family is None else resolve_family(self.family)

    def updated(self, changes: Mapping[str, Any]) -> Config:
        """A copy with top-level fields or whole sections (as mappings) changed.

        Raises:
            ConfigError: As :meth:`build`.
        """
        tree = self.model_dump()
        tree["training"] = self.training.model_dump(exclude_unset=True)  # what was not given stays so: see `settled`
        for key, value in changes.items():
            tree[key] = {**tree[key], **value} if isinstance(value, Mapping) and isinstance(tree[key], dict) else value
        return Config.build(tree)

    def to_json(self) -> str:
        """The resolved configuration as JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=2)


def _override(tree: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(
            "an override is KEY=VALUE", where=f"`overrides={text}`", found=text, hint="as in training.steps=500"
        )
    *sections, last = key.strip().split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"'{section}' is a value, not a section", where=f"`overrides={text}`")
    try:
        node[last] = tomllib.loads(f"x = {value}")["x"]
    except (ValueError, RecursionError):
        node[last] = value.strip()


def _truths(given: Any, kept: Any, key: str = "") -> Iterator[tuple[str, bool]]:
    """Keys of what was given as true or false, but is kept as the number 1 or 0."""
    if isinstance(given, bool) and not isinstance(kept, bool):
        yield key, given
    if isinstance(given, list | tuple) and isinstance(kept, list | tuple):
        given, kept = dict(enumerate(given)), dict(enumerate(kept))
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        for name in given:
            if name in kept:
                yield from _truths(given[name], kept[name], f"{key}.{name}".lstrip("."))


_MEANT = {
    **dict.fromkeys(("lr", "rate", "learningrate", "lrg", "generatorlr", "steplength"), "training.learning_rate"),
    **dict.fromkeys(("lrd", "criticlr", "discriminatorlr", "criticrate"), "training.critic_learning_rate"),
    **dict.fromkeys(("epochs", "iterations", "maxsteps", "numsteps", "maxepochs", "rounds"), "training.steps"),
    **dict.fromkeys(("batch", "bs", "minibatch", "numbatch"), "training.batch_size"),
    **dict.fromkeys(("ncritic", "criticiters", "criticiterations", "dsteps", "ndis"), "training.critic_steps"),
    **dict.fromkeys(("gp", "gpweight", "lambdagp", "lambda", "gradientpenalty", "gplambda"), "training.penalty"),
    **dict.fromkeys(("maxtime", "walltime", "timelimit", "seconds"), "training.time"),
    **dict.fromkeys(("earlystopping", "earlystop"), "training.patience"),
    **dict.fromkeys(("loss", "gan", "losstype"), "training.objective"),
    **dict.fromkeys(("optimizer", "optimiser", "adam"), "training.update"),
    **dict.fromkeys(("emadecay", "averaging"), "training.ema"),
    **dict.fromkeys(("latentdim", "zdim", "nz", "noise", "noisedim", "latentsize"), "generator.latent"),
    **dict.fromkeys(("layers", "hiddendim", "hiddenlayers", "width", "widths", "units"), "generator.hidden"),
    **dict.fromkeys(("model", "architecture", "arch", "backbone", "net"), "generator.network"),
    **dict.fromkeys(("conditional", "condition", "labels", "cond"), "conditions"),
    **dict.fromkeys(("randomseed", "rng"), "seed"),
    **dict.fromkeys(("gpu", "cuda", "accelerator"), "device"),
    **dict.fromkeys(("numthreads", "workers", "cpus", "cores", "nthreads"), "threads"),
}
"""What other programs call the settings, without signs between the words."""


def _known(location: tuple[Any, ...]) -> Iterable[str]:
    """Names of the fields beside the one at ``location``."""
    section = Config.model_fields.get(str(location[0]))
    model: Any = Config if len(location) == 1 or section is None else section.annotation
    return getattr(Family if location[0] == "family" else model, "model_fields", ())


def _explain(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    location = tuple(first["loc"])
    if location[:1] == ("family",):  # the union reports each alternative; the family's own check speaks plainly
        location = tuple(part for part in location if part not in ("str", "Family"))
        first = next((e for e in error.errors() if "Family" in e["loc"]), first)
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        words = [str(location[-1]), *(first["input"] if isinstance(first["input"], dict) else ())]
        named = (_MEANT.get(re.sub(r"[^a-z]", "", str(word).lower())) for word in reversed(words))
        meant = next(filter(None, named), None)
        near = did_you_mean(str(location[-1]), _known(location))
        hint = f"did you mean '{meant}'?" if meant is not None else near
        return ConfigError(f"unknown configuration key '{key}'", where=key, hint=hint)
    found = first.get("input")
    if isinstance(found, float) and not math.isfinite(found):
        found = str(found)
    return _bad_value(key, key, first["msg"], found)


def _bad_value(key: str, where: object, expected: str, found: object) -> ConfigError:
    return ConfigError(f"bad value for '{key}'", where=where, expected=expected, found=repr(found))


def _place(key: str, where: object) -> str:
    return f"{where}: {key}" if where else key
