"""The flags of a run: parsed, filled in from recipes and defaults, and checked before anything is built."""
