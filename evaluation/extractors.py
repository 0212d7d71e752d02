"""What sees pictures as features: a function or module of yours, or torchmetrics' InceptionV3."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..denoisers.checks import in_words
from ..denoisers.fingerprint import weights_digest
from ..denoisers.own_function import failures_of, is_own_function, own_function

INCEPTION = "inception"
TOGETHER = 64  # pictures in one call: networks of features enlarge them to 299 pixels and more


class FeatureError(ValueError):
    """Features that cannot be had, or are none: of what, and the remedy."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """Pictures -> features, checked.

    Args:
        name: what results record.
        function: (B, 3, H, W) float32 in [0, 1], of 8-bit values, on `device` -> (B, F).
        device: where it wants its pictures.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Features (B, F), float32, in main memory.

        Raises:
            FeatureError: for anything else than B finite rows.
        """
        return torch.cat([self._part(part) for part in pictures.split(TOGETHER)])

    def _part(self, pictures: Tensor) -> Tensor:
        with failures_of(f"the features {self.name}", FeatureError):
            out: object = self.function(pictures.to(self.device))
        if (
            not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(pictures) or out.shape[1] == 0
            or not out.is_floating_point()
        ):  # fmt: skip
            shown = f"shape {tuple(out.shape)}, {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
            raise FeatureError(
                f"the features {self.name} are of {shown} for pictures {tuple(pictures.shape)}: return "
                f"({len(pictures)}, F), floating point; .flatten(1) turns maps into rows"
            )
        features = out.float().cpu()
        finite = features.isfinite().all(1)
        if not bool(finite.all()):
            first = int(finite.logical_not().nonzero()[0])
            raise FeatureError(
                f"the features {self.name} of picture {first} of {len(pictures)} are not finite: mend the extractor, "
                "or let it compute in float32"
            )
        return features

    def identity(self) -> dict[str, str]:
        """What its features depend on, as far as it can be told."""
        modules = [self.function] if isinstance(self.function, nn.Module) else []
        return {"features": self.name, "feature weights": weights_digest(modules)}


def pictures_of(decoded: Tensor) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] of 8-bit values, as a file would hold them: what published statistics are of.

    Args:
        decoded: (B, 3, H, W), or grey ones (B, 1, H, W); clamped to [0, 1].

    Raises:
        FeatureError: for what is no picture.
    """
    if decoded.ndim != 4 or decoded.shape[1] not in (1, 3):
        raise FeatureError(
            f"the model decodes to shape {tuple(decoded.shape)}: features are of pictures, (B, 3, H, W) or (B, 1, H, W)"
        )
    return ((decoded.float().clamp(0, 1) * 255).round() / 255).expand(-1, 3, -1, -1)


def load_features(spec: str | Callable[[Tensor], Tensor], device: str = "cpu") -> Extractor:
    """The extractor that a specification stands for.

    - `file.py:function` or `package.module:function`: a function of pictures, or one without arguments (a class, too)
      that returns an `nn.Module` or a function of pictures; or such a module itself.
    - `inception`: the 2048 numbers before the last layer of the InceptionV3 that FID was defined with (arXiv
      1706.08500), resized as in TensorFlow, by torchmetrics.
    - any function or module of pictures.

    Args:
        device: where a module is put and pictures are handed over.

    Raises:
        FeatureError: for a specification that is none of these, a function that is not there or fails, or packages
            that are missing.
    """
    if not isinstance(spec, str):
        name = type(spec).__name__ if isinstance(spec, nn.Module) else getattr(spec, "__name__", type(spec).__name__)
        return Extractor(name, _placed(spec, device), device)
    if spec == INCEPTION:
        return Extractor(spec, _placed(Inception(), device), device)
    if not is_own_function(spec):
        raise FeatureError(
            f"the features {spec!r} are unknown: give {INCEPTION}, file.py:function or package.module:function"
        )
    try:
        function = own_function(spec, "--features", FeatureError)
    except ImportError as error:
        raise FeatureError(
            f"the features {spec} cannot be imported ({in_words(error)}): install what they need, or run in the folder "
            "of the module"
        ) from error
    with failures_of(spec, FeatureError):
        made = function() if _is_maker(function) else function
    if not callable(made):
        raise FeatureError(f"{spec} returned {type(made).__name__}: return an nn.Module, or a function of pictures")
    return Extractor(spec, _placed(cast(Callable[[Tensor], Tensor], made), device), device)


def _is_maker(function: Callable[..., Any]) -> bool:
    """Whether it can be called without pictures."""
    if isinstance(function, nn.Module):
        return False
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # the second for functions of C without a signature
        return False
    return True


def _placed(function: Callable[[Tensor], Tensor], device: str) -> Callable[[Tensor], Tensor]:
    return function.to(device).eval().requires_grad_(False) if isinstance(function, nn.Module) else function


class Inception(nn.Module):
    """Torchmetrics' InceptionV3, given pictures in [0, 1].

    Raises:
        FeatureError: where torchmetrics or torch-fidelity is missing, or the weights cannot be downloaded.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance

            # Without antialiasing it resizes as TensorFlow 1 did, which published statistics were made with.
            self.network = FrechetInceptionDistance(feature=2048, antialias=False).inception
        except ImportError as error:  # torch-fidelity's absence is one of these, too
            raise FeatureError(
                f"the features {INCEPTION} need more packages ({in_words(error)}): pip install 'epd[metrics]' "
                "torch-fidelity, which brings the torchvision that fits your torch; or give your own extractor as "
                "file.py:function"
            ) from error
        except OSError as error:
            raise FeatureError(
                f"the weights of {INCEPTION} cannot be downloaded ({in_words(error)}): try again with a network, or "
                "give your own extractor as file.py:function"
            ) from error

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 2048)."""
        return self.network((pictures * 255).round().to(torch.uint8))
