"""The page of all results, ``done/index.html``: static, without a server, made in the daemon's spare time."""

from darkroom.page.page import Page

__all__ = ["Page"]
