"""SHA-256 of the files of a run's outputs, and of its report.

Chunks of the maps too, though the blocks' own hashes speak for their pixels: a damaged chunk may still decode to the
same pixels, here and today.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from fcn_batch.workflows.inputs.identity import file_sha256

_SIDE_FILE = ".aux.xml"
_OURS = ("CategoryNames", "GDALRasterAttributeTable")
"""What we write of a band; GDAL adds statistics when a map is looked at, and writes all anew."""
_SAID_TWICE = ("typeAsString", "usageAsString")
"""Attributes that GDAL 3.12 and newer add to our numbers when they write the file anew."""
_OWN = "report_sha256"


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hashes by path below `folder` of the outputs `names`; of stores, of all files in them."""
    return {str(path.relative_to(folder)): output_sha256(path) for name in names for path in files_of(folder / name)}


def output_sha256(path: Path) -> str:
    """Of one file of the outputs; of a side file, of what we wrote into it.

    OSError when it cannot be read, ValueError when a side file is none.
    """
    return _names_sha256(path) if path.name.endswith(_SIDE_FILE) else file_sha256(path)


def files_of(path: Path) -> Iterator[Path]:
    """The file `path`, or all that are in the folder `path`."""
    if path.is_dir():
        yield from sorted(one for one in path.rglob("*") if one.is_symlink() or not one.is_dir())
    else:
        yield path


def _names_sha256(side: Path) -> str:
    try:
        root = ET.parse(side).getroot()  # noqa: S314 - expat itself refuses bombs; nothing else is in a side file
    except ET.ParseError as error:
        raise ValueError(f"{side}: not a side file of GDAL: {error}") from error
    ours = [one for band in root.iter("PAMRasterBand") for one in band if one.tag in _OURS]
    texts = [ET.canonicalize(ET.tostring(one, "unicode"), strip_text=True, exclude_attrs=_SAID_TWICE) for one in ours]
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()


def signed(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with its own hash as its last entry: not a secret's, but damage shows."""
    content = {name: value for name, value in report.items() if name != _OWN}
    # as it reads from JSON, where all keys are text
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return {**content, _OWN: hashlib.sha256(text.encode()).hexdigest()}


def is_signed(report: Mapping[str, Any]) -> bool:
    """True when the report is as it was when `signed`."""
    return bool(signed(report)[_OWN] == report.get(_OWN))
