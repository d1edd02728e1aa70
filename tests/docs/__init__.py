"""Tests of README and docs: words, links, commands. `make check` runs them; they need seconds."""
