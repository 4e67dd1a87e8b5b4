from __future__ import annotations

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
    ],
)
def test_the_old_spelling_means_sampler_and_schedule(text: str, name: str, schedule: str) -> None:
    sampler, implied = find_sampler(text)
    assert (sampler.name, implied) == (name, schedule)


@pytest.mark.parametrize("text", ["DPM++ 2S a", "DPM++ SDE", "DPM fast", "DPM adaptive", "Restart", "dpm++ 3m sde"])
def test_a_sampler_without_equivalent_is_refused_with_the_nearest(text: str) -> None:
    with pytest.raises(UnknownName, match="there is no sampler") as raised:
        find_sampler(text)
    nearest = raised.value.hint.removeprefix('the nearest is "').removesuffix('"')
    assert nearest in SAMPLERS


@pytest.mark.parametrize("text", ["DPM++ 2S a Karras", "DPM++ SDE Karras"])
def test_so_is_its_old_spelling(text: str) -> None:
    with pytest.raises(UnknownName) as raised:
        find_sampler(text)
    assert raised.value.hint.startswith("the nearest is ")


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
    [("normal", "uniform"), ("SGM Uniform", "sgm_uniform"), ("trailing", "sgm_uniform"), ("Automatic", "automatic")],
)
def test_other_tools_names_of_schedules_are_understood(text: str, schedule: str) -> None:
    assert find_schedule(text) == schedule


def test_an_unknown_schedule_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownName, match='there is no schedule "align your steps"') as raised:
        find_schedule("align your steps")
    assert raised.value.hint == "one of: " + ", ".join(SCHEDULES)


def test_a_schedule_that_a_sampler_cannot_follow_is_refused() -> None:
    with pytest.raises(UnknownName) as raised:
        choose_schedule(SAMPLERS["Euler a"], "karras")
    assert raised.value.hint == "it can follow: automatic, uniform, sgm_uniform"
