from __future__ import annotations

import re
from pathlib import Path

import pytest

from darkroom.sampling import (
    SAMPLERS,
    SCHEDULES,
    SIGMA_SCHEDULES,
    Sampler,
    UnknownName,
    choose_schedule,
    find_sampler,
    find_schedule,
)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=str)
def test_each_sampler_is_found_by_all_its_names(sampler: Sampler) -> None:
    for name in (sampler.name, *sampler.aliases):
        for spelling in (name, name.upper(), f"  {name.lower()} "):
            assert find_sampler(spelling) == (sampler, None)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=str)
def test_each_sampler_can_follow_its_own_automatic_schedule(sampler: Sampler) -> None:
    assert sampler.automatic in sampler.schedules
    assert set(sampler.schedules) <= set(SIGMA_SCHEDULES)
    assert choose_schedule(sampler, None) == choose_schedule(sampler, "automatic") == sampler.automatic


def test_no_name_belongs_to_two_samplers() -> None:
    names = [name.casefold() for sampler in SAMPLERS.values() for name in {sampler.name, *sampler.aliases}]
    doubles = {name for name in names if names.count(name) > 1}
    assert all(name in {sampler.name.casefold() for sampler in SAMPLERS.values()} for name in doubles)
    for name in doubles:
        assert len({find_sampler(name)[0].name}) == 1


@pytest.mark.parametrize(
    ("text", "name", "schedule"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M", "karras"),
        ("dpmpp_2m_karras", "DPM++ 2M", "karras"),
        ("DPM++ 2M SDE Exponential", "DPM++ 2M SDE", "exponential"),
        ("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun", "karras"),
        ("Euler SGM Uniform", "Euler", "sgm_uniform"),
        ("DPM2 a Karras", "DPM2 a", "karras"),
        ("DPM++ SDE Karras", "DPM++ SDE", "karras"),
        ("Euler a Beta", "Euler a", "beta"),
        ("k_dpm_2_a_ka", "DPM2 a", "karras"),
        ("dpmpp_2m_sde_k", "DPM++ 2M SDE", "karras"),
        ("heun_k", "Heun", "karras"),
    ],
)
def test_the_old_spelling_means_sampler_and_schedule(text: str, name: str, schedule: str) -> None:
    sampler, implied = find_sampler(text)
    assert (sampler.name, implied) == (name, schedule)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("DPM++ 2S a", "DPM2 a"),
        ("dpmpp_2s_ancestral", "DPM2 a"),
        ("DPM fast", "DPM++ 2M"),
        ("DPM adaptive", "DPM++ 2M"),
        ("dpm_adaptive", "DPM++ 2M"),
        ("Restart", "Heun"),
        ("DPM++ 3M SDE", "DPM++ 2M SDE"),
        ("DPM++ 2S a Karras", "DPM2 a"),
        ("DPM++ 3M SDE Exponential", "DPM++ 2M SDE"),
        ("dpmpp_2s_k", "DPM++ 2M"),
        ("DDPMScheduler", "Euler a"),
        ("euler_cfg_pp", "Euler"),
        ("seeds_2", "DPM++ SDE"),
    ],
)
def test_a_sampler_without_equivalent_is_refused_with_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match="there is no sampler") as raised:
        find_sampler(text)
    assert raised.value.hint == f'the nearest is "{nearest}"'
    assert nearest in SAMPLERS


A1111 = """
    DPM++ 2M, DPM++ SDE, DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 2S a, DPM++ 3M SDE, Euler a, Euler, LMS, Heun,
    DPM2, DPM2 a, DPM fast, DPM adaptive, Restart, DDIM, DDIM CFG++, PLMS, UniPC, LCM
"""
COMFYUI = """
    euler, euler_cfg_pp, euler_ancestral, euler_ancestral_cfg_pp, heun, heunpp2, dpm_2, dpm_2_ancestral, lms,
    dpm_fast, dpm_adaptive, dpmpp_2s_ancestral, dpmpp_2s_ancestral_cfg_pp, dpmpp_sde, dpmpp_sde_gpu, dpmpp_2m,
    dpmpp_2m_cfg_pp, dpmpp_2m_sde, dpmpp_2m_sde_gpu, dpmpp_2m_sde_heun, dpmpp_2m_sde_heun_gpu, dpmpp_3m_sde,
    dpmpp_3m_sde_gpu, ddpm, lcm, ipndm, ipndm_v, deis, res_multistep, res_multistep_cfg_pp,
    res_multistep_ancestral, gradient_estimation, er_sde, seeds_2, seeds_3, sa_solver, sa_solver_pece, ddim,
    uni_pc, uni_pc_bh2
"""
INVOKEAI = """
    ddim, ddpm, deis, dpmpp_2m, dpmpp_2m_k, dpmpp_2m_sde, dpmpp_2m_sde_k, dpmpp_2s, dpmpp_2s_k, dpmpp_3m,
    dpmpp_3m_k, dpmpp_sde, dpmpp_sde_k, euler, euler_a, euler_k, heun, heun_k, kdpm_2, kdpm_2_k, kdpm_2_a,
    kdpm_2_a_k, lcm, lms, lms_k, pndm, tcd, unipc, unipc_k
"""


@pytest.mark.parametrize("tool", [A1111, COMFYUI, INVOKEAI], ids=["A1111", "ComfyUI", "InvokeAI"])
def test_each_sampler_of_other_tools_is_found_or_refused_with_the_nearest(tool: str) -> None:
    for name in tool.split(","):
        try:
            find_sampler(name)
        except UnknownName as error:
            assert error.hint.startswith("the nearest is"), name


def test_a_typo_gets_the_near_names() -> None:
    with pytest.raises(UnknownName, match='there is no sampler "Euller"') as raised:
        find_sampler("Euller")
    assert raised.value.hint.startswith("one of: Euler")
    assert "DDIM" not in raised.value.hint


def test_a_name_like_no_other_gets_them_all() -> None:
    with pytest.raises(UnknownName) as raised:
        find_sampler("???")
    assert raised.value.hint == "one of: " + ", ".join(SAMPLERS)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_schedule_is_found(schedule: str) -> None:
    assert find_schedule(schedule) == schedule
    assert find_schedule(schedule.upper()) == schedule


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("normal", "uniform"),
        ("SGM Uniform", "sgm_uniform"),
        ("trailing", "sgm_uniform"),
        ("Automatic", "automatic"),
        ("Karras", "karras"),
        ("Exponential", "exponential"),
        ("Polyexponential", "exponential"),
        ("Beta", "beta"),
        ("Simple", "sgm_uniform"),
        ("ddim_uniform", "uniform"),
        ("DDIM", "uniform"),
    ],
)
def test_other_tools_names_of_schedules_are_understood(text: str, schedule: str) -> None:
    assert find_schedule(text) == schedule


def test_an_unknown_schedule_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownName, match='there is no schedule "wavy"') as raised:
        find_schedule("wavy")
    assert raised.value.hint == "one of: " + ", ".join(SCHEDULES)


@pytest.mark.parametrize("text", ["Align Your Steps", "KL Optimal", "linear_quadratic", "Turbo"])
def test_a_schedule_without_equivalent_is_refused_with_the_nearest(text: str) -> None:
    with pytest.raises(UnknownName, match=f'there is no schedule "{text}" here') as raised:
        find_schedule(text)
    assert raised.value.hint.removeprefix('the nearest is "').removesuffix('"') in SCHEDULES


def test_a_schedule_that_a_sampler_cannot_follow_is_refused() -> None:
    with pytest.raises(UnknownName) as raised:
        choose_schedule(SAMPLERS["DDIM"], "karras")
    assert raised.value.hint == "it can follow: automatic, uniform"


DOCUMENTATION = (Path(__file__).parent.parent / "docs/jobs.md").read_text().partition("## Samplers")[2]


def test_the_table_of_samplers_in_the_documentation_is_whole_and_true() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| (?:`(.+?)`)? ?\| (?:`(\w+Scheduler)`)? ?\| `(\w+)` \|$", DOCUMENTATION, re.MULTILINE
    )
    assert [row[0] for row in rows] == list(SAMPLERS)
    for name, *others, automatic in rows:
        assert SAMPLERS[name].automatic == automatic
        assert all(find_sampler(other) == (SAMPLERS[name], None) for other in others if other)


def test_the_table_of_schedules_in_the_documentation_is_whole_and_true() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)*) ?\| [^`|]+ \|$", DOCUMENTATION, re.MULTILINE)
    assert [name for name, _ in rows] == list(SCHEDULES)
    for name, others in rows:
        assert all(find_schedule(other) == name for other in re.findall(r"\w+", others))
