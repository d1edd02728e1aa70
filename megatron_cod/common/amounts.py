"""Amounts as text: tokens, time, memory."""

from __future__ import annotations

GIB = 1 << 30


def tokens_text(tokens: float) -> str:
    """A number of tokens as one reads it: 820, 52.4K, 1.31B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if tokens >= size:
            value = tokens / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return f"{tokens:.0f}"


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below one hour."""
    minutes, secs = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
