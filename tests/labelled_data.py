"""Labelled images that are too large for the repository: their tests are skipped where they are not at hand."""

import os
from pathlib import Path

import pytest

_PLACES = (os.environ.get("FCN_BATCH_DATA"), Path(__file__).parents[2] / "shared" / "data")


def labelled_data(name: str) -> Path:
    """The folder `name` below $FCN_BATCH_DATA, or below shared/data beside the checkout; else the test is skipped."""
    for place in _PLACES:
        if place and (folder := Path(place, name)).is_dir():
            return folder
    pytest.skip(
        f"no folder {name} with labelled images: see configs/models/*.md for its source, and set FCN_BATCH_DATA"
    )
