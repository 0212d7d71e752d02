"""Pictures as image encoders want them, made on the device: resized, cropped or padded, normalised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .reward import RewardError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# What every CLIP encoder does; a processor that says otherwise is not one of them.
NEEDED = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": 3}


@dataclass(frozen=True)
class Preparation:
    """Bicubic, antialiased resizing as Pillow does it, but without rounding to 8 bits.

    Args:
        size: pixels that the shorter side gets; of the longer side what is in the middle remains.
        crop: (height, width) of what remains, at most `size` each.
        mean, std: of the three channels, for (x - mean) / std.
        whole: the longer side gets `size` instead and black fills the square, half on either side.
    """

    size: int
    crop: tuple[int, int]
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    whole: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, *crop), float32."""
        height, width = images.shape[2:]
        longer, shorter = max(height, width), min(height, width)
        if self.whole:
            sides = (round(height * self.size / longer), round(width * self.size / longer))
        else:
            long = self.size * longer // shorter
            sides = (self.size, long) if height <= width else (long, self.size)
        x = images.float()
        if sides != (height, width):
            x = functional.interpolate(x, sides, mode="bicubic", antialias=True).clamp(0, 1)
        x = self._padded(x) if self.whole else self._cropped(x)
        mean, std = (torch.tensor(numbers, device=x.device).reshape(3, 1, 1) for numbers in (self.mean, self.std))
        return (x - mean) / std

    def _cropped(self, x: Tensor) -> Tensor:
        top, left = (x.shape[2] - self.crop[0]) // 2, (x.shape[3] - self.crop[1]) // 2
        return x[:, :, top : top + self.crop[0], left : left + self.crop[1]]

    def _padded(self, x: Tensor) -> Tensor:
        high, wide = self.size - x.shape[2], self.size - x.shape[3]
        return functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


def preparation_of(source: str) -> Preparation:
    """What the image processor of a hub id or local folder says, from its preprocessor_config.json.

    Raises:
        RewardError: for settings that no CLIP encoder has.
        OSError: where there is none.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
    size: Any
    crop: Any
    size, crop = settings.get("size", 224), settings.get("crop_size", 224)
    shortest: Any = size.get("shortest_edge") if isinstance(size, dict) else size
    sides: Any = (crop.get("height"), crop.get("width")) if isinstance(crop, dict) else (crop, crop)
    mean, std = settings.get("image_mean") or OPENAI_MEAN, settings.get("image_std") or OPENAI_STD
    odd: dict[str, Any] = {k: settings[k] for k, value in NEEDED.items() if settings.get(k, value) != value}
    sized = all(type(n) is int and n > 0 for n in (shortest, *sides)) and max(sides) <= shortest
    if odd or not sized or not len(mean) == len(std) == 3:
        raise RewardError(
            f"the image processor of {source} has {odd or ''} size {size}, crop_size {crop}, mean {mean}: needed are a "
            "bicubic resize of the shortest edge, a crop of at most as much, and three channels, as CLIP has them"
        )
    return Preparation(shortest, sides, tuple(mean), tuple(std))


def padded(preparation: Preparation) -> Preparation:
    """The same for whole pictures: the longer side fits, black fills the rest."""
    return replace(preparation, whole=True)
