"""How the page looks: Jinja2 over one template. Whatever is in an entry is text, never markup."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darkroom.page.blocks import FOLDER, SIZE, block_of, stem
from darkroom.page.entry import Entry

TEMPLATE = Path(__file__).parent / "page.html"


class Look:
    """The template, read once."""

    def __init__(self) -> None:
        from jinja2 import Environment, StrictUndefined

        source = TEMPLATE.read_text(encoding="utf-8")
        self.mark = hashlib.sha256(f"1{source}".encode()).hexdigest()[:12]
        """Another for another template: pages with an old one are written anew."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.globals["stem"] = stem
        environment.globals["thumb"] = _thumb
        self._template = environment.from_string(source)

    def index(self, entries: Sequence[Entry], numbers: Sequence[int], title: str, total: int) -> bytes:
        """``index.html``: these entries, newest first; older blocks behind a link."""
        older = numbers[-3] if len(numbers) > 2 else None
        return self._page(entries, title=title, up="", older=older, newer=None, numbers=list(numbers), total=total)

    def block(self, number: int, entries: Sequence[Entry], numbers: Sequence[int], title: str) -> bytes:
        """The page of one block."""
        at = numbers.index(number)
        older = numbers[at - 1] if at > 0 else None
        newer = numbers[at + 1] if at + 1 < len(numbers) else None
        return self._page(entries, title=title, up="../", older=older, newer=newer, numbers=[], total=0)

    def _page(self, entries: Sequence[Entry], **values: Any) -> bytes:
        latest = entries[0].n if entries else 0
        page = self._template.render(entries=entries, latest=latest, folder=FOLDER, size=SIZE, **values)
        return page.encode("utf-8", "replace")


def _thumb(entry: Entry) -> str:
    return f"{FOLDER}/{stem(block_of(entry.n))}/{entry.n}.jpg"
