"""GeoDeep on an ONNX file, in a process that loads what GeoDeep needs and nothing else.

``python -m bench.onnx_job RASTER MODEL OUTPUT`` prints a JSON object like `bench.worker`.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import rasterio

SIDE, OVERLAP = 512, 0.25
"""What the model file says: see `export_onnx`."""


def main(arguments: Iterable[str] | None = None) -> None:
    """Make the map as the `geodeep` command does, its median filter of 5 pixels included."""
    import geodeep
    from geodeep.segmentation import save_mask_to_raster
    from geodeep.slidingwindow import generate_for_size

    raster, model, output = list(sys.argv[1:] if arguments is None else arguments)[:3]
    started = time.perf_counter()
    mask = geodeep.run(raster, model, output_type="raw")
    save_mask_to_raster(raster, mask, output)
    seconds = time.perf_counter() - started
    with rasterio.open(Path(raster)) as source:
        windows = generate_for_size(source.width, source.height, SIDE, OVERLAP, clip=False)
        passes = len(windows) * SIDE**2 / (source.width * source.height)
    print(json.dumps({"inner_s": seconds, "passes": passes}))


if __name__ == "__main__":
    main()
