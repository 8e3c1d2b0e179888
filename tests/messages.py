"""The texts of all errors, as the source has them: `python -m tests.messages` writes them to `tests/messages.txt`.

That file is what a reader looks through when wording changes; no other test knows a text.
"""

import ast
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fcn_batch.pipeline.core import errors

ROOT = Path(__file__).parents[1]
APPROVED = Path(__file__).with_name("messages.txt")
_KINDS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.FcnBatchError)
}


@dataclass(frozen=True)
class Message:
    """One place in the source that makes an error."""

    where: str
    kind: str
    code: str | None
    """None where it is not a literal."""
    template: str | None
    fields: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        """The fields that the template has places for."""
        parsed = string.Formatter().parse(self.template or "")
        return frozenset(name.split(".")[0].split("[")[0] for _, name, _, _ in parsed if name is not None)


@cache
def messages() -> tuple[Message, ...]:
    """Every error that the source makes by the name of its class."""
    return tuple(
        _message(f"{path.relative_to(ROOT)}:{node.lineno}", node.func.id, node)
        for folder in ("commands", "workflows", "pipeline")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _KINDS
    )


def _message(where: str, kind: str, call: ast.Call) -> Message:
    code, template, *_ = (*(_literal(argument) for argument in call.args[:2]), None, None)
    return Message(where, kind, code, template, frozenset(word.arg for word in call.keywords if word.arg is not None))


def _literal(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def approved() -> str:
    """The content of the file."""
    texts = {f"{one.code}  {one.kind}\n    {one.template}\n" for one in messages()}
    return "".join(sorted(texts))


if __name__ == "__main__":
    APPROVED.write_text(approved(), "utf-8")
