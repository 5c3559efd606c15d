"""How every figure looks, and how it becomes inline SVG: text stays text, one color a model, title and description."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ehrsequencing.config import DAYS_PER_YEAR

INK, FAINT, RULE = "#1d2126", "#6b727b", "#d9dde2"
COLORS = {
    "oracle": "#1d2126",
    "frozen": "#2a8c82",
    "frozen-ridge": "#7cb39a",
    "lora": "#1f5fa8",
    "full": "#6a4c9c",
    "from-scratch": "#c07aa6",
    "frozen-random": "#8d97a3",
    "kaplan-meier": "#b3aea4",
    "age-sex": "#9a8468",
    "cox": "#b8641b",
    "boosting": "#a3343c",
    "wide": "#8a7a1f",
}
OTHER_COLORS = ("#4f86c6", "#3d6b4f", "#b07d2b", "#7f5a83", "#5b7f95", "#9c5b4a")
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


def color(model: str) -> str:
    """A model's color, the same in every figure; a blend has that of its deep part.

    >>> color("lora+wide") == color("lora")
    True
    """
    name = model.split("+")[0]
    return COLORS.get(name) or OTHER_COLORS[sum(name.encode()) % len(OTHER_COLORS)]


def time_unit(longest: float) -> tuple[str, float]:
    """How time is written on an axis, and the days in one unit."""
    return ("years", DAYS_PER_YEAR) if longest >= 2 * DAYS_PER_YEAR else ("days", 1.0)


def inline(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure for the page."""
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
    opening = (
        f'<svg {size}viewBox="{box[1] if box else ""}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    )
    return opening + body
