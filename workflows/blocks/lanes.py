"""How wide lanes should be where only parts of a raster are wanted: narrow ones leave out more, wide ones share more.

one lane of 3 chunks          three lanes of 1 chunk, each with a halo on both sides
+-----------------+           +--|-----|--+
| .     xx      . |              |  xx |         x: wanted. A block is a row of chunks of a lane: all of it is
| .     x       . |              |  x  |         computed where anything of it is wanted.
+-----------------+           +--|-----|--+
"""

from collections.abc import Sequence

import numpy as np

from fcn_batch.pipeline.core.area import Area
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.raster.clip import touched


def lane_for(areas: Sequence[Area], size: Size, chunk: int, halo: int) -> int | None:
    """Columns of the lanes, whole chunks, for which the network sees the fewest pixels; None: as wide as can be.

    Counted are blocks that an area touches, with the halo beside them, and above and below each run of them.
    """
    if not areas:
        return None
    wanted = touched(areas, size, chunk)
    costs = {}
    for chunks in range(wanted.shape[1], 0, -1):
        lanes = np.pad(wanted, ((1, 1), (0, -wanted.shape[1] % chunks)))
        blocks = np.logical_or.reduce(lanes.reshape(len(lanes), -1, chunks), axis=2)
        begun = np.count_nonzero(blocks[1:] & ~blocks[:-1])
        costs[chunks] = int(blocks.sum() * chunk + begun * 2 * halo) * (chunks * chunk + 2 * halo)
    return chunk * min(costs, key=lambda chunks: costs[chunks])
