"""The names of samplers and schedules: which there are, what other tools call them, which go together.

Only names: ``engine/sampling/samplers.py`` turns them into diffusers' schedulers. The names are A1111's, whose recipes
most tools read; ComfyUI's and diffusers' spellings are understood.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache

UNIFORM = "uniform"
SIGMA_SCHEDULES = ("karras", "exponential", "beta", UNIFORM, "sgm_uniform")

SCHEDULES = ("automatic", *SIGMA_SCHEDULES)
"""``automatic`` is the sampler's own best; ``uniform`` is linear in time; ``sgm_uniform`` is "trailing"."""

_SCHEDULE_ALIASES = {
    "normal": UNIFORM,
    "linspace": UNIFORM,
    "ddim": UNIFORM,
    "ddim_uniform": UNIFORM,
    "leading": UNIFORM,
    "polyexponential": "exponential",
    "simple": "sgm_uniform",
    "trailing": "sgm_uniform",
}
"""A1111's, ComfyUI's and diffusers' names. ``polyexponential`` has an exponent, 1 in A1111; ``simple`` takes every
n-th noise level from the highest down, as trailing does; DDIM's (leading) is what ``uniform`` means for DDIM and PLMS,
and with other samplers begins a step lower."""

_NO_SUCH_SCHEDULE = {
    "align_your_steps": "karras",
    "align_your_steps_11": "karras",
    "align_your_steps_32": "karras",
    "align_your_steps_gits": "karras",
    "kl_optimal": "karras",
    "linear_quadratic": UNIFORM,
    "turbo": "sgm_uniform",
}
"""Schedules of A1111, Forge and ComfyUI that are not to be had → the nearest."""


@dataclass(frozen=True)
class Sampler:
    """A sampler's name, its other names, the schedules it can follow, and which of them is ``automatic``."""

    name: str
    aliases: tuple[str, ...]
    schedules: tuple[str, ...] = SIGMA_SCHEDULES
    automatic: str = UNIFORM


SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("Euler", ("euler", "k_euler", "EulerDiscreteScheduler")),
        Sampler("Euler a", ("euler_ancestral", "euler_a", "k_euler_a", "EulerAncestralDiscreteScheduler")),
        Sampler("Heun", ("heun", "k_heun", "HeunDiscreteScheduler")),
        Sampler("LMS", ("lms", "k_lms", "LMSDiscreteScheduler")),
        Sampler("DPM2", ("dpm_2", "k_dpm_2", "kdpm_2", "KDPM2DiscreteScheduler"), automatic="karras"),
        Sampler(
            "DPM2 a",
            ("dpm_2_ancestral", "k_dpm_2_a", "kdpm_2_a", "KDPM2AncestralDiscreteScheduler"),
            automatic="karras",
        ),
        Sampler("DPM++ 2M", ("dpmpp_2m", "k_dpmpp_2m", "DPMSolverMultistepScheduler"), automatic="karras"),
        Sampler("DPM++ 2M SDE", ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"), automatic="exponential"),
        Sampler(
            "DPM++ 2M SDE Heun",
            ("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "k_dpmpp_2m_sde_heun"),
            automatic="exponential",
        ),
        Sampler(
            "DPM++ SDE",
            ("dpmpp_sde", "dpmpp_sde_gpu", "k_dpmpp_sde", "DPMSolverSDEScheduler"),
            automatic="karras",
        ),
        Sampler("DDIM", ("ddim", "DDIMScheduler"), schedules=(UNIFORM,)),
        Sampler("UniPC", ("uni_pc", "uni_pc_bh2", "unipc", "UniPCMultistepScheduler")),
        Sampler("PLMS", ("plms", "pndm", "PNDMScheduler"), schedules=(UNIFORM,)),
        Sampler("LCM", ("lcm", "LCMScheduler"), schedules=(UNIFORM,)),
        Sampler("DEIS", ("deis", "DEISMultistepScheduler")),
    )
}

_NO_EQUIVALENT = {
    alias: nearest
    for nearest, aliases in {
        "DPM2 a": ("dpm++ 2s a", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "k_dpmpp_2s_a"),
        "DPM++ 2M": (
            *("dpm fast", "dpm_fast", "k_dpm_fast", "dpm adaptive", "dpm_adaptive", "k_dpm_ad"),
            *("dpm++ 2s", "dpmpp_2s", "dpmsolversinglestepscheduler", "dpmpp_3m", "dpmpp_2m_cfg_pp"),
            *("ipndm", "ipndm_v", "ipndmscheduler", "res_multistep", "res_multistep_cfg_pp", "gradient_estimation"),
        ),
        "DPM++ 2M SDE": (
            *("dpm++ 3m sde", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde"),
            *("er_sde", "sa_solver", "sa_solver_pece", "sasolverscheduler"),
        ),
        "DPM++ SDE": ("seeds_2", "seeds_3"),
        "Heun": ("restart", "heunpp2"),
        "Euler": ("euler_cfg_pp", "edmeulerscheduler", "flowmatcheulerdiscretescheduler"),
        "Euler a": ("euler_ancestral_cfg_pp", "ddpm", "ddpmscheduler", "res_multistep_ancestral"),
        "DDIM": ("ddim cfg++",),
        "LCM": ("tcd", "tcdscheduler"),
    }.items()
    for alias in aliases
}
"""Samplers of other tools that diffusers has not, or has not for these models → the nearest."""

_BY_ALIAS = {
    spelling.casefold(): sampler for sampler in SAMPLERS.values() for spelling in (sampler.name, *sampler.aliases)
}


class UnknownName(ValueError):
    """Not a name of a sampler or schedule. ``hint`` says what to write instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


_ENDINGS = {
    "karras": "karras",
    "exponential": "exponential",
    "sgm uniform": "sgm_uniform",
    "sgm_uniform": "sgm_uniform",
    "beta": "beta",
    "k": "karras",
    "ka": "karras",
}
"""Ends of a sampler's name that say its schedule: A1111's old ones, and InvokeAI's ``_k``."""


@lru_cache(maxsize=256)
def find_sampler(text: str) -> tuple[Sampler, str | None]:
    """Look up a sampler by any of its names; the old spelling "DPM++ 2M Karras" gives its schedule too.

    Raises UnknownName, whose hint lists the nearest names.
    """
    wanted = " ".join(text.split()).casefold()
    stem, schedule = _split_schedule(wanted)
    for name, implied in ((wanted, None), (stem, schedule)):
        if name in _BY_ALIAS:
            return _BY_ALIAS[name], implied
        if name in _NO_EQUIVALENT:
            raise UnknownName(f'there is no sampler "{text}" here', f'the nearest is "{_NO_EQUIVALENT[name]}"')
    near = difflib.get_close_matches(wanted, _BY_ALIAS, n=3, cutoff=0.5)
    names = list(dict.fromkeys(_BY_ALIAS[alias].name for alias in near)) or list(SAMPLERS)
    raise UnknownName(f'there is no sampler "{text}"', "one of: " + ", ".join(names))


def _split_schedule(name: str) -> tuple[str, str | None]:
    """``dpm++ 2m karras`` → ``dpm++ 2m``, ``karras``."""
    for ending, schedule in _ENDINGS.items():
        stem = name.removesuffix(ending)
        if stem != name and stem.endswith((" ", "_")):
            return stem[:-1], schedule
    return name, None


@lru_cache(maxsize=256)
def find_schedule(text: str) -> str:
    """Look up a schedule by any of its names, case ignored. Raises UnknownName."""
    wanted = "_".join(text.split()).casefold()
    wanted = _SCHEDULE_ALIASES.get(wanted, wanted)
    if wanted in SCHEDULES:
        return wanted
    if wanted in _NO_SUCH_SCHEDULE:
        raise UnknownName(f'there is no schedule "{text}" here', f'the nearest is "{_NO_SUCH_SCHEDULE[wanted]}"')
    raise UnknownName(f'there is no schedule "{text}"', "one of: " + ", ".join(SCHEDULES))


def choose_schedule(sampler: Sampler, schedule: str | None) -> str:
    """The schedule that is meant: ``automatic`` and None become the sampler's own.

    Raises UnknownName where the sampler cannot follow the schedule.
    """
    if schedule is None or schedule == "automatic":
        return sampler.automatic
    if schedule not in sampler.schedules:
        raise UnknownName(
            f'the sampler "{sampler.name}" cannot follow the schedule "{schedule}"',
            "it can follow: " + ", ".join(("automatic", *sampler.schedules)),
        )
    return schedule
