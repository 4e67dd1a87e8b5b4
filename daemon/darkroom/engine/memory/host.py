"""The machine by itself: its processor's name; its memory, as far as this process may have of it: what is free, who
was killed for it, a bound.

Linux tells; elsewhere most of it is None, and nothing is bounded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RESERVE = 256 << 20
"""Bytes that a bound leaves to the rest of the machine, and to what this process has but never touched.

Where little is free, a quarter of it.
"""

CODE = (32 << 20, 256 << 20)
"""Bytes that a bound is first widened by for code, and at most. oneDNN was seen to ask for 21 MiB for the bundled
model's first picture and for 12 for one of another size, and to touch one of them."""

_MOST_BLAMED = 20
"""For so many failures of a job at most a bound may be to blame."""

_UNLIMITED = 1 << 60

_HERE = Path("/")
"""Where /proc and /sys are."""


@functools.cache
def cpu_name() -> str:
    """The processor's name as the kernel tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def free_bytes(root: Path = _HERE, *, anonymous: int = 0, mapped: int = 0) -> int | None:
    """What this process may still allocate: the machine's, its control groups' and its own limits' smallest.

    The page cache counts as free, since the kernel gives it up. Asked for the room of something that is partly there,
    its bytes count too: ``mapped`` ones, from a file, are page cache to the machine, but not to the process's limits.
    ``root`` is where /proc and /sys are.
    """
    shared = _shared_free(root)
    found = [] if shared is None else [shared + anonymous]
    return min([*found, *(free + anonymous + mapped for free in _under_own_limits(root))], default=None)


def used_bytes() -> int | None:
    """What of this process lies in memory now."""
    return _own(_HERE, _RESIDENT)


def anonymous_bytes() -> int | None:
    """What of this process lies in memory now and comes from no file."""
    return _field(Path("/proc/self/status"), "RssAnon:", 1024)


def oom_kills(root: Path = _HERE) -> int | None:
    """How many processes of this control group the kernel has killed for want of memory; of the machine's, if need be.

    None where it does not say.
    """
    for file in (*_tallies(_groups(root)), f"{root}/proc/vmstat"):
        count = _field(file, "oom_kill ", 1)
        if count is not None:
            return count
    return None


class Bound:
    """A bound on what this process may allocate, while it has one: then an allocation fails, which can be answered.

    Without it the kernel would grant the allocation, and kill the process when it is used. Where it is not ``wanted``
    none is drawn.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self._wanted = wanted
        self._own: tuple[int, int] | None = None
        self._data = self._code = 0
        """Bytes of this process's data, and of code among them, when it was drawn."""
        self._more = 0
        """Bytes that it is wider for code to come."""
        self._blamed = 0

    def draw(self, mapping: int = 0) -> int | None:
        """Let it have what is free now, and no more. To be renewed, since that changes.

        ``mapping`` are bytes of files that it is about to map: they count as its data, but the kernel can read them
        again and gives up their pages. Returns the bytes that it may still allocate, None where nothing was bounded.
        """
        if sys.platform != "linux" or not self._wanted:
            return None
        import resource

        self.lift()
        data, free = _own(_HERE, _DATA), _shared_free(_HERE)
        if data is None or free is None:
            return None
        self._own = resource.getrlimit(resource.RLIMIT_DATA)
        if data != self._data:  # code counts as data: where that is what it was, so is the code
            self._data, self._code = data, code_bytes()
        own, hard = self._own
        soft = data + mapping + self._more + free - min(RESERVE, free // 4)
        if own != resource.RLIM_INFINITY:
            soft = min(soft, own)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        return soft - data

    def too_narrow(self, *, for_code: bool) -> bool:
        """Lift it after an allocation failed, ``for_code`` where a kernel was to be compiled: was it to blame for that?

        What kernels are compiled into counts as data with all its address space, of which hardly anything is touched.
        Where this is true the next bound is drawn wider, and the same is worth another try.
        """
        drawn, left = self._own is not None, self._left()
        self.lift()  # to look takes memory too
        self._blamed += 1
        if not drawn or self._blamed > _MOST_BLAMED:
            return False
        if for_code and self._more < CODE[-1]:
            self._more = max(CODE[0], 2 * self._more)
            return True
        # the next one is drawn around it; of much room that is left it can have taken nothing that matters
        return code_bytes() - self._code >= max(1 << 20, left // 4)

    def _left(self) -> int:
        """Bytes to the bound; 0 where there is no memory to look."""
        if self._own is None:
            return 0
        import resource

        data = _field(Path("/proc/self/status"), "VmData:", 1024)
        return 0 if data is None else max(0, resource.getrlimit(resource.RLIMIT_DATA)[0] - data)

    def end(self) -> None:
        """The job is over."""
        self.lift()
        self._more = self._blamed = 0

    def lift(self) -> None:
        """Let it have as much as before."""
        if self._own is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, self._own)
            self._own = None


def code_bytes() -> int:
    """Address space of this process that code is compiled into: no file's, and both to be written and to be run."""
    maps = (line.split(None, 5) for line in _read("/proc/self/maps").splitlines())
    spans = (words[0].split("-") for words in maps if len(words) == 5 and words[1] == "rwxp")
    return sum(int(end, 16) - int(begin, 16) for begin, end in spans)


def give_back() -> None:
    """Hand pages that the C library's allocator keeps for later back to the machine (glibc)."""
    _libc("malloc_trim", 0)


def save_memory(wanted: bool) -> None:
    """Whether every tensor of a MiB or more comes from the machine and goes back to it at once (glibc).

    Otherwise those up to 32 MiB come out of one heap, which is faster, but fills up with gaps: seen to grow until
    nothing fitted any more, with half of it free.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    _libc("mallopt", m_mmap_threshold, 1 << 20 if wanted else 32 << 20)
    _libc("mallopt", m_trim_threshold, 1 << 20 if wanted else 64 << 20)


def _libc(name: str, *arguments: int) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), name)(*arguments)


def _shared_free(root: Path) -> int | None:
    """What is free for this process and others: of the machine, and of the control groups."""
    found = [_field(f"{root}/proc/meminfo", "MemAvailable:", 1024), *map(_group_free, _limits(_groups(root)))]
    return min((max(0, size) for size in found if size is not None), default=None)


def _groups(root: Path) -> tuple[str, ...]:
    """The folders of this process's memory control group and of those around it, innermost first, both versions."""
    return _folders(root, _read(f"{root}/proc/self/cgroup"))


@functools.lru_cache(maxsize=4)
def _folders(root: Path, groups: str) -> tuple[str, ...]:
    """The same, given what the kernel says of all groups: which seldom changes."""
    found = []
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if "memory" in controllers.split(","):
            top = f"{root}/sys/fs/cgroup/memory"
        elif number == "0" and not controllers:
            top = f"{root}/sys/fs/cgroup"
        else:
            continue
        folder = f"{top}/{name.strip('/')}".rstrip("/")
        if not Path(folder).is_dir():  # a container sees its own group as the top
            folder = top
        found.append(folder)
        while folder != top:
            folder = folder.rpartition("/")[0]
            found.append(folder)
    return tuple(found)


@functools.lru_cache(maxsize=4)
def _tallies(folders: tuple[str, ...]) -> tuple[str, ...]:
    """The files that may count these groups' dead, those of other versions left out."""
    files = (f"{folder}/{name}" for folder in folders for name in ("memory.events", "memory.oom_control"))
    return tuple(file for file in files if Path(file).exists())


@dataclass(frozen=True)
class _Limit:
    """Where a group says how much it may have, how much it has, and which of that are caches of files."""

    most: str
    used: str
    details: str
    caches: tuple[str, str]


@functools.lru_cache(maxsize=4)
def _limits(folders: tuple[str, ...]) -> tuple[_Limit, ...]:
    """Of those that can have one: the top of all has none, nor has a folder of the other version."""
    return tuple(
        _Limit(f"{folder}/{most}", f"{folder}/{used}", f"{folder}/memory.stat", caches)
        for folder in folders
        for most, used, caches in (
            ("memory.max", "memory.current", ("inactive_file ", "active_file ")),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file ", "total_active_file ")),
        )
        if Path(folder, most).exists()
    )


def _group_free(limit: _Limit) -> int | None:
    """Bytes to the group's limit; None where it has none."""
    most = _number(limit.most)
    if most is None or most >= _UNLIMITED:
        return None
    used = _number(limit.used)
    if used is None:
        return None
    return most - used + sum(_field(limit.details, cache, 1) or 0 for cache in limit.caches)


def _under_own_limits(root: Path) -> Iterator[int]:
    """Bytes to the limits that this process was started with."""
    if sys.platform != "linux":
        return
    import resource

    for kind, column in ((resource.RLIMIT_AS, _SIZE), (resource.RLIMIT_DATA, _DATA)):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY and (used := _own(root, column)) is not None:
            yield max(0, soft - used)


_SIZE, _RESIDENT, _DATA = 0, 1, 5
"""Columns of statm. The last has the stack in it, besides what a limit to data is about: some hundred KiB."""


def _own(root: Path, column: int) -> int | None:
    """Bytes of this process. Out of its status the kernel takes ten times as long to tell them."""
    with contextlib.suppress(ValueError, IndexError):
        return int(_read(f"{root}/proc/self/statm").split()[column]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _field(file: Path | str, name: str, unit: int) -> int | None:
    """The number in the line that begins with ``name``, times ``unit``."""
    text = _read(file)
    begin = 0 if text.startswith(name) else text.find(f"\n{name}") + 1 or None
    if begin is None:
        return None
    with contextlib.suppress(ValueError, IndexError):
        return int(text[begin + len(name) :].split(None, 1)[0]) * unit
    return None


def _number(file: Path | str) -> int | None:
    with contextlib.suppress(ValueError):
        return int(_read(file))
    return None


def _read(file: Path | str) -> str:
    """Nothing where it cannot be read, for want of memory too: that is when it is asked."""
    try:
        opened = _opened(os.fspath(file), os.getpid())
    except (OSError, MemoryError):
        return ""
    try:
        return opened.read()
    except MemoryError:
        return ""
    except OSError:
        _opened.cache_clear()  # a group that is gone; another one may have its name by now
        return ""


class _Opened:
    """One of the kernel's files, kept open: what stands in it is made anew whenever it is read from its beginning.

    A dozen are read before every job. ``process`` keeps one that was forked from asking for its parent's.
    """

    def __init__(self, file: str, process: int) -> None:
        self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # it could not be opened
            os.close(self._descriptor)

    def read(self) -> str:
        """All of it. Raises OSError."""
        pieces, size = [], 0
        while piece := os.pread(self._descriptor, 1 << 16, size):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces).decode("utf-8", "replace")


_opened = functools.lru_cache(maxsize=32)(_Opened)
