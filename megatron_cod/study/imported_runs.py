"""Import the finished runs of a report, so that a study continues on another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_cod.common.files import write_whole
from megatron_cod.errors import UserError, one_line
from megatron_cod.study.directory import FACTS, RECORD, StudyDirectory
from megatron_cod.study.report import RAW, REMOVAL
from megatron_cod.study.tables import read_raw


def import_runs(directory: StudyDirectory, raw: Path) -> int:
    """Write the records in a report's folder as finished runs; returns how many were new.

    Finished runs of the directory are kept. UserError where the records are of another study file or another text.
    """
    try:
        facts = dict(json.loads((raw / FACTS).read_text()))
        results = read_raw(directory.study, (raw / RAW).read_text().splitlines())
        removal = (raw / REMOVAL).read_text() if (raw / REMOVAL).exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{raw} is not a report of this study: {one_line(error)}") from None
    _check_same(directory, facts, raw)
    new = [job for job in results if job not in directory.results()]
    for job in new:
        folder = directory.root / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RECORD, json.dumps(results[job].record(), indent=1) + "\n")
    if removal is not None:
        write_whole(directory.root / REMOVAL, removal)
    if new:
        directory.add_versions(facts.get("code", []))
    return len(new)


def _check_same(directory: StudyDirectory, facts: dict[str, Any], raw: Path) -> None:
    ours = directory.facts()
    for key, what in (("digest", "another study file"), ("text", "another text")):
        if facts.get(key) != ours[key]:
            raise UserError(f"the records in {raw} are of {what} than {directory.root}, and cannot be imported")
