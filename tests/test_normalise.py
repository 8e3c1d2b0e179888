"""Normalisation against a loop over pixels."""

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcn_batch.pipeline.core.model_card import Band, InputSpec
from fcn_batch.pipeline.core.normalise import normalise

BANDS = (Band(name="red", mean=0.3, std=0.2), Band(name="nir", mean=-0.5, std=3.0))
INVALID = {"uint8": 255, "uint16": 65535, "int16": -32768, "float32": np.nan}


def _oracle(values: NDArray[Any], valid: NDArray[np.bool_], spec: InputSpec) -> NDArray[np.float64]:
    out = np.zeros(values.shape)
    for k, row, col in np.ndindex(values.shape):
        if valid[row, col]:
            band = spec.bands[k]
            out[k, row, col] = (float(values[k, row, col]) / spec.full_scale - band.mean) / band.std
    return out


def _case(dtype: str, full_scale: float) -> tuple[NDArray[Any], NDArray[np.bool_], InputSpec]:
    rng = np.random.default_rng(3)
    low = -200 if dtype in ("int16", "float32") else 0
    values = rng.uniform(low, 256, (2, 7, 5)).astype(dtype)
    valid = rng.random((7, 5)) < 0.7
    values[:, ~valid] = INVALID[dtype]
    spec = InputSpec.model_validate({"bands": BANDS, "dtype": dtype, "full_scale": full_scale, "gsd_m": 1.0})
    return values, valid, spec


@pytest.mark.parametrize("full_scale", [1.0, 255.0, 10000.0])
@pytest.mark.parametrize("dtype", list(INVALID))
def test_every_dtype_equals_the_loop(dtype: str, full_scale: float) -> None:
    values, valid, spec = _case(dtype, full_scale)
    before = values.copy()
    expected = _oracle(values, valid, spec)
    exact = normalise(values, valid, spec, dtype=np.float64)
    assert exact.dtype == np.float64
    assert np.allclose(exact, expected, rtol=1e-13, atol=1e-13)
    single = normalise(values, valid, spec)
    assert single.dtype == np.float32
    assert np.allclose(single, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(values, before, equal_nan=True), "the raster's pixels stay as they are"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_data_becomes_zero_whatever_stands_there(bad: float, dtype: Any) -> None:
    values, valid, spec = _case("float32", 255.0)
    values[:, ~valid] = bad
    values[1, ~valid] = 7  # a pixel is invalid as a whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = normalise(values, valid, spec, dtype=dtype)
    assert (out[:, ~valid] == 0).all()
    assert np.isfinite(out).all()


def test_nothing_valid() -> None:
    values, valid, spec = _case("uint8", 255.0)
    assert not normalise(values, np.zeros_like(valid), spec).any()


def test_the_same_pixel_gives_the_same_bits_in_every_window() -> None:
    values, valid, spec = _case("uint16", 255.0)
    part = normalise(values[:, 2:5, 1:4], valid[2:5, 1:4], spec)
    assert np.array_equal(part, normalise(values, valid, spec)[:, 2:5, 1:4])
