"""A Sphinx extension: parts of pages that are made from calogen itself, so that they cannot fall behind it.

A line ``% made: NAME`` of a page is replaced by what :data:`PARTS` makes under that name, as Markdown.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]


def commands() -> Iterator[str]:
    """The help of every command, as the terminal shows it."""
    from calogen.cli.commands import cli

    def page(command: click.Command, path: str, parent: click.Context | None, level: int) -> Iterator[str]:
        context = click.Context(
            command, info_name=path.split()[-1], parent=parent, terminal_width=100, max_content_width=100
        )
        yield f"{'#' * level} `{path}`\n\n```text\n{command.get_help(context)}\n```\n"
        for name in command.list_commands(context) if isinstance(command, click.Group) else ():
            child = command.get_command(context, name)
            assert child is not None
            yield from page(child, f"{path} {name}", context, min(level + 1, 3))

    yield from page(cli, "calogen", None, 2)


def configuration() -> Iterator[str]:
    """Every key of a configuration file: type, default, meaning."""
    from calogen.config import Config, CriticConfig, GeneratorConfig, Reading, TrainingConfig

    sections: list[tuple[str, type[BaseModel]]] = [
        ("", Config), ("generator", GeneratorConfig), ("critic", CriticConfig), ("training", TrainingConfig),
        ("reading", Reading),
    ]  # fmt: skip
    inner = {name for name, _ in sections if name}
    for name, model in sections:
        yield f"## {f'`[{name}]`' if name else 'Top level'}\n\n{_first_line(model)}\n"
        yield "| key | default | what it says |\n| --- | --- | --- |"
        meanings = attributes(model)
        for key, field in model.model_fields.items():
            if key not in inner:
                yield f"| `{key}` | {_default(field.get_default())} | {_cell(meanings[key])} |"
        yield ""


def networks() -> Iterator[str]:
    """Networks and objectives by name."""
    from calogen.models.registry import DEFAULTS, NETWORKS
    from calogen.training.objectives import OBJECTIVES

    yield "| `generator.network` | of | what |\n| --- | --- | --- |"
    for kind, known in NETWORKS.items():
        for name, network in known.items():
            default = ", the default" if DEFAULTS[kind] == name else ""
            noun = {"calorimeter": "showers", "map": "maps"}[kind]
            yield f"| `{name}` | {noun}{default} | {_cell(_first_line(network.generator_class))} |"
    yield "\n| `training.objective` | penalty | source |\n| --- | --- | --- |"
    for name, objective in OBJECTIVES.items():
        if objective is None:
            yield f"| `{name}` | | of networks with a loss of their own, and no critic |"
        else:
            penalty = _first_line(objective.penalty).partition(";")[0].rstrip(".") if objective.penalty else ""
            weight = f"; weight {objective.weight:g}" if penalty else ""
            yield f"| `{name}` | {penalty}{weight} | {objective.source} |"
    yield ""


def families() -> Iterator[str]:
    """The families that come with calogen, and the keys that describe another."""
    from calogen.families import FAMILIES

    yield "| family | what | voxels or pixels | conditions |\n| --- | --- | --- | --- |"
    for family in FAMILIES.values():
        conditions = ", ".join(f"`{c.name}` {c.low:g} to {c.high:g} {c.unit}".rstrip() for c in family.conditions)
        yield f"| `{family.name}` | {_cell(family.description)} | {family.voxels:,} | {conditions} |"
    yield ""


def tables() -> Iterator[str]:
    """The keys of the tables [family] and [detector], and of what is in them."""
    from calogen.families import CartesianLayer, Condition, CylindricalLayer, Family
    from calogen.simulators.geant4 import Detector, Material, Module, Plate

    titles = {
        Family: "`[family]`", CartesianLayer: 'a layer, `geometry = "cartesian"`',
        CylindricalLayer: 'a layer, `geometry = "cylindrical"`', Condition: "a condition",
        Detector: "`[detector]`", Module: "a module of plates", Plate: "a plate", Material: "a material",
    }  # fmt: skip
    for model, title in titles.items():
        yield f"### {title[0].upper()}{title[1:]}\n\n| key | default | what it says |\n| --- | --- | --- |"
        meanings = attributes(model)
        for key, field in model.model_fields.items():
            if key == "family":  # the table beside it
                continue
            default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
            yield f"| `{key}` | {default} | {_cell(meanings.get(key, ''))} |"
        yield ""


def quantities() -> Iterator[str]:
    """The glossary of metrics, from their declarations."""
    for module in ("comparison", "metrics.classifiers"):  # they declare all quantities, or import who does
        importlib.import_module(f"calogen.analysis.{module}")
    from calogen.analysis.metrics.registry import declared

    yield "| key | what | meaning |\n| --- | --- | --- |"
    for quantity in declared():
        title = f"{quantity.title} [{quantity.unit}]" if quantity.unit else quantity.title
        yield f"| `{quantity.name}` | {_cell(title)} | {_cell(quantity.meaning)} |"
    yield ""


def observables() -> Iterator[str]:
    """Every observable of CaloGAN's showers and of maps."""
    from calogen.analysis import catalogue

    from calogen.families import FAMILIES

    for name, title in (("calogan", "Of showers (family `calogan`)"), ("nbody-64", "Of maps (family `nbody-64`)")):
        yield f"### {title}\n\n| name | what | unit |\n| --- | --- | --- |"
        for observable in catalogue(FAMILIES[name]).values():
            if observable.wave_number and observable.name not in ("power_1", "power_2"):
                continue
            label = re.sub(r"\$([^$]*)\$", r"{math}`\1`", observable.label).replace("|", "\\|")
            unit = re.sub(r"\$([^$]*)\$", r"{math}`\1`", observable.unit)
            yield f"| `{observable.name}` | {label} | {unit} |"
        yield ""


def exit_codes() -> Iterator[str]:
    """Exit codes, from the errors that have them."""
    from calogen import errors

    yield "| error in Python | exit code | when |\n| --- | --- | --- |"
    for name, found in vars(errors).items():
        if inspect.isclass(found) and issubclass(found, errors.CalogenError) and found is not errors.CalogenError:
            code = "128 + signal" if found is errors.Interrupted else str(found.exit_code)
            yield f"| `{name}` | {code} | {_cell(_first_line(found))} |"
    yield ""


def surrogates() -> Iterator[str]:
    """The surrogates that come with calogen."""
    from calogen import Surrogate

    yield "| name | conditions | voxels or pixels | numbers fitted |\n| --- | --- | --- | --- |"
    for path in sorted((ROOT / "data" / "surrogates").iterdir()):
        surrogate = Surrogate.load(path.name)
        low = f"maps of {'{} x {}'.format(*surrogate.family.low_pixels)}" if surrogate.family.low_pixels else "none"
        conditions = ", ".join(f"`{c.name}` {c}" for c in surrogate.card.conditions) or low
        size = f"{surrogate.family.voxels:,}"
        yield f"| [`{path.name}`](surrogates/{path.name}.md) | {conditions} | {size} | {surrogate.parameters:,} |"
    yield ""


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "commands": commands, "configuration": configuration, "networks": networks, "families": families, "tables": tables,
    "quantities": quantities, "observables": observables, "exit-codes": exit_codes, "surrogates": surrogates,
}  # fmt: skip


def attributes(model: type) -> dict[str, str]:
    """Meanings of fields by name, from the ``Attributes:`` of the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        listed = re.search(r"^Attributes:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(base.__doc__ or ""), re.DOTALL | re.M)
        if listed and base.__module__.startswith("calogen"):
            for name, text in re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", listed[1], re.DOTALL | re.M):
                found[name] = " ".join(text.split())
    return found


def _first_line(found: Any) -> str:
    return inspect.cleandoc(found.__doc__).split("\n")[0]


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value)}`"  # as TOML has it


def _cell(text: str) -> str:
    """A docstring's sentence as a cell of a Markdown table: roles and double backticks become code."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|")


def _replace(_: Sphinx, __: str, source: list[str]) -> None:
    source[0] = re.sub(r"^% made: (\S+)$", lambda found: "\n".join(PARTS[found[1]]()), source[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, typing.Any]:
    """Called by Sphinx."""
    app.connect("source-read", _replace)
    return {"parallel_read_safe": True}
