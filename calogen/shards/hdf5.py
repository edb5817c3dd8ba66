"""HDF5 files, safely: opening files of unknown origin, and writing files that are never half there.

A file from elsewhere may be truncated, point outside itself, or claim more data than memory holds; all of that is
found before a sample is read. A file that calogen writes is built in memory, and appears under its final name only when
complete.
"""

from __future__ import annotations

import io
import math
import mmap
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path

import h5py
import numpy as np
from isal import igzip_lib
from numpy.typing import NDArray

from ..errors import ShardError
from ..storage import file_state

_MAX_CHUNK_BYTES = 1 << 30  # a whole chunk is decompressed for a single row of it
_MAX_RATIO = 1100  # DEFLATE cannot compress below 1:1032
_CHUNK_ROWS = 1024
_CHUNK_BYTES = 8 << 20
_HEAP = b"GCOL\x01\0\0\0"
_AHEAD = 16  # chunks being compressed at a time, at most
_WINDOW_BITS = 11
MANTISSA = 23
"""Bits of a float32's mantissa."""


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading.

    Raises:
        ShardError: If it is missing, unreadable, truncated or not HDF5.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ShardError("this is a device or a pipe, not a file", where=path)  # opening one could wait forever
    try:
        # Foreign files have chunks across rows; a cache of a few bands of them avoids decompressing them again.
        file = h5py.File(path, "r", locking="best-effort", rdcc_nbytes=32 << 20)
    except FileNotFoundError:
        raise ShardError("the file does not exist", where=path) from None
    except IsADirectoryError:
        raise ShardError("this is a folder, not a file", where=path) from None
    except PermissionError:
        raise ShardError("no permission to read the file", where=path, hint="check its permissions") from None
    except (OSError, RuntimeError) as error:
        raise _unopenable(path, error) from None
    with file:
        if not _heaps_end(path.absolute(), file_state(path), _has_texts(file)):
            raise ShardError("the HDF5 file is damaged: its texts never end", where=path, hint="copy or make it again")
        yield file


def _has_texts(file: h5py.File) -> bool:
    """Whether anything in a file, groups in groups aside, has an attribute of variable length, which is in a heap."""
    try:
        return any(map(_texts_of, _places(file, 2)))
    except (OSError, RuntimeError, KeyError, ValueError):
        return True  # who knows; what is damaged is found by who reads it


def _places(group: h5py.Group, depth: int) -> Iterator[h5py.Group | h5py.Dataset]:
    """A group and what is plainly in it, to a depth."""
    yield group
    for name in group if depth else ():
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            inside = group[name]
            yield from _places(inside, depth - 1) if isinstance(inside, h5py.Group) else (inside,)


def _texts_of(place: h5py.Group | h5py.Dataset) -> bool:
    kinds = (h5py.h5a.open(place.id, name.encode()).get_type() for name in place.attrs)
    return any(isinstance(kind, h5py.h5t.TypeVlenID) or _is_text(kind) for kind in kinds)


def _is_text(kind: h5py.h5t.TypeID) -> bool:
    return isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())


@lru_cache(maxsize=1 << 16)
def _heaps_end(path: Path, state: tuple[int, ...], texts: bool) -> bool:
    """Whether a walk through every heap of texts in a file ends; HDF5 itself walks on for ever in a damaged one.

    Source: HDF5 file format specification 3.0, III.E, "Global Heap".
    """
    if not texts or not state[0]:
        return True
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        heap = data.find(_HEAP)
        while heap >= 0:
            at, end = heap + 16, heap + int.from_bytes(data[heap + 8 : heap + 16], "little")
            while at + 16 <= min(end, len(data)):
                index = int.from_bytes(data[at : at + 2], "little")
                length = int.from_bytes(data[at + 8 : at + 16], "little")
                if index == 0 and length == 0:
                    return False
                at += length if index == 0 else 16 + -(-length // 8) * 8  # free space counts its own header
            heap = data.find(_HEAP, heap + 1)
    return True


def _unopenable(path: Path, error: Exception) -> ShardError:
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            size = path.stat().st_size
    except OSError:
        return ShardError("the file cannot be read", where=path, found=str(error))
    if not size:
        return ShardError("the file is empty", where=path, expected="an HDF5 file", found="0 bytes")
    if start.startswith(b"root"):
        return ShardError(
            "this is a ROOT file (EDM4hep, for example), which calogen does not read",
            where=path,
            expected="an HDF5 file",
            hint="convert it: uproot.open(FILE) gives the hits' energies as arrays; sum them in the cells of a "
            "[family] table and write 'showers' (N, V) and 'incident_energies' (N, 1) with h5py",
        )
    if start != b"\x89HDF\r\n\x1a\n":
        return ShardError(
            "the file is not HDF5", where=path, expected="an HDF5 file", found=f"it starts with {start!r}"
        )
    return ShardError(
        "the HDF5 file is damaged or truncated",
        where=path,
        found=f"{size} bytes; {error}",
        hint="copy or make the file again",
    )


def checked_dataset(
    file: h5py.File,
    name: str,
    shape: tuple[int | None, ...] | None,
    *,
    column: bool = False,
    kinds: str = "f",
) -> h5py.Dataset:
    """A dataset after the checks that make reading it safe.

    Args:
        file: The open file.
        name: Name of the dataset.
        shape: Lengths it must have; None where any will do, or instead of all where there may be any number of axes.
        column: Accept (N, 1) where (N,) is asked for.
        kinds: NumPy kinds of number that are allowed.
    """
    path = Path(file.filename)
    where = f"{path}, dataset {name}"
    link = file.get(name, getlink=True)  # asking for the object itself would already follow the link
    if link is None:
        found = ", ".join(sorted(file)[:12])
        raise ShardError(f"the dataset '{name}' is missing", where=path, found=found)
    if not isinstance(link, h5py.HardLink):
        raise outside(path, name, "a link")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ShardError("this is a group, not a dataset", where=where)
    if dataset.is_virtual or dataset.external:
        raise outside(path, name, "a virtual dataset" if dataset.is_virtual else "external storage")
    if dataset.dtype.kind not in kinds:
        raise ShardError(
            "the dataset has the wrong type of number", where=where, expected="float32 or float64", found=dataset.dtype
        )
    actual: tuple[int, ...] = tuple(dataset.shape or ())
    if column and len(actual) == 2 and actual[1] == 1:
        actual = actual[:1]
    if shape is None:
        shape = actual or (None,)
    if len(actual) != len(shape) or any(w is not None and w != a for a, w in zip(actual, shape, strict=True)):
        expected = "(" + ", ".join("N" if w is None else str(w) for w in shape) + ")"
        raise ShardError("the dataset has the wrong shape", where=where, expected=expected, found=dataset.shape)
    _require_filters(dataset, where)
    _check_storage(dataset, path, where)
    return dataset


_FILTERS = {
    32001: "blosc",
    32026: "blosc2",
    32004: "lz4",
    32008: "bitshuffle",
    32015: "zstd",
    32013: "zfp",
    32017: "sz",
    307: "bzip2",
}


def _require_filters(dataset: h5py.Dataset, where: str) -> None:
    """Refuses datasets that are compressed by filters which this machine cannot undo, by the filters' names."""
    plan = dataset.id.get_create_plist()
    for code in (plan.get_filter(k)[0] for k in range(plan.get_nfilters())):
        if h5py.h5z.filter_avail(code):
            continue
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401 (makes its filters known)

        if not h5py.h5z.filter_avail(code):
            raise ShardError(
                f"the dataset is compressed with {_FILTERS.get(code, 'a filter')} (HDF5 filter {code}), which is not "
                "installed",
                where=where,
                hint='pip install "calogen[filters]", or write the file with gzip: h5repack -f GZIP=1',
            )


def outside(path: Path, name: str, what: str) -> ShardError:
    """The error for a dataset that is not plainly in the file."""
    return ShardError(
        f"the dataset is {what}, which can point outside the file",
        where=f"{path}, dataset {name}",
        expected="a plain dataset in the file itself",
        hint="copy the data into the file, for example with h5repack",
    )


def _check_storage(dataset: h5py.Dataset, path: Path, where: str) -> None:
    """Refuses datasets that claim more than the file can hold: reading one would fill the memory."""
    size, claimed, stored = path.stat().st_size, dataset.nbytes, dataset.id.get_storage_size()
    if not claimed:
        return
    missing = stored < claimed if dataset.chunks is None else stored == 0
    if missing or stored > size or claimed > _MAX_RATIO * stored:
        raise ShardError(
            "the dataset claims more data than the file holds",
            where=where,
            expected=f"{claimed} bytes (shape {dataset.shape})",
            found=f"{stored} bytes in a file of {size} bytes",
        )
    if dataset.chunks is None:
        return
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk_bytes > _MAX_CHUNK_BYTES:
        raise ShardError(
            "the dataset's chunks are too large to read a few rows",
            where=where,
            expected=f"at most {_MAX_CHUNK_BYTES} bytes",
            found=f"{chunk_bytes} bytes (chunks {dataset.chunks})",
            hint="rewrite the file with h5repack",
        )
    sizes: list[int] = []
    dataset.id.chunk_iter(lambda info: sizes.append(info.size))
    expected = math.prod(math.ceil(n / c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    if len(sizes) < expected:
        raise ShardError(
            "parts of the dataset were never written", where=where, expected=f"{expected} chunks", found=len(sizes)
        )
    if max(sizes) > chunk_bytes + chunk_bytes // 10 + 4096:  # would decompress to far more than a chunk
        raise ShardError("a chunk of the dataset is larger than it may be", where=where, found=f"{max(sizes)} bytes")


# ---------------------------------------------------------------------------------------------------- writing
def hdf5_image(fill: Callable[[h5py.File], None]) -> memoryview:
    """Bytes of an HDF5 file, built in memory.

    HDF5 writing to a full disk ends the process at exit; in memory it cannot.

    Args:
        fill: Writes datasets and attributes into the open file.
    """
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    return stream.getbuffer()


class RowWriter:
    """Writes a dataset a few rows at a time under HDF5's standard gzip filter, chunked along its first axis.

    The bytes are made by ISA-L, six times as fast as zlib at the same ratio; any HDF5 reader opens them. There is no
    shuffle filter: it makes sparse showers bigger.

    Args:
        file: The file to write into.
        name: Name of the dataset.
        count: Rows it will have, more than 0; all of them must be appended.
        like: An array with the rows' shape and type.
        pool: Compresses several chunks at a time; none: at once, in the calling thread.
    """

    def __init__(
        self, file: h5py.File, name: str, count: int, like: NDArray[np.generic], pool: Executor | None = None
    ) -> None:
        self._shape, self._dtype = like.shape[1:], like.dtype
        row_bytes = math.prod(self._shape) * self._dtype.itemsize
        self._rows = min(_CHUNK_ROWS, count)
        while self._rows > 1 and self._rows * row_bytes > _CHUNK_BYTES:
            self._rows //= 2
        chunks = (self._rows, *self._shape)
        shape = (count, *self._shape)
        self._dataset = file.create_dataset(
            name, shape, self._dtype, chunks=chunks, compression="gzip", compression_opts=1
        )
        self._held: NDArray[np.generic] = like[:0]  # rows that do not fill a chunk yet
        self._done, self._pool = 0, pool
        self._waiting: deque[tuple[int, Callable[[], bytes]]] = (
            deque()
        )  # first rows of chunks, and what gives their bytes

    def append(self, rows: NDArray[np.generic]) -> None:
        """Add rows, (n, ...); stored exactly as they are."""
        if len(self._held):
            rows = np.concatenate([self._held, rows])
        whole = len(rows) // self._rows * self._rows
        for start in range(0, whole, self._rows):
            self._write(rows[start : start + self._rows])
        self._held = rows[whole:]

    def close(self) -> None:
        """Write what is left."""
        if len(self._held):
            missing = np.zeros((self._rows - len(self._held), *self._shape), self._dtype)
            self._write(np.concatenate([self._held, missing]))  # HDF5 chunks are always whole
        self._drain(0)

    def _write(self, chunk: NDArray[np.generic]) -> None:
        chunk = np.ascontiguousarray(chunk)
        made = self._pool.submit(compressed, chunk).result if self._pool else partial(compressed, chunk)
        self._waiting.append((self._done, made))
        self._done += len(chunk)
        self._drain(_AHEAD if self._pool else 0)

    def _drain(self, most: int) -> None:
        while len(self._waiting) > most:
            place, made = self._waiting.popleft()
            self._dataset.id.write_direct_chunk((place, *(0 for _ in self._shape)), made())


def rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Values with mantissas rounded to so many bits: a relative error of at most 2^-(bits + 1).

    Args:
        values: float32.
        bits: 1 to 23.
    """
    drop = MANTISSA - bits
    if not drop:
        return values
    raw = values.view(np.uint32) + np.uint32(1 << (drop - 1))
    raw &= np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    return raw.view(np.float32)


def compressed(chunk: NDArray[np.generic]) -> bytes:
    """A chunk under HDF5's gzip filter."""
    # A short window is faster and loses nothing: what repeats in samples are zeros.
    data: bytes = igzip_lib.compress(chunk, 1, igzip_lib.COMP_ZLIB, igzip_lib.MEM_LEVEL_EXTRA_LARGE, _WINDOW_BITS)
    return data
