"""Which raster an input is: by size and time of its files or, where that is not enough, by their content."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.location import Url, input_of
from fcn_batch.pipeline.core.plan import FileIdentity, InputIdentity
from fcn_batch.pipeline.core.source import RasterInfo
from fcn_batch.pipeline.raster.remote import look_at, look_into

_LINE = re.compile(r"(?P<escaped>\\?)(?P<sha256>[0-9a-fA-F]{64})(?: [ *](?P<name>.+))?")
"""Of sha256sum: the hash, then a blank and the mode, then the name; a backslash first if the name has some."""
_SUMS = "SHA256SUMS"
_MOST_BYTES = 2**24
"""Of a file of checksums: as many lines as nobody has files in a folder."""


def identify(info: RasterInfo, *, hashed: bool = False) -> InputIdentity:
    """The raster's identity: its grid, and its files by size and time; with `hashed` by size and SHA-256.

    InputError when a file cannot be read.
    """
    return InputIdentity(
        path=info.path,
        files=tuple(file_identity(input_of(path), hashed=hashed) for path in info.files),
        height=info.size.height,
        width=info.size.width,
        bands=info.bands,
        dtype=info.dtype,
        crs_wkt=info.georeference.crs_wkt,
        transform=info.georeference.transform,
        ground=info.ground,
        microns=info.microns,
        sources=info.sources,
        resampling=info.resampling,
        nodata=info.validity.nodata,
        nodata_rule=info.validity.rule,
    )


def file_identity(path: Path | Url, *, hashed: bool) -> FileIdentity:
    """Of one file, or of all that are in a folder; InputError when one cannot be read.

    A remote file, or folder (a URL that ends in "/"), is known by what its server says of it, and not fetched to be
    hashed.
    """
    if isinstance(path, Url) and path.text.endswith("/"):
        found = look_into(path)
        return FileIdentity(name=found.name, bytes=found.bytes, modified_ns=found.modified_ns, listing=found.tag)
    if isinstance(path, Url):
        found = look_at(path)
        return FileIdentity(name=found.name, bytes=found.bytes, modified_ns=found.modified_ns, tag=found.tag)
    try:
        if path.is_dir():
            return _folder_identity(path, hashed=hashed)
        status = path.stat()
        if not hashed:
            return FileIdentity(name=path.name, bytes=status.st_size, modified_ns=status.st_mtime_ns)
        return FileIdentity(name=path.name, bytes=status.st_size, modified_ns=None, sha256=file_sha256(path))
    except OSError as error:
        raise InputError(
            "input-unreadable",
            "{path}: cannot be read ({reason}); make it readable, or get a whole copy",
            path=path,
            reason=error.strerror,
        ) from error


def _folder_identity(folder: Path, *, hashed: bool) -> FileIdentity:
    """Of the chunks of an array, which are many: a chunk that was written anew, or put in the place of another, shows.

    What links lead to is not looked at: nothing reads it.
    """
    listing, content, total, newest = hashlib.sha256(), hashlib.sha256(), 0, 0
    for name, status in sorted(_walk(str(folder))):
        total, newest = total + status.st_size, max(newest, status.st_mtime_ns)
        listing.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
        if hashed:
            content.update(os.fsencode(f"{name}\0{file_sha256(folder / name)}\n"))
    if hashed:
        return FileIdentity(name=folder.name, bytes=total, modified_ns=None, sha256=content.hexdigest())
    return FileIdentity(name=folder.name, bytes=total, modified_ns=newest, listing=listing.hexdigest())


def _walk(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Name and status of all files below a folder, without those behind links."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(os.path.join(folder, below)) as entries:  # noqa: PTH118 - a tenth of the time, of 100 000 files
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{below}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield f"{below}{entry.name}", entry.stat(follow_symlinks=False)


def check_sums(info: RasterInfo, identity: InputIdentity) -> None:
    """Compare a hashed identity with what checksum files say: `x.tif.sha256` beside a file, SHA256SUMS in its folder.

    InputError when one of them says otherwise, or `x.tif.sha256` nothing.
    """
    for path, file in zip(map(input_of, info.files), identity.files, strict=True):
        if isinstance(path, Url):
            raise OptionError(
                "input-remote", "--verify-input: {path} would be fetched twice; copy it to a file first", path=path
            )
        for sums in (path.with_name(f"{path.name}.sha256"), path.with_name(_SUMS)):
            wanted = _sums(sums).get(path.name) if sums.is_file() else file.sha256
            if wanted is None and sums.name != _SUMS:
                raise InputError(
                    "checksum-missing",
                    "{path}: holds no SHA-256 of {file}; correct or remove it, or leave out --verify-input",
                    path=sums,
                    file=path.name,
                )
            if wanted not in (None, file.sha256):
                raise InputError(
                    "checksum-differs",
                    "{path}: not as {sums} says: its sha256 is {found}, expected {expected}; get an "
                    "undamaged copy, or correct {sums} if the raster was changed on purpose",
                    path=path,
                    sums=sums.name,
                    found=file.sha256,
                    expected=wanted,
                )


def _sums(path: Path) -> dict[str, str]:
    """Name to hash, of a file that sha256sum wrote; a line with a hash alone is of the file it is named after."""
    try:
        with path.open("rb") as file:
            lines = file.read(_MOST_BYTES).decode(errors="surrogateescape").splitlines()
    except OSError as error:
        raise InputError(
            "input-unreadable",
            "{path}: cannot be read ({reason}); correct or remove it",
            path=path,
            reason=error.strerror,
        ) from error
    found = {}
    for line in filter(None, (_LINE.fullmatch(line.strip()) for line in lines)):
        name = line["name"] or path.stem
        if line["escaped"]:
            name = re.sub(r"\\(.)", lambda part: {"n": "\n", "r": "\r"}.get(part[1], part[1]), name)
        found[name.removeprefix("./")] = line["sha256"].lower()
    return found


def file_sha256(path: Path) -> str:
    """Of a file of any size, as hexadecimal digits; OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
