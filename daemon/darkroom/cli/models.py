"""``darkroom models``: the models and LoRAs that jobs may name, and what is wrong with those that they cannot use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from darkroom.config import Config, load
from darkroom.errors import ModelUnavailable
from darkroom.models.catalog import BASE_ALONE, Catalog
from darkroom.models.families import FAMILIES

WHOLE = 10_000
"""Columns of what is piped, so that no path is broken."""


def list_models(config_file: Path | None, root: Path | None, *, as_json: bool) -> int:
    """Print them. Returns 1 if one of them cannot be used."""
    config = load(config_file, root=root)
    models = gather(config)
    if as_json:
        print(json.dumps(models, ensure_ascii=False))
    else:
        _show(models)
    return 0 if all(model["usable"] or "base_alone" in model for model in models) else 1


def gather(config: Config) -> list[dict[str, Any]]:
    """Each as an object that JSON can hold; ``why`` says why one that is not usable is not."""
    catalog = Catalog(config.models)
    loras = [_describe_lora(catalog, name) for name in catalog.loras.names()]
    return [_describe(catalog, name) for name in catalog.names()] + loras


def _describe(catalog: Catalog, name: str) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": "model", "name": name, "default": name == catalog.default, "usable": False}
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
        if model.is_base_alone:
            return about | {"base_alone": True, "why": BASE_ALONE}
        if model.family not in FAMILIES:
            return about | {"why": f"darkroom cannot run {model.family}, only {', '.join(FAMILIES)}"}
        defaults = model.defaults
        return about | {"width": defaults.width, "height": defaults.height, "usable": True}
    except ModelUnavailable as error:
        return about | {"why": error.message}


def _describe_lora(catalog: Catalog, name: str) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": "lora", "name": name, "default": False, "usable": False}
    try:
        lora = catalog.loras.get(name)
        assert lora is not None
        about |= {"source": lora.source, "path": str(lora.file)}
        return about | {"family": lora.about.family, "bytes": lora.about.bytes, "usable": True}
    except ModelUnavailable as error:
        return about | {"why": error.message}


def _show(models: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "", "family", "on disk", "size", "from"):
        table.add_column(
            column, justify="right" if column == "on disk" else "left", no_wrap=column == "name", overflow="fold"
        )
    for model in models:
        name = escape(model["name"]) + (" [green](default)[/green]" if model["default"] else "")
        kind = "LoRA" if model["kind"] == "lora" else "model"
        size = f"{model['width']}×{model['height']}" if "width" in model else ""
        disk = f"{max(model['bytes'] / 2**20, 1):,.0f} MiB" if model.get("bytes") else ""
        place = escape(f"{model.get('source', '')} {model.get('hub') or model.get('path', '')}".strip())
        if "why" in model:
            colour = "dim" if "base_alone" in model else "red"
            place = f"[{colour}]{escape(model['why'])}[/{colour}]"
        table.add_row(name, kind, model.get("family", ""), disk, size, place)
    Console(highlight=False, width=None if sys.stdout.isatty() else WHOLE).print(table)
