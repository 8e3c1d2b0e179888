"""Compare the class maps that two checkouts make of every kind of input: `python -m tests.compare_maps OTHER`.

OTHER is the folder of another checkout of this repository, an older commit for instance. It writes one image in every
form that its `tests/test_every_input.py` knows; both checkouts then segment each of them, and a few more with other
models and options. Maps are equal when the GeoTIFFs and all chunks of the zarr stores have the same bytes. Prints a
line for each input, and a count; the exit code is 1 if any differ or fail.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[1]
_WRITE = """
import json, sys
from pathlib import Path
from tests.models import save_tiny_model
from tests.runs import scene
from tests.test_every_input import FORMS, SCALED

folder = Path(sys.argv[1])
model = str(save_tiny_model(folder / "tiny.safetensors", fc_kernel=1))
calls = {}
for name, form in FORMS.items():
    (place := folder / "in" / name.replace(" ", "-")).mkdir(parents=True)
    given = form.write(place)
    given = given if isinstance(given, list) else [given]
    calls[name] = [*map(str, given), "-m", model, *form.options, *SCALED.get(name, ())]
image = str(scene(folder / "a.tif", 700, 600))
calls["confidence"] = [image, "-m", model, "--confidence"]
calls["box"] = [image, "-m", model, "--bbox", "-15,10,5,30"]
calls["two workers"] = [image, "-m", model, "--workers", "2"]
for name in ("aerial", "buildings", "landcover-world", "nuclei"):
    calls[f"model {name}"] = [image, "-m", name]
for call in calls.values():
    call += ["--precision", "fp32", "--threads", "1"]
(folder / "calls.json").write_text(json.dumps(calls))
"""
_SEGMENT = """
import json, sys
from pathlib import Path
from click.testing import CliRunner
try:
    from fcn_batch.commands.main import main
except ImportError:
    from fcn_batch.cli import main

if __name__ == "__main__":
    for name, call in json.loads(Path(sys.argv[1]).read_text()).items():
        out = Path(sys.argv[2], name.replace(" ", "-"))
        result = CliRunner().invoke(main, ["segment", "-q", *call, "-o", str(out)])
        if result.exit_code:
            print(f"{name}: exit code {result.exit_code}: {result.output}", file=sys.stderr)
"""


def _run(checkout: Path, code: str, folder: Path, *arguments: Path) -> None:
    script = folder / f"script-{abs(hash(code))}.py"
    script.write_text(code)
    environ = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, str(script), *map(str, arguments)], cwd=checkout, env=environ, check=True)


def _pixels(folder: Path) -> dict[str, bytes]:
    """The files that hold pixels: GeoTIFFs, and chunks of stores."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix == ".tif" or "c" in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def main() -> int:
    """Compare; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    other = parser.parse_args().other.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(other, _WRITE, folder, folder)
        for side, checkout in (("here", HERE), ("there", other)):
            _run(checkout, _SEGMENT, folder, folder / "calls.json", folder / side)
        calls = json.loads((folder / "calls.json").read_text())
        equal = 0
        for call in calls:
            here, there = (_pixels(folder / side / call.replace(" ", "-")) for side in ("here", "there"))
            differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
            equal += bool(here) and not differing
            print(f"{call}: {len(here)} files " + (f"differ: {', '.join(differing[:3])}" if differing else "equal"))  # noqa: T201
    print(f"{equal} of {len(calls)} maps are equal")  # noqa: T201
    return 0 if equal == len(calls) else 1


if __name__ == "__main__":
    sys.exit(main())
