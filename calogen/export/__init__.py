"""A checkpoint's generator for other people's programs.

Each format is one module with one function ``write_NAME(generator, card, out) -> facts``: it writes its files into a
folder, runs them where it can, and says what came of it. What is in the files, how to call them and how far they differ
from Python is a JSON file beside them, the same for all formats (``description.py``).
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StorageError, did_you_mean
from ..models.contract import Generator
from ..runs.checkpoint import Card
from ..stages import stage
from ..storage import TEXT_BYTES, read_bounded, remedy, require_writable, sync_folder, tidied, write_atomic
from .description import described

_LICENCE = re.compile(r"^- \*\*Licence\*\*: (.+?)\.?$", re.MULTILINE)
DESCRIPTION = "surrogate.json"
"""The file that describes an export."""


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        place: ``module.function`` in this package, imported when it is used.
        about: For whom it is, in a few words.
        opset: Whether it takes the argument ``opset``.
    """

    place: str
    about: str
    opset: bool = False


FORMATS = {
    "onnx": Format(
        "onnx.write_onnx", "one graph for any ONNX runtime: noise and conditions in, samples out", opset=True
    ),
    "par04": Format("par04.write_par04", "the graph that Geant4's example Par04 calls, with a macro", opset=True),
    "cpp": Format("cpp.write_cpp", "showers as one C++17 header without dependencies, and a file of weights"),
}
"""Formats by name. To add one is to add its module and a line here."""


def export(
    generator: Generator,
    card: Card,
    format: str,  # noqa: A002 - the word of the command line
    out: str | Path,
    *,
    opset: int | None = None,
    licence: str = "",
) -> dict[str, Any]:
    """Write a generator in a format, and its description in JSON.

    Args:
        generator: Fitted and trained, on the CPU.
        card: What was trained on what.
        format: A name in :data:`FORMATS`.
        out: Folder to be made; empty or absent.
        opset: Of ONNX's operators; none: the lowest that does, which most runtimes read.
        licence: Of the surrogate; empty: not stated.

    Returns:
        The description.

    Raises:
        ConfigError: Unknown format, a folder that is not empty, a package that is missing, an opset that is too low, or
            a generator that the format cannot express.
        StorageError: If the disk refuses.
    """
    if format not in FORMATS:
        raise ConfigError(
            f"there is no format '{format}'",
            where="`format`",
            expected=", ".join(FORMATS),
            found=format,
            hint=did_you_mean(format, FORMATS),
        )
    found, out = FORMATS[format], Path(out)
    if opset is not None and not found.opset:
        raise ConfigError(f"format '{format}' has no operators, hence no opset", where="`opset`", found=opset)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("something is there already", where=out, hint="choose another `out`, or remove it")
    require_writable(out)
    module, function = found.place.rsplit(".", 1)
    write = getattr(importlib.import_module(f".{module}", __package__), function)

    # The folder has its name when everything in it is there.
    part = out.with_name(out.name + ".part")
    with tidied(out.parent):
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            stage(f"writing {format}, and trying what it makes")
            facts = write(generator, card, part, **({"opset": opset} if found.opset else {}))
            description = described(generator, card, format, part, facts, licence)
            write_atomic(part / DESCRIPTION, (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode())
            part.rename(out)
            sync_folder(out.parent)
        except OSError as error:
            raise StorageError(
                f"cannot write the export: {error.strerror or error}", where=out, hint=remedy(error)
            ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return description


def licence_of(folder: Path) -> str:
    """What the README.md beside a checkpoint says of its licence; empty: nothing."""
    page = folder / "README.md"
    found = _LICENCE.search(read_bounded(page, TEXT_BYTES).decode("utf-8", "replace")) if page.is_file() else None
    return found[1] if found else ""
