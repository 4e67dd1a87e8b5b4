from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from darkroom.config import Config, Folders, Limits, ModelEntry, Models, load
from darkroom.errors import ConfigError
from darkroom.job import read_presets

SHIPPED = Path(__file__).parents[1] / "config.toml"


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("DARKROOM_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(written(tmp_path, text))
    message = raised.value.message
    assert "\n" not in message, "one fault is one line"
    assert message.startswith(f"{tmp_path / 'config.toml'}: ")
    return message.removeprefix(f"{tmp_path / 'config.toml'}: ")


def test_without_file_and_variables_everything_has_a_default(tmp_path: Path) -> None:
    config = load()
    assert config.folders.root == tmp_path / "spool"
    assert config.folders.named("done") == tmp_path / "spool" / "done"
    assert config.models.default == "seedling"
    assert config.executor.kind == "local"


def test_a_root_alone_is_enough(tmp_path: Path) -> None:
    assert load(written(tmp_path, '[folders]\nroot = "here"\n')).folders.named("inbox") == tmp_path / "here" / "inbox"


def test_the_configuration_is_frozen() -> None:
    config = load()
    with pytest.raises(ValidationError):
        config.limits.max_count = 5


def test_one_folder_may_be_elsewhere(tmp_path: Path) -> None:
    config = load(written(tmp_path, '[folders]\nroot = "here"\ninbox = "/elsewhere/drop"\n'))
    assert config.folders.named("inbox") == Path("/elsewhere/drop")
    assert config.folders.named("failed") == tmp_path / "here" / "failed"


def test_relative_paths_are_relative_to_the_file_and_not_to_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, '[models]\nmodels_dir = "models"\n[models.mine]\npath = "../mine"\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load(Path("../config.toml"))
    assert config.models.models_dir is not None
    assert config.models.models_dir.resolve() == tmp_path / "models"
    assert config.models.named["mine"].path.resolve() == tmp_path.parent / "mine"
    assert config.folders.root.resolve() == tmp_path / "spool"
    assert file.is_file()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load(written(tmp_path, '[folders]\nroot = "~/spool"\n')).folders.root == Path("/home/somebody/spool")


def test_folders_of_pictures_are_made_absolute(tmp_path: Path) -> None:
    roots = load(written(tmp_path, '[limits]\nimage_roots = ["pictures", "/srv/photos"]\n')).limits.image_roots
    assert roots == (tmp_path / "pictures", Path("/srv/photos"))


def test_the_root_of_the_command_line_outranks_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_FOLDERS__ROOT", "/from/environment")
    file = written(tmp_path, '[folders]\nroot = "/from/file"\ninbox = "/from/file/too"\n')
    config = load(file, root=Path("here"))
    assert config.folders == Folders(root=tmp_path / "here")


def test_a_variable_outranks_the_file_and_leaves_the_rest_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_LIMITS__MAX_COUNT", "7")
    config = load(written(tmp_path, "[limits]\nmax_count = 5\nmax_steps = 30\n"))
    assert (config.limits.max_count, config.limits.max_steps) == (7, 30)


def test_a_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "other.toml"
    file.write_text("[log]\nlevel = 'debug'\n")
    monkeypatch.setenv("DARKROOM_CONFIG", str(file))
    assert load().log.level == "debug"


def test_the_file_in_the_current_folder_is_found(tmp_path: Path) -> None:
    written(tmp_path, "[output]\nquality = 50\n")
    assert load().output.quality == 50


def test_a_model_is_a_table_under_its_name(tmp_path: Path) -> None:
    config = load(written(tmp_path, '[models]\ndefault = "sd15"\n[models.sd15]\npath = "/m"\nwidth = 512\n'))
    assert config.models.default == "sd15"
    assert config.models.named == {"sd15": ModelEntry(path=Path("/m"), width=512)}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[limits]\nmax_widht = 5", ["[limits] max_widht", "no such key", "did you mean max_width?"]),
        ("[limit]\nmax_width = 512", ["[limit]", "no such", "did you mean limits?"]),
        ("zzz = 1", ["zzz", "no such key", "known here: folders, models"]),
        ("[output]\nqualities = 1\n", ["[output] qualities", "did you mean quality?"]),
        ("[output]\nzzz = 1\n", ["[output] zzz", "known here: format, quality"]),
        ("[output]\nformat = 'gif'", ["[output] format", "'png', 'jpeg' or 'webp'", "got 'gif'"]),
        ("[output]\nquality = 101", ["[output] quality", "less than or equal to 100", "got 101"]),
        ("[limits]\nmax_count = 'many'", ["[limits] max_count", "integer", "got 'many'"]),
        ("[engine]\ndevice = 'gpu'", ["[engine] device", "auto", "cpu", "cuda", "cuda:1", "got 'gpu'"]),
        ("[engine]\nstall_s = 0", ["[engine] stall_s", "greater than 0", "got 0"]),
        ("[folders]\nroot = 5", ["[folders] root", "path", "got 5"]),
        ("folders = 'spool'", ["[folders]", "must be a table", "got 'spool'"]),
        ("[models.mine]\nwidth = 512", ["[models.mine] path", "missing; add it"]),
        ("[models.mine]\npath='x'\nwidht = 512", ["[models.mine] widht", "did you mean width?"]),
        ("[models.mine]\npath='x'\nwidth = 500", ["[models.mine] width", "multiple of 8", "got 500"]),
        ("[models]\nmine = '/models/mine'", ["[models] mine", "no such key", "[models.mine]", "path"]),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_its_place_and_a_remedy(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    message = complaint(tmp_path, text)
    for part in parts:
        assert part in message, message


def test_each_fault_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(written(tmp_path, "[limits]\nmax_count = 0\n[output]\nquality = 0\n"))
    assert len(raised.value.message.splitlines()) == 2
    assert raised.value.exit_code == 2


def test_a_file_that_is_not_toml_is_said_with_the_line(tmp_path: Path) -> None:
    message = complaint(tmp_path, "[folders]\nroot = spool\n")
    assert message.startswith("not TOML: ")
    assert "line 2" in message


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[models]\ndefault = sd15\n", "a text stands in quotes"),
        ('[models]\nmodels_dir = "C:\\models"\n', "write paths with /, or in 'single quotes'"),
        ('[models]\nmodels_dir = "C:\\xl"\n', "write paths with /, or in 'single quotes'"),
        ("[models.my model]\n", 'a name with spaces or dots stands in quotes, as [models."my model"]'),
        ("[models]\n[engine]\n[models]\n", "a section may stand once"),
        ("[engine]\nthreads = 1\nthreads = 2\n", "a key may stand once"),
    ],
)
def test_what_people_often_write_that_is_not_toml_has_a_remedy(tmp_path: Path, text: str, remedy: str) -> None:
    message = complaint(tmp_path, text)
    assert message.startswith("not TOML: ")
    assert message.endswith(f"; {remedy}")


def test_a_name_with_a_space_is_shown_as_it_is_to_be_written_and_a_job_s_field_by_the_model_s(tmp_path: Path) -> None:
    assert complaint(tmp_path, '[models."my model"]\npath = "x"\nsteps = 20\n') == (
        '[models."my model"] steps: no such key; did you mean num_inference_steps?'
    )


def test_a_missing_file_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: there is no such file; name another with --config"):
        load(tmp_path / "missing.toml")


def test_a_folder_or_a_binary_in_place_of_the_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text, line 1: byte 0xff"):
        load(tmp_path / "binary")


def test_a_misspelled_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_LIMITS__MAX_WIDHT", "512")
    with pytest.raises(ConfigError) as raised:
        load()
    assert raised.value.message == (
        "environment: DARKROOM_LIMITS__MAX_WIDHT: no such setting; did you mean DARKROOM_LIMITS__MAX_WIDTH?"
    )


def test_a_variable_with_one_underscore_too_few_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_FOLDERS_ROOT", "/srv")
    with pytest.raises(ConfigError) as raised:
        load()
    assert raised.value.message.startswith("environment: DARKROOM_FOLDERS_ROOT: no such setting")
    assert "DARKROOM_FOLDERS__ROOT" in raised.value.message


def test_a_section_is_not_set_in_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_LIMITS", "5")
    with pytest.raises(ConfigError, match="environment: DARKROOM_LIMITS: no such setting"):
        load()


def test_a_wrong_value_in_a_variable_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_OUTPUT__QUALITY", "best")
    with pytest.raises(ConfigError, match=r"^environment: DARKROOM_OUTPUT__QUALITY: .*integer.*got 'best'$"):
        load()


def test_a_model_can_be_named_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_MODELS__SD15__PATH", "/models/sd15")
    monkeypatch.setenv("DARKROOM_MODELS__MODELS_DIR", "/models")
    models = load().models
    assert models.named["sd15"].path == Path("/models/sd15")
    assert models.models_dir == Path("/models")


def keys(section: type[BaseModel]) -> set[str]:
    return set(section.model_fields) - ({"named"} if section is Models else set())


def test_the_shipped_file_is_the_default(tmp_path: Path) -> None:
    folders = Folders(root=SHIPPED.parent / "spool")
    assert load(SHIPPED) == load(written(tmp_path, "")).model_copy(update={"folders": folders})


def test_the_shipped_file_shows_every_key_with_its_default(tmp_path: Path) -> None:
    shown: dict[str, Any] = tomllib.loads(re.sub(r"^#(?=\S)", "", SHIPPED.read_text(), flags=re.MULTILINE))
    defaults = Config()
    assert set(shown) == keys(Config)
    named = shown["models"].pop("sd15")
    assert set(named) == keys(ModelEntry)
    ModelEntry.model_validate(named)
    assert set(read_presets(Config(presets=shown.pop("presets")))) == {"portrait"}
    for name, section in defaults:
        if name == "presets":
            continue  # whose keys are those of a job
        assert set(shown[name]) == keys(type(section)), name
        for key, value in shown[name].items():
            default = getattr(section, key)
            if name == "folders":
                default = default or section.named(key)
            if isinstance(default, tuple):
                default = list(default)
            if default is not None:
                assert value == (str(default) if isinstance(default, Path) else default), key


def test_an_id_on_the_hub_is_no_path_and_a_base_with_a_slash_is_one(tmp_path: Path) -> None:
    text = '[models.a]\npath = "hub:owner/name@main"\n[models.b]\npath = "b.safetensors"\nbase = "bases/sd15"\n'
    named = load(written(tmp_path, text + '[models.c]\npath = "c.safetensors"\nbase = "a"\nvae = "vae"\n')).models.named
    assert (named["a"].hub, named["b"].hub) == ("owner/name@main", None)
    assert named["b"].base == str(tmp_path / "bases/sd15")
    assert (named["c"].base, named["c"].vae) == ("a", tmp_path / "vae")


def test_an_id_that_is_none_is_said(tmp_path: Path) -> None:
    message = complaint(tmp_path, '[models.a]\npath = "hub:name"\n')
    assert "[models.a] path" in message
    assert "hub:owner/name" in message


def test_a_list_or_a_table_in_a_variable_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_MODELS__NAMED", '{"sd15": {"path": "/models/sd15"}}')
    assert Config().models.named["sd15"].path == Path("/models/sd15")


def test_a_variable_outranks_one_key_and_leaves_the_others_of_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_LIMITS__MAX_COUNT", "7")
    assert Config(limits=Limits(max_steps=5)).limits == Limits(max_steps=5, max_count=7)
    assert Config(limits={"max_steps": 5}).limits == Limits(max_steps=5, max_count=7)
