"""Something that each thread must have its own of: an open file that no two threads may share."""

import threading
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class _Closes(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closes)


class PerThread(Generic[T]):
    """Opened by `open_one` when a thread first asks for it; what belongs to a thread that ended is let go with it."""

    def __init__(self, open_one: Callable[[], T]) -> None:
        self._open_one = open_one
        self._lock = threading.Lock()
        self._local = threading.local()
        self._opened: weakref.WeakSet[T] = weakref.WeakSet()

    def get(self) -> T:
        """This thread's; the errors of `open_one`."""
        if not hasattr(self._local, "one"):
            self._local.one = self._open_one()
            with self._lock:
                self._opened.add(self._local.one)
        one: T = self._local.one
        return one

    def forget(self) -> None:
        """Close this thread's, if it has one, so that the next `get` opens anew."""
        if hasattr(self._local, "one"):
            self._local.one.close()
            del self._local.one

    def close(self) -> None:
        """Close those of all threads, none of which may be using its own; a later `get` opens it again."""
        with self._lock:
            for one in list(self._opened):
                one.close()
            self._opened, self._local = weakref.WeakSet(), threading.local()
