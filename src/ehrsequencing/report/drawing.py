"""How every figure looks, and how it becomes inline SVG: text stays text, one color a model, light and dark."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ehrsequencing.config import DAYS_PER_YEAR

PALETTE = {
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1d2126", "#e4e7ea"),
    "faint": ("#6b727b", "#98a1ab"),
    "rule": ("#d9dde2", "#363c44"),
    "frozen": ("#2a8c82", "#4fb8ad"),
    "frozen-ridge": ("#4f9373", "#8ccdb0"),
    "lora": ("#1f5fa8", "#6ea8ea"),
    "full": ("#6a4c9c", "#ab91dc"),
    "from-scratch": ("#a8568b", "#d99ac4"),
    "frozen-random": ("#77818d", "#a3adb8"),
    "kaplan-meier": ("#8a8478", "#b3ada2"),
    "age-sex": ("#8c7657", "#c2ab8a"),
    "cox": ("#b8641b", "#e2924a"),
    "boosting": ("#a3343c", "#e27b82"),
    "wide": ("#85751a", "#c9b84e"),
    "other-1": ("#3f78ba", "#7fb0e8"),
    "other-2": ("#3d6b4f", "#7db393"),
    "other-3": ("#a06f22", "#d9a95c"),
    "other-4": ("#7f5a83", "#be97c3"),
    "other-5": ("#507f98", "#8bb6cc"),
    "other-6": ("#9c5b4a", "#d69480"),
    "third-1": ("#5f97cc", "#5486ba"),
    "third-2": ("#3c76ad", "#86b4e2"),
    "third-3": ("#173f6e", "#cfe3f7"),
}
"""Every color of a figure, on white and on a dark page: each shows at least 3 : 1 against its page but the rules."""
INK, FAINT, RULE, PAPER = (PALETTE[name][0] for name in ("ink", "faint", "rule", "paper"))
OTHER_COLORS = tuple(light for name, (light, _) in PALETTE.items() if name.startswith("other-"))
THIRD_COLORS = tuple(light for name, (light, _) in PALETTE.items() if name.startswith("third-"))
NOT_MODELS = ("paper", "ink", "faint", "rule")
COLORS = {"oracle": INK} | {
    name: light
    for name, (light, _) in PALETTE.items()
    if name not in NOT_MODELS and not name.startswith(("other-", "third-"))
}
WIDTH = 8.6
"""Inches; the page shows a figure 1.4 times as large, so that 8 points read as 11 pixels."""
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g}%")
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}
_VARIABLE = {light: f"var(--c-{name})" for name, (light, _) in reversed(PALETTE.items())}
_STYLED = re.compile(r'style="[^"]*"')
_HEX = re.compile(r"#[0-9a-f]{6}")


def color(model: str) -> str:
    """A model's color, the same in every figure; a blend has that of its deep part.

    >>> color("lora+wide") == color("lora")
    True
    """
    name = model.split("+")[0]
    return COLORS.get(name) or OTHER_COLORS[sum(name.encode()) % len(OTHER_COLORS)]


def palette_css() -> Markup:
    """The colors as variables, dark where the reader asked for it; paper is always light.

    >>> "--c-paper:#ffffff" in palette_css()
    True
    """
    light, dark = (";".join(f"--c-{name}:{pair[k]}" for name, pair in PALETTE.items()) for k in (0, 1))
    return Markup(f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}")


def time_unit(longest: float) -> tuple[str, float]:
    """How time is written on an axis, and the days in one unit."""
    return ("years", DAYS_PER_YEAR) if longest >= 2 * DAYS_PER_YEAR else ("days", 1.0)


def inline(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure for the page, its colors those of the page's palette."""
    return Markup(svg(figure, name, title, description))


def svg(figure: Figure, name: str, title: str, description: str, *, alone: bool = False) -> str:
    """The figure as an <svg> element without any address, its ids unique in the page; or as a file of its own."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=not alone, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', text)
    body = text[text.index(">") + 1 :]
    body = body.replace("xlink:href", "href").replace('id="', f'id="{name}-').replace('href="#', f'href="#{name}-')
    body = body.replace("url(#", f"url(#{name}-")
    body = body.replace("'DejaVu Sans'", FONTS)
    size = f'xmlns="http://www.w3.org/2000/svg" width="{100 * WIDTH:.0f}" ' if alone else ""
    return opening(name, title, description, box[1] if box else "", size) + (body if alone else _themed(body))


def opening(name: str, title: str, description: str, box: str, size: str = "") -> str:
    """The start of an <svg> element that says what it shows."""
    return (
        f'<svg {size}viewBox="{box}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    )


def _themed(body: str) -> str:
    """The palette's colors as the page's variables; text is left alone.

    >>> _themed('<path style="fill: #ffffff; stroke: #1d2126"/>#ffffff')
    '<path style="fill: var(--c-paper); stroke: var(--c-ink)"/>#ffffff'
    """

    def variables(style: re.Match[str]) -> str:
        return _HEX.sub(lambda found: _VARIABLE.get(found[0], found[0]), style[0])

    return _STYLED.sub(variables, body)
