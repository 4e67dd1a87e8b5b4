"""A model of a disk whose power may go at any moment, and of what may then be found on it.

A record of the calls to ``Disk`` is replayed. Each folder keeps a log of what was done to its entries; each file keeps
what was written and what of it was synced. After a cut

- a folder's entries are those of its log up to any point at or after its last fsync, each folder for itself;
- a rename from one folder to another stands in both logs or in neither (``journal=True``), or, on file systems that
  have no journal, such as exFAT, in each by itself (``journal=False``);
- a folder or file whose entry is lost is lost with all that is in it;
- what was written to a file since its last fsync is there, not there, zeros, or there in part. fsync of a file does
  not sync its entry.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from darkroom.spool import Call, disk

State = dict[str, bytes | None]
"""What lies on a disk: relative path to content, None for a folder."""

Site = tuple[str, int]
"""A place in the code: file and line."""

KINDS = ("lost", "zeros", "torn")
SAMPLES = 30


@dataclass(eq=False)
class File:
    """``synced`` is what is surely on the disk."""

    data: bytes = b""
    synced: bytes = b""

    def after(self, kind: str) -> bytes:
        """The content after a cut that was ``kind`` to it."""
        kept = self.synced if self.data.startswith(self.synced) else b""
        rest = self.data[len(kept) :]
        return kept + {"lost": b"", "zeros": bytes(len(rest)), "torn": rest[: len(rest) // 2]}[kind]


@dataclass(eq=False)
class Change:
    """What one operation did to a folder's entries; None is a name removed. ``twin`` is its half in another log."""

    entries: dict[str, File | Folder | None]
    twin: tuple[Folder, int] | None = None


@dataclass(eq=False)
class Folder:
    """``synced`` is how much of the log is surely on the disk."""

    before: dict[str, File | Folder] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)
    synced: int = 0
    now: dict[str, File | Folder] = field(init=False)

    def __post_init__(self) -> None:
        self.now = dict(self.before)

    def change(self, entries: dict[str, File | Folder | None]) -> Change:
        """Note an operation, and do it."""
        change = Change(entries)
        self.log.append(change)
        self.now = {name: node for name, node in (self.now | entries).items() if node is not None}
        return change

    def entries(self, length: int) -> dict[str, File | Folder]:
        """As of the first ``length`` operations."""
        if length == len(self.log):
            return self.now
        found: dict[str, File | Folder | None] = dict(self.before)
        for change in self.log[:length]:
            found |= change.entries
        return {name: node for name, node in found.items() if node is not None}


class DiskModel:
    """The disk under ``root``. What lies there at first counts as durable; ``ignored`` names are left out."""

    def __init__(self, root: Path, *, journal: bool = True, ignored: frozenset[str] = frozenset()) -> None:
        self.root = root
        self.journal = journal
        self.ignored = ignored
        self.top = Folder()

    def start_with(self, state: State) -> None:
        """Put files and folders there that are durable."""
        for name, data in sorted(state.items()):
            *parents, leaf = name.split("/")
            folder = self.top
            for parent in parents:
                folder = folder.now[parent]  # type: ignore[assignment]
            node = Folder() if data is None else File(data, data)
            folder.before[leaf] = folder.now[leaf] = node

    # The calls

    def apply(self, call: Call) -> None:
        """What the call does; one that must fail does nothing."""
        if call.path.name in self.ignored or not call.path.is_relative_to(self.root):
            return
        node = self._find(call.path)
        match call.name:
            case "fsync":
                if isinstance(node, Folder):
                    self._reach(node, len(node.log))
                elif isinstance(node, File):
                    node.synced = node.data
            case "syncfs":
                self._sync(self.top)
            case "mkdir" if node is None:
                self._folder_of(call.path).change({call.path.name: Folder()})
            case "create" if node is None:
                self._folder_of(call.path).change({call.path.name: File()})
            case "create" if isinstance(node, File):
                node.data = b""
            case "write" if isinstance(node, File):
                node.data = call.data
            case "append":
                if node is None:
                    node = File()
                    self._folder_of(call.path).change({call.path.name: node})
                if isinstance(node, File):
                    node.data += call.data
            case "link" if node is not None and call.target is not None and self._find(call.target) is None:
                self._folder_of(call.target).change({call.target.name: node})
            case "unlink" if isinstance(node, File):
                self._folder_of(call.path).change({call.path.name: None})
            case "rmdir" if isinstance(node, Folder) and not node.now:
                self._folder_of(call.path).change({call.path.name: None})
            case "rename" if node is not None and call.target is not None:
                self._rename(node, call.path, call.target)
            case "mkdir" | "unlink" | "link" | "rename" | "rmdir":
                pass
            case "chmod" if isinstance(node, File):  # who may read it is not what is told of here
                pass
            case _:
                raise AssertionError(f"the model does not know how {call} could happen")

    def _sync(self, node: File | Folder) -> None:
        """All that is in it, now or as far as its log goes back."""
        if isinstance(node, File):
            node.synced = node.data
            return
        self._reach(node, len(node.log))
        for inner in node.now.values():
            self._sync(inner)

    def _rename(self, node: File | Folder, path: Path, target: Path) -> None:
        there = self._find(target)
        if isinstance(there, Folder) and there.now:
            return
        source, destination = self._folder_of(path), self._folder_of(target)
        if source is destination:
            source.change({path.name: None, target.name: node})
            return
        added, removed = destination.change({target.name: node}), source.change({path.name: None})
        if self.journal:
            added.twin = source, len(source.log) - 1
            removed.twin = destination, len(destination.log) - 1

    def _reach(self, folder: Folder, length: int) -> None:
        """All up to ``length`` is on the disk, and so is what stands in other logs as well."""
        begin, folder.synced = folder.synced, max(folder.synced, length)
        for change in folder.log[begin:length]:
            if change.twin is not None:
                other, index = change.twin
                self._reach(other, index + 1)

    def _find(self, path: Path) -> File | Folder | None:
        node: File | Folder | None = self.top
        for part in path.relative_to(self.root).parts:
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node

    def _folder_of(self, path: Path) -> Folder:
        folder = self._find(path.parent)
        assert isinstance(folder, Folder), f"{path.parent} was made behind the model's back"
        return folder

    # The cut

    def whole(self) -> State:
        """What every program sees as long as the power is on."""
        return self._state({}, {})

    def states(self, chance: random.Random, most: int, *, thorough: bool = False) -> Iterator[State]:
        """What may be found after a cut now, the poorest first; each once.

        Every combination of the folders where there are at most ``most``, else one and two folders at a time and a
        sample. Of the files: all whole, all unsynced ones damaged in each way, and, for the poorest and the fullest
        folders, each one by itself in one way, another after each call; ``thorough``ly for all, in each way. With
        ``most`` 0 a few: the poorest, the fullest, those where one folder differs; and the files whole or lost.
        """
        seen: set[str] = set()
        kinds = KINDS if most else KINDS[:1]
        lengths = self._open_folders()
        poorest, fullest = self._settled({folder: folder.synced for folder in lengths}), dict(lengths)
        cuts = self._cuts(lengths, chance, most) if most else self._extreme_cuts(lengths)
        for cut in self._each_once(cuts):
            unsynced: list[File] = []
            whole = self._state(cut, {}, unsynced)
            damages: list[dict[File, str]] = [dict.fromkeys(unsynced, kind) for kind in kinds] if unsynced else []
            if thorough:
                damages += [{file: kind} for file in unsynced for kind in KINDS]
            elif most and cut in (poorest, fullest):
                damages += [{file: chance.choice(KINDS)} for file in unsynced]
            for state in itertools.chain([whole], (self._state(cut, damage) for damage in damages)):
                if (key := digest(state)) not in seen:
                    seen.add(key)
                    yield state

    def _open_folders(self) -> dict[Folder, int]:
        """Those whose log is not all on the disk, with its length; of all that can still be seen after some cut."""
        found: dict[Folder, int] = {}
        known: set[Folder] = set()
        waiting = [self.top]
        while waiting:
            folder = waiting.pop()
            if folder in known:
                continue
            known.add(folder)
            if folder.synced < len(folder.log):
                found[folder] = len(folder.log)
            nodes = [*folder.before.values(), *(node for change in folder.log for node in change.entries.values())]
            waiting += [node for node in nodes if isinstance(node, Folder)]
        return found

    def _cuts(self, lengths: dict[Folder, int], chance: random.Random, most: int) -> Iterator[dict[Folder, int]]:
        """Where each log may end."""
        folders = list(lengths)
        ranges = [range(folder.synced, lengths[folder] + 1) for folder in folders]
        if math.prod(map(len, ranges)) <= most:
            return (dict(zip(folders, ends, strict=True)) for ends in itertools.product(*ranges))
        return self._some_cuts(lengths, chance)

    def _extreme_cuts(self, lengths: dict[Folder, int]) -> Iterator[dict[Folder, int]]:
        poorest = {folder: folder.synced for folder in lengths}
        yield poorest
        yield from (poorest | {folder: length} for folder, length in lengths.items())
        yield from (lengths | {folder: folder.synced} for folder in lengths)
        yield lengths

    def _each_once(self, cuts: Iterator[dict[Folder, int]]) -> Iterator[dict[Folder, int]]:
        seen: set[tuple[int, ...]] = set()
        for cut in cuts:
            settled = self._settled(cut)
            key = tuple(settled.values())
            if key not in seen:
                seen.add(key)
                yield settled

    def _some_cuts(self, lengths: dict[Folder, int], chance: random.Random) -> Iterator[dict[Folder, int]]:
        poorest = {folder: folder.synced for folder in lengths}
        for start in (poorest, lengths):
            yield dict(start)
            for one, other in itertools.combinations_with_replacement(lengths, 2):
                for end in range(one.synced, lengths[one] + 1):
                    for other_end in {other.synced, lengths[other], chance.randint(other.synced, lengths[other])}:
                        yield start | {other: other_end} | {one: end}
        for _ in range(SAMPLES):
            yield {folder: chance.randint(folder.synced, length) for folder, length in lengths.items()}

    def _settled(self, cut: dict[Folder, int]) -> dict[Folder, int]:
        """Shorten logs until each rename stands in both or in neither."""
        cut = dict(cut)
        changed = True
        while changed:
            changed = False
            for folder, end in cut.items():
                for index in range(folder.synced, end):
                    twin = folder.log[index].twin
                    if twin is not None and twin[1] >= cut.get(twin[0], len(twin[0].log)):
                        cut[folder] = index
                        changed = True
                        break
        return cut

    def _state(self, cut: dict[Folder, int], damage: dict[File, str], unsynced: list[File] | None = None) -> State:
        state: State = {}
        waiting = [("", self.top)]
        while waiting:
            prefix, folder = waiting.pop()
            for name, node in folder.entries(cut.get(folder, len(folder.log))).items():
                path = prefix + name
                if isinstance(node, Folder):
                    state[path] = None
                    waiting.append((f"{path}/", node))
                else:
                    state[path] = node.after(damage[node]) if node in damage else node.data
                    if unsynced is not None and node.data != node.synced and node not in unsynced:
                        unsynced.append(node)
        return state


def digest(state: State) -> str:
    """The same for the same state."""
    hashed = hashlib.sha256()
    for path, data in sorted(state.items()):
        hashed.update(repr((path, data if data is None else hashlib.sha256(data).digest())).encode())
    return hashed.hexdigest()


def read_state(root: Path, ignored: frozenset[str] = frozenset()) -> State:
    """What lies in a real folder."""
    state: State = {}
    for folder, folders, names in os.walk(root):
        prefix = "" if folder == str(root) else f"{folder[len(str(root)) + 1 :]}/"
        state |= {prefix + name: None for name in folders if name not in ignored}
        state |= {prefix + name: Path(folder, name).read_bytes() for name in names if name not in ignored}
    return state


def files_in(root: Path, *beginnings: str) -> Iterator[Path]:
    """Every file below a real folder whose name begins so; rglob takes long, and there are ten thousands of looks."""
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names if name.startswith(beginnings or ""))


def write_state(root: Path, state: State) -> None:
    """Make a real folder so."""
    for name, data in sorted(state.items()):
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def caller() -> Site:
    """The line outside of the disk module that asked for the call which is being observed."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename == disk.__file__ and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
