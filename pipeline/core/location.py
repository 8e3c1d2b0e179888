"""Where an input is: a path, a URL, a file in an archive, or several of these as one."""

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeGuard
from urllib.parse import parse_qsl, unquote, urlsplit

from fcn_batch.pipeline.core.errors import InputError

_GDAL = {"https": "/vsicurl/", "http": "/vsicurl/", "s3": "/vsis3/", "gs": "/vsigs/"}
"""What GDAL calls the schemes of remote inputs."""
_ZIP = "/vsizip/"
_SECRET = re.compile(r"signature|sig|token|key|password|credential", re.IGNORECASE)
"""Names of what a URL must not carry: it would stand in every report."""


@dataclass(frozen=True, slots=True)
class Url:
    """Something that is no file of its own here: remote, or in an archive. InputError when it has secrets."""

    text: str
    visit: str = field(default="", compare=False, repr=False)
    """A word of one reader's own: GDAL keeps what it fetched by name, and would not notice that the file changed."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.text)
        secret = next(
            (name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(name)), None
        )
        if parts.username is not None or parts.password is not None or secret is not None:
            what = "a user name" if secret is None else f"{secret!a}"
            raise InputError(
                f"{self.scheme}://{parts.hostname}{parts.path}: the URL holds {what}, which every report would show; "
                "give credentials by the environment (AWS_ACCESS_KEY_ID and the like) or ~/.netrc"
            )

    def __str__(self) -> str:
        return self.text

    @property
    def scheme(self) -> str:
        """Such as "s3"; empty for what is in an archive."""
        return urlsplit(self.text).scheme.lower()

    @property
    def remote(self) -> bool:
        """False for what is in an archive on this machine."""
        return not self.text.startswith(_ZIP)

    @property
    def name(self) -> str:
        """The last part of its path.

        >>> Url("https://host/a/image%201.tif?version=1").name
        'image 1.tif'
        """
        return unquote(PurePosixPath(urlsplit(self.text).path).name)

    @property
    def stem(self) -> str:
        """The name without its last ending."""
        return PurePosixPath(self.name).stem

    @property
    def gdal(self) -> str:
        """What GDAL calls it. A visit is a fragment, which no server sees; S3 and the like have nothing of the kind.

        >>> Url("s3://bucket/a.tif").gdal, Url("https://host/a.tif", "b7").gdal
        ('/vsis3/bucket/a.tif', '/vsicurl/https://host/a.tif#b7')
        """
        if not self.remote:
            return self.text
        prefix = _GDAL[self.scheme]
        if prefix == "/vsicurl/":
            return prefix + self.text + (f"#{self.visit}" if self.visit else "")
        return prefix + self.text.partition("://")[2]

    @property
    def archive(self) -> tuple[Path, str]:
        """The archive that it is in, and its name there; InputError when there is no such archive, or nothing in it."""
        inner = PurePosixPath(self.text.removeprefix(_ZIP))
        for place in list(inner.parents)[-2::-1]:
            for path in (Path(place), Path("/") / place):
                if path.is_file():
                    return path.absolute(), str(inner.relative_to(place))
        raise InputError(f"{self.text}: no such archive; give {_ZIP}FOLDER/NAME.zip/PATH/IN/IT.tif")


def is_remote(place: "Path | Url") -> TypeGuard[Url]:
    """True for what is on another machine."""
    return isinstance(place, Url) and place.remote


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Several inputs that become one map."""

    name: str
    """Of the outputs."""
    parts: tuple["Path | Url", ...]
    """The first lies on top."""

    def __str__(self) -> str:
        return self.name

    @property
    def stem(self) -> str:
        """The name."""
        return self.name


Input = Path | Url | Mosaic
"""What somebody names to be classified."""


def input_of(text: str) -> Path | Url:
    """What a word on the command line, in a list or in a plan means; InputError for URLs that cannot be used.

    >>> str(input_of("a.tif")), input_of("S3://bucket/a.tif").name
    ('a.tif', 'a.tif')
    """
    if text.startswith(_ZIP):
        return Url(text)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text)
    if scheme is None:
        return Path(text)
    if scheme[1].lower() == "file":
        return Path(unquote(urlsplit(text).path))
    if scheme[1].lower() not in _GDAL:
        raise InputError(f"{text}: URLs of {scheme[1]} are not supported, but {', '.join(_GDAL)}; copy it to a file")
    return Url(text)


def size_in_archive(url: Url) -> int:
    """Bytes of a file in an archive when it is unpacked; InputError when there is none, or the archive is broken."""
    archive, inner = url.archive
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.getinfo(inner).file_size
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{url}: not in {archive.name}, or that cannot be read ({error}); look with unzip -l"
        ) from error
