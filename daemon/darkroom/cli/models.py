"""``darkroom models``: what jobs may name, and what is wrong with those that they cannot use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from darkroom.catalog import Catalog
from darkroom.config import Config, load
from darkroom.errors import ModelUnavailable
from darkroom.families import FAMILIES


def list_models(config_file: Path | None, root: Path | None, *, as_json: bool) -> int:
    """Print them. Returns 1 if one of them cannot be used."""
    config = load(config_file, root=root)
    models = gather(config)
    if as_json:
        print(json.dumps(models, ensure_ascii=False))
    else:
        _show(models)
    return 0 if all(model["usable"] for model in models) else 1


def gather(config: Config) -> list[dict[str, Any]]:
    """Each as an object that JSON can hold; ``why`` says why one that is not usable is not."""
    catalog = Catalog(config.models)
    return [_describe(catalog, name) for name in catalog.names()]


def _describe(catalog: Catalog, name: str) -> dict[str, Any]:
    about: dict[str, Any] = {"name": name, "default": name == catalog.default, "usable": False}
    try:
        model = catalog.get(name)
        assert model is not None
        about |= {"source": model.source, "path": str(model.place)}
        if model.configured.hub is not None:
            about["hub"] = model.configured.hub
        if not model.fetched:
            return about | {"why": f"not fetched: `darkroom pull {name}`"}
        about |= {"family": model.family, "bytes": model.size()}
        if model.checkpoint is not None:
            about["base"] = str(model.folder)
        if model.family not in FAMILIES:
            return about | {"why": f"darkroom cannot run {model.family}, only {', '.join(FAMILIES)}"}
        defaults = model.defaults
        return about | {"width": defaults.width, "height": defaults.height, "usable": True}
    except ModelUnavailable as error:
        return about | {"why": error.message}


def _show(models: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("model", "family", "on disk", "size", "from"):
        table.add_column(column, justify="right" if column == "on disk" else "left", no_wrap=column == "model")
    for model in models:
        name = escape(model["name"]) + (" [green](default)[/green]" if model["default"] else "")
        size = f"{model['width']}×{model['height']}" if model["usable"] else ""
        disk = f"{model['bytes'] / 2**20:,.0f} MiB" if "bytes" in model else ""
        place = escape(f"{model.get('source', '')} {model.get('hub') or model.get('path', '')}".strip())
        if "why" in model:
            place = f"[red]{escape(model['why'])}[/red]"
        table.add_row(name, model.get("family", ""), disk, size, place)
    Console(highlight=False).print(table)
