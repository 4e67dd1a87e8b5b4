"""Models from the hub: fetched ahead or by a job, whole or not at all, from a stand-in on this machine."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Darkroom
from darkroom.models.catalog import BUNDLED
from darkroom.models.hub import choose
from hub_stand_in import Hub, serving

NAME = "somebody/seedling"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The bundled model, with what else such repositories hold."""
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "repository"))
    (folder / "README.md").write_text("# seedling")
    (folder / "all-in-one.safetensors").write_bytes(b"a checkpoint of the same weights")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "unet/custom.py").write_text("raise SystemExit('remote code ran')")
    with serving(NAME, folder) as hub:
        yield hub


@pytest.fixture
def config(darkroom: Darkroom, tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[folders]\nroot = "{darkroom.root}"\n'
        f'[models]\nhub_dir = "{tmp_path / "hub"}"\n'
        f'[models.mine]\npath = "hub:{NAME}"\n[models.other]\npath = "hub:nobody/nothing"\n'
        '[engine]\ndevice = "cpu"\ndtype = "float32"\nthreads = 1\n'
        f'cache_dir = "{tmp_path / "cache"}"\n'
    )
    return file


def environment(tmp_path: Path, url: str) -> dict[str, str]:
    return os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }


def call(tmp_path: Path, url: str, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "darkroom", *arguments, "--config", str(tmp_path / "config.toml")]
    ran = subprocess.run(command, env=environment(tmp_path, url), capture_output=True, text=True, timeout=120)
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout + ran.stderr


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_fetched_whole_without_pickles_code_and_doubles_and_is_then_like_any_other(
    tmp_path: Path, config: Path, hub: Hub
) -> None:
    before = {model["name"]: model for model in json.loads(call(tmp_path, hub.url, "models", "--json", code=1))}
    assert before["mine"]["why"] == "not fetched: `darkroom pull mine`"
    said = call(tmp_path, hub.url, "pull", "mine")
    assert said.startswith(f"{NAME}: ")
    assert said.endswith("mine is fetched\n")
    assert tree(tmp_path / "hub/somebody--seedling") == tree(BUNDLED)
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["somebody--seedling"]
    assert not [line for line in hub.requests if line.endswith((".bin", ".py", ".md", "all-in-one.safetensors"))]
    after = {model["name"]: model for model in json.loads(call(tmp_path, hub.url, "models", "--json", code=1))}
    assert (after["mine"]["usable"], after["mine"]["family"], after["mine"]["hub"]) == (True, "SD 1", NAME)
    count = len(hub.requests)
    assert "mine is there" in call(tmp_path, hub.url, "pull", "mine")
    assert len(hub.requests) == count


def test_what_was_fetched_before_an_interruption_is_not_fetched_again(tmp_path: Path, config: Path, hub: Hub) -> None:
    hub.fails_after = 4
    assert f"{NAME} " in call(tmp_path, hub.url, "pull", "mine", code=1)
    assert not (tmp_path / "hub/somebody--seedling").exists()
    first = {line for line in hub.requests if line.startswith("GET") and "/resolve/" in line}
    hub.fails_after = None
    hub.requests.clear()
    call(tmp_path, hub.url, "pull", "mine")
    assert tree(tmp_path / "hub/somebody--seedling") == tree(BUNDLED)
    again = {line for line in hub.requests if line.startswith("GET") and "/resolve/" in line}
    assert len(again) < len(tree(BUNDLED))
    assert first - again


def test_on_a_terminal_there_is_a_bar(tmp_path: Path, config: Path, hub: Hub) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "darkroom", "pull", "mine", "--config", str(config)]
    settings = environment(tmp_path, hub.url) | {"TERM": "xterm"}
    process = subprocess.Popen(command, env=settings, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:
        pass  # the end of a terminal
    os.close(ours)
    assert process.wait(60) == 0
    assert "━" in shown.decode()
    assert "MiB" in shown.decode() or "KiB" in shown.decode()


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("pull", "other"), "there is no nobody/nothing on the hub, or it is private and HF_TOKEN is not set", 1),
        (("pull", "seedling"), 'the model "seedling" is on this machine; there is nothing to fetch', 2),
        (("pull", "else"), 'add [models.else] with path = "hub:owner/name"', 2),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(
    tmp_path: Path, config: Path, hub: Hub, arguments: tuple[str, ...], words: str, code: int
) -> None:
    said = call(tmp_path, hub.url, *arguments, code=code)
    assert words in said
    assert said.count("\n") == 1


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path, config: Path) -> None:
    said = call(tmp_path, "http://127.0.0.1:9", "pull", "mine", code=1)
    assert f"{NAME} cannot be fetched from the hub: " in said
    assert said.count("\n") == 1


def test_a_repository_that_is_no_diffusers_folder_is_refused(tmp_path: Path, config: Path, hub: Hub) -> None:
    (hub.folder / "model_index.json").unlink()
    assert "is no diffusers folder: it has no model_index.json" in call(tmp_path, hub.url, "pull", "mine", code=1)


def test_a_job_for_a_model_that_is_not_there_does_not_go_to_the_network(
    darkroom: Darkroom, tmp_path: Path, config: Path, hub: Hub
) -> None:
    darkroom.drop("plain.json", {"prompt": "x", "model": "mine", "steps": 1})
    config.write_text(config.read_text().replace("[models.other]", "width = 64\nheight = 64\n[models.other]"))
    darkroom.drop("sized.json", {"prompt": "x", "model": "mine", "steps": 1})
    call(tmp_path, hub.url, "run", "--once", code=1)
    for name in ("plain", "sized"):
        error = darkroom.error(name)
        assert error["reason"] == "model-unavailable"
        assert "has not been fetched from the hub" in error["message"]
        assert "`darkroom pull mine`" in error["message"]
    assert hub.requests == []


def test_where_it_is_allowed_a_job_fetches_its_model_by_itself(
    darkroom: Darkroom, tmp_path: Path, config: Path, hub: Hub
) -> None:
    text = config.read_text().replace("[models.other]", "width = 64\nheight = 64\n[models.other]")
    config.write_text(text.replace("[models]\n", "[models]\nallow_download = true\n"))
    job = {"prompt": "a red circle", "model": "mine", "steps": 1, "seed": 1, "cfg_scale": 5, "sampler": "Euler"}
    darkroom.drop("cat.json", job)
    darkroom.drop("dog.json", job)
    call(tmp_path, hub.url, "run", "--once")
    assert darkroom.result("cat")["pictures"][0]["sha256"] == darkroom.result("dog")["pictures"][0]["sha256"]
    assert tree(tmp_path / "hub/somebody--seedling") == tree(BUNDLED)


def test_of_two_precisions_the_half_is_fetched_where_it_is_there() -> None:
    names = [
        "model_index.json",
        "model.safetensors",
        "pytorch_model.bin",
        "safety_checker/model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    ]
    assert choose(names) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
