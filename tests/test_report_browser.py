"""The report in headless Chromium: no error, no request, nothing wider than the page, readable in the dark."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from ehrsequencing.report import write_report
from report_study import ROWS, Fake, write_competing, write_lone, write_study, write_trajectories

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REASON = (
    "playwright is not installed"
    if importlib.util.find_spec("playwright") is None
    else "no chromium on the path"
    if CHROMIUM is None
    else ""
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]
MAX_BYTES = 3_000_000
SHOWN = ("oracle", "lora", "lora+wide", "full+wide", "from-scratch", "wide", "cox")
NEEDS = ("report.html.j2", "macros.j2", "methods.html.j2", "performance.html.j2", "patients.html.j2", "closing.html.j2")
INK = """() => [...document.querySelectorAll('main *')].filter(e => e.childNodes.length && e.getClientRects().length
  && [...e.childNodes].some(c => c.nodeType === 3 && c.textContent.trim())).map(e =>
  [e.tagName, getComputedStyle(e)[e instanceof SVGElement ? 'fill' : 'color'], e.textContent.trim().slice(0, 40)])"""


@dataclass
class Opened:
    """A page as the browser has it, and what went wrong or over the network."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A full study, one with competing events, one file of predictions, and nothing but a comparison."""
    folder = tmp_path_factory.mktemp("browser")
    made = {
        "full": write_study(folder / "full", Fake(n=400, rows=tuple(row for row in ROWS if row["model"] in SHOWN))),
        "competing": write_competing(folder / "competing", n=400),
        "lone": write_lone(folder / "lone", Fake(n=400, extras=False, histories=False)),
    }
    write_trajectories(made["competing"])
    return {name: write_report(study) for name, study in made.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def opened(browser: Any, reports: dict[str, Path]) -> Iterator[dict[str, Opened]]:
    context, found = browser.new_context(), {}
    for name, path in reports.items():
        here = Opened(context.new_page())
        here.page.on("console", lambda message, here=here: here.said.append(message.text))
        here.page.on("pageerror", lambda error, here=here: here.said.append(str(error)))
        here.page.on("request", lambda request, here=here: here.asked.append(request.url))
        here.page.goto(path.as_uri())
        found[name] = here
    yield found
    context.close()


NAMES = ("full", "competing", "lone")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_or_asked_for(opened: dict[str, Opened], reports: dict[str, Path], name: str) -> None:
    assert opened[name].said == []
    assert opened[name].asked == [reports[name].as_uri()]
    assert reports[name].stat().st_size < MAX_BYTES


def hooks() -> set[tuple[str, str | None]]:
    """Every ``data-test-*`` of the templates with its value, where that is written out."""
    folder = files("ehrsequencing.report") / "templates"
    text = "".join((folder / name).read_text(encoding="utf-8") for name in NEEDS)
    found: set[tuple[str, str | None]] = set()
    for hook, value in re.findall(r'data-test-([\w-]+)(?:="([^"]*)")?', text):
        found.add((hook, value if value and "{" not in value else None))
    found |= {("figure", name) for name in re.findall(r'call fig\("([\w-]+)"\)', text)}
    return found | {("missing", name) for name in re.findall(r'absent\("([\w-]+)"\)', text) if name not in NEVER_ABSENT}


NEVER_ABSENT = ("attrition", "over_time", "calibration", "decisions", "thirds", "examples")
"""In these three pages; test_report.py has a page without them."""


def test_every_hook_of_the_templates_is_somewhere_in_the_pages(opened: dict[str, Opened]) -> None:
    wanted = hooks()
    assert len(wanted) > 60
    lacking = {
        (hook, value)
        for hook, value in wanted
        if not any(here.page.query_selector(_selector(hook, value)) for here in opened.values())
    }
    assert lacking == set()


def _selector(hook: str, value: str | None) -> str:
    return f"[data-test-{hook}]" if value is None else f'[data-test-{hook}="{value}"]'


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", NAMES)
def test_no_page_is_wider_than_the_screen(opened: dict[str, Opened], name: str, width: int) -> None:
    page = opened[name].page
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "w => [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && "
        "e.getBoundingClientRect().right > w + 0.5).map(e => e.outerHTML.slice(0, 120))",
        width,
    )
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_all_text_shows_against_the_page(opened: dict[str, Opened], name: str, scheme: str) -> None:
    page = opened[name].page
    page.emulate_media(color_scheme=scheme, media="screen")
    paper = _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.02) == (scheme == "dark")
    faint = [(tag, ink, text) for tag, ink, text in page.evaluate(INK) if _contrast(paper, _luminance(ink)) < 4.5]
    assert faint == []


def test_print_is_light_and_shows_every_table(opened: dict[str, Opened]) -> None:
    page = opened["full"].page
    page.emulate_media(color_scheme="dark", media="print")
    assert _luminance(page.evaluate("getComputedStyle(document.body).color")) < 0.05
    hidden = page.evaluate(
        "[...document.querySelectorAll('details table, details li')].filter(e => !e.checkVisibility("
        "{contentVisibilityAuto: true}) || e.getBoundingClientRect().height === 0).length"
    )
    assert hidden == 0
    page.emulate_media(color_scheme="light", media="screen")
    assert page.evaluate("document.querySelectorAll('details.numbers:not([open])').length") > 0


def test_every_figure_is_named_and_described_for_those_who_cannot_see_it(opened: dict[str, Opened]) -> None:
    page = opened["full"].page
    figures = page.query_selector_all("figure svg[role=img]")
    assert len(figures) == len(page.query_selector_all("[data-test-figure]"))
    unnamed = page.evaluate(
        "[...document.querySelectorAll('figure svg')].filter(s => s.getAttribute('aria-labelledby').split(' ')"
        ".some(id => !document.getElementById(id)?.textContent.trim())).length"
    )
    assert unnamed == 0


def _luminance(color: str) -> float:
    """Of a computed ``rgb(…)``, 0 black to 1 white."""
    parts = [int(float(part)) / 255 for part in re.findall(r"[\d.]+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)
