"""Reads what a source holds without trusting it.

Nothing is unpacked to disk and nothing in a file is executed. A first pass over an archive lists it and refuses it
whole if one member is unsafe (a path out of the folder, a link, a device) or the archive is a bomb; a second pass, in
the archive's own order because a compressed tar is a stream, hands out the bytes of the wanted members one at a time.
`localnorm.data.readers` turns that into labelled images.
"""

import gzip
import io
import lzma
import os
import pickle
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "contents", "named_damage", "read", "scan", "unpickle"]

MAX_FILES = 2_000_000  # ImageNet has 1.3 million
MAX_BYTES = 512 << 30  # unpacked; ImageNet has 150 GB
MAX_FILE_BYTES = 256 << 20  # of one member, which is read into memory
MAX_HEADER_BYTES = 1 << 20  # of a tar's extended header, which tarfile reads into memory
MAX_RATIO = 200  # unpacked to packed bytes; photographs hardly shrink, zeros shrink 1,000 to 7,000 times
RATIO_FROM = 256 << 20  # unpacked bytes from which the ratio counts: a small archive may well be all black

_DAMAGE = (  # what the containers' libraries raise at wrong bytes; zipfile's for an unknown compression stands first
    NotImplementedError,
    EOFError,
    OverflowError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)

# Containers: folders, zips, tars


class Entry(NamedTuple):
    """A file in a container: `name` with "/", `position` where the stream reaches it, `date` as YYYY-MM-DD."""

    path: Path
    name: str
    size: int
    position: int
    date: str


def scan(path: Path) -> list[Entry]:
    """Every file of a folder or of a zip, tar, tar.gz, tgz or tar.xz archive, once all of it is known to be safe.

    Any other file is an entry of its own.

    Raises:
        ValueError: see `contents`.
    """
    return contents(path)[0]


def contents(path: Path) -> tuple[list[Entry], list[str]]:
    """The files of a container, as `scan` gives them, and the names of the folders that it lists.

    Raises:
        ValueError: the archive is damaged, or holds an absolute path, "..", a link, a device, a name twice, or more
            than the limits at the top of this module.
    """
    packed = path.stat().st_size
    entries: dict[str, Entry] = {}
    folders = []
    total = 0
    with named_damage(path):
        for name, kind, size, position, date in _LISTERS[_container(path)](path):
            parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
            if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts:
                raise _refused(path, f"{name!r} leads out of its folder")
            if kind == "folder":
                folders.append("/".join(parts))
                continue
            if kind != "file":
                raise _refused(path, f"{name!r} is {kind}, and only plain files and folders are read")
            name = "/".join(parts)
            if name in entries:
                raise _refused(path, f"{name!r} stands in it twice")
            total += size
            entries[name] = Entry(path, name, size, position, date)
            if size > MAX_FILE_BYTES and _container(path) not in ("file", "folder"):  # a folder may have a film beside
                raise _refused(path, f"{name!r} has {size:,} bytes, at most {MAX_FILE_BYTES:,} are allowed")
            if len(entries) > MAX_FILES:
                raise _refused(path, f"it holds more than {MAX_FILES:,} files")
            if total > MAX_BYTES:
                raise _refused(path, f"it unpacks to more than {MAX_BYTES:,} bytes")
            if not path.is_dir() and total > max(RATIO_FROM, MAX_RATIO * packed):
                raise _refused(path, f"its {packed:,} bytes unpack to more than {MAX_RATIO} times as many")
    return list(entries.values()), folders


def read(entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """The bytes of each entry, in the order in which its container's stream reaches them.

    Raises:
        ValueError: the container is damaged.
    """
    ordered = sorted(entries, key=lambda entry: (str(entry.path), entry.position))
    for path, group in groupby(ordered, key=lambda entry: entry.path):
        with named_damage(path):
            yield from _OPENERS[_container(path)](path, group)


def _container(path: Path) -> str:
    if path.is_dir():
        return "folder"
    if path.name.endswith(".zip"):
        return "zip"
    return "tar" if path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz")) else "file"


def _list_folder(path: Path) -> Iterator[tuple[str, str, int, int, str]]:
    root = path.resolve()
    position = 0
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in folders:
            kind = "a link to a folder" if Path(folder, name).is_symlink() else "folder"
            yield Path(folder, name).relative_to(path).as_posix(), kind, 0, 0, ""
        for name in sorted(names):
            file = Path(folder, name)
            kind = "file" if file.is_file() and file.resolve().is_relative_to(root) else "a link out of it"
            # no date: copying a folder changes it
            yield file.relative_to(path).as_posix(), kind, file.lstat().st_size, position, ""
            position += 1


def _list_zip(path: Path) -> Iterator[tuple[str, str, int, int, str]]:
    with zipfile.ZipFile(path) as archive:
        for position, info in enumerate(archive.infolist()):
            kind = "folder" if info.is_dir() else "file"
            if stat.S_ISLNK(info.external_attr >> 16):
                kind = "a link"
            elif info.flag_bits & 1:
                kind = "encrypted"
            else:
                if zipfile.stringCentralDir in info.extra + info.comment:  # a wrong length swallowed the next files
                    raise zipfile.BadZipFile(f"the entry of {info.filename!r} holds another")
                try:
                    archive.open(info).close()  # compares its name with the one before its bytes
                except OSError as error:  # its bytes are said to begin before the file does
                    raise zipfile.BadZipFile(f"{info.filename!r} is not where the list of files says") from error
            yield _zip_name(info), kind, info.file_size, position, "{:04}-{:02}-{:02}".format(*info.date_time[:3])


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name as its author saw it.

    A zip says by a flag that its names are UTF-8, and zipfile takes any other name for the code page 437. Many programs write UTF-8
    without the flag, or put it into an extra field beside an older name (0x7075, Info-ZIP's). Text in another code page is hardly
    ever valid UTF-8 by chance.
    """
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    stored = info.filename.encode("cp437")
    rest = info.extra
    while len(rest) >= 4:
        kind, size = struct.unpack_from("<HH", rest)
        field, rest = rest[4 : 4 + size], rest[4 + size :]
        if kind == 0x7075 and field[:1] == b"\1" and field[1:5] == struct.pack("<I", zlib.crc32(stored)):
            stored = field[5:]
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return info.filename


class _BoundedTarInfo(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf, encoding, errors):
        info = super().frombuf(buf, encoding, errors)
        if info.type not in tarfile.REGULAR_TYPES and info.size > MAX_HEADER_BYTES:
            raise tarfile.TarError(f"a header has {info.size:,} bytes, at most {MAX_HEADER_BYTES:,} are allowed")
        return info


def _list_tar(path: Path) -> Iterator[tuple[str, str, int, int, str]]:
    with tarfile.open(path, tarinfo=_BoundedTarInfo) as archive:
        for info in archive:
            kind = "file" if info.isreg() and not info.issparse() else "folder" if info.isdir() else "a special file"
            if info.issym() or info.islnk():
                kind = f"a link to {info.linkname!r}"
            date = datetime.fromtimestamp(info.mtime, UTC).strftime("%Y-%m-%d")
            yield info.name, kind, info.size, info.offset_data, date
        # a compressed stream's own checksum stands at its end, behind the tar's last block
        rest = 0
        while chunk := archive.fileobj.read(1 << 20):
            rest += len(chunk)
            if rest > MAX_FILE_BYTES:
                raise tarfile.TarError(f"more than {MAX_FILE_BYTES:,} bytes follow its last file")


def _list_file(path: Path) -> Iterator[tuple[str, str, int, int, str]]:
    yield path.name, "file", path.stat().st_size, 0, ""


def _open_folder(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    for entry in entries:
        yield entry, (path / entry.name).read_bytes()


def _open_zip(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        for entry in entries:
            yield entry, archive.read(infos[entry.position])


def _open_tar(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    with tarfile.open(path, tarinfo=_BoundedTarInfo) as archive:
        for entry in entries:  # by position: parsing 60,000 headers once more takes as long as unpacking
            archive.fileobj.seek(entry.position)
            yield entry, archive.fileobj.read(entry.size)


def _open_file(path: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    for entry in entries:
        yield entry, path.read_bytes()


_LISTERS = {"folder": _list_folder, "zip": _list_zip, "tar": _list_tar, "file": _list_file}
_OPENERS = {"folder": _open_folder, "zip": _open_zip, "tar": _open_tar, "file": _open_file}


def _refused(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is refused whole: {reason}")


@contextmanager
def named_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(f"{path} is damaged or not what its name says: {reason}; supply it again") from error


# Pickles

_PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how a newer pickle spells the bytes of an older one
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only arrays, dicts, lists, text and numbers are read"
            )
        return super().find_class(module, name)


def unpickle(data: bytes, name: str):
    """The arrays, dicts, lists, strings and numbers in a pickle, Python 2's too; all else is refused before it runs.

    Raises:
        ValueError: the pickle asks for another class or function, or is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its opcodes stumble over
        raise ValueError(f"{name} is refused: {error}") from error
