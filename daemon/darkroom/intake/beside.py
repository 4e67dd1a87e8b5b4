"""Which waiting job begins with which pictures of the inbox: those are no jobs."""

from __future__ import annotations

from collections import Counter


class Beside:
    """Told of each job that names pictures, and when it no longer waits."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[str, ...]] = {}
        self._jobs: Counter[str] = Counter()

    def note(self, job: str, pictures: tuple[str, ...]) -> None:
        """A job begins with these pictures, by their names in the inbox."""
        self.forget(job)
        self._of[job] = tuple(dict.fromkeys(pictures))
        self._jobs.update(self._of[job])

    def forget(self, job: str) -> list[str]:
        """The job does not wait any more. Returns the pictures that no other names."""
        pictures = self._of.pop(job, ())
        self._jobs.subtract(pictures)
        free = [picture for picture in pictures if not self._jobs[picture]]
        for picture in free:
            del self._jobs[picture]
        return free

    def names(self, picture: str) -> bool:
        """Whether a job that waits begins with this picture."""
        return picture in self._jobs

    def only_of(self, job: str) -> tuple[str, ...]:
        """The pictures that the job names and no other does."""
        return tuple(picture for picture in self._of.get(job, ()) if self._jobs[picture] == 1)
