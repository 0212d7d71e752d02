"""Denoisers from networks, against closed forms, exact mixtures and diffusers' own conversions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from epd.denoisers import diffusers_networks, preconditioning
from epd.denoisers.mixture import GaussianMixture
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.noise import unit_noise
from epd.denoisers.timesteps import Timesteps, linear_beta

SHAPE = (2, 3)
SIGMAS = torch.tensor([0.02, 0.4, 1.7, 9.0, 130.0], dtype=torch.float64)
TIMES = Timesteps(linear_beta())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(path: str = "ve") -> GaussianMixture:
    return GaussianMixture(normal(4, *SHAPE), [0.3, 0.5, 0.2, 0.4], path="flow" if path == "flow" else "ve")


@dataclass
class Recorder:
    """A network that remembers what it was asked; `answer(x, timestep, rows)` is its output."""

    answer: Callable[[Tensor, Tensor, Rows], Tensor]
    calls: list[tuple[Tensor, Tensor, Rows]] = field(default_factory=list)

    def __call__(self, x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        self.calls.append((x, timestep, rows))
        return self.answer(x, timestep, rows)


def of_label(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    """x0 = the row's label everywhere: what guidance and row order do can be read off."""
    return rows["class_labels"].to(x.dtype)[:, None, None].expand(x.shape)


def network(
    answer: Callable[[Tensor, Tensor, Rows], Tensor],
    precondition: preconditioning.Preconditioning | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[NetworkDenoiser, Recorder]:
    recorder = Recorder(answer)
    plain = preconditioning.sample(TIMES) if precondition is None else precondition
    null = {"class_labels": torch.tensor([-1])}
    return NetworkDenoiser(recorder, plain, SHAPE, TIMES.sigma_min, TIMES.sigma_max, dtype=dtype, null=null), recorder


def test_edm_preconditioning_is_exact_for_a_gaussian() -> None:
    mean, std = normal(*SHAPE, seed=3), 0.7

    def raw(x: Tensor, c_noise: Tensor, rows: Rows) -> Tensor:
        sigma = (4 * c_noise).exp()[:, None, None]
        return mean * sigma / (std * (sigma**2 + std**2).sqrt())

    denoiser, recorder = network(raw, preconditioning.edm(std))
    x = mean + normal(5, *SHAPE) * SIGMAS[:, None, None]
    exact = GaussianMixture(mean[None], std)(x, SIGMAS)
    torch.testing.assert_close(denoiser(x, SIGMAS), exact, rtol=1e-12, atol=1e-12)
    seen, c_noise, _ = recorder.calls[0]
    torch.testing.assert_close(seen, x / (SIGMAS**2 + std**2).sqrt()[:, None, None], rtol=1e-14, atol=0)
    torch.testing.assert_close(c_noise, SIGMAS.log() / 4, rtol=1e-14, atol=0)


def raw_of(kind: str, exact: GaussianMixture) -> Callable[[Tensor, Tensor, Rows], Tensor]:
    """The network that a perfect training on this mixture would give, in the variance-preserving frame."""

    def raw(seen: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        sigma = TIMES.sigma(timestep)[:, None, None]
        alpha = (1 + sigma**2).rsqrt()
        x0 = exact(seen / alpha, sigma.flatten())
        eps = (seen - alpha * x0) / (alpha * sigma)
        return {"epsilon": eps, "v_prediction": alpha * eps - alpha * sigma * x0, "sample": x0}[kind]

    return raw


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_is_the_same_denoiser(kind: preconditioning.Prediction) -> None:
    denoiser, _ = network(raw_of(kind, mixture()), preconditioning.discrete(kind, TIMES))
    x = normal(5, *SHAPE, seed=1) * (1 + SIGMAS[:, None, None])
    torch.testing.assert_close(denoiser(x, SIGMAS), mixture()(x, SIGMAS), rtol=1e-9, atol=1e-9)
    for row, sigma in enumerate(SIGMAS):  # a scalar sigma is the same as per-row sigmas
        torch.testing.assert_close(denoiser(x, sigma)[row], denoiser(x, SIGMAS)[row], rtol=1e-12, atol=1e-12)


def test_flow_prediction_is_exact() -> None:
    exact = mixture("flow")

    def raw(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        sigma = timestep / 1000
        return (x - exact(x, sigma)) / sigma[:, None, None]

    denoiser, recorder = network(raw, preconditioning.flow())
    x, sigma = normal(3, *SHAPE), torch.tensor([0.01, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, sigma), exact(x, sigma), rtol=1e-12, atol=1e-12)
    assert recorder.calls[0][1].tolist() == [10.0, 500.0, 1000.0]


def test_timesteps_round_trip() -> None:
    t = torch.linspace(0, 999, 4321, dtype=torch.float64)
    torch.testing.assert_close(TIMES.timestep(TIMES.sigma(t)), t, rtol=1e-10, atol=1e-7)
    acp = linear_beta()
    whole = torch.arange(1000)
    torch.testing.assert_close(TIMES.sigma(whole), ((1 - acp) / acp).sqrt(), rtol=1e-11, atol=0)
    half = 0.5 * (0.5 * acp[41].log() + 0.5 * acp[42].log())  # log alpha is linear in between
    torch.testing.assert_close(TIMES.timestep((torch.expm1(-2 * half)).sqrt()), torch.tensor(41.5).double())
    assert TIMES.timestep(torch.tensor([0.0, 1e9])).tolist() == [0.0, 999.0]
    beyond = torch.tensor([-0.25, 1003.25], dtype=torch.float64)
    torch.testing.assert_close(TIMES.timestep(TIMES.sigma(beyond), extrapolate=True), beyond, rtol=1e-10, atol=1e-7)
    torch.testing.assert_close(linear_beta().float(), DDIMScheduler().alphas_cumprod, rtol=2e-4, atol=0)


def test_timesteps_are_differentiable() -> None:
    sigma = torch.tensor([0.3, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TIMES.timestep, (sigma,))


def test_bound_rows_serve_parallel_points_sample_major() -> None:
    denoiser, recorder = network(of_label)
    bound = denoiser.bind([3, 5])
    assert bound(normal(6, *SHAPE), SIGMAS[0])[:, 0, 0].tolist() == [3, 3, 3, 5, 5, 5]
    assert bound(normal(2, *SHAPE), SIGMAS[0])[:, 0, 0].tolist() == [3, 5]
    assert denoiser(normal(3, *SHAPE), SIGMAS[0])[:, 0, 0].tolist() == [-1, -1, -1]  # unbound: unconditional
    with pytest.raises(ValueError, match="5 rows cannot be served by 2"):
        bound(normal(5, *SHAPE), SIGMAS[0])


def test_guidance_is_one_doubled_call() -> None:
    denoiser, recorder = network(of_label)
    x, sigma = normal(4, *SHAPE), SIGMAS[:4]
    result = denoiser.bind([3, 5], guidance=2.5)(x, sigma)
    assert result[:, 0, 0].tolist() == [-1 + 2.5 * 4, -1 + 2.5 * 4, -1 + 2.5 * 6, -1 + 2.5 * 6]
    assert len(recorder.calls) == 1
    seen, timestep, rows = recorder.calls[0]
    assert rows["class_labels"].tolist() == [-1, -1, -1, -1, 3, 3, 5, 5]
    torch.testing.assert_close(seen[:4], seen[4:], rtol=0, atol=0)
    torch.testing.assert_close(timestep, TIMES.timestep(sigma).repeat(2), rtol=0, atol=0)
    denoiser.bind([3, 5], guidance=1.0)(x, sigma)
    assert len(recorder.calls[1][0]) == 4
    negative = denoiser.bind([3, 5], guidance=2.0, negative={"class_labels": torch.tensor([7, 1])})
    assert negative(x, sigma)[:, 0, 0].tolist() == [-1, -1, 9, 9]


def test_seeds_stand_for_conditions() -> None:
    denoiser, _ = network(of_label)
    model = replace(denoiser, guidance=3.0, seed_rows=lambda seeds: {"class_labels": torch.tensor(seeds) % 4})
    assert model.for_seeds([5, 2])(normal(2, *SHAPE), SIGMAS[0])[:, 0, 0].tolist() == [-1 + 3 * 2, -1 + 3 * 3]
    assert denoiser.for_seeds([5, 2]) is denoiser
    assert denoiser.decode(torch.tensor([-2.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_dtypes_are_cast_here_only(kind: preconditioning.Prediction) -> None:
    def halved(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        assert (x.dtype, timestep.dtype) == (torch.bfloat16, torch.float32)
        return x / 2

    denoiser, recorder = network(halved, preconditioning.discrete(kind, TIMES), torch.bfloat16)
    x = normal(5, *SHAPE).float() * SIGMAS[:, None, None].float()
    result = denoiser(x, SIGMAS)
    c_skip, c_out, _, _ = (c[:, None, None] for c in preconditioning.discrete(kind, TIMES)(SIGMAS))
    expected = c_skip * x.double() + c_out * (recorder.calls[0][0] / 2).double()
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
    assert denoiser(x.bfloat16(), SIGMAS).dtype == torch.bfloat16
    assert denoiser(x.double(), SIGMAS).dtype == torch.float64


def test_learned_variance_is_dropped() -> None:
    denoiser, _ = network(lambda x, t, rows: torch.cat([x, torch.full_like(x, 9.0)], 1))
    x = normal(2, *SHAPE)
    torch.testing.assert_close(denoiser(x, SIGMAS[1]), x / (1 + SIGMAS[1] ** 2).sqrt())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x, t, rows: x[:, :1], r"shape \(2, 1, 3\), expected .* \(2, 2, 3\)"),
        (lambda x, t, rows: x[:1], r"shape \(1, 2, 3\)"),
        (lambda x, t, rows: x.long(), "int64"),
    ],
)
def test_wrong_network_output(answer: Callable[[Tensor, Tensor, Rows], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(answer)[0](normal(2, *SHAPE), SIGMAS[0])


def test_wrong_arguments() -> None:
    denoiser, _ = network(of_label)
    with pytest.raises(ValueError, match=r"one entry per row of x, 2, got shape \(5,\)"):
        denoiser(normal(2, *SHAPE), SIGMAS)
    with pytest.raises(ValueError, match="nothing to bind"):
        denoiser.bind({})
    with pytest.raises(ValueError, match="same number of rows"):
        denoiser.bind({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"unconditional rows for \['text'\], got them for \['class_labels'\]"):
        denoiser.bind({"text": torch.zeros(2)}, guidance=2.0)
    with pytest.raises(ValueError, match="sigma_data = 0.0"):
        preconditioning.edm(0.0)
    with pytest.raises(ValueError, match="'noise' is unknown: give one of epsilon"):
        preconditioning.discrete("noise", TIMES)  # pyright: ignore[reportArgumentType]
    for bad in (torch.ones(3), torch.tensor([0.5, 0.0]), torch.tensor([[0.5, 0.4]]), torch.tensor([1.5, 0.4])):
        with pytest.raises(ValueError, match="strictly decreasing"):
            Timesteps(bad)


def unet() -> tuple[NetworkDenoiser, Callable[[Tensor, Tensor], Tensor], DDIMScheduler]:
    scheduler = DDIMScheduler(clip_sample=False)
    config = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4}
    model = UNet2DModel(
        8, 2, 2, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=3, **config
    )
    model = model.double().eval()
    denoiser = diffusers_networks.unet2d(model, scheduler.alphas_cumprod).bind([1, 2])
    return denoiser, lambda x, t: model(x, t, class_labels=torch.tensor([1, 2])).sample, scheduler


def unet_condition() -> tuple[NetworkDenoiser, Callable[[Tensor, Tensor], Tensor], DDIMScheduler]:
    scheduler = DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear", prediction_type="v_prediction")
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
    )
    model = model.double().eval()
    text = normal(2, 5, 6)
    denoiser = diffusers_networks.unet2d_condition(model, scheduler.alphas_cumprod, "v_prediction").bind(text)
    return denoiser, lambda x, t: model(x, t, encoder_hidden_states=text).sample, scheduler


def dit() -> tuple[NetworkDenoiser, Callable[[Tensor, Tensor], Tensor], DDIMScheduler]:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type="sample")
    model = DiTTransformer2DModel(2, 4, 2, 4, 1, sample_size=8, patch_size=2, num_embeds_ada_norm=3).double().eval()
    denoiser = diffusers_networks.dit(model, scheduler.alphas_cumprod, "sample").bind([0, 2])
    labels = torch.tensor([0, 2])
    return denoiser, lambda x, t: model(x, t.expand(2), class_labels=labels).sample[:, :2], scheduler


@pytest.mark.parametrize("make", [unet, unet_condition, dit])
def test_diffusers_networks_agree_with_the_scheduler(
    make: Callable[[], tuple[NetworkDenoiser, Callable[[Tensor, Tensor], Tensor], DDIMScheduler]],
) -> None:
    torch.manual_seed(0)
    denoiser, model, scheduler = make()
    assert (denoiser.shape, denoiser.dtype, denoiser.path) == ((2, 8, 8), torch.float64, "ve")
    scheduler.set_timesteps(1000)
    for t in torch.tensor([0, 17, 500, 999]):
        alpha = scheduler.alphas_cumprod[t].double().sqrt()
        sigma = (1 / alpha**2 - 1).sqrt()
        x = normal(2, 2, 8, 8) * (1 + sigma**2).sqrt()
        with torch.no_grad():
            output: Any = scheduler.step(model(x * alpha, t), int(t), x * alpha)
            # diffusers keeps alphas_cumprod in float32
            torch.testing.assert_close(denoiser(x, sigma), output.pred_original_sample, rtol=1e-5, atol=1e-5)


def test_dit_knows_its_unconditional_class() -> None:
    model = DiTTransformer2DModel(2, 4, 2, 2, 1, sample_size=8, patch_size=2, num_embeds_ada_norm=3).eval()
    denoiser = diffusers_networks.dit(model, linear_beta())
    x = normal(2, 2, 8, 8).float()
    with torch.no_grad():
        free, bound = denoiser(x, SIGMAS[1]), denoiser.bind([0, 2])(x, SIGMAS[1])
        torch.testing.assert_close(denoiser.bind([0, 2], 3.0)(x, SIGMAS[1]), free + 3 * (bound - free))


def test_noise_belongs_to_its_seed() -> None:
    batch = unit_noise([4, 9, 4], (3, 2))
    assert torch.equal(batch[1], unit_noise([9], (3, 2))[0]) and torch.equal(batch[0], batch[2])
    assert not torch.equal(batch[0], batch[1])
    assert torch.equal(batch[1], torch.randn(3, 2, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(unit_noise([4], (3, 2), torch.float64).float(), batch[:1])
    many = unit_noise(range(2000), (8,))
    assert abs(float(many.mean())) < 0.02 and abs(float(many.var()) - 1) < 0.02
