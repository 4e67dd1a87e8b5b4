"""LoRAs by name: what their tensors' names mean, which there are, and what a job may ask for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from darkroom.check import preflight
from darkroom.config import Config, Models
from darkroom.errors import FieldError, InvalidRequest, ModelUnavailable
from darkroom.job import Job, parse, resolve
from darkroom.models.catalog import Catalog
from darkroom.models.lora_keys import Foreign, Key, compvis_name, parse_key, parse_keys
from darkroom.models.loras import BUNDLED, Loras

ATTENTION = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def save(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A safetensors file of zeros, in half precision."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return file


def lora(width: int, part: str = "unet", layer: str = ATTENTION) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small one, for prompts so many numbers wide."""
    key = f"lora_{part}_{layer}"
    return {f"{key}.lora_down.weight": (4, width), f"{key}.lora_up.weight": (96, 4), f"{key}.alpha": ()}


# ---------------------------------------------------------------- what the names mean


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            Key("unet", "down_blocks_0_attentions_0_proj_in", "down"),
        ),
        ("lora_unet_input_blocks_4_1_proj_in.lora_up.weight", Key("unet", "input_blocks_4_1_proj_in", "up")),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", Key("unet", "mid_block_resnets_0_conv1", "mid")),
        ("lora_unet_conv_in.alpha", Key("unet", "conv_in", "alpha")),
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            Key("text_encoder", "encoder_layers_0_mlp_fc1", "down"),
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
            Key("text_encoder", "encoder_layers_0_mlp_fc1", "alpha"),
        ),
        ("lora_te2_text_projection.lora_up.weight", Key("text_encoder_2", "text_projection", "up")),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", Key("unet", "mid_block_attentions_0_proj_in", "down")),
        ("unet.conv_out.lora_B.default.weight", Key("unet", "conv_out", "up")),
        ("unet.up_blocks.1.resnets.0.conv1.lora.down.weight", Key("unet", "up_blocks_1_resnets_0_conv1", "down")),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight",
            Key("unet", "mid_block_attentions_0_transformer_blocks_0_attn1_to_q", "up"),
        ),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
            Key("unet", "mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0", "down"),
        ),
        (
            "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.up.weight",
            Key("text_encoder", "encoder_layers_1_self_attn_q_proj", "up"),
        ),
        (
            "text_encoder_2.text_model.encoder.layers.1.self_attn.q_proj.lora_B.weight",
            Key("text_encoder_2", "encoder_layers_1_self_attn_q_proj", "up"),
        ),
        ("model.diffusion_model.input_blocks.0.0.weight", None),
        ("lora_unet_conv_in.lora_down.bias", None),
        ("vae.conv_in.lora_A.weight", None),
    ],
)
def test_each_spelling_names_a_layer_and_a_matrix(name: str, key: Key | None) -> None:
    assert parse_key(name) == key


@pytest.mark.parametrize(
    ("layer", "attends", "name"),
    [
        # as they stand in published SDXL LoRAs, and in the configuration of its UNet: two resnets to a block
        ("conv_in", False, "input_blocks.0.0"),
        ("down_blocks.0.resnets.0.conv1", False, "input_blocks.1.0.in_layers.2"),
        ("down_blocks.0.resnets.1.time_emb_proj", False, "input_blocks.2.0.emb_layers.1"),
        ("down_blocks.0.downsamplers.0.conv", False, "input_blocks.3.0.op"),
        ("down_blocks.1.attentions.0.proj_in", True, "input_blocks.4.1.proj_in"),
        (
            "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0",
            True,
            "input_blocks.8.1.transformer_blocks.9.attn2.to_out.0",
        ),
        ("mid_block.resnets.0.conv2", True, "middle_block.0.out_layers.3"),
        ("mid_block.attentions.0.proj_out", True, "middle_block.1.proj_out"),
        ("mid_block.resnets.1.conv1", True, "middle_block.2.in_layers.2"),
        ("up_blocks.0.attentions.2.proj_in", True, "output_blocks.2.1.proj_in"),
        ("up_blocks.0.upsamplers.0.conv", True, "output_blocks.2.2.conv"),
        ("up_blocks.1.resnets.0.conv_shortcut", True, "output_blocks.3.0.skip_connection"),
        ("up_blocks.2.upsamplers.0.conv", False, "output_blocks.8.1.conv"),
        ("conv_out", False, "out.2"),
        ("time_embedding.linear_1", False, "time_embed.0"),
        ("add_embedding.linear_2", False, "label_emb.0.2"),
        ("encoder_hid_proj", False, None),
    ],
)
def test_a_layer_is_found_by_the_name_that_compvis_gave_it(layer: str, attends: bool, name: str | None) -> None:
    assert compvis_name(layer, 2, attends) == name


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["lora_unet_x.hada_w1_a", "lora_unet_x.alpha"], "a LoHa"),
        (["lora_unet_x.lokr_w1", "lora_unet_x.alpha"], "a LoKr"),
        (["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_unet_x.dora_scale"], "a DoRA"),
        (["unet.x.lora_A.weight", "unet.x.lora_B.weight", "unet.x.lora_magnitude_vector.weight"], "a DoRA"),
        (["lora_unet_x.diff"], "differences of whole layers"),
        (["lora_unet_x.oft_blocks"], "an OFT"),
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "a LoRA for Flux"),
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA for Stable Diffusion 3"),
        (["lora_unet_x.lora_down.weight", "lora_unet_x.alpha"], "is not whole"),
        (["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "y"], "it cannot tell what y is"),
    ],
)
def test_what_cannot_be_applied_is_named(names: list[str], said: str) -> None:
    with pytest.raises(Foreign, match=said):
        parse_keys(names)


def test_what_is_no_lora_has_no_keys() -> None:
    assert parse_keys(["model.diffusion_model.input_blocks.0.0.weight", "lora_unet_x.alpha"]) == {}


# ---------------------------------------------------------------- which there are


def test_names_are_those_of_files_at_any_depth_and_the_bundled_ones_are_always_there(tmp_path: Path) -> None:
    save(tmp_path / "fur.safetensors", lora(768))
    save(tmp_path / "styles" / "old" / "ink.safetensors", lora(2048))
    (tmp_path / "styles" / "notes.txt").write_text("")
    (tmp_path / "styles" / "._ink.safetensors").write_text("")
    loras = Loras(tmp_path)
    assert loras.names() == ["blueprint", "fewstep", "fur", "ink"]
    found = loras.get("ink")
    assert found is not None
    assert (found.about.family, found.about.width, found.source) == ("SDXL", 2048, "loras_dir")
    bundled = loras.get("blueprint")
    assert bundled is not None
    assert bundled.file.parent == BUNDLED
    assert (bundled.about.family, bundled.about.width, bundled.source) == ("SD 1", 96, "bundled")


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert Loras(tmp_path / "missing").names() == ["blueprint", "fewstep"]
    assert Loras(None).names() == ["blueprint", "fewstep"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "fur.safetensors", lora(768))
    inside = tmp_path / "loras"
    inside.mkdir()
    (inside / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(inside)
    loras = Loras(inside)
    assert "fur" in loras.names()
    found = loras.get("fur")
    assert found is not None
    assert found.file == inside / "linked" / "fur.safetensors"


def test_two_of_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    first, second = (save(tmp_path / folder / "fur.safetensors", lora(768)) for folder in ("a", "b"))
    with pytest.raises(ModelUnavailable) as raised:
        Loras(tmp_path).get("fur")
    assert str(first) in raised.value.message
    assert str(second) in raised.value.message


def test_a_lora_of_ones_own_outranks_the_bundled_one(tmp_path: Path) -> None:
    save(tmp_path / "blueprint.safetensors", lora(768))
    found = Loras(tmp_path).get("blueprint")
    assert found is not None
    assert found.source == "loras_dir"


def test_one_that_is_added_is_found_at_once_and_one_that_is_gone_is_forgotten_within_a_second(tmp_path: Path) -> None:
    now = 0.0
    loras = Loras(tmp_path, lambda: now)
    assert loras.get("fur") is None
    file = save(tmp_path / "fur.safetensors", lora(768))
    assert loras.get("fur") is not None
    file.unlink()
    now = 1.0
    assert loras.get("fur") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 a pickle in a zip", "is a pickle with a safetensors name"),
        (b"", "it has only 0 bytes"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "a UNet without its text encoder"),
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
                "cond_stage_model.transformer.text_model.x": (1,),
            },
            "is no LoRA but a model of SD 1",
        ),
        ({"clip_l": (2, 768)}, "is no LoRA but nothing that darkroom knows"),
        ({"lora_unet_x.hada_w1_a": (4, 4)}, "is a LoHa, which darkroom cannot apply"),
    ],
)
def test_a_file_that_is_no_lora_says_what_it_is(tmp_path: Path, content: Any, said: str) -> None:
    file = tmp_path / "fur.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save(file, content)
    found = Loras(tmp_path).get("fur")
    assert found is not None
    with pytest.raises(ModelUnavailable, match=said) as raised:
        _ = found.about
    assert raised.value.message.startswith(f'LoRA "fur": {file} ')


def test_a_file_that_is_cut_short_says_so(tmp_path: Path) -> None:
    file = save(tmp_path / "fur.safetensors", lora(768))
    os.truncate(file, file.stat().st_size - 1)
    found = Loras(tmp_path).get("fur")
    assert found is not None
    with pytest.raises(ModelUnavailable, match="is cut short: it has"):
        _ = found.about


# ---------------------------------------------------------------- what a job may ask for


def resolved(config: Config, **fields: Any) -> Job:
    data = json.dumps({"prompt": "a cat", **fields}).encode()
    return resolve(parse(data), config, Catalog(config.models), "id")


def refused(config: Config, **fields: Any) -> list[FieldError]:
    with pytest.raises(InvalidRequest) as raised:
        resolved(config, **fields)
    return list(raised.value.errors)


def config_of(folder: Path, **models: Any) -> Config:
    return Config(models={"loras_dir": folder, **models})


def test_loras_come_from_the_field_and_from_the_prompt(tmp_path: Path) -> None:
    save(tmp_path / "fur.safetensors", lora(96))
    config = config_of(tmp_path)
    job = resolved(config, prompt="a cat <lora:fur:0.5> <lyco:blueprint>", loras=[{"name": "fur", "weight": -1}, "fur"])
    assert [(use.name, use.weight) for use in job.all_loras()] == [
        ("fur", -1.0),
        ("fur", 1.0),
        ("fur", 0.5),
        ("blueprint", 1.0),
    ]
    assert resolve(parse(json.dumps(job.recipe()).encode()), config, Catalog(config.models), "id") == job
    assert "loras" not in resolved(config).recipe()


@pytest.mark.parametrize(
    ("loras", "field", "at", "message"),
    [
        ("fur", "loras", '"fur"', "must be a list of LoRAs"),
        ([3], "loras[0]", "3", "must be a LoRA"),
        (["fur", {"weight": 1}], "loras[1]", '{"weight', "a LoRA needs a name"),
        ([{"name": "fur", "wieght": 1}], "loras[0].wieght", "1}", "unknown field"),
        ([{"name": "fur", "weight": 11}], "loras[0].weight", "11", "must be at most 10"),
        ([{"name": "fur", "weight": "1"}], "loras[0].weight", '"1"', "must be a number"),
        ([{"name": ""}], "loras[0].name", '""', "must not be empty"),
    ],
)
def test_a_fault_in_the_field_has_its_place(loras: Any, field: str, at: str, message: str) -> None:
    text = json.dumps({"prompt": "a cat", "loras": loras})
    with pytest.raises(InvalidRequest) as raised:
        parse(text.encode())
    (error,) = raised.value.errors
    assert (error.field, error.line, error.column, error.message) == (field, 1, text.index(at) + 1, message)


@pytest.mark.parametrize("name", ["fir", "../fur", "/etc/passwd", "styles/fur", "fur.safetensors", "~/fur", "fur\n"])
def test_one_that_is_not_there_is_refused_and_no_name_is_a_path(tmp_path: Path, name: str) -> None:
    save(tmp_path / "loras" / "styles" / "fur.safetensors", lora(96))
    save(tmp_path / "fur.safetensors", lora(96))
    (error,) = refused(config_of(tmp_path / "loras"), loras=[{"name": name}])
    assert error.field == "loras[0]"
    assert error.message.startswith("there is no LoRA ")
    if name in ("fir", "../fur"):
        assert error.hint == "did you mean fur?"


def test_a_missing_one_is_let_pass_where_the_config_says_so(tmp_path: Path) -> None:
    job = resolved(config_of(tmp_path, missing_lora="warn"), prompt="a cat <lora:fur:0.8>")
    assert job.prompt == "a cat <lora:fur:0.8>"
    (error,) = refused(config_of(tmp_path), prompt="a cat <lora:fur:0.8>")
    assert (error.field, error.message) == ("prompt", 'there is no LoRA "fur"')


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (2048, '"fur" is for SDXL, and the model "seedling" is SD 1'),
        (1024, '"fur" is for SD 2, and the model "seedling" is SD 1'),
        (768, '"fur" is for models whose prompts are 768 numbers wide, and those of "seedling" are 96'),
    ],
)
def test_one_for_another_model_is_refused_in_a_sentence(tmp_path: Path, width: int, said: str) -> None:
    save(tmp_path / "fur.safetensors", lora(width))
    (error,) = refused(config_of(tmp_path), prompt="<lora:fur>")
    assert (error.field, error.message) == ("prompt", said)


def test_a_model_that_was_not_fetched_yet_may_fit(tmp_path: Path) -> None:
    save(tmp_path / "fur.safetensors", lora(2048))
    hub = {"path": Path("hub:somebody/sdxl"), "width": 1024, "height": 1024}
    assert resolved(config_of(tmp_path, xl=hub), model="xl", loras=["fur"]).loras[0].name == "fur"


def test_a_broken_file_fails_the_job_and_does_not_refuse_it_since_it_may_be_mended(tmp_path: Path) -> None:
    (tmp_path / "fur.safetensors").write_bytes(b"x")
    with pytest.raises(ModelUnavailable, match="is no safetensors file"):
        resolved(config_of(tmp_path), loras=["fur"])


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"negative_prompt": "<lora:blueprint>"}, "negative_prompt", "a LoRA changes the picture as a whole"),
        ({"prompt": "<lora:blueprint:much>"}, "prompt", "no single number"),
        ({"prompt": "<lora:blueprint:11>"}, "prompt", "with the weight 11"),
        ({"prompt": "<lora:blueprint>" * 21}, "prompt", "asks for 21 LoRAs"),
        ({"loras": ["blueprint"] * 21}, "loras", "asks for 21 LoRAs"),
    ],
)
def test_a_tag_that_cannot_be_honoured_is_refused_when_the_file_arrives(
    fields: dict[str, Any], field: str, said: str
) -> None:
    (error,) = refused(Config(), **fields)
    assert error.field == field
    assert said in error.message


def test_the_preflight_looks_at_the_folder_and_at_each_file(tmp_path: Path) -> None:
    def found(models: Models) -> list[tuple[bool, str]]:
        config = Config(models=models, folders={"root": tmp_path / "spool"}, executor={"kind": "fake"})
        return [(finding.ok, finding.message) for finding in preflight(config) if finding.what == "LoRAs"]

    (alone,) = found(Models())
    assert alone == (True, "2 can be used: blueprint, fewstep")
    missing, _ = found(Models(loras_dir=tmp_path / "missing"))
    said = f"[models] loras_dir is {tmp_path / 'missing'}, which is no folder; make it or mend the key"
    assert missing == (False, said)
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "cut.safetensors").write_bytes(b"x")
    broken, _ = found(Models(loras_dir=tmp_path / "loras"))
    assert not broken[0]
    assert 'LoRA "cut"' in broken[1]
