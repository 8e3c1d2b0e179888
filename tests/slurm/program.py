"""fcn-batch whose blocks take as long, or as much memory, as the environment says.

The first argument is the script to go on with.
"""

import os
import runpy
import sys
import time
from pathlib import Path

from fcn_batch.pipeline.core.journal import Receipt
from fcn_batch.workflows.blocks.commit import Block, Committer

SLOW = "TEST_SECONDS_PER_BLOCK"
HUNGRY = "TEST_BLOCKS_BEFORE_HUNGER"
FILE = Path(__file__)
_MUCH_MORE_BYTES = 2**33


def _become_slow() -> None:
    commit, seconds, last = Committer.commit, float(os.environ.get(SLOW, "0")), int(os.environ.get(HUNGRY, "0"))
    done = 0

    def slowly(committer: Committer, block: Block) -> Receipt:
        nonlocal done
        time.sleep(seconds)
        receipt = commit(committer, block)
        done += 1
        if done == last:
            bytearray(_MUCH_MORE_BYTES)
        return receipt

    Committer.commit = slowly  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    _become_slow()
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
