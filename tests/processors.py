"""What a processor can do, for tests that need it."""

import pytest

from fcn_batch.pipeline.network.device import multiplies_bf16

needs_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="this CPU has no instructions for bfloat16")
BF16 = pytest.param("bf16", marks=needs_bf16)
