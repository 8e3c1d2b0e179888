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
    deaths: int = 0
    """How many holders before it died with this claim."""

    @classmethod
    def here(cls, deaths: int = 0) -> "Holder":
        """This process."""
        return cls(f"process {os.getpid()} on {socket.gethostname()}", this_kernel(), deaths)

    @classmethod
    def read(cls, descriptor: int) -> "Holder":
        """What stands in an open claim; anything else than a claim counts as that of a machine nobody knows."""
        try:
            found = json.loads(os.pread(descriptor, 1000, 0))
            return cls(str(found["process"]), str(found["kernel"]), int(found["deaths"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls("unknown", "")

    def written(self) -> bytes:
        """As it stands in the file."""
        return json.dumps({"process": self.process, "kernel": self.kernel, "deaths": self.deaths}).encode()


@cache
def this_kernel() -> str:
    """Names this start of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
