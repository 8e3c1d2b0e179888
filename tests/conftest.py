"""Settings for all tests."""

from hypothesis import settings

# machines differ and are shared: no test may fail for being slow
settings.register_profile("fcn-batch", deadline=None)
settings.load_profile("fcn-batch")
