"""A block in a process of its own: for blocks at which others have died. `python -m fcn_batch.workflows.alone`.

Talks JSON: the ticket and the block's number on standard input, a receipt or an error on standard output.
"""

import json
import signal
import subprocess
import sys
from dataclasses import asdict

import fcn_batch.pipeline.errors as errors_of_users
from fcn_batch.pipeline.errors import FcnBatchError
from fcn_batch.pipeline.journal import Receipt
from fcn_batch.workflows.job import JobTicket


class Died(Exception):  # noqa: N818 - what happened to a process, never shown as an error of ours
    """The process ended without an answer."""


def run_alone(ticket: JobTicket, index: int) -> Receipt:
    """Do block `index` in a new process. Died when that one does; an error of its own is raised here too."""
    question = json.dumps({"ticket": asdict(ticket), "index": index})
    child = subprocess.run(
        [sys.executable, "-m", "fcn_batch.workflows.alone"], input=question, capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(child.stdout.rpartition("\n")[2])
    except ValueError:
        raise Died(_how(child.returncode, child.stderr)) from None
    if "error" in answer:
        raise getattr(errors_of_users, answer["error"], FcnBatchError)(answer["message"])
    return Receipt.model_validate(answer)


def _how(code: int, said: str) -> str:
    """``SIGSEGV``, or the exit code and what was said last."""
    if code < 0:
        return signal.Signals(-code).name
    return " ".join([f"exit code {code}", *said.strip().splitlines()[-1:]])


def main() -> None:
    """The child's side."""
    from fcn_batch.workflows.steps import run_block

    question = json.load(sys.stdin)
    try:
        answer = run_block(JobTicket(**question["ticket"]), question["index"]).model_dump_json()
    except FcnBatchError as error:
        answer = json.dumps({"error": type(error).__name__, "message": str(error)})
    sys.stdout.write(f"\n{answer}")


if __name__ == "__main__":
    main()
