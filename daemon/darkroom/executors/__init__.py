"""Where jobs run: one seam, ``Executor``. ``local`` is a supervised child process, ``fake`` is for tests."""

from darkroom.config import Config
from darkroom.executors.base import Executor
from darkroom.executors.fake import FakeExecutor
from darkroom.executors.local import LocalExecutor

__all__ = ["Executor", "FakeExecutor", "LocalExecutor", "make_executor"]


def make_executor(config: Config) -> Executor:
    """The executor that ``[executor] kind`` names."""
    if config.executor.kind == "fake":
        return FakeExecutor(config)
    return LocalExecutor(config)
