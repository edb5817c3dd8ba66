"""Plain English: what calogen prints and its pages have none of the words that a physicist would not say aloud."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from calogen.analysis import comparison  # noqa: F401 - declares quantities, as do the classifiers
from calogen.analysis.metrics import classifiers  # noqa: F401
from calogen.analysis.metrics.registry import declared
from support import ROOT

from calogen.cli.commands import cli

BANNED = {
    r"better(ed|ing|s)\b": "improved, improves",
    r"vouch\w*": "guarantees, says",
    r"(?<!un)liked\b": "as they are liked: say what is meant",
    r"of ours\b": "calogen's, or leave it out",
    r"in words\b": "leave it out",
    r"go(es)? round\b": "wraps around",
    r"the \w+ there are\b": "all available",
    r"(is|are) no number of\b": "invalid number of",
    r"told\b": "said; unless `--extrapolate` ...; distinguished",
    r"of everything random\b": "random seed",
    r"the adversary does not better\b": "adversarial training does not improve",
    r"the real (and|or) (the )?fake\b|\bfakes?\b": "reference, generated",
    r"(?<!signal )handlers?\b": "say what it does",
    r"(?<!sbi\.)(utils|helpers|misc)\b": "say what it is",
    r"G/D\b": "generator and critic",
}
"""What not to write, and what to write instead (the project's list of words is in CONTRIBUTING.md)."""

# The field's own literature calls the critic so, and a page about that literature may, too.
DISCRIMINATOR = re.compile(r"\bdiscriminators?\b", re.IGNORECASE)
ABOUT_OTHERS = {"docs/tour-of-gans.md", "docs/changelog.md"}


def found_in(text: str) -> list[str]:
    return [
        f"'{match[0]}': {instead}"
        for word, instead in BANNED.items()
        for match in re.finditer(rf"\b(?:{word})", text, re.I)
    ]


def pages() -> list[str]:
    folders = (ROOT / "docs", ROOT / "data")
    found = [path for folder in folders for path in folder.rglob("*.md") if "_build" not in path.parts]
    return [*(str(path.relative_to(ROOT)) for path in sorted(found)), "README.md", "CHANGELOG.md"]


def helps(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """Where and what: the help of a command, its options and those below it."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, child in command.commands.items() if isinstance(command, click.Group) else ():
        yield from helps(child, f"{path} {name}")


def spoken(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string of a module with a space in it that is no docstring: messages, titles, notes."""
    tree = ast.parse(path.read_text())
    silent = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and " " in node.value
            and id(node) not in silent
        ):
            yield node.lineno, node.value


@pytest.mark.parametrize("page", pages())
def test_a_page_is_plain_english(page: str) -> None:
    text = (ROOT / page).read_text()
    assert found_in(text) == []
    assert page in ABOUT_OTHERS or not DISCRIMINATOR.search(text)


def test_help_texts_are_plain_english() -> None:
    said = dict(helps(cli, "calogen"))
    assert len(said) > 100
    assert {where: found for where, text in said.items() if (found := found_in(text))} == {}


def test_messages_are_plain_english() -> None:
    modules = [path for room in ("calogen", "analysis") for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(modules) > 100
    said = [(f"{path.relative_to(ROOT)}:{line}", text) for path in modules for line, text in spoken(path)]
    assert [(where, found) for where, text in said if (found := found_in(text))] == []
    assert [where for where, text in said if DISCRIMINATOR.search(text)] == []


def test_the_glossary_is_plain_english() -> None:
    said = {quantity.name: f"{quantity.title}. {quantity.meaning}" for quantity in declared()}
    assert len(said) > 50
    assert {name: found for name, text in said.items() if (found := found_in(text))} == {}


@pytest.mark.parametrize(
    "text", ["it bettered the fit", "unless told otherwise", "the cores there are", "a fake shower"]
)
def test_the_list_finds_what_it_is_for(text: str) -> None:
    assert found_in(text)
