"""One job of an array: `--part 2/8` does the second eighth of the blocks, and needs to know nothing of the others."""

import re
from dataclasses import dataclass

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.tiling import BlockGrid, works


@dataclass(frozen=True, slots=True)
class Part:
    """Number `index`, from 1, of `count` parts."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise OptionError(
                "part-invalid", "--part {part}: give 1/{count} to {count}/{count}", part=self, count=self.count
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """``2/8``; OptionError for anything else."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if found is None or not int(found[2]):
            raise OptionError(
                "part-invalid",
                "--part {part}: not a part of a run; give the number of the part and of all, as 2/8",
                part=text,
            )
        return cls(int(found[1]), int(found[2]))


def share(grid: BlockGrid, segment: int, part: Part) -> frozenset[int]:
    """The blocks of a part: those of all parts are the grid's, each once. `segment`: rows of a segment.

    They are taken in the order of passes, so that few of these are cut in two::

        blocks  0 1     passes 0 2 4, 1 3 5     shares of three parts: 0 2 | 4 1 | 3 5
                2 3
                4 5

    >>> from fcn_batch.pipeline.core.geometry import Size
    >>> [sorted(share(BlockGrid(Size(30, 20), 10, 10), 30, Part(index, 3))) for index in (1, 2, 3)]
    [[0, 2], [1, 4], [3, 5]]
    """
    order = [block for work in works(grid, segment, range(len(grid))) for block in work]
    return frozenset(order[len(order) * (part.index - 1) // part.count : len(order) * part.index // part.count])
