"""The prose of an HTML page: paragraphs, list items, definitions and headings."""

from __future__ import annotations

from html.parser import HTMLParser

_BLOCKS = frozenset(["p", "li", "dd", "dt", "h1", "h2", "h3", "h4"])
_LEFT_OUT = frozenset(["script", "style", "nav", "pre", "head", "table", "footer", "form", "sup"])


class _Prose(HTMLParser):
    """Collects the text of blocks; a block ends where another one begins."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._open = 0
        self._ignored = 0
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _LEFT_OUT:
            self._ignored += 1
        elif tag in _BLOCKS:
            self.end_paragraph()
            self._open += 1
        elif tag == "br":
            self._text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _LEFT_OUT:
            self._ignored = max(self._ignored - 1, 0)
        elif tag in _BLOCKS:
            self.end_paragraph()
            self._open = max(self._open - 1, 0)

    def handle_data(self, data: str) -> None:
        if self._open and not self._ignored:
            self._text.append(data)

    def end_paragraph(self) -> None:
        text = " ".join("".join(self._text).replace("\u00b6", "").split())
        if text:
            self.paragraphs.append(text)
        self._text = []


def paragraphs_of(page: str) -> list[str]:
    """Paragraphs of a page in order, each on one line, without markup, code listings, tables and navigation."""
    parser = _Prose()
    parser.feed(page)
    parser.close()
    parser.end_paragraph()
    return parser.paragraphs
