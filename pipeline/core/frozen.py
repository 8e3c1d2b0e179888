"""The base of everything that is stored as JSON or read from TOML: immutable, and checked as a whole."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Fields are checked and never change; unknown ones, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
