"""The documentation as a site: it builds without a warning, holds every page, and asks no other server for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_page import COMMAND, PAGE, page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    place = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.findall(r"^(?:WARNING|ERROR)\b.*", done.stderr, re.MULTILINE), done.stderr
    return place


def test_every_page_is_in_the_site_and_its_navigation(site: Path) -> None:
    nav = set(re.findall(r"^ +- .*?([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages <= nav
    assert all((site / name).with_suffix(".html").is_file() for name in pages)


def test_what_lies_outside_came_along(site: Path) -> None:
    assert (site / "repository" / "bench" / "RESULTS.html").is_file()
    assert (site / "repository" / "configs" / "clusters" / "slurm.toml").is_file()


def test_links_inside_lead_somewhere(site: Path) -> None:
    links = (
        (path, target)
        for path in site.rglob("*.html")
        for target in re.findall(r'(?:href|src)="([^"#?]+)', path.read_text("utf-8"))
        if ":" not in target and path.name != "404.html"
    )
    broken = [f"{path.relative_to(site)}: {target}" for path, target in links if not (path.parent / target).exists()]
    assert not broken


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    """Links may lead elsewhere; scripts, styles, fonts and pictures do not."""
    fetched = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)|<link[^>]*\shref="(https?:[^"]+)')
    found = {match.group(0) for path in site.rglob("*.html") for match in fetched.finditer(path.read_text("utf-8"))}
    assert not {text for text in found if 'rel="canonical"' not in text}


def test_the_page_of_commands_is_up_to_date() -> None:
    assert page() == PAGE.read_text("utf-8"), f"docs/cli.md is not what the commands say: run `{COMMAND}`"
