"""Pictures as files, each with its recipe inside, and a sheet of many."""

from darkroom.output.encode import encode, extension, read_size, recipe
from darkroom.output.infotext import infotext
from darkroom.output.sheet import contact_sheet

__all__ = ["contact_sheet", "encode", "extension", "infotext", "read_size", "recipe"]
