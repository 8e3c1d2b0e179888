"""What `--verbose` lets be heard: the logs of this program, of rasterio (GDAL) and of dask, on standard error."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import fcn_batch
from fcn_batch.pipeline.core.text import printable

LOG = logging.getLogger("fcn_batch")
_HEARD = ("fcn_batch", "rasterio", "asyncio")  # dask's have handlers of their own: see `level_of_dask`
_FORM = "%(asctime)s %(name)s %(levelname)s %(message)s"
_GDAL_TELLS = "CPL_DEBUG"


class _Lines(logging.Handler):
    """A line for each record, on what standard error is at the time: a bar stands below it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it; a log that cannot be written must not end a run."""
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{printable(self.format(record))}\n")


@contextmanager
def heard(verbose: int, command: str) -> Iterator[None]:
    """While the context is open, 1: tell what `command` does; 2: everything, also what GDAL tells of itself."""
    level = logging.INFO if verbose < 2 else logging.DEBUG
    handler, loggers = _Lines(), [logging.getLogger(name) for name in _HEARD]
    handler.setFormatter(logging.Formatter(_FORM))
    before = [logger.level for logger in loggers]
    tell = level == logging.DEBUG and _GDAL_TELLS not in os.environ
    if tell:
        os.environ[_GDAL_TELLS] = "ON"
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    LOG.info("fcn-batch %s, process %d: %s", fcn_batch.__version__, os.getpid(), command)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)
        if tell:
            del os.environ[_GDAL_TELLS]


def level_of_dask() -> int:
    """From which level on dask may log: none, as its errors are raised and told in one line, but with --verbose."""
    return LOG.level or logging.CRITICAL
