"""The site's pages may link to files outside docs/, as they do on the repository's host: those come along.

A link in docs/ such as ``../bench/RESULTS.md`` leads to the repository's file where the page is read there. For the
site that file becomes ``repository/bench/RESULTS.md``, and so do the files it links to; links are rewritten to match.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

DOCS, OUTSIDE = "docs/", "repository/"
ROOT = Path(__file__).parent
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#]+)(?P<after>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/ and is linked to, by docs/ or by what was added, or stands in the nav."""
    waiting = [DOCS + file.src_uri for file in files.documentation_pages()]
    waiting += [uri.removeprefix(OUTSIDE) for uri in _leaves(config.nav) if uri.startswith(OUTSIDE)]
    seen = set(waiting)
    while waiting:
        place = waiting.pop()
        if not place.startswith(DOCS):
            file = File.generated(config, _uri(place), abs_src_path=str(ROOT / place))
            file.inclusion = InclusionLevel.NOT_IN_NAV  # it may stand there, but need not
            files.append(file)
        if place.endswith(".md"):
            found = set(_targets(place, (ROOT / place).read_text("utf-8"))) - seen
            found = {target for target in found if not target.startswith(DOCS)}
            waiting += sorted(found)
            seen |= found
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where the files are in the site."""
    del config, files
    here = page.file.src_uri
    place = here.removeprefix(OUTSIDE) if here.startswith(OUTSIDE) else DOCS + here

    def moved(link: re.Match[str]) -> str:
        target = _inside(place, link["target"])
        to = link["target"] if target is None else relpath(_uri(target), dirname(here) or ".")
        return f"{link['before']}{to}{link['after'] or ''}"

    return _LINK.sub(moved, markdown)


def _targets(place: str, markdown: str) -> list[str]:
    found = [_inside(place, link["target"]) for link in _LINK.finditer(markdown)]
    return [target for target in found if target is not None]


def _inside(place: str, target: str) -> str | None:
    """The repository's file that a link in the file `place` means; None when it leads elsewhere, or nowhere."""
    if "://" in target or target.startswith("mailto:"):
        return None
    path = normpath(join(dirname(place), target))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def _uri(place: str) -> str:
    """Where a file of the repository is in the site."""
    return place.removeprefix(DOCS) if place.startswith(DOCS) else OUTSIDE + place


def _leaves(nav: object) -> list[str]:
    """Pages that a nav names."""
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else []
    return [leaf for part in inner for leaf in _leaves(part)]
