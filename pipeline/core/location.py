"""Where things are: an input (a path, a URL, a file in an archive, several of these as one), a file of a data set.

``package:NAME/inner/path`` is a file that an installed Python package brings along; the package is not imported.
"""

import importlib.util
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeGuard
from urllib.parse import parse_qsl, unquote, urlsplit

from fcn_batch.pipeline.core.errors import InputError, TrainingError

_GDAL = {"https": "/vsicurl/", "http": "/vsicurl/", "s3": "/vsis3/", "gs": "/vsigs/"}
"""GDAL's prefixes for the schemes of remote inputs."""
_ZIP = "/vsizip/"
_PACKAGE = "package:"
_SECRET = re.compile(r"signature|sig|token|key|password|credential", re.IGNORECASE)
"""Names of what a URL must not carry: it would stand in every report."""


@dataclass(frozen=True, slots=True)
class Url:
    """Something that is no file of its own here: remote, or in an archive. InputError when it has secrets."""

    text: str
    visit: str = field(default="", compare=False, repr=False)
    """A suffix unique to one reader: GDAL caches by name, and would not notice that the file changed."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.text)
        secret = next(
            (name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(name)), None
        )
        if parts.username is not None or parts.password is not None or secret is not None:
            what = "a user name" if secret is None else f"{secret!a}"
            raise InputError(
                "url-with-secret",
                "{place}: the URL holds {what}, which every report would show; "
                "give credentials by the environment (AWS_ACCESS_KEY_ID and the like) or ~/.netrc",
                place=f"{self.scheme}://{parts.hostname}{parts.path}",
                what=what,
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
        """Return its name in GDAL. A visit is a fragment, which no server sees; S3 and the like have none.

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
        raise InputError(
            "archive-missing",
            "{place}: no such archive; give {zip}FOLDER/NAME.zip/PATH/IN/IT.tif",
            place=self.text,
            zip=_ZIP,
        )


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
"""An input as the user names it."""


def input_of(text: str) -> Path | Url:
    """Return the place named on the command line, in a list or in a plan; InputError for URLs that cannot be used.

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
        raise InputError(
            "url-unsupported",
            "{place}: URLs of {scheme} are not supported, but {known}; copy it to a file",
            place=text,
            scheme=scheme[1],
            known=", ".join(_GDAL),
        )
    return Url(text)


def size_in_archive(url: Url) -> int:
    """Bytes of a file in an archive when it is unpacked; InputError when there is none, or the archive is broken."""
    archive, inner = url.archive
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.getinfo(inner).file_size
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            "archive-damaged",
            "{place}: not in {archive}, or that cannot be read ({reason}); look with unzip -l",
            place=url,
            archive=archive.name,
            reason=error,
        ) from error


def resolve(text: str, folder: Path, hint: str | None = None) -> Path:
    """Return the file that `text` names: a path relative to `folder`, or ``package:NAME/inner/path``.

    `hint` says how to get what is missing, such as a command that installs the package.
    TrainingError names the file, and the package, when there is no such file.
    """
    if not text.startswith(_PACKAGE):
        path = folder / text
        if path.is_file():
            return path
        problem = "is a folder; name a file in it" if path.is_dir() else "does not exist"
        raise _no_data(path, problem, hint or "check the name, and the folder it is relative to")
    name, inner, folders = _in_package(text, hint)
    for place in folders:  # of a namespace package there are several
        if (place / inner).is_file():
            return place / inner
    problem = f"the package {name} is installed and holds no {inner} ({', '.join(map(str, folders))})"
    raise _no_data(text, problem, hint or "install the edition, or the further package, that holds it")


def expand(pattern: str, folder: Path) -> list[Path]:
    """Return the files that match a pattern (``images/*.tif``, ``**/*.png``), sorted; it may be a plain name.

    ``package:NAME/inner/pattern`` looks in an installed package. TrainingError when nothing matches.
    """
    if pattern.startswith(_PACKAGE):
        _, inner, folders = _in_package(pattern, None)
    elif Path(pattern).is_absolute():
        inner, folders = str(Path(pattern).relative_to("/")), [Path("/")]
    else:
        inner, folders = pattern, [folder]
    found = {path for place in folders if inner for path in place.glob(inner) if path.is_file()}
    if not found:
        raise _no_data(pattern, f"no file matches it in {folder}", "check the pattern, and the folder")
    return sorted(found)


def _in_package(text: str, hint: str | None) -> tuple[str, str, list[Path]]:
    """Return the name of a package, the path in it, and its folders; nothing of it is imported. TrainingError."""
    name, _, inner = text.removeprefix(_PACKAGE).partition("/")
    if not (name.isidentifier() and inner) or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise _no_data(text, "a file in a package is named package:NAME/inner/path", "correct it, without dots in NAME")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module that says nothing of where it came from
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    if not folders:
        raise _no_data(text, f"no package {name} is installed", hint or "install the package that holds it")
    return name, inner, folders


def _no_data(path: object, problem: str, remedy: str) -> TrainingError:
    return TrainingError("data-missing", "{path}: {problem}; {remedy}", path=path, problem=problem, remedy=remedy)
