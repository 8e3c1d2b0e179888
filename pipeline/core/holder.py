"""What a claim says of the process that holds it; see `claims.py`."""

import json
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Holder:
    """What a claim says of the process that holds it."""

    process: str
    """Such as ``process 4711 on node3``."""
    kernel: str
    """Differs between machines, and between two starts of one."""

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        return cls(f"process {os.getpid()} on {socket.gethostname()}", this_kernel())

    @classmethod
    def read(cls, descriptor: int) -> "Holder":
        """What stands in an open claim; anything else than a claim counts as that of a machine nobody knows."""
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            found = json.loads(os.read(descriptor, 1000))
            return cls(str(found["process"]), str(found["kernel"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls("unknown", "")

    def written(self) -> bytes:
        """As it stands in the file."""
        return json.dumps({"process": self.process, "kernel": self.kernel}).encode()


@cache
def this_kernel() -> str:
    """Names this start of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
