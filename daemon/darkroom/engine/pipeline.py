"""A model in use: its parts, each in memory or to be read from the disk, and where each of them is at work.

On a GPU a part that has to make room waits in the machine's own memory. On a CPU that is the memory which is short:
the part is dropped, and read again when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from darkroom.config import Safety
from darkroom.engine.device import free_memory
from darkroom.engine.lora import Adapters
from darkroom.engine.memory import host
from darkroom.engine.memory.need import Need
from darkroom.engine.memory.plan import MemoryPlan
from darkroom.engine.openvino.convert import OpenVino
from darkroom.engine.openvino.served import Served
from darkroom.engine.readings import Readings

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DECODER = "decoder"
"""The VAE's decoder as OpenVINO runs it. Torch's VAE leaves memory with it."""


@dataclass(frozen=True)
class _Aside:
    """A part that may be at work again later; ``size`` without the LoRAs of any job."""

    part: Any
    size: int
    mapped: bool


@dataclass
class Pipeline:
    """What must be known to use a model, and its parts by the names of their folders."""

    name: str
    device: torch.device
    dtype: torch.dtype
    tokenizers: tuple[Any, ...]
    loaders: dict[str, Callable[[], Any]]
    """Each reads one part from the disk, on the CPU: the text encoders, ``unet`` and ``vae``."""
    unet_config: Mapping[str, Any]
    vae_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any]
    penultimate: bool
    """The UNet was trained on the text encoders' last layer but one (SDXL)."""
    zero_empty_negative: bool
    """No negative prompt means zeros, not the embedding of an empty text (SDXL)."""
    vae_upcast: bool
    """The VAE overflows in float16 (SDXL) and is used in float32."""
    channels_last: frozenset[str] = frozenset()
    """Parts that work in that memory format. Those that come to a device have their weights in it there too."""
    safety: Safety = "off"
    """What happens to pictures that the part ``safety_checker`` flags; there is none where this is off."""
    openvino: OpenVino | None = None
    """Who is to run the UNet and ``decoder`` instead of torch, where the config wants that."""
    served: bool = False
    """Whether that is so, for the job at work."""
    loaded: dict[str, Any] = field(default_factory=dict)
    """The parts that are in memory."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each part that was in memory once."""
    mapped: set[str] = field(default_factory=set)
    """Parts that are their files, mapped into memory: stored in the very format that is computed with."""
    adapters: Adapters | None = None
    """The LoRAs of the job at work. ``sizes`` counts them."""
    readings: Readings = field(default_factory=Readings)
    """What its text encoders, without any LoRA, made of texts."""
    on_disk: int = 0
    """Bytes of its files."""
    largest: int = 0
    """Bytes of the largest layer of them all."""
    _streamed: set[str] = field(default_factory=set)
    """Parts whose layers come to the device one by one."""
    _aside: dict[str, _Aside] = field(default_factory=dict)
    """Those of the parts of torch or of OpenVINO that the other one does without."""
    _fused: Mapping[str, Any] | None = None
    """The UNet's own attention, while it is sliced."""

    slices_attention = True
    """Its attention can be computed one head at a time."""

    @property
    def text_encoders(self) -> tuple[Any, ...]:
        """One, or SDXL's two."""
        return tuple(self.part(name) for name in self.text_encoder_names)

    @property
    def text_encoder_names(self) -> tuple[str, ...]:
        """Their parts' names."""
        return tuple(name for name in TEXT_ENCODERS if name in self.loaders)

    @property
    def unet(self) -> Any:
        """The part that denoises."""
        return self.part("unet")

    @property
    def vae(self) -> Any:
        """The part that makes pixels of latents."""
        return self.part("vae")

    @property
    def reduction(self) -> int:
        """Pixels of a picture to one position of its latents, along a side."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    @property
    def inpaints(self) -> bool:
        """Whether the UNet is shown, with the noisy latents, a mask and what is around it (9 channels)."""
        latents = self.vae_config.get("latent_channels", 4)
        return bool(self.unet_config.get("in_channels", 4) == 2 * latents + 1)

    @property
    def grain(self) -> int:
        """Width and height of its pictures, in pixels, are multiples of this."""
        return self.reduction

    @property
    def distilled(self) -> bool:
        """The denoiser is told the guidance scale, and looks at a prompt once instead of twice."""
        return self.unet_config.get("time_cond_proj_dim") is not None

    @property
    def native_side(self) -> int:
        """Side in pixels of the pictures it was trained on."""
        size = self.unet_config.get("sample_size")
        return int(size if isinstance(size, int) else min(size)) * self.reduction if size else 512

    @property
    def size(self) -> int:
        """Bytes of the parts that are in memory."""
        return sum(self.sizes[name] for name in self.loaded) + sum(one.size for one in self._aside.values())

    @property
    def weighed(self) -> bool:
        """Whether the size of its largest part is known, since that was in memory once."""
        return not self.sizes.keys().isdisjoint(("unet", "transformer"))

    @property
    def vae_format(self) -> torch.memory_format:
        """How what the VAE is given lies in memory."""
        return torch.channels_last if "vae" in self.channels_last else torch.preserve_format

    def held(self) -> dict[str, int]:
        """Bytes of those that are in the device's memory: ``mapped`` from a file, or ``anonymous``."""
        held = {"anonymous": 0, "mapped": 0}
        for name, part in self.loaded.items():
            if isinstance(part, Served):
                held["anonymous"] += part.held
            elif self._is_here(part):
                kind = "mapped" if self.device.type == "cpu" and name in self.mapped else "anonymous"
                held[kind] += self.sizes[name]
        return held

    def part(self, name: str) -> Any:
        """A part, read from the disk if it is not in memory. Raises what its loader raises."""
        if name not in self.loaded:
            before = host.anonymous_bytes()
            load = self._served_parts().get(name) or self.loaders[name]
            self.loaded[name] = part = load()
            after = host.anonymous_bytes()
            weights = [*part.parameters(), *part.buffers()]
            sizes = [weight.numel() * weight.element_size() for weight in weights]
            self.sizes[name] = sum(sizes)
            self.largest = max([self.largest, *sizes])
            if before is not None and after is not None and after - before < self.sizes[name] // 2:
                self.mapped.add(name)
            else:
                self.mapped.discard(name)
            self.sizes[name] += self._adapters_size(name)
        if self.adapters is not None:
            self.adapters.attach(name, self.loaded[name])
        return self.loaded[name]

    def serve(self, served: bool, *, plenty: bool = False) -> None:
        """OpenVINO runs the UNet from now on, or torch does. With ``plenty`` of memory the other one's waits aside."""
        if served == self.served:
            return
        leaving = {
            name: _Aside(self.loaded[name], self.sizes[name] - self._adapters_size(name), name in self.mapped)
            for name in ("unet", "vae", DECODER)
            if name in self.loaded
        }
        self.let_go("unet", "vae")
        for name, one in self._aside.items():
            self.loaded[name] = one.part
            self.sizes[name] = one.size + self._adapters_size(name)
            (self.mapped.add if one.mapped else self.mapped.discard)(name)
        self._aside = leaving if plenty else {}
        self.served = served

    def forget_aside(self) -> None:
        """Let go of what is not at work in this job."""
        self._aside.clear()

    @property
    def parts(self) -> tuple[str, ...]:
        """All that the job at work may need."""
        return tuple(dict.fromkeys([*self.loaders, *self._served_parts()]))

    def _served_parts(self) -> dict[str, Callable[[], Any]]:
        if not self.served or self.openvino is None:
            return {}
        return {"unet": self.openvino.open, DECODER: self.openvino.open_decoder}

    def adapt(self, adapters: Adapters | None) -> None:
        """Every part goes by these LoRAs from now on, those that are read again too; with None by none."""
        if self.adapters is not None:
            self.adapters.detach()
        before = {name: self._adapters_size(name) for name in self.sizes}
        self.adapters = adapters
        for name in self.sizes:
            self.sizes[name] += self._adapters_size(name) - before[name]

    @property
    def adapts_unet(self) -> bool:
        """Whether a LoRA of the job at work changes the UNet."""
        return bool(self._adapters_size("unet"))

    @property
    def adapts_texts(self) -> bool:
        """Whether a LoRA of the job at work changes what the text encoders make of a text."""
        return any(self._adapters_size(name) for name in self.text_encoder_names)

    def _adapters_size(self, name: str) -> int:
        return 0 if self.adapters is None else self.adapters.sizes.get(name, 0)

    def load(self, *names: str) -> None:
        """These parts, or all, into memory, so that a damaged one is known before the work begins."""
        for name in names or self.parts:
            self.part(name)

    def let_go(self, *names: str) -> None:
        """These parts, or all, leave the device's memory, which is not handed back yet."""
        if not names:
            self.forget_aside()
        names = names or tuple(self.loaded)
        for name in (*names, "vae", DECODER) if {"vae", DECODER} & set(names) else names:
            part = self.loaded.get(name)
            if part is None:
                continue
            if name == "unet":
                self.slice_attention(False)
            self._stop_streaming(name)
            if self.device.type == "cpu":
                del self.loaded[name]
            else:
                part.to("cpu")

    @contextmanager
    def at_work(self, plan: MemoryPlan, *names: str) -> Iterator[None]:
        """These parts on the device; what the plan does not keep there is let go afterwards."""
        try:
            for name in names:
                self._bring(name, plan)
            yield
        finally:
            self.make_room(plan, *names)

    def make_room(self, plan: MemoryPlan, *names: str) -> None:
        """Those of these parts that the plan keeps on the device only while they are at work leave it."""
        leaving = [
            name for name in names if plan.weights != "resident" or (plan.texts == "dropped" and name in TEXT_ENCODERS)
        ]
        if leaving:
            self.let_go(*leaving)
            free_memory(self.device)

    def _is_here(self, part: Any) -> bool:
        """Whether its weights are on the device: what is streamed counts as being elsewhere."""
        if self.device.type == "cpu":
            return True  # there is nowhere else, and to look for a weight takes longer than one might think
        weight = next(part.parameters(), None)
        return weight is not None and weight.device.type == self.device.type

    def _bring(self, name: str, plan: MemoryPlan) -> None:
        """A part to the device, or only its layers one by one."""
        part = self.part(name)
        if plan.weights == "layers" and name != "vae":
            if name not in self._streamed:
                _stream(part, self.device)
                self._streamed.add(name)
        else:
            self._stop_streaming(name)
            if not self._is_here(part):
                turned = {"memory_format": torch.channels_last} if name in self.channels_last else {}
                part.to(self.device, **turned)
        if name == "unet":
            self.slice_attention(plan.attention == "sliced")

    def _stop_streaming(self, name: str) -> None:
        if name in self._streamed:
            self._streamed.discard(name)
            _stop_streaming(self.loaded[name])

    def slice_attention(self, sliced: bool) -> None:
        """Whether the UNet computes its attention one head at a time, or as it was made."""
        unet = self.loaded.get("unet")
        if unet is None or self.served or sliced == (self._fused is not None):
            return
        if sliced:
            self._fused = dict(unet.attn_processors)
            unet.set_attention_slice(1)
        else:
            unet.set_attn_processor(dict(self._fused or {}))
            self._fused = None

    def need(self, *, guided: bool, slices_attention: bool) -> Need:
        """What it needs to make pictures. Parts that were never in memory count as nothing."""
        itemsize = self.dtype.itemsize
        return Need.of(
            self.unet_config,
            self.vae_config,
            self.weights("unet"),
            largest=self.largest,
            itemsize=itemsize,
            vae_itemsize=4 if self.vae_upcast else itemsize,
            guided=guided,
            slices_attention=slices_attention,
        )

    def weights(self, denoiser: str) -> dict[str, int]:
        """Bytes of the text encoders, of the part of that name, and of the VAE and what looks at its pictures."""
        size = self.sizes.get
        return {
            "texts": sum(size(name, 0) for name in self.text_encoder_names),
            "denoiser": size(denoiser, 0),
            "vae": size("vae", 0) * (2 if self.vae_upcast else 1)
            + sum(size(name, 0) for name in ("tiny_vae", "safety_checker", DECODER)),
        }


def _stream(part: Any, device: torch.device) -> None:
    """Its layers come to the device one by one, each when its turn is, and wait in the machine's memory otherwise."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    part.to("cpu")
    apply_group_offloading(part, device, torch.device("cpu"), "leaf_level")


def _stop_streaming(part: Any) -> None:
    """All of it can be moved again. diffusers has no call for that, only for each hook."""
    for module in part.modules():
        registry: Any = getattr(module, "_diffusers_hook", None)  # where it keeps them
        if registry is not None:
            for name in tuple(registry.hooks):
                registry.remove_hook(name, recurse=False)
