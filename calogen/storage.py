"""Files that are never half there, and files that are what they seem: writing, locking, reading, digests; TOML."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import stat
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import ConfigError, StorageError

TEXT_BYTES = 1 << 24
"""Most bytes of a file that describes something: TOML, XML, a card."""
TABLE_BYTES = 1 << 30
"""Most bytes of a table in text: conditions of samples, a manifest, a log."""
_LOCK_SECONDS = 2.0  # that workers of a killed process have to let go of a folder
_FULL = (errno.ENOSPC, errno.EDQUOT)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(name: str) -> Path | None:
    """A folder for what can be made again, of this user alone: in ``XDG_CACHE_HOME``, else in ``~/.cache``.

    Args:
        name: Below ``calogen``.

    Returns:
        The folder, or None where there can be none, or others may write to it.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calogen" / name
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        facts = folder.stat()
    except (OSError, RuntimeError):  # no home
        return None
    mine = facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if mine and os.access(folder, os.W_OK | os.X_OK) else None


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


def write_atomic(path: Path, data: bytes | memoryview, *, shared: bool = False) -> None:
    """Writes a file so that its final name exists only when every byte is on the disk.

    Args:
        path: Final name; folders are made as needed. The bytes go to ``path`` + ``.part`` first.
        data: The bytes.
        shared: Other processes may be writing the same file: the name before ``.part`` is different in each.

    Raises:
        StorageError: If the file system refuses; nothing is left behind.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part" if shared else f"{path.name}.part")
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
            hint=remedy(error),
        ) from None


def remedy(error: OSError) -> str:
    """What to do about a write that the file system refused."""
    if error.errno in _FULL:
        return "free space or quota, or write to another folder; then repeat the command"
    if error.errno == errno.EFBIG:
        return "files may not grow so large here: see `ulimit -f`, or write to another folder"
    return "see whether the folder can be written, or write to another one; then repeat the command"


@contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """Folders that are made meanwhile, this one or above it, are removed again where they stay empty."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for place in made:
                place.rmdir()


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a lock file, as a descriptor; the kernel lets go of it when all who have that end, however they end.

    Raises:
        StorageError: If its folder cannot be made or written.
        ConfigError: If another process holds it; says which.
    """
    limit = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise StorageError(f"cannot write the output folder: {error.strerror}", where=path.parent) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # a file system without locks
                break
            owner = os.pread(handle, 200, 0).decode("utf-8", "replace")
            os.close(handle)
            if time.monotonic() < limit:
                time.sleep(0.1)
                continue
            raise ConfigError(
                "the output folder is being written by another process",
                where=path,
                found=owner or None,
                hint="wait for it, or choose another `out`; parts of one production may share a folder (`part`)",
            ) from None
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                break
        os.close(handle)  # its last holder removed the file just before we locked it
    try:
        with suppress(OSError):  # a disk that is full: the lock holds all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield handle
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def regular_size(path: Path) -> int:
    """The length of a file, which is a plain one: opening a pipe can wait forever, and a device has no end.

    Raises:
        OSError: If there is none, or it is something else; says so in ``strerror``.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "this is a device or a pipe, not a file", str(path))
    return found.st_size


def read_bounded(path: Path, most: int = TEXT_BYTES) -> bytes:
    """The bytes of a plain file that is not too large for what it should be.

    Args:
        path: The file.
        most: Bytes it may have.

    Raises:
        OSError: If it is missing, unreadable, a device or a pipe, or longer; says so in ``strerror``.
    """
    size = regular_size(path)
    if size <= most:
        with path.open("rb") as stream:
            return stream.read(size)
    raise OSError(errno.EFBIG, f"the file is too large: {size} bytes, where at most {most} make sense", str(path))


def digest_of(table: Mapping[str, Any], leave_out: tuple[str, ...] = ()) -> str:
    """SHA-256, hexadecimal, of a JSON-able table; the order of its keys and white space do not matter.

    Args:
        table: What to look at.
        leave_out: Top-level keys that do not count.
    """
    kept = {key: value for key, value in table.items() if key not in leave_out}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_state(*paths: Path) -> tuple[int, ...]:
    """What changes when a file is written again or replaced: its length, time of change and number; none of no file."""
    state = list[int]()
    for path in paths:
        with suppress(OSError):
            found = path.stat()
            state += [found.st_size, found.st_mtime_ns, found.st_ino]
    return tuple(state)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=1 << 16)
def known_sha256(path: Path, state: tuple[int, ...]) -> str:  # noqa: ARG001 (another state is another file)
    """SHA-256 of a file, read once for each state of it."""
    return sha256_of(path)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: If it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(read_bounded(path).decode())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror or error}", where=path) from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"the configuration is not valid TOML: {error}", where=path) from None
