"""What a dropped file is: a job and what it needs, a list of jobs, or nothing that can ever be one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from darkroom import dropped
from darkroom.config import Config
from darkroom.errors import FieldError, InvalidRequest, JobError, Unfinished
from darkroom.inputs.sources import base_of, find, has_pictures
from darkroom.intake import Needs
from darkroom.job import NO_PICTURES, Given, Job, JobList, Request, goes_by_lines, lone_faults, read_presets, resolve
from darkroom.models.catalog import Catalog

MOST_KNOWN = 1 << 20
"""A job file with more bytes, pictures among them, is read twice rather than kept."""


class Reader:
    """Reads files by a configuration. Raises ConfigError where a preset of it cannot be."""

    def __init__(self, config: Config, inbox: Path) -> None:
        self.catalog = Catalog(config.models)
        self.presets = read_presets(config)
        self._config = config
        self._inbox = inbox
        self._known: tuple[str, bytes | None, Request | JobList] | None = None
        """What was read last: a file that is judged when its turn comes is claimed next."""

    def read(self, name: str, data: bytes | None) -> Request | JobList:
        """What a file of that name asks for; no data is a file over the limit. Raises InvalidRequest."""
        if self._known is None or self._known[:2] != (name, data):
            self._known = None
            request = dropped.read(name, data, self._config.limits, self.presets, self.lone_faults)
            if data is not None and len(data) > MOST_KNOWN:
                return request
            self._known = (name, data, request)
        return self._known[2]

    def judge(self, name: str, data: bytes | None) -> Needs:
        """Whether a file can be a job here, and what it needs; or that it is a list. Raises InvalidRequest."""
        if data is not None and goes_by_lines(name):
            raise Unfinished("Nothing tells the end of this list: it is taken when it has not grown for a while")
        request = self.read(name, data)
        if isinstance(request, JobList):
            if not request.is_whole:
                raise Unfinished("An entry of this list is no JSON: it may still be being written")
            return Needs((), arrived=True, is_list=True)
        if not has_pictures(request):
            return Needs((), arrived=True, pictured=False, model=self._model_of(request, NO_PICTURES))
        base = base_of(name, request, self._inbox)
        found = find(request, base, self._config.limits)
        beside = tuple(f"{base.folder}/{path}" if base.folder else path for path in found.beside.values())
        try:
            found.refuse(missing=False, others=lambda: self.lone_faults(request))
            model = self._model_of(request, found.given)
        except InvalidRequest:
            return Needs(beside, arrived=not found.missing, hopeless=True)
        return Needs(beside, arrived=not found.missing, model=model)

    def resolve(self, request: Request, id: str, pictures: Mapping[str, Given] = NO_PICTURES) -> Job:
        """Every gap filled. Raises JobError."""
        return resolve(request, self._config, self.catalog, id, pictures)

    def lone_faults(self, request: Request) -> list[FieldError]:
        """What is wrong with its values, each by itself."""
        return lone_faults(request, self._config, self.catalog)

    def _model_of(self, request: Request, pictures: Mapping[str, Given]) -> str | None:
        """The model that the job needs, if that is known. Raises InvalidRequest."""
        try:
            return self.resolve(request, "judged", pictures).model
        except InvalidRequest:
            raise
        except JobError:
            return None  # a model that is broken now may be mended before the job's turn
