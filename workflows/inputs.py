"""Which raster an input is."""

from pathlib import Path

from fcn_batch.pipeline.plan import FileIdentity, InputIdentity
from fcn_batch.pipeline.raster import RasterInfo


def identify(info: RasterInfo) -> InputIdentity:
    """The raster's identity: its files by size and time, and its grid."""
    files = []
    for path in map(Path, info.files):
        status = path.stat()
        files.append(FileIdentity(name=path.name, bytes=status.st_size, modified_ns=status.st_mtime_ns))
    return InputIdentity(
        path=info.path,
        files=tuple(files),
        height=info.size.height,
        width=info.size.width,
        bands=info.bands,
        dtype=info.dtype,
        crs_wkt=info.georeference.crs_wkt,
        transform=info.georeference.transform,
        ground=info.ground,
        microns=info.microns,
    )
