"""The page: a browser shows the classes where they are; nothing in it leads outside or runs by surprise."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.io import MemoryFile

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.location import Mosaic
from fcn_batch.pipeline.core.source import Pixels
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.ground import ground_of
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.page import About, make_page, stretched
from fcn_batch.workflows.finished.survey import Survey, survey
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.sources import find_source
from tests.browser import HEIGHT, READY, WIDTH, Tab, opened
from tests.memorymaps import ArrayMap, legend_of, patches, plan_of, utm
from tests.rasters import write_raster

PANEL = 352
HOSTILE = "</script></title><script>document.title='taken'</script><img src=x onerror=alert(1)>&amp;\"'@DATA@"


def seen(ids: NDArray[np.uint8], legend: Legend, ref: GeoReference | None = None, side: int = 2000) -> Survey:
    return survey(ArrayMap(ids, legend, ref), side, Quiet())


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


class Elements(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_ids_are_in_the_page() -> None:
    ids = patches(61, 83, 3)
    ids[:5] = 255
    data = data_of(make_page(seen(ids, legend_of("a", "b", "c")), About("x")))
    packed = zlib.decompress(base64.b64decode(data["ids"]))
    assert np.array_equal(np.frombuffer(packed, np.uint8).reshape(data["shape"]), ids)
    assert data["image"] is None


def test_nothing_leads_outside() -> None:
    page = make_page(seen(patches(20, 20, 2), legend_of("http://a.example", "b")), About("https://b.example"))
    elements = Elements(page).found
    for tag, attributes in elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "img"}
        assert not {"src", "href", "action"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")]
    told = [a["content"] for tag, a in elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    policy = dict(part.strip().split(" ", 1) for part in str(told[0]).split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    assert "unsafe" not in str(told[0])
    assert elements.index(("meta", {"http-equiv": "Content-Security-Policy", "content": told[0]})) < next(
        index for index, (tag, _) in enumerate(elements) if tag in {"style", "script"}
    )
    script = page.split("</script>")[1].split("<script>")[1]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|fetch\(|XMLHttpRequest|WebSocket|import\(|eval\(", script)
    assert "innerHTML" not in script


def test_names_are_text_and_nothing_else() -> None:
    legend = Legend(classes=(ClassInfo(id=0, name=HOSTILE, colour="#ff0000"),))
    page = make_page(seen(np.zeros((5, 5), np.uint8), legend), About(HOSTILE, cleaned=(HOSTILE,)))
    plain = make_page(seen(np.zeros((5, 5), np.uint8), legend_of("a")), About("b", cleaned=("c",)))
    assert [tag for tag, _ in Elements(page).found] == [tag for tag, _ in Elements(plain).found]
    assert data_of(page)["classes"][0]["name"] == HOSTILE
    assert data_of(page)["name"] == HOSTILE


def test_the_page_says_how_the_map_was_made(tmp_path: Path) -> None:
    plan = plan_of(write_raster(tmp_path / "i.tif", np.full((3, 20, 30), 9, np.uint8), photometric="RGB"))
    report = {"timing": {"finished": "2026-01-02T03:04:05+00:00"}, "versions": {"torch": "9.9"}}
    found = seen(patches(20, 30, 2), legend_of("a", "b"), utm())
    about = About("m", ground_of(found.georeference, found.size), report, plan, ("majority of 3 × 3 pixels",))
    data = data_of(make_page(found, about))
    facts = dict(data["facts"])
    assert facts["system"] == "EPSG:32633"
    assert facts["pixel"] == "10 m"
    assert facts["made"] == "2026-01-02 03:04:05+00:00"
    assert facts["torch"] == "9.9"
    assert facts["result"] == "exact"
    assert facts["precision"] == plan.kernel.precision
    assert facts["model"] == f"{plan.model.name} {plan.model.version}"
    assert facts["cleaned up"] == "majority of 3 × 3 pixels"
    assert data["classes"][0]["area"].endswith(" ha")


def test_the_image_is_the_one_that_was_classified(tmp_path: Path) -> None:
    values = np.zeros((3, 40, 60), np.uint8)
    values[0, :, 30:] = 200
    path = write_raster(tmp_path / "i.tif", values, photometric="RGB")
    found = seen(patches(40, 60, 2), legend_of("a", "b"), side=30)
    data = data_of(make_page(found, About("m", plan=plan_of(path))))
    with (
        accept_pixel_space(),
        MemoryFile(base64.b64decode(data["image"].partition(",")[2])) as file,
        file.open() as jpeg,
    ):
        assert jpeg.driver == "JPEG"
        picture = jpeg.read()
    assert picture.shape == (3, 20, 30)
    assert picture[0, 10, 25] > 230  # stretched
    assert picture[1, 10, 25] < 40
    assert picture[:, 10, 5].max() < 40


def test_without_the_image_the_page_says_why(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "i.tif", np.ones((3, 20, 30), np.uint8), photometric="RGB")
    plan = plan_of(path)
    found = seen(patches(20, 30, 2), legend_of("a", "b"))
    changed = []
    for image in (np.ones((3, 10, 10), np.uint8), np.full((3, 20, 30), 255, np.uint8)):
        write_raster(path, image, photometric="RGB")
        changed.append(data_of(make_page(found, About("m", plan=plan))))
    path.unlink()
    gone = data_of(make_page(found, About("m", plan=plan)))
    assert gone["image"] is None
    for one in changed:
        assert one["image"] is None
        assert ["image", "not shown: it is another one now"] in one["facts"]
    assert ["image", "not shown: it is no longer where it was"] in gone["facts"]


def test_a_changed_piece_of_a_mosaic_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From whatever folder the page is asked for: a mosaic's own name is no path."""
    pieces = []
    for k in range(2):
        place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5 + 150 * k, 0, -10, 5e6)}
        pieces.append(write_raster(tmp_path / f"{k}.tif", np.ones((3, 20, 15), np.uint8), photometric="RGB", **place))
    image = identify(find_source(Mosaic("city", tuple(pieces))).info)
    plan = plan_of(pieces[0]).model_copy(update={"input": image})
    found, shown = seen(patches(20, 30, 2), legend_of("a", "b")), []
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        shown.append(data_of(make_page(found, About("m", plan=plan)))["image"] is not None)
    write_raster(pieces[1], np.full((3, 20, 15), 9, np.uint8), photometric="RGB", **place)
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        shown.append(data_of(make_page(found, About("m", plan=plan)))["image"] is not None)
    assert shown == [True, True, False, False]


def test_stretching() -> None:
    values = np.array([[[0, 1000], [2000, 65535]]], np.uint16)
    valid = np.array([[True, True], [True, False]])
    grey = stretched(Pixels(values, valid))
    assert grey.shape == (2, 2, 3)
    assert grey[0, 0].tolist() == [0, 0, 0]
    assert abs(int(grey[0, 1, 0]) - 127) < 3
    assert grey[1, 0].tolist() == [255, 255, 255]
    assert grey[1, 1].tolist() == [205, 211, 216]
    colours = np.stack([np.full((2, 2), 10), np.full((2, 2), 60), np.full((2, 2), 110)]).astype(np.uint8)
    assert stretched(Pixels(colours, np.ones((2, 2), np.bool_)))[0, 0].tolist() == [0, 128, 255]
    assert stretched(Pixels(values, np.zeros((2, 2), np.bool_)))[0, 0].tolist() == [205, 211, 216]


# in a browser


def screenshot(page: str, folder: Path, *options: str, state: str = "", **more: Any) -> NDArray[np.int64]:
    """(rows, cols, 3) of what the browser shows when the map is drawn."""
    with opened(page, folder, *options, state=state, **more) as tab:
        tab.wait(f"{READY} === 'yes'")
        assert tab.value("document.getElementById('status').hidden")
        return tab.picture()


QUARTERS = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], np.uint8), 40, axis=0), 40, axis=1)


def quarter(picture: NDArray[np.int64], row: int, col: int) -> tuple[int, ...]:
    """The colour in the middle of a quarter of the map, which is drawn in the middle of the stage."""
    side = HEIGHT - 24  # the margin
    at = (HEIGHT // 2 + (2 * row - 1) * side // 4, (WIDTH - PANEL) // 2 + (2 * col - 1) * side // 4)
    return tuple(int(v) for v in picture[at])


def test_the_browser_shows_the_classes_where_they_are(tmp_path: Path) -> None:
    legend = legend_of("a", "b", "c")
    page = make_page(seen(QUARTERS, legend), About("quarters"))
    colours = [one.rgb for one in legend.classes]
    shown, hidden = screenshot(page, tmp_path), screenshot(page, tmp_path, state="#hide=1")
    back = tuple(int(v) for v in shown[5, WIDTH - PANEL - 5])
    for picture, wanted in ((shown, [*colours, back]), (hidden, [colours[0], back, colours[2], back])):
        assert [quarter(picture, row, col) for row in (0, 1) for col in (0, 1)] == wanted


def test_the_browser_mixes_classes_and_image(tmp_path: Path) -> None:
    values = np.zeros((3, 80, 80), np.uint8)
    values[:, :, 40:] = 250
    plan = plan_of(write_raster(tmp_path / "i.tif", values, photometric="RGB"))
    page = make_page(seen(QUARTERS, legend_of("a", "b", "c")), About("m", plan=plan))
    alone = screenshot(page, tmp_path, state="#view=image")
    half = screenshot(page, tmp_path, state="#opacity=50")
    full = screenshot(page, tmp_path, state="#opacity=100&hide=0")
    rgb = [np.array(one.rgb) for one in legend_of("a", "b", "c").classes]
    assert np.abs(np.array(quarter(alone, 0, 0))).max() < 8
    assert np.array(quarter(alone, 0, 1)).min() > 247
    assert np.abs(np.array(quarter(half, 0, 0)) - rgb[0] / 2).max() < 5
    assert np.abs(np.array(quarter(half, 0, 1)) - (rgb[1] + 255) / 2).max() < 5
    assert np.abs(np.array(quarter(full, 0, 0))).max() < 8  # hidden: the image
    assert quarter(full, 0, 1) == tuple(rgb[1])
    assert np.array(quarter(full, 1, 1)).min() > 247  # no data: the image


def test_the_browser_takes_no_name_for_code(tmp_path: Path) -> None:
    legend = Legend(
        classes=(ClassInfo(id=0, name=HOSTILE, colour="#ff0000"), ClassInfo(id=1, name="b", colour="#00ff00"))
    )
    page = make_page(seen(patches(20, 20, 2), legend), About(HOSTILE))
    with opened(page, tmp_path) as tab:
        tab.wait(f"{READY} === 'yes'")
        assert tab.said == []
        assert tab.value("document.title") == f"{HOSTILE}: class map"
        shown = tab.value("document.documentElement.outerHTML")
        assert sorted(texts(tab, "#legend b")) == sorted([HOSTILE, "b"])
    elements = Elements(shown).found
    assert "img" not in [tag for tag, _ in elements]
    assert len([tag for tag, _ in elements if tag == "script"]) == 2


def test_the_browser_runs_nothing_that_was_put_in_later(tmp_path: Path) -> None:
    page = make_page(seen(patches(20, 20, 2), legend_of("a", "b")), About("m"))
    for added in ("<style>main{display:none}</style>", "<script>document.body.innerText='taken'</script>"):
        with opened(page.replace("</body>", added + "</body>"), tmp_path) as tab:
            tab.wait(f"{READY} === 'yes'")
            assert any("Content Security Policy" in line for line in tab.said)
            assert "taken" not in tab.value("document.body.innerText")
            assert tab.value("getComputedStyle(document.querySelector('main')).display") != "none"


STUCK = """window.DecompressionStream = class {
  constructor() { return new TransformStream({ flush: () => new Promise(() => {}) }); }
};"""
"""Unpacking that never ends."""


def texts(tab: Tab, ids: str) -> list[str]:
    found: list[str] = tab.value(f"[...document.querySelectorAll('{ids}')].map((one) => one.textContent)")
    return found


def test_all_but_the_map_is_there_before_its_ids_are_unpacked(tmp_path: Path) -> None:
    page = make_page(seen(QUARTERS, legend_of("a", "b", "c")), About("quarters"))
    with opened(page, tmp_path, before=STUCK) as tab:
        assert tab.value(READY) is None
        assert texts(tab, "#name") == ["quarters"]
        assert texts(tab, "#legend b") == ["a", "b", "c"]
        assert texts(tab, "#chart text")[::2] == ["a", "b", "c"]
        assert texts(tab, "#facts dt")[0] == "system"
        assert texts(tab, "#status") == ["Loading the map…"]
        assert tab.value("document.getElementById('status').hidden") is False
        picture = tab.picture()
        tab.value("document.querySelector('#legend input').click()")
        assert tab.value("location.hash") == "#hide=0"
        assert tab.said == []
    colours = [one.rgb for one in legend_of("a", "b", "c").classes]
    assert not {quarter(picture, row, col) for row in (0, 1) for col in (0, 1)} & set(colours)


@pytest.mark.parametrize("harm", ["damaged", "short", "no base64"])
def test_a_map_that_cannot_be_drawn_says_so(tmp_path: Path, harm: str) -> None:
    page = make_page(seen(QUARTERS, legend_of("a", "b", "c")), About("quarters"))
    ids = data_of(page)["ids"]
    packed = bytearray(base64.b64decode(ids))
    packed[len(packed) // 2] ^= 255
    other = {
        "damaged": base64.b64encode(packed).decode(),
        "short": base64.b64encode(zlib.compress(b"123")).decode(),
        "no base64": "§§",
    }
    with opened(page.replace(ids, other[harm]), tmp_path) as tab:
        tab.wait(f"{READY} === 'failed'")
        (told,) = texts(tab, "#status")
        assert told.startswith("The map cannot be drawn: ")
        assert ("it holds 3 of 6400 pixels" in told) == (harm == "short")
        assert tab.value("document.getElementById('status').hidden") is False
        assert texts(tab, "#legend b") == ["a", "b", "c"]


def test_data_that_are_none_say_so(tmp_path: Path) -> None:
    page = make_page(seen(QUARTERS, legend_of("a", "b", "c")), About("quarters"))
    with opened(page.replace('"shape":', '"shape"'), tmp_path) as tab:
        tab.wait(f"{READY} === 'failed'")
        assert "JSON" in texts(tab, "#status")[0]


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    plan = plan_of(write_raster(tmp_path / "i.tif", np.full((3, 80, 80), 9, np.uint8), photometric="RGB"))
    legend = legend_of("a", "b", "c")
    page = make_page(seen(QUARTERS, legend), About("m", plan=plan))
    image = data_of(page)["image"]
    with opened(page.replace(image, "data:image/jpeg;base64,AAAA"), tmp_path, state="#view=image&opacity=10") as tab:
        tab.wait(f"{READY} === 'yes'")
        assert tab.value("document.getElementById('blend').hidden")
        assert quarter(tab.picture(), 0, 1) == legend.classes[1].rgb


@pytest.mark.parametrize(("mode", "bright"), [([], True), (["--force-dark-mode"], False)])
def test_the_page_is_as_light_as_the_system(tmp_path: Path, mode: list[str], bright: bool) -> None:
    page = make_page(seen(QUARTERS, legend_of("a", "b", "c")), About("m"))
    picture = screenshot(page, tmp_path, *mode)
    assert (picture[HEIGHT - 5, WIDTH - 5].mean() > 128) == bright


def test_a_narrow_window_has_the_panel_below(tmp_path: Path) -> None:
    page = make_page(seen(np.zeros((50, 50), np.uint8), legend_of("a")), About("m"))
    picture = screenshot(page, tmp_path, size=(500, 900))
    drawn = (picture == legend_of("a").classes[0].rgb).all(axis=-1)
    rows, cols = np.nonzero(drawn[: int(0.62 * 900)])
    assert np.ptp(cols) > 440
    assert np.ptp(rows) > 440
