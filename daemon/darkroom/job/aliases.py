"""What other tools call our fields, and which of theirs mean nothing here.

Names as in A1111's ``/sdapi/v1/txt2img`` and in diffusers; a field at its do-nothing default is dropped.
"""

from __future__ import annotations

from typing import Any

ALIASES = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "num_images": "count",
    "sd_model_checkpoint": "model",
    "sampler_name": "sampler",
    "scheduler": "schedule",
    "CLIP_stop_at_last_layers": "clip_skip",
}
"""Other name → ours; model and clip skip may be ``override_settings``. What is more than a name: see ``a1111``."""

_ANY_FLAG = (True, False, None)

DO_NOTHING: dict[str, tuple[Any, ...]] = {
    "alwayson_scripts": ({}, None),
    "comments": ({}, None),
    "disable_extra_networks": (False, None),
    "do_not_save_grid": _ANY_FLAG,
    "do_not_save_samples": _ANY_FLAG,
    "eta": (0, 0.0, None),
    "firstpass_image": (None, ""),
    "firstphase_height": (0, None),
    "firstphase_width": (0, None),
    "force_task_id": (None, ""),
    "hr_additional_modules": ([], None),
    "hr_cfg": (1, 1.0, None),
    "hr_checkpoint_name": (None, "", "Use same checkpoint"),
    "hr_distilled_cfg": (3.5, None),
    "hr_negative_prompt": (None, ""),
    "hr_prompt": (None, ""),
    "hr_resize_x": (0, None),
    "hr_resize_y": (0, None),
    "hr_sampler_name": (None, "", "Use same sampler"),
    "hr_scheduler": (None, "", "Use same scheduler"),
    "image_cfg_scale": (0, 0.0, 1.5, None),
    "include_init_images": _ANY_FLAG,
    "infotext": (None, ""),
    "initial_noise_multiplier": (1, 1.0, None),
    "inpaint_full_res": _ANY_FLAG,
    "inpaint_full_res_padding": (0, 32, None),
    "inpainting_fill": (0, 1, None),
    "inpainting_mask_invert": (0, False, None),
    "latent_mask": (None, ""),
    "mask_blur": (0, 4, None),
    "mask_blur_x": (0, 4, None),
    "mask_blur_y": (0, 4, None),
    "mask_round": _ANY_FLAG,
    "override_settings": (None,),
    "override_settings_restore_afterwards": _ANY_FLAG,
    "refiner_checkpoint": (None, "", "None"),
    "refiner_switch_at": (0, 0.0, None),
    "resize_mode": (0, None),
    "restore_faces": (False, None),
    "s_churn": (0, 0.0, None),
    "s_min_uncond": (0, 0.0, None),
    "s_noise": (0, 0.0, 1, 1.0, None),
    "s_tmax": (0, 0.0, None),
    "s_tmin": (0, 0.0, None),
    "sampler_index": (None, "", "Euler"),
    "save_images": _ANY_FLAG,
    "script_args": ([], None),
    "script_name": (None, ""),
    "seed_resize_from_h": (-1, 0, None),
    "seed_resize_from_w": (-1, 0, None),
    "send_images": _ANY_FLAG,
    "styles": ([], None),
    "subseed": (-1, None),
    "subseed_strength": (0, 0.0, None),
    "tiling": (False, None),
}
"""Fields of A1111's API and the values at which they change nothing."""


def changes_nothing(field: str, value: Any) -> bool:
    """Whether ``field`` is one of A1111's at a do-nothing value. ``True`` is not taken for 1, nor ``False`` for 0."""
    return any(type(value) is type(neutral) and value == neutral for neutral in DO_NOTHING.get(field, ()))
