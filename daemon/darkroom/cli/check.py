"""``darkroom check``: job files, or the machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from darkroom.check import check_job, preflight
from darkroom.config import load
from darkroom.models.catalog import Catalog
from darkroom.visible import visible


def check_files(files: list[Path], config_file: Path | None, root: Path | None, *, as_json: bool) -> int:
    """Say of each file whether it is a job that can run here. Returns 1 if one is not."""
    config = load(config_file, root=root)
    catalog = Catalog(config.models)
    found = {str(path): check_job(path, config, catalog) for path in files}
    if as_json:
        print(json.dumps({path: {"ok": not faults, "errors": faults} for path, faults in found.items()}))
    else:
        for path, faults in found.items():
            if not faults:
                print(visible(f"✓ {path}"))
            for fault in faults:
                print(visible(f"✗ {path}: {fault}"))
    return 1 if any(found.values()) else 0


def check_machine(config_file: Path | None, root: Path | None, *, as_json: bool) -> int:
    """Look everything over. Returns 2 if something must be mended before `darkroom run` can work."""
    config = load(config_file, root=root)
    findings = []
    for finding in preflight(config):
        findings.append(finding)
        if not as_json:
            print(visible(f"{'✓' if finding.ok else '✗'} {finding.what}: {finding.message}"), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    return 0 if all(finding.ok for finding in findings) else 2
