"""Choosing whom to look at when more files wait than can be kept in order."""

from __future__ import annotations

Place = tuple[int, str]
"""A file's inode number and name: where it stands in the round."""

START: Place = (-1, "")


class Choice:
    """Of all that are offered, the ``room`` files that come next after ``after``, going round.

    The round goes by inode number, which a scan has for nothing and which most file systems give out in the order of
    arrival. As each choice begins where the last one ended, every file's turn comes, whatever arrives meanwhile and in
    whichever order the folder is read. Keeps twice ``room`` at most.
    """

    def __init__(self, room: int, after: Place) -> None:
        self.offered = 0
        self._room = max(0, room)
        self._after = after
        self._kept: list[tuple[bool, int, str]] = []
        self._last: tuple[bool, int, str] | None = None

    def offer(self, inode: int, name: str) -> None:
        """One that waits."""
        self.offered += 1
        place = ((inode, name) <= self._after, inode, name)
        if self._last is not None and place > self._last:
            return
        self._kept.append(place)
        if len(self._kept) > 2 * self._room + 16:
            self._shorten()

    def _shorten(self) -> None:
        self._kept.sort()
        del self._kept[self._room :]
        self._last = self._kept[-1] if self._kept else (False, -1, "")

    def chosen(self) -> list[Place]:
        """The places of those chosen, in the order of the round."""
        self._shorten()
        return [(inode, name) for _, inode, name in self._kept]
