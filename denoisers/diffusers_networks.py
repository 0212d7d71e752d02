"""Denoisers from diffusers' model classes: one thin constructor per call signature, without importing diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .networks import NetworkCall, NetworkDenoiser, Rows
from .preconditioning import Prediction, discrete
from .timesteps import Timesteps


class DiffusersModel(Protocol):
    """What is used of a diffusers `ModelMixin`."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def config(self) -> Any: ...  # noqa: ANN401 (FrozenDict, with attribute access)

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: ANN401


def _denoiser(
    model: DiffusersModel,
    call: NetworkCall,
    alphas_cumprod: Tensor,
    prediction: Prediction,
    name: str,
    null: Rows | None,
) -> NetworkDenoiser:
    size = model.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    times = Timesteps(alphas_cumprod)
    return NetworkDenoiser(
        call=call,
        precondition=discrete(prediction, times),
        shape=(model.config.in_channels, height, width),
        sigma_min=times.sigma_min,
        sigma_max=times.sigma_max,
        name=name,
        dtype=model.dtype,
        device=str(model.device),
        null={key: value.to(model.device) for key, value in (null or {}).items()},
        alphas_cumprod=torch.as_tensor(alphas_cumprod).detach().cpu().double(),
        networks=(model,) if isinstance(model, nn.Module) else (),
        prediction=prediction,
    )


def unet2d(
    model: DiffusersModel, alphas_cumprod: Tensor, prediction: Prediction = "epsilon", name: str = "unet2d"
) -> NetworkDenoiser:
    """A `UNet2DModel`, unconditional or by class (rows `class_labels`).

    Args:
        model: in evaluation mode; its dtype and device are read here, its `config.sample_size` is the shape.
        alphas_cumprod: (T,), of the scheduler that it was trained with.
        prediction: `epsilon`, `v_prediction` or `sample`.
        name: what tables record.
    """

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        return model(x, timestep, class_labels=rows.get("class_labels"), return_dict=False)[0]

    return _denoiser(model, call, alphas_cumprod, prediction, name, None)


def unet2d_condition(
    model: DiffusersModel,
    alphas_cumprod: Tensor,
    prediction: Prediction = "epsilon",
    name: str = "unet2d_condition",
    null: Mapping[str, Tensor] | None = None,
) -> NetworkDenoiser:
    """A `UNet2DConditionModel`: rows `encoder_hidden_states` and, where the model wants them, `class_labels`,
    `encoder_attention_mask`, `text_embeds` and `time_ids` (SDXL).

    Args:
        model, alphas_cumprod, prediction, name: as for `unet2d`.
        null: the unconditional rows, one each: the embedding of the empty prompt.
    """

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        added = {key: rows[key] for key in ("text_embeds", "time_ids") if key in rows}
        return model(
            x,
            timestep,
            encoder_hidden_states=rows["encoder_hidden_states"],
            class_labels=rows.get("class_labels"),
            encoder_attention_mask=rows.get("encoder_attention_mask"),
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    denoiser = _denoiser(model, call, alphas_cumprod, prediction, name, null)
    return replace(denoiser, condition="encoder_hidden_states")


def dit(
    model: DiffusersModel, alphas_cumprod: Tensor, prediction: Prediction = "epsilon", name: str = "dit"
) -> NetworkDenoiser:
    """A `DiTTransformer2DModel`: rows `class_labels`; its last class, `num_embeds_ada_norm`, is the unconditional one.

    Args:
        model, alphas_cumprod, prediction, name: as for `unet2d`.
    """

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        return model(x, timestep=timestep, class_labels=rows["class_labels"], return_dict=False)[0]

    null = {"class_labels": torch.tensor([model.config.num_embeds_ada_norm])}
    return _denoiser(model, call, alphas_cumprod, prediction, name, null)
