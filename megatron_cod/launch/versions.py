"""Versions of the software on a machine, and differences between machines."""

import functools
import hashlib
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

import megatron_cod
from megatron_cod.common.lists import listed

# What must be the same on every machine of a run; the rest may differ, and is only logged.
MUST_AGREE = ("torch", "CUDA", "NCCL", "megatron-core", "megatron_cod", "transformer_engine")
_DRIVER = Path("/proc/driver/nvidia/version")


@functools.cache
def code_digest(package: Path = Path(megatron_cod.__file__).parent) -> str:
    """A short digest of a package's Python files: two checkouts of one version may still be different code."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions_here() -> dict[str, str]:
    """Name -> version of everything that is there; names that are not there are omitted."""
    driver = re.search(r"Module\s+([\d.]+)", _DRIVER.read_text()) if _DRIVER.is_file() else None
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda if torch.cuda.is_available() else None,
        "NCCL": ".".join(map(str, nccl)) if nccl else None,
        "driver": driver[1] if driver else None,
        "megatron-core": _installed("megatron-core"),
        "megatron_cod": f"{megatron_cod.__version__} (code {code_digest()})",
        "transformer_engine": _installed("transformer_engine"),
    }
    return {name: version for name, version in found.items() if version}


def differences(by_host: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, list[str]]]:
    """Name -> (a line with the hosts of each version, the hosts that differ from most) for versions that differ."""
    found = {}
    for name in dict.fromkeys(name for versions in by_host.values() for name in versions):
        holders: dict[str, list[str]] = {}
        for host, versions in by_host.items():
            holders.setdefault(versions.get(name, "none"), []).append(host)
        if len(holders) == 1:
            continue
        groups = sorted(holders.items(), key=lambda item: -len(item[1]))  # a stable order: of two as large, the first
        line = f"{name} " + "; ".join(f"{version} on {listed(hosts)}" for version, hosts in groups)
        found[name] = (line, [host for _, hosts in groups[1:] for host in hosts])
    return found
