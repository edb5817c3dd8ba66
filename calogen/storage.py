"""Files that are never half there: atomic writes, folders that can be written, digests; and TOML files."""

from __future__ import annotations

import hashlib
import os
import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import ConfigError, StorageError


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(folder: Path) -> None:
    """Refuses an output folder that could not be made or written, before hours of work for it.

    Args:
        folder: May be absent.

    Raises:
        StorageError: If what is there of its path is not a folder, cannot be written, or no folder can be made in it.
    """
    above = folder.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    reason = "it is not a folder" if not above.is_dir() else ""
    if not reason and not os.access(above, os.W_OK):
        reason = "no permission to write there"
    if not reason and above != folder.absolute():
        try:  # under a name of its own: other processes may be about to make the same folder
            Path(tempfile.mkdtemp(prefix=".calogen-", dir=above)).rmdir()
        except OSError as error:  # of a system's own, such as /proc, or without space
            reason = f"no folder can be made in it ({error.strerror})"
    if reason:
        raise StorageError(
            "cannot make the output folder", where=folder, found=f"{above}: {reason}", hint="choose another `out`"
        )


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Writes a file so that its final name exists only when every byte is on the disk.

    Args:
        path: Final name; folders are made as needed. The bytes go to ``path`` + ``.part`` first.
        data: The bytes.

    Raises:
        StorageError: If the file system refuses; nothing is left behind.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.unlink(missing_ok=True)  # a link of that name must not be followed
            with part.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        sync_folder(path.parent)  # the new name itself must reach the disk too
    except OSError as error:
        raise StorageError(
            f"the file cannot be written: {error.strerror or error}",
            where=path,
            expected=f"{len(data)} bytes of space in a folder that can be written",
            hint="free space, or write to another folder",
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: If it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror or error}", where=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the configuration is not valid TOML: {error}", where=path) from None
