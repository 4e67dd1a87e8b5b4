"""Pictures as files, each with its recipe inside, and a sheet of many."""

from darkroom.output.encode import encode, extension, read_size
from darkroom.output.grid import grid
from darkroom.output.infotext import infotext, read_infotext
from darkroom.output.recipes import job_in, recipe
from darkroom.output.sheet import Sheet, contact_sheet
from darkroom.output.thumbnail import thumbnail, thumbnail_of

__all__ = [
    "Sheet",
    "contact_sheet",
    "encode",
    "extension",
    "grid",
    "infotext",
    "job_in",
    "read_infotext",
    "read_size",
    "recipe",
    "thumbnail",
    "thumbnail_of",
]
