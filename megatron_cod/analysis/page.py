"""Parts of a self-contained HTML page: style for screen and print, tables, embedded figures."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 0.85rem; } th, td { padding: 0.2rem 0.6rem; text-align: right; }
th { border-bottom: 1px solid #333; } td:first-child, th:first-child { text-align: left; }
.wide { overflow-x: auto; } @media print { .wide { overflow: visible; } table { font-size: 0.6rem; } }
img { max-width: 100%; } .grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
figure { margin: 0; break-inside: avoid; } .facts { color: #444; font-size: 0.9rem; }
@media print { body { margin: 0; max-width: none; } .grid { grid-template-columns: 1fr 1fr; } a { color: inherit; } }
"""


def page(title: str, body: str) -> str:
    """A whole page."""
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def figure(path: Path, caption: str = "") -> str:
    """A PNG, in the page itself. Without a caption its name is what it is read out as."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    below = f"<figcaption class=facts>{html.escape(caption)}</figcaption>" if caption else ""
    shown = html.escape(caption or path.stem, quote=True)
    return f"<figure><img alt='{shown}' src='data:image/png;base64,{encoded}'>{below}</figure>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
