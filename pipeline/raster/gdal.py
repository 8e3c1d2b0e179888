"""Settings of GDAL that hold for the whole process: size of the block cache, what may be opened, what is silenced."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rasterio
from rasterio.errors import NotGeoreferencedWarning

_NETWORK = ("HTTP", "WMS", "WCS", "WMTS", "DAAS", "EEDA", "EEDAI", "PLMOSAIC", "NGW", "STACIT", "STACTA")
"""GDAL's drivers that fetch what a text names; a VRT or a tag of a TIFF could call them."""
# read once, when the first environment registers the drivers: rasterio was imported by now, but has none yet
os.environ["GDAL_SKIP"] = " ".join([os.environ.get("GDAL_SKIP", ""), *_NETWORK]).strip()

_SAFE = {
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # this fast way gives noise for a file that was cut off
    "GTIFF_IGNORE_READ_ERRORS": "NO",  # a user may have set it in the environment
}
_FETCHED = str(64 * 2**20)
"""Bytes that are fetched at once, and kept. GDAL's own 10 and 16 MB are less than a row of blocks of a wide raster: it
then reads ahead what nobody wants, or drops before it is used, and fetches up to twice as much."""
_filters = threading.RLock()  # Python keeps its warning filters once for all threads; a raster is opened inside another
_cache = threading.Lock()
_cache_before: list[int] = []  # one entry for each context that is open; the first is the size to restore


@contextmanager
def gdal_cache(mb: int) -> Iterator[None]:
    """Give GDAL's block cache `mb` MiB while the context is open; threads that open it together share one size.

    The cache is the process's, so the first to come sets its size and the last to leave restores what was before.
    rasterio wants bytes where GDAL itself takes megabytes too, and does not restore the size by itself.
    ValueError below 1.
    """
    if mb < 1:
        raise ValueError(f"the block cache needs at least 1 MiB, got {mb}")
    with _cache, rasterio.Env():
        _cache_before.append(rasterio.env.get_gdal_config("GDAL_CACHEMAX"))
        if len(_cache_before) == 1:
            rasterio.env.setenv(GDAL_CACHEMAX=mb * 2**20)
    try:
        yield
    finally:
        with _cache, rasterio.Env():
            if len(_cache_before) == 1:
                rasterio.env.setenv(GDAL_CACHEMAX=_cache_before[0])
            _cache_before.pop()


@contextmanager
def accept_pixel_space() -> Iterator[None]:
    """Silence rasterio's warning that a raster has no georeference: here that is allowed."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def gdal_version() -> str:
    """The version of GDAL, such as 3.10.3."""
    return str(rasterio.__gdal_version__)


def driver_names() -> frozenset[str]:
    """GDAL's drivers that are there."""
    with rasterio.Env() as env:
        return frozenset(env.drivers())


def skipped_drivers(value: str) -> list[str]:
    """Drivers that such a GDAL_SKIP leaves out, beside those that this program does."""
    return [name for name in value.replace(",", " ").split() if name not in _NETWORK]


def endpoint() -> str | None:
    """The server of s3:// that the user's environment names, if it is not Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def reaching(place: str) -> Any:
    """GDAL settings under which only the one remote file can be reached that GDAL calls `place`; otherwise local_only.

    They replace those of local_only, which another thread may hold for the whole process.
    """
    options: dict[str, Any] = {
        "CPL_VSIL_CURL_ALLOWED_FILENAME": place,
        "GDAL_HTTP_PROXY": _proxy(place),
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # masks and side files beside it would be asked for one by one
        "GDAL_GEOREF_SOURCES": "INTERNAL",  # for world files, pages of a TIFF have the whole folder listed all the same
        "GDAL_MAX_RAW_BLOCK_CACHE_SIZE": _FETCHED,
        "CPL_VSIL_CURL_CACHE_SIZE": _FETCHED,
        "GDAL_HTTP_MAX_RETRY": "3",
        "GDAL_HTTP_RETRY_DELAY": "0.5",
        "GDAL_HTTP_CONNECTTIMEOUT": "20",
        "GDAL_HTTP_LOW_SPEED_TIME": "60",  # a server that goes silent, or sends a byte now and then, is given up
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    }
    server = endpoint()
    if server is not None and place.startswith("/vsis3/"):  # which GDAL wants said in its own words
        scheme, _, host = server.partition("://")
        secure = "YES" if scheme == "https" else "NO"
        options |= {"AWS_S3_ENDPOINT": host.rstrip("/"), "AWS_HTTPS": secure, "AWS_VIRTUAL_HOSTING": "FALSE"}
    return rasterio.Env(**_SAFE, **options)


def leaving_nothing() -> Any:
    """GDAL settings under which what was fetched of a remote file is forgotten, once it is opened and closed."""
    return rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsi")


def _proxy(place: str) -> str:
    """The proxy that the user's environment names for such a URL; empty: none."""
    scheme = "http" if "http://" in place else "https"
    names = ("GDAL_HTTP_PROXY", f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def local_only() -> Any:
    """GDAL settings under which no file can make it reach http or cloud storage or run code, and damage is an error."""
    return rasterio.Env(
        CPL_VSIL_CURL_ALLOWED_FILENAME="none",  # only this URL is allowed
        GDAL_HTTP_PROXY="none://",  # no such scheme: should a driver of _NETWORK be there, it cannot connect
        **_SAFE,
    )
