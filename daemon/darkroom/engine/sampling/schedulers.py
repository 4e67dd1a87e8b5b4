"""diffusers' schedulers where they need mending: what they cannot do, or do only with libraries that we do without.

scipy is left out for two integrals' sake, because diffusers then imports its statistics at every start, for two
seconds; torchsde because a Brownian path that is walked once, in order, needs no tree (and its last release is of
2023). Each function gives a class; diffusers is imported when it is called.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def euler(kind: Any) -> Any:
    """diffusers' Euler without the noise that it can add in each step, and is not asked for: to see that takes half of
    a step's time."""

    class Euler(kind):  # type: ignore[misc]
        def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
            """x + (σ₊ − σ)·(x − x̂₀)/σ in diffusers' order, to the bit."""
            if self.config.prediction_type != "epsilon" or return_dict:
                return super().step(model_output, timestep, sample, return_dict=return_dict)
            if self.step_index is None:
                self._init_step_index(timestep)
            sigma, following = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
            clean = sample - sigma * model_output
            self._step_index += 1
            return (sample + (sample - clean) / sigma * (following - sigma),)

    Euler.__name__ = kind.__name__
    return Euler


def lms() -> Any:
    """diffusers' LMS without scipy, which it needs for one integral of a polynomial."""
    from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

    class LMS(LMSDiscreteScheduler):
        """The coefficients by Gauss-Legendre quadrature, which is exact for polynomials of a degree this small."""

        def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
            """∫ of the Lagrange polynomial of the ``current_order``-th last derivative from σₜ to σₜ₊₁."""
            points, weights = np.polynomial.legendre.leggauss(order)
            sigmas = self.sigmas.double().numpy()
            begin, end = sigmas[t], sigmas[t + 1]
            at = (end - begin) / 2 * points + (end + begin) / 2
            basis = np.ones_like(at)
            for other in range(order):
                if other != current_order:
                    basis *= (at - sigmas[t - other]) / (sigmas[t - current_order] - sigmas[t - other])
            return float((end - begin) / 2 * (weights * basis).sum())

        def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, return_dict: bool = True) -> Any:
            """Of an order that the derivatives seen so far allow: diffusers goes by the place in the schedule."""
            return super().step(model_output, timestep, sample, min(order, len(self.derivatives) + 1), return_dict)

    return LMS


def dpm2(kind: Any) -> Any:
    """diffusers' DPM2 without the thousand timesteps that its constructor works out in 0.3 s, and nobody uses."""

    class DPM2(kind):  # type: ignore[misc]
        def set_timesteps(self, steps: int, device: Any = None, num_train_timesteps: int | None = None) -> None:
            if num_train_timesteps is None:
                super().set_timesteps(steps, device)
            else:
                self.sigmas = self.alphas_cumprod  # the constructor wants a tensor there

    return DPM2


def dpmpp_sde(euler: Any) -> Any:
    """DPM++ SDE over diffusers' ``EulerDiscreteScheduler``, with its noise from the pictures' own generators.

    diffusers has one, which needs torchsde and takes a seed of its own.
    """
    from diffusers.utils.torch_utils import randn_tensor

    class DPMPlusPlusSDE(euler):  # type: ignore[misc]
        """SDE-DPM-Solver++ of second order, halfway in log σ: two looks a step, but one in the last.

        Lu et al. 2022, https://arxiv.org/abs/2211.01095, as k-diffusion has it (``sample_dpmpp_sde`` with r = 1/2 and
        η = 1). In k-diffusion's terms each of its updates is x ← (σ↓/σ) x + (1 − σ↓/σ) x̂₀ + σ↑ ε. Both noises of a
        step begin at σ on one Brownian path: the second holds the first, and what is new since the halfway point.
        """

        order = 2
        sigmas: Any
        timesteps: Any

        def set_timesteps(self, steps: int, device: Any = None) -> None:
            """Euler's σ, and between two of them their geometric mean."""
            super().set_timesteps(steps, device)
            ends = self.sigmas[:-1].double().numpy()
            halfway = np.sqrt(ends[:-1] * ends[1:])
            trained = np.asarray(self.alphas_cumprod.double())
            times = self._sigma_to_t(halfway, np.log((1 - trained) / trained) / 2)
            self.sigmas = torch.tensor([*_interleaved(ends, halfway), 0.0], dtype=torch.float32)
            between = _interleaved(self.timesteps.double().cpu().numpy(), times)
            self.timesteps = torch.tensor(between, dtype=torch.float32, device=device)

        def step(
            self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = False
        ) -> tuple[Any]:
            if self.step_index is None:
                self._init_step_index(timestep)
            place = self.step_index
            here, following = (float(sigma) for sigma in self.sigmas[place : place + 2])
            clean = self._clean(model_output, sample, here)
            self._step_index += 1
            if following == 0:
                return (clean,)
            fresh = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            if place % 2 == 0:
                self._start, self._noise = sample, fresh
                return (_ancestral(sample, clean, here, following, fresh),)
            start = float(self.sigmas[place - 1])
            path = math.sqrt(start - here) * self._noise + math.sqrt(here - following) * fresh
            return (_ancestral(self._start, clean, start, following, path / math.sqrt(start - following)),)

        def _clean(self, predicted: Any, sample: Any, sigma: float) -> Any:
            """x̂₀ from predicted noise or velocity (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512)."""
            match self.config.prediction_type:
                case "epsilon":
                    return sample - sigma * predicted
                case "v_prediction":
                    return sample / (sigma**2 + 1) - predicted * (sigma / math.sqrt(sigma**2 + 1))
                case "sample":
                    return predicted
            raise ValueError(f"no prediction type: {self.config.prediction_type}")

    return DPMPlusPlusSDE


def _ancestral(sample: Any, clean: Any, here: float, following: float, noise: Any) -> Any:
    """From σ to σ′ > 0: down to σ↓ = σ′²/σ, then up again by noise of σ↑ = √(σ′² − σ↓²)."""
    down = following**2 / here
    share = down / here
    return share * sample + (1 - share) * clean + math.sqrt(following**2 - down**2) * noise


def _interleaved(ends: npt.NDArray[Any], between: npt.NDArray[Any]) -> list[float]:
    return [float(value) for pair in zip(ends, between, strict=False) for value in pair] + [float(ends[-1])]


def with_beta(kind: Any) -> Any:
    """``kind`` with the beta schedule in place of the exponential one."""

    class Beta(kind):  # type: ignore[misc]
        """Noise levels at quantiles of a beta distribution, dense at both ends, as in A1111 and diffusers.

        Lee et al. 2024, https://arxiv.org/abs/2407.12173, with their α = β = 0.6.
        """

        def _convert_to_exponential(self, in_sigmas: Any, num_inference_steps: int) -> npt.NDArray[np.float64]:
            most, least = float(in_sigmas[0]), float(in_sigmas[-1])
            return least + beta_quantiles(np.linspace(1, 0, num_inference_steps)) * (most - least)

    Beta.__name__ = kind.__name__
    return Beta


def beta_quantiles(shares: npt.NDArray[np.float64], shape: float = 0.6) -> npt.NDArray[np.float64]:
    """Where the beta distribution with α = β = ``shape`` has the given shares of 1 below it.

    By the power series of the incomplete beta function (DLMF 8.17.7), which halves its terms at least below 1/2, and
    bisection there; above 1/2 by symmetry.
    """
    lower = np.minimum(shares, 1 - shares)
    whole = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    terms = [1.0]
    for n in range(1, 60):
        terms.append(terms[-1] * (n - shape) / n)
    coefficients = np.array(terms) / (shape + np.arange(60))
    low, high = np.zeros_like(lower), np.full_like(lower, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        below = middle**shape * np.polynomial.polynomial.polyval(middle, coefficients) / whole < lower
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(shares > 0.5, 1 - high, high)
