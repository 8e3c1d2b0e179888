"""A block in a process of its own: for blocks at which others have died. `python -m fcn_batch.workflows.blocks.alone`.

Talks JSON: the ticket and the block's number on standard input, a receipt or an error on standard output.
"""

import json
import signal
import subprocess
import sys
from dataclasses import asdict

import fcn_batch.pipeline.core.errors as errors_of_users
from fcn_batch.pipeline.core.errors import FcnBatchError
from fcn_batch.pipeline.core.journal import Receipt
from fcn_batch.workflows.blocks.job import JobTicket
from fcn_batch.workflows.console.signals import Stop, unheard

_LOOK_EVERY_S = 1.0


class Died(Exception):  # noqa: N818 - what happened to a process, never shown as an error of ours
    """The process ended without an answer."""


def run_alone(ticket: JobTicket, index: int, stop: Stop) -> Receipt:
    """Do block `index` in a new process. Died when that one does; an error of its own is raised here too.

    It is ended when `stop` leaves no more time.
    """
    question = json.dumps({"ticket": asdict(ticket), "index": index})
    with _child() as child:
        said = _answer(child, question, stop)
    try:
        answer = json.loads(said[0].rpartition("\n")[2])
    except ValueError:
        raise Died(_how(child.returncode, said[1])) from None
    if "error" in answer:
        raise getattr(errors_of_users, answer["error"], FcnBatchError)(answer["message"])
    return Receipt.model_validate(answer)


def _child() -> "subprocess.Popen[str]":
    with unheard():  # one that a signal ended would look as if its block were deadly
        return subprocess.Popen(
            [sys.executable, "-m", "fcn_batch.workflows.blocks.alone"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",  # a library that dies may say anything
        )


def _answer(child: "subprocess.Popen[str]", question: str, stop: Stop) -> tuple[str, str]:
    """What it says on standard output, and on standard error."""
    asked: str | None = question
    try:
        while True:
            try:
                return child.communicate(asked, timeout=_LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                asked = None  # it may be told only once
                stop.check()
    except BaseException:
        child.kill()
        raise


def _how(code: int, said: str) -> str:
    """``SIGSEGV``, or the exit code and what was said last."""
    if code < 0:
        return signal.Signals(-code).name
    return " ".join([f"exit code {code}", *said.strip().splitlines()[-1:]])


def main() -> None:
    """The child's side."""
    from fcn_batch.workflows.blocks.steps import run_block

    question = json.load(sys.stdin)
    try:
        answer = run_block(JobTicket(**question["ticket"]), question["index"]).model_dump_json()
    except FcnBatchError as error:
        answer = json.dumps({"error": type(error).__name__, "message": str(error)})
    sys.stdout.write(f"\n{answer}")


if __name__ == "__main__":
    main()
