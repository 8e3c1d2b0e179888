"""A plugin for pytest: the same examples in every run, and none made smaller, which takes minutes of a network."""

from hypothesis import Phase, settings

settings.register_profile(
    "unshrunk", deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
