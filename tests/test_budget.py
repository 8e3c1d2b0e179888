"""The budgets of CONTRIBUTING.md, measured: small modules, small functions, no print, light start."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 300, 40, 7
FILES = sorted(
    [
        ROOT / "cli.py",
        *(p for d in ("commands", "pipeline", "workflows", "configs", "bench") for p in (ROOT / d).rglob("*.py")),
    ]
)
HEAVY = ("torch", "torchvision", "rasterio", "zarr", "dask", "distributed", "matplotlib")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(path: Path) -> Iterator[Function]:
    tree = ast.parse(path.read_text("utf-8"), str(path))
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _code_lines(function: Function, source: list[str]) -> int:
    """Lines of the body without docstring, blank lines and comment lines."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    if not body:
        return 0
    lines = source[body[0].lineno - 1 : function.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def _is_command(function: Function) -> bool:
    """True for click commands: they have one parameter for each option, and click calls them by name."""
    return any(
        isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute) and d.func.attr in {"command", "group"}
        for d in function.decorator_list
    )


def _parameters(function: Function) -> int:
    """Number of parameters a caller may fill in; `self` and `cls` are not his."""
    a = function.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p is not None]
    return len([name for name in names if name not in {"self", "cls"}])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_budget(path: Path) -> None:
    source = path.read_text("utf-8").splitlines()
    over = [f"{len(source)} lines in the module"] if len(source) > MODULE_LINES else []
    for function in _functions(path):
        if (lines := _code_lines(function, source)) > FUNCTION_LINES:
            over.append(f"{lines} code lines in {function.name}, line {function.lineno}")
        exempt = path.parent.name == "commands" and _is_command(function)
        if not exempt and (count := _parameters(function)) > PARAMETERS:
            over.append(f"{count} parameters in {function.name}, line {function.lineno}")
    assert not over


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "bench"], ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_prints(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    assert [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"] == []


def test_the_measure_counts_code_only() -> None:
    text = "def f(self, a, *b, c=1, **d):\n    'Doc.'\n    # why\n\n    if a:\n        return 1\n    return 2\n"
    (function,) = (n for n in ast.walk(ast.parse(text)) if isinstance(n, Function))
    assert _code_lines(function, text.splitlines()) == 3
    assert _parameters(function) == 4


def test_the_command_line_starts_without_heavy_libraries() -> None:
    code = f"import sys, fcn_batch.cli; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []
