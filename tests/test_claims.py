"""A claim is held by one at a time, and is free as soon as its holder is dead (G9)."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from fcn_batch.pipeline.core import claims
from fcn_batch.pipeline.core.claims import Claim, Claims, only_one
from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.holder import Holder
from tests.errors import refuses
from tests.patience import PATIENCE_S

HOLDER = """
import sys
from pathlib import Path
from fcn_batch.pipeline.core import claims

claims.BEAT_S = float(sys.argv[2])
here, held = claims.Claims(Path(sys.argv[1])), {}
for line in sys.stdin:
    what, name = line.split()
    if what == "take":
        claim = here.take(name)
        if claim is not None:
            held[name] = claim
        print("None" if claim is None else "taken", flush=True)
    else:
        print(getattr(held.pop(name), what)(), flush=True)
"""
RIVAL = """
import os, random, sys, time
from pathlib import Path
from fcn_batch.pipeline.core.claims import Claims

def lives(process):
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    exiting = int(words[6]) & 4  # PF_EXITING: killed, its locks are free, and its parent has not asked for it yet
    return not exiting and words[0] not in "ZX"

folder, rounds, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
here, inside, done = Claims(folder), folder / "inside", 0
while done < rounds or not (folder / "enough").exists():
    claim = here.take("block")
    if claim is None:
        time.sleep(draw.random() / 2000)
        continue
    try:
        inside.symlink_to(str(os.getpid()))  # there and signed at once: a kill cannot come between
    except FileExistsError:  # of one who was killed in here?
        other = os.readlink(inside)
        if lives(other):
            sys.exit(f"two hold it: {os.getpid()} and {other}")
        inside.unlink()
        inside.symlink_to(str(os.getpid()))
    time.sleep(draw.random() / 2000)
    inside.unlink()
    claim.release()
    done += 1
"""


class Other:
    """Another process that takes claims, and gives them up, when it is told to."""

    def __init__(self, folder: Path, beat_s: float = 15.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), str(beat_s)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Other":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def does(self, what: str, name: str) -> str:
        """Its answer to `what`: take or release."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what} {name}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """As kill -9 does; it is gone when this returns."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    with Other(tmp_path) as process:
        yield process


def died(folder: Path, name: str = "block") -> None:
    """Leave the claim of a process that died with it."""
    with Other(folder) as process:
        assert process.does("take", name) == "taken"


def at_once(number: int, work: Callable[[int], object]) -> None:
    """Let so many threads work."""
    threads = [threading.Thread(target=work, args=(me,)) for me in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def taken(here: Claims, name: str = "block") -> Claim:
    claim = here.take(name)
    assert claim is not None
    return claim


# --- one at a time -------------------------------------------------------------------------------------------


def test_a_claim_is_held_by_one_and_free_once_released_or_dead(tmp_path: Path, other: Other) -> None:
    here = Claims(tmp_path)
    assert here.living() == {}
    assert other.does("take", "block") == "taken"
    assert here.take("block") is None
    mine = taken(here, "next")
    assert mine.ours, "another name is another claim"
    assert other.does("take", "next") == "None"
    found = here.living()
    assert sorted(found) == ["block", "next"]
    assert found["block"].process.startswith(f"process {other.process.pid} on ")
    assert found["next"] == Holder.here()
    mine.release()
    other.does("release", "block")
    claim = taken(here)
    assert claim.ours
    assert Claims(tmp_path).take("block") is None, "two objects of one process are two holders"
    assert names(tmp_path) == ["block"], "nothing temporary is left"
    claim.release()
    for end in (other.kill, None):
        with Other(tmp_path) as another:
            theirs = other if end else another
            assert theirs.does("take", "block") == "taken"
            if end:
                end()
            else:
                assert theirs.process.stdin is not None
                theirs.process.stdin.close()
                theirs.process.wait()
            assert here.living() == {}
            assert names(tmp_path) == ["block"], "looking takes nothing away"
            taken(here).release()
            assert names(tmp_path) == []


def test_threads_share_claims_one_at_a_time(tmp_path: Path) -> None:
    here, inside, most, counts = Claims(tmp_path), threading.Semaphore(1), [], [0, 0]

    def work(me: int) -> None:
        while counts[me] < 50:
            claim = here.take("block")
            if claim is not None:
                most.append(inside.acquire(blocking=False))
                time.sleep(0.0001)
                inside.release()
                counts[me] += 1
                claim.release()

    at_once(2, work)
    assert most == [True] * 100
    assert names(tmp_path) == []


def test_processes_share_a_claim_one_at_a_time_also_when_some_are_killed(tmp_path: Path) -> None:
    def rival(seed: int, rounds: int) -> "subprocess.Popen[str]":
        words = [sys.executable, "-c", RIVAL, str(tmp_path), str(rounds), str(seed)]
        return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)

    with ExitStack() as stack:
        rivals = [stack.enter_context(rival(seed, 60)) for seed in range(3)]
        for seed in range(6):
            victim = stack.enter_context(rival(100 + seed, 10**9))
            time.sleep(0.15 + seed / 100)
            victim.kill()
            last_words = victim.communicate(timeout=PATIENCE_S)[1]
            assert (victim.returncode, last_words) == (-signal.SIGKILL, "")
        (tmp_path / "enough").touch()
        told = [one.communicate(timeout=PATIENCE_S)[1] for one in rivals]
    assert told == ["", "", ""]
    # a victim may have been the last to hold it; who is killed while it takes a claim leaves its temporary files
    taken(Claims(tmp_path)).release()
    assert {name for name in names(tmp_path) if not name.startswith(".")} <= {"inside", "enough"}


def test_of_many_who_find_a_dead_holder_one_gets_the_claim(tmp_path: Path) -> None:
    for turn in range(5):
        name, start, found = f"block-{turn}", threading.Barrier(6), list[Claim]()
        died(tmp_path, name)

        def take(_: int, name: str = name, start: threading.Barrier = start, found: list[Claim] = found) -> None:
            here = Claims(tmp_path)
            start.wait()
            claim = here.take(name)
            if claim is not None:
                found.append(claim)

        at_once(6, take)
        # all may have looked while another one did, and gone on to other blocks
        assert len(found) <= 1
        assert (found[0] if found else taken(Claims(tmp_path), name)).ours
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_who_was_quicker_keeps_the_claim_of_a_dead_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(strangers_claim(tmp_path), times=(0, 0))
    proper, quicker = Claims._lives, list[Claim]()

    def lives(self: Claims, path: Path, descriptor: int) -> bool:
        found = proper(self, path, descriptor)
        if not quicker:  # between the look and the deed
            path.unlink()
            quicker.append(taken(Claims(tmp_path)))
        return found

    monkeypatch.setattr(Claims, "_lives", lives)
    assert Claims(tmp_path).take("block") is None
    assert quicker[0].ours
    assert names(tmp_path) == ["block"]


# --- the stopped, and other machines -------------------------------------------------------------------------


def test_a_stopped_holder_is_taken_for_dead_and_does_no_harm_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But who is to be the only one waits for it."""
    monkeypatch.setattr(claims, "STALE_S", 0.4)
    with Other(tmp_path, beat_s=0.05) as other:
        for name in ("block", "lock"):
            other.does("take", name)
        time.sleep(1.0)
        assert Claims(tmp_path).take("block") is None, "its heart beats"
        os.kill(other.process.pid, signal.SIGSTOP)
        found: list[Claim] = []

        def taken() -> bool:
            found.extend(filter(None, [Claims(tmp_path).take("block")]))
            return bool(found)

        until(taken)
        with refuses("run-under-way"), only_one(tmp_path / "lock"):
            raise AssertionError
        os.kill(other.process.pid, signal.SIGCONT)
        assert other.does("take", "block") == "None", "another's now"
        other.does("release", "block")
        assert found[0].ours, "giving up a claim that was taken away takes nothing away"
        assert (tmp_path / "block").exists()
        os.kill(other.process.pid, signal.SIGSTOP)
    with only_one(tmp_path / "lock"):
        assert names(tmp_path) == ["block", "lock"], "when it is killed, it is over at once"
    assert names(tmp_path) == ["block"]


def strangers_claim(folder: Path) -> Path:
    """A claim of another machine, whose locks are not seen here, with a heartbeat just now."""
    path = folder / "block"
    path.write_bytes(Holder("process 7 on node9", "another kernel").written())
    return path


def test_a_holder_on_another_machine_lives_by_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of the file system."""
    path, here = strangers_claim(tmp_path), Claims(tmp_path)
    assert here.living() == {"block": Holder("process 7 on node9", "another kernel")}
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e10)
        patch.setattr(time, "time_ns", lambda: 10**19)
        assert here.take("block") is None
    for age in (claims.STALE_S - 20, claims.STALE_S + 20):
        os.utime(path, times=(time.time() - age,) * 2)
        assert ("block" in here.living()) == (age < claims.STALE_S)
    assert taken(here).ours
    assert names(tmp_path) == ["block"]


def test_who_looks_like_a_stranger_decides_nothing_while_its_lock_is_seen(tmp_path: Path, other: Other) -> None:
    """The same claim on one machine, but in two containers, say, that tell of different kernels."""
    other.does("take", "block")
    path = strangers_claim(tmp_path)
    assert Claims(tmp_path).take("block") is None
    os.utime(path, times=(time.time() - claims.STALE_S - 20,) * 2)
    assert Claims(tmp_path).take("block") is not None, "no heartbeat, so it is stopped"


@pytest.mark.parametrize(
    "found",
    [b"", b"{", b"[]", b"null", b"17", b'{"process": 1}', b"[" * 1000, b'{"a":' * 300, b"\xff" * 50, b"\0" * 1000],
    ids=["empty", "torn", "list", "null", "number", "parts", "deep", "deep tree", "no text", "zeros"],
)  # fmt: skip
def test_what_is_no_claim_counts_as_that_of_a_stranger(tmp_path: Path, found: bytes) -> None:
    path, here = tmp_path / "block", Claims(tmp_path)
    path.write_bytes(found)
    assert here.take("block") is None
    assert here.living()["block"] == Holder("unknown", "")
    os.utime(path, (0, 0))
    assert taken(here).ours


# --- file systems that can do less ---------------------------------------------------------------------------


def refuse(code: int) -> Callable[..., Any]:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refused


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Other) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    claim = taken(Claims(tmp_path))
    assert Claims(tmp_path).take("block") is None
    assert other.does("take", "block") == "None"
    assert json.loads((tmp_path / "block").read_bytes())["process"] == Holder.here().process
    claim.release()
    assert other.does("take", "block") == "taken"
    assert Claims(tmp_path).take("block") is None
    other.kill()
    assert taken(Claims(tmp_path)).ours
    assert names(tmp_path) == ["block"]


def test_without_locks_heartbeats_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(claims, "STALE_S", 0.5)
    with Other(tmp_path, beat_s=0.05) as other:
        other.does("take", "block")
        time.sleep(0.8)
        assert Claims(tmp_path).take("block") is None
    until(lambda: Claims(tmp_path).living() == {})
    assert taken(Claims(tmp_path)).ours


def test_a_full_disk_leaves_no_claim_and_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse(errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            Claims(tmp_path).take("block")
    assert names(tmp_path) == []
    assert taken(Claims(tmp_path)).ours


# --- the heart -----------------------------------------------------------------------------------------------


def test_the_heart_beats_while_something_is_held_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One heart for all; a command over ten thousand rasters takes claims for each of them, and leaves no thread."""
    monkeypatch.setattr(claims, "BEAT_S", 0.02)
    before = set(threading.enumerate())

    def beats(claim: Claim) -> None:
        os.utime(claim.path, (0, 0))
        until(lambda: claim.path.stat().st_mtime > 0)

    here = Claims(tmp_path)
    held = [taken(here, name) for name in ("a", "b", "c")]
    for claim in held:
        beats(claim)
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["heartbeat"]
    held.pop().release()
    for claim in held:
        beats(claim)
    for claim in held:
        claim.release()
    for number in range(20):
        with only_one(tmp_path / f"lock-{number}"):
            pass
        taken(Claims(tmp_path)).release()
    until(lambda: set(threading.enumerate()) <= before)


# --- for one process alone -----------------------------------------------------------------------------------


def test_only_one_refuses_or_waits(tmp_path: Path, other: Other) -> None:
    lock, told, entered = tmp_path / "lock", list[Holder](), threading.Event()
    with pytest.raises(KeyError), only_one(lock):
        raise KeyError  # gives it up
    other.does("take", "lock")
    holder = f"process {other.process.pid} on "
    with pytest.raises(OutputError) as caught, only_one(lock):
        raise AssertionError
    assert caught.value.code == "run-under-way"
    assert caught.value.fields["holder"].startswith(holder)

    def wait() -> None:
        with only_one(lock, told.append):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: bool(told))
    assert not entered.wait(0.5), "it is another's"
    other.does("release", "lock")
    waiting.join(PATIENCE_S)
    assert entered.is_set()
    assert [one.process.startswith(holder) for one in told] == [True], "told once"
    assert names(tmp_path) == []


# --- without fcntl -------------------------------------------------------------------------------------------


def test_without_fcntl_all_can_be_imported_and_locking_says_what_is_missing(tmp_path: Path) -> None:
    """As on Windows."""
    program = f"""
import sys
sys.modules["fcntl"] = None
import fcn_batch.workflows.plan, fcn_batch.workflows.segment
from pathlib import Path
from fcn_batch.pipeline.core.claims import Claims
from fcn_batch.pipeline.core.errors import OutputError
try:
    Claims(Path({str(tmp_path)!r})).take("block")
except OutputError as error:
    print(error.code, error.fields["module"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("locking-missing fcntl\n", "")
    assert names(tmp_path) == []
