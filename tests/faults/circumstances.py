"""Where and how runs of one job go on beside each other: for the process that calls these, and for good."""

from collections.abc import Callable

from fcn_batch.pipeline.core import claims, holder

STALE_S = 0.5
"""After so long an impatient run takes others for dead."""
MACHINES = ("node8", "node9", "node10")


def impatient() -> None:
    """Heartbeats that are counted in tenths of seconds."""
    claims.STALE_S, claims.BEAT_S = STALE_S, 0.05


def on(node: str) -> Callable[[], None]:
    """On a machine of its own: another kernel, and no locks that others see."""

    def pretend() -> None:
        claims.STALE_S, claims.BEAT_S = 3.0, 0.05  # only the dead are to be taken for dead, also where all is slow
        claims.this_kernel = holder.this_kernel = lambda: node  # type: ignore[assignment,attr-defined]
        claims._lock = lambda descriptor: None  # noqa: ARG005

    return pretend


def hasty() -> None:
    """Heartbeats that are counted in hundredths of seconds."""
    claims.STALE_S, claims.BEAT_S = 0.15, 0.02


CIRCUMSTANCES: dict[str, Callable[[], None]] = {
    "hasty": hasty,
    "impatient": impatient,
    **{machine: on(machine) for machine in MACHINES},
}
"""By their names among a task's flags."""
