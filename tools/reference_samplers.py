"""Reference figures for tests/test_engine_samplers.py: what k-diffusion's samplers make of a toy denoiser.

Run by hand, in an environment of its own, when a sampler is added:

    python -m venv /tmp/reference
    /tmp/reference/bin/pip install torch numpy scipy tqdm
    /tmp/reference/bin/pip install --no-deps k-diffusion==0.1.1.post1 torchsde==0.2.6 trampoline
    /tmp/reference/bin/python tools/reference_samplers.py > tests/data/k-diffusion.json

The denoiser is the best one for data N(0.5, 0.3²), a formula; the noise levels are those of Stable Diffusion 1.5's
training, laid out as A1111 does; all in float64. The noise is torch's on the CPU from one generator: first the
picture's, then what the sampler adds, in the order in which darkroom's draw it. DDIM, PLMS and LCM, which k-diffusion
has not, are written out here from their papers.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.stats
import torch

STEPS = 20
SEED = 7
SHAPE = (1, 4, 2, 2)
MEAN, DEVIATION = 0.5, 0.3

BETAS = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0)
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()

Noise = Callable[[Any, Any], torch.Tensor]


def k_diffusion() -> Any:
    """Its module ``sampling`` alone: the package imports a training kit (and torchvision) that is not needed here."""
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None, "see the docstring for what to install"
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or [])
    tools = types.ModuleType("k_diffusion.utils")
    tools.append_dims = lambda x, dimensions: x.reshape(x.shape + (1,) * (dimensions - x.ndim))  # type: ignore[attr-defined]
    odes = types.ModuleType("torchdiffeq")
    odes.odeint = None  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": tools, "torchdiffeq": odes}
    return importlib.import_module("k_diffusion.sampling")


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The expected picture, given that x is one with noise of this deviation."""
    share = DEVIATION**2 / (DEVIATION**2 + sigma.reshape(-1, 1, 1, 1) ** 2)
    return MEAN + share * (x - MEAN)


def at(times: torch.Tensor) -> torch.Tensor:
    """σ at times between 0 and 999, log-linear between two whole ones."""
    low = times.floor().long().clamp(max=998)
    logs = SIGMAS.log()
    return (logs[low] + (times - low) * (logs[low + 1] - logs[low])).exp()


def schedules(sampling: Any) -> dict[str, torch.Tensor]:
    """A1111's (modules/sd_schedulers.py), highest first, 0 at the end."""
    ends = SIGMAS[0].item(), SIGMAS[-1].item()
    quantiles = torch.tensor(scipy.stats.beta.ppf(1 - np.linspace(0, 1, STEPS), 0.6, 0.6))
    tables = {
        "karras": sampling.get_sigmas_karras(STEPS, *ends),
        "exponential": sampling.get_sigmas_exponential(STEPS, *ends),
        "beta": ends[0] + quantiles * (ends[1] - ends[0]),
        "uniform": at(torch.linspace(999, 0, STEPS, dtype=torch.float64)),
        "sgm_uniform": at(torch.linspace(999, 0, STEPS + 1, dtype=torch.float64)[:-1]),
        "simple": SIGMAS.flip(0)[[int(step * 1000 / STEPS) for step in range(STEPS)]],
    }
    return {name: torch.cat([table[:STEPS].double(), torch.zeros(1).double()]) for name, table in tables.items()}


def draws(generator: torch.Generator) -> Iterator[torch.Tensor]:
    while True:
        yield torch.randn(SHAPE, generator=generator).double()


def every(fresh: Iterator[torch.Tensor]) -> Noise:
    return lambda sigma, following: next(fresh)


def path(fresh: Iterator[torch.Tensor]) -> Noise:
    """A Brownian path over σ, walked in order: from σ to halfway, then from σ to the end, which holds the first."""
    half: dict[float, tuple[float, torch.Tensor]] = {}

    def noise(sigma: Any, following: Any) -> torch.Tensor:
        start, end = float(sigma), float(following)
        if start not in half:
            half[start] = end, next(fresh)
            return half[start][1]
        middle, before = half[start]
        walked = math.sqrt(start - middle) * before + math.sqrt(middle - end) * next(fresh)
        return walked / math.sqrt(start - end)

    return noise


def k_figures(sampling: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    samplers: dict[str, tuple[str, Any, dict[str, Any]]] = {
        "Euler": ("sample_euler", None, {}),
        "Euler a": ("sample_euler_ancestral", every, {}),
        "Heun": ("sample_heun", None, {}),
        "LMS": ("sample_lms", None, {}),
        "DPM2": ("sample_dpm_2", None, {}),
        "DPM2 a": ("sample_dpm_2_ancestral", every, {}),
        "DPM++ 2M": ("sample_dpmpp_2m", None, {}),
        "DPM++ 2M SDE": ("sample_dpmpp_2m_sde", every, {}),
        "DPM++ 2M SDE Heun": ("sample_dpmpp_2m_sde", every, {"solver_type": "heun"}),
        "DPM++ SDE": ("sample_dpmpp_sde", path, {}),
    }
    for schedule, sigmas in schedules(sampling).items():
        for name, (function, noise, options) in samplers.items():
            fresh = draws(torch.Generator().manual_seed(SEED))
            start = next(fresh) * sigmas[0]
            added = {} if noise is None else {"noise_sampler": noise(fresh)}
            with torch.no_grad():
                found = getattr(sampling, function)(denoise, start, sigmas, disable=True, **options, **added)
            yield name, schedule, found


def predicted(x: torch.Tensor, time: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean picture and noise, where x = √ᾱ clean + √(1 − ᾱ) noise."""
    alpha = ALPHAS[time].sqrt()
    clean = denoise(x / alpha, SIGMAS[time].reshape(1))
    return clean, (x - alpha * clean) / (1 - ALPHAS[time]).sqrt()


def ddim() -> torch.Tensor:
    """Song et al. 2020, https://arxiv.org/abs/2010.02502, equation 12 with η = 0, at CompVis's times 1, 51, …"""
    x = next(draws(torch.Generator().manual_seed(SEED)))
    for time in range(951, 0, -50):
        clean, noise = predicted(x, time)
        alpha = ALPHAS[max(time - 50, 0)]
        x = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    return x


def plms() -> torch.Tensor:
    """Liu et al. 2022, https://arxiv.org/abs/2202.09778, equation 12, without Runge-Kutta: as CompVis begins it.

    The first step is taken twice: with its own noise, then again with the mean of that and the noise found there.
    """
    x = next(draws(torch.Generator().manual_seed(SEED)))
    before: list[torch.Tensor] = []

    def moved(x: torch.Tensor, noise: torch.Tensor, time: int) -> torch.Tensor:
        here, there = ALPHAS[time], ALPHAS[max(time - 50, 0)]
        clean = (x - (1 - here).sqrt() * noise) / here.sqrt()
        return there.sqrt() * clean + (1 - there).sqrt() * noise

    for time in range(951, 0, -50):
        noise = predicted(x, time)[1]
        match len(before):
            case 0:
                mixed = (noise + predicted(moved(x, noise, time), time - 50)[1]) / 2
            case 1:
                mixed = (3 * noise - before[-1]) / 2
            case 2:
                mixed = (23 * noise - 16 * before[-1] + 5 * before[-2]) / 12
            case _:
                mixed = (55 * noise - 59 * before[-1] + 37 * before[-2] - 9 * before[-3]) / 24
        x = moved(x, mixed, time)
        before.append(noise)
    return x


def lcm() -> torch.Tensor:
    """Luo et al. 2023, https://arxiv.org/abs/2310.04378, algorithm 3: 20 of the 50 times 19, 39, …, 999."""
    fresh = draws(torch.Generator().manual_seed(SEED))
    x = next(fresh)
    grid = list(range(999, 0, -20))
    times = [grid[index] for index in np.floor(np.linspace(0, len(grid), STEPS, endpoint=False)).astype(int)]
    for time, following in zip(times, [*times[1:], None], strict=True):
        clean, _ = predicted(x, time)
        scaled = time * 10.0
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        consistent = skip * x + out * clean
        if following is None:
            return consistent
        x = ALPHAS[following].sqrt() * consistent + (1 - ALPHAS[following]).sqrt() * next(fresh)
    raise AssertionError("there is always a last step")


def main() -> None:
    sampling = k_diffusion()
    figures: dict[str, dict[str, list[float]]] = {}
    written_out = (("DDIM", "uniform", ddim()), ("PLMS", "uniform", plms()), ("LCM", "uniform", lcm()))
    for name, schedule, found in (*k_figures(sampling), *written_out):
        figures.setdefault(name, {})[schedule] = [round(value, 9) for value in found.flatten().tolist()]
    sigmas = {name: [round(value, 9) for value in table.tolist()] for name, table in schedules(sampling).items()}
    noise = next(draws(torch.Generator().manual_seed(SEED))).flatten().tolist()
    json.dump(
        {
            "made_by": "tools/reference_samplers.py",
            "versions": {"k-diffusion": "0.1.1.post1", "torch": torch.__version__, "scipy": scipy.__version__},
            "steps": STEPS,
            "seed": SEED,
            "shape": SHAPE,
            "noise": noise,
            "sigmas": sigmas,
            "pictures": figures,
        },
        sys.stdout,
    )
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
