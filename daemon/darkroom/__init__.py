"""darkroom: a folder-watching batch daemon for Stable Diffusion."""

__version__ = "0.1.0"
