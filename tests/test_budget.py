"""The budgets of CONTRIBUTING.md: small modules, small functions, no print, light start; and that its checks check."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 500, 50, 7
FILES = sorted(
    [
        ROOT / "cli.py",
        *(p for d in ("commands", "pipeline", "workflows", "configs", "bench") for p in (ROOT / d).rglob("*.py")),
    ]
)
HEAVY = ("torch", "torchvision", "rasterio", "zarr", "dask", "distributed", "matplotlib")

Function = ast.FunctionDef | ast.AsyncFunctionDef


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


def _over(path: Path) -> Iterator[str]:
    """What is above budget in a file, or prints."""
    where, text = path.relative_to(ROOT), path.read_text("utf-8")
    source = text.splitlines()
    if len(source) > MODULE_LINES:
        yield f"{where}: {len(source)} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            if (lines := _code_lines(node, source)) > FUNCTION_LINES:
                yield f"{where}:{node.lineno}: {lines} code lines in {node.name}"
            exempt = path.parent.name == "commands" and _is_command(node)
            if not exempt and (count := _parameters(node)) > PARAMETERS:
                yield f"{where}:{node.lineno}: {count} parameters in {node.name}"
        elif isinstance(node, ast.Name) and node.id == "print" and path.parent.name != "bench":
            yield f"{where}:{node.lineno}: prints"


def test_every_file_is_within_budget() -> None:
    assert [one for path in FILES for one in _over(path)] == []


def test_the_measure_counts_code_only() -> None:
    text = "def f(self, a, *b, c=1, **d):\n    'Doc.'\n    # why\n\n    if a:\n        return 1\n    return 2\n"
    (function,) = (n for n in ast.walk(ast.parse(text)) if isinstance(n, Function))
    assert _code_lines(function, text.splitlines()) == 3
    assert _parameters(function) == 4


def test_the_command_line_starts_without_heavy_libraries() -> None:
    code = f"import sys, fcn_batch.commands.main; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the source, with the folder of links that mypy and import-linter read."""
    for name in ("commands", "configs", "fcn_batch", "pipeline", "workflows"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["make", "links"], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def _check(*command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    scripts = Path(sys.executable).parent
    return subprocess.run([scripts / command[0], *command[1:]], cwd=cwd, capture_output=True, text=True, check=False)


def test_a_forbidden_import_is_found(checkout: Path) -> None:
    lint = ("lint-imports", "--config", "../../pyproject.toml", "--no-cache")
    assert _check(*lint, cwd=checkout / "build" / "links").returncode == 0
    with (checkout / "pipeline" / "core" / "geometry.py").open("a") as module:
        module.write("import torch\nfrom fcn_batch.workflows import plan\n")
    run = _check(*lint, cwd=checkout / "build" / "links")
    assert run.returncode == 1
    assert "fcn_batch.pipeline.core.geometry -> torch" in run.stdout
    assert "fcn_batch.pipeline.core.geometry -> fcn_batch.workflows.plan" in run.stdout


def test_a_type_error_is_found_across_modules(checkout: Path) -> None:
    with (checkout / "pipeline" / "core" / "durable.py").open("a") as module:
        module.write("\nfrom fcn_batch.pipeline.core.geometry import Size\n\nWRONG: str = Size(1, 2).height\n")
    run = _check("mypy", "build/links/fcn_batch/pipeline/core/durable.py", cwd=checkout)
    assert run.returncode == 1
    assert re.findall(r"durable.py:\d+: error: .*\[(.*)\]$", run.stdout, re.MULTILINE) == ["assignment"]
