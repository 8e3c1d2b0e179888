"""Who is at work on what: files that one process holds, and that show whether it lives.

A claim keeps two runs from doing the same block at the same time. It is advice, never the truth: a block is done when
it has its receipt, and done twice it gives the same bytes twice. Two signs tell whether a holder lives:

* A lock on the file (flock), which the kernel releases when the process ends, however it ends. So a holder on this
  machine that died is known at once; the locks of other machines may not be seen here.
* A heartbeat: the holder sets the file's time of change again and again. It is compared with the time that the file
  system gives to a file written now, so the clocks of machines need not agree. A process that is stopped has none.

A holder that died leaves its claim, and so a trace of where it died.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.holder import Holder, this_kernel

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: all but runs works there
    fcntl = None

BEAT_S = 15.0
"""Seconds between two heartbeats."""
STALE_S = 120.0
"""After so many seconds without one, a holder on another machine is taken for dead."""
_LOOK_EVERY_S = 0.2


class Claims:
    """The claims in a folder, which is made with the first one, in one that is there; for the threads of a process."""

    def __init__(self, folder: Path, *, forever: bool = False) -> None:
        """`forever`: a lock that can be seen is believed also without a heartbeat."""
        self.folder = folder
        self._forever = forever
        self._held: set[int] = set()
        self._heart: threading.Thread | None = None
        self._guard = threading.Condition()

    def take(self, name: str) -> "Claim | None":
        """The claim `name`, also that of a holder who died; None while another one has it."""
        path = self.folder / name
        self.folder.mkdir(exist_ok=True)  # not what it lies in: a job that is over must not come back
        while (descriptor := _put(path)) is None:
            if not self._bury(path):
                return None
        with self._guard:
            self._held.add(descriptor)
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
                self._heart.start()
        return Claim(path, descriptor, self)

    def living(self) -> dict[str, Holder]:
        """Holders that live, by the names of their claims."""
        return {name: holder for name, (holder, lives) in self.holders().items() if lives}

    def holders(self) -> dict[str, tuple[Holder, bool]]:
        """Who is or was the last to hold each claim that is there, and whether it lives; needs only to read."""
        found = {}
        for path in sorted(self.folder.glob("[!.]*")):
            with suppress(FileNotFoundError), _opened(path) as descriptor:
                found[path.name] = Holder.read(descriptor), self._lives(path, descriptor)
        return found

    def _bury(self, path: Path) -> bool:
        """Take away the claim of a holder that died; False when it lives."""
        grave = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        with suppress(FileNotFoundError), _opened(path) as descriptor:  # not found: given up just now
            if self._lives(path, descriptor):
                return False
            path.rename(grave)
            try:
                if not _is_file(descriptor, grave):
                    with suppress(OSError):  # it was another's, who was quicker: back with it
                        os.link(grave, path)
                    return False
            finally:
                grave.unlink(missing_ok=True)
        return True

    def _lives(self, path: Path, descriptor: int) -> bool:
        """Whether the holder of an open claim lives; when it does not, this process has the lock from here on."""
        free = _lock(descriptor)
        if free is False and self._forever:
            return True
        if free and Holder.read(descriptor).kernel == this_kernel():
            return not _is_file(descriptor, path)  # given up, and perhaps taken again, since it was opened
        return _age_s(path, descriptor) < STALE_S

    def _beat(self) -> None:
        with self._guard:
            while self._held:
                for descriptor in self._held:
                    with suppress(OSError):  # a file system that is away for a while
                        os.utime(descriptor)
                self._guard.wait(BEAT_S)
            self._heart = None  # a command over many rasters has claims for each

    def _let_go(self, descriptor: int) -> None:
        with self._guard:
            self._held.discard(descriptor)
            os.close(descriptor)
            if not self._held:
                self._guard.notify()


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that this process holds."""

    path: Path
    _descriptor: int
    _claims: Claims

    @property
    def ours(self) -> bool:
        """False when somebody took this process for dead meanwhile."""
        return _is_file(self._descriptor, self.path)

    def release(self) -> None:
        """Give it up."""
        try:
            if self.ours:
                self.path.unlink(missing_ok=True)
        finally:  # also with a disk that fails: this process must not come to wait for itself
            self._claims._let_go(self._descriptor)  # noqa: SLF001 - one noun in two parts


@contextmanager
def only_one(lock: Path, wait: Callable[[Holder], None] | None = None) -> Iterator[None]:
    """Hold the file `lock` for this process alone.

    While another one has it: with `wait`, that is called with the holder once and this process waits; else OutputError.
    """
    claims = Claims(lock.parent, forever=True)
    told = False
    while (claim := claims.take(lock.name)) is None:
        with suppress(FileNotFoundError), _opened(lock) as descriptor:
            holder = Holder.read(descriptor)
            if wait is None:
                raise OutputError(
                    "run-under-way",
                    "{path}: another run of this is under way ({holder}); wait for it",
                    path=lock,
                    holder=holder.process,
                )
            if not told:
                wait(holder)
            told = True
        time.sleep(_LOOK_EVERY_S)
    try:
        _sweep(lock)
        yield
    finally:
        claim.release()


def _put(path: Path) -> int | None:
    """Make the claim `path`, whole and locked from its first moment; its descriptor, or None when there is one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _lock(descriptor)
        os.write(descriptor, Holder.here().written())
        try:
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):  # not found: swept away, by a run that saw it before it was locked
            os.close(descriptor)
            return None
        except OSError:  # no hard links here: two may both believe that they have it, and do a block twice
            if path.exists():
                os.close(descriptor)
                return None
            temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    finally:
        with suppress(OSError):  # the claim is made, or not, all the same
            temporary.unlink(missing_ok=True)
    return descriptor


def _sweep(lock: Path) -> None:
    """Delete what processes left that were killed while they took or gave up `lock`: its folder stays for good."""
    for path in lock.parent.iterdir():
        if path.name.startswith(f".{lock.name}.") and path.suffix == ".tmp":
            with suppress(OSError), _opened(path) as descriptor:
                if _lock(descriptor):
                    path.unlink()


def _lock(descriptor: int) -> bool | None:
    """True: locked by us. False: another has it. None: the file system knows no locks."""
    if fcntl is None:
        raise OutputError(
            "locking-missing", "this Python has no module {module}, by which runs lock their files", module="fcntl"
        )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _age_s(path: Path, descriptor: int) -> float:
    """Seconds since the last heartbeat, by the file system's own clock; by ours where nothing can be written."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:
        now = time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return now - os.fstat(descriptor).st_mtime


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except PermissionError:  # who may only read can look all the same
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
