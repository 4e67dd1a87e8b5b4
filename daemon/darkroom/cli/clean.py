"""``darkroom clean``: old results removed by hand, as ``[retention]`` has it done by the daemon."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from darkroom.cli.status import existing_spool
from darkroom.cli.units import duration, read_duration, read_size, size
from darkroom.config import load
from darkroom.errors import StorageTrouble, UsageError, refusal
from darkroom.retention import Outcome, Rule, Rules, clear_remains, rules, sweep
from darkroom.visible import visible


def clean(
    config_file: Path | None,
    root: Path | None,
    *,
    older_than: str | None,
    keep: int | None,
    max_size: str | None,
    only: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove what the options do not keep; without them, what the config does not. Raises UsageError."""
    spool = existing_spool(config_file, root)
    bases = {"done": spool.done, "failed": spool.failed}
    if only is not None and only not in bases:
        raise UsageError(f"--only {only}: there are done and failed")
    age_s = None if older_than is None else read_duration(older_than)
    rule = Rule(age_s, keep, None if max_size is None else read_size(max_size))
    wanted: Rules = dict.fromkeys(bases.values(), rule)
    if rule == Rule():
        wanted = rules(spool, load(config_file, root=root).retention)
    wanted = {base: rule for base, rule in wanted.items() if only is None or base == bases[only]}
    if not wanted:
        raise UsageError(
            "nothing says what to remove: give --older-than, --keep or --max-size, or set [retention] in the config"
        )
    outcomes: list[Outcome] = []
    try:
        for base in () if dry_run else wanted:
            for _ in clear_remains(spool.disk, base):
                continue
        for outcome in sweep(spool.disk, wanted, dry_run=dry_run):
            if outcome is not None:
                outcomes.append(outcome)
                if not as_json:
                    _say(outcome, dry_run)
    except (OSError, StorageTrouble) as error:
        raise UsageError(f"cannot go on: {refusal(error)}") from None
    if as_json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], ensure_ascii=False))
    else:
        _sum_up(outcomes, dry_run)


def _say(outcome: Outcome, dry_run: bool) -> None:
    if outcome.left is not None:
        print(visible(f"left alone: {outcome.name}: {outcome.left}"), file=sys.stderr)
        return
    doing = "would remove" if dry_run else "removed"
    print(visible(f"{doing} {outcome.name}  {duration(outcome.age_s)} old, {size(outcome.bytes)}"))


def _sum_up(outcomes: list[Outcome], dry_run: bool) -> None:
    removed = [outcome for outcome in outcomes if outcome.left is None]
    freed = size(sum(outcome.bytes for outcome in removed))
    results = "1 result" if len(removed) == 1 else f"{len(removed):,} results"
    print(f"{results}, {freed}: nothing was touched" if dry_run else f"{results} removed, {freed}")
