"""The embedded digits: data, exact model, trained network, classifier and the stock diffusers pipeline."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from safetensors import safe_open
from torch import Tensor

from epd.denoisers import digits as assets
from epd.denoisers.digits_classifier import DigitsClassifier
from epd.denoisers.identity_vae import identity_vae
from epd.denoisers.networks import NetworkDenoiser
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Model

TEN = list(range(10))


@pytest.fixture(scope="module")
def network() -> NetworkDenoiser:
    return assets.digits()


@pytest.fixture(scope="module")
def classifier() -> DigitsClassifier:
    return assets.digits_classifier()


def heun(denoiser: NetworkDenoiser, noise: Tensor, steps: int) -> Tensor:
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    sigmas = (denoiser.sigma_max ** (1 / 7) * (1 - ramp) + denoiser.sigma_min ** (1 / 7) * ramp) ** 7
    x = noise * sigmas[0]
    with torch.no_grad():
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            d = (x - denoiser(x, sigma)) / sigma
            ahead = x + (following - sigma) * d
            x = x + (following - sigma) * (d + (ahead - denoiser(ahead, following)) / following) / 2
    return x


def test_data_is_what_scikit_learn_ships() -> None:
    images, labels = assets.digits_data()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    grey = ((images + 1) * 8).to(torch.uint8)
    digest = hashlib.sha256(grey.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, targets = datasets.load_digits(return_X_y=True)
    assert torch.equal(grey.flatten(1).double(), torch.from_numpy(pixels)) and labels.tolist() == targets.tolist()


def test_held_out_images_are_fixed() -> None:
    assert int(assets.held_out().sum()) == 200
    assert assets.held_out().nonzero().flatten()[:4].tolist() == [30, 59, 63, 71]


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_exact_model_is_the_posterior_mean(path: str) -> None:
    exact = assets.digits_exact("flow" if path == "flow" else "ve")
    assert (exact.shape, exact.sigma_min, exact.sigma_max) == ((1, 8, 8), 0.002, 1.0 if path == "flow" else 80.0)
    images, labels = (part.double() for part in assets.digits_data())
    noise = unit_noise(range(3), (1, 8, 8), torch.float64)
    for sigma in (0.05, 0.6, exact.sigma_max):
        alpha = 1 - sigma if path == "flow" else 1.0
        x = alpha * images[[5, 700, 1500]] + sigma * noise
        for keep, denoiser in ((labels >= 0, exact), (labels == 4, exact.bind([4, 4, 4]))):
            width = (0.1 * alpha) ** 2 + sigma**2
            kept = images[keep].flatten(1)
            gap = x.flatten(1)[:, None] - alpha * kept  # (3, n, 64)
            share = (-gap.square().sum(2) / (2 * width)).softmax(1)
            mean = (share[..., None] * (kept + alpha * 0.01 / width * gap)).sum(1)
            answer = denoiser(x, torch.tensor(sigma, dtype=torch.float64))
            torch.testing.assert_close(answer.flatten(1), mean, rtol=1e-9, atol=1e-9)


def test_network_knows_its_frame(network: NetworkDenoiser) -> None:
    model: Model = network
    assert (model.name, model.path, model.shape, model.guidance) == ("digits", "ve", (1, 8, 8), 1.0)
    assert 0.009 < model.sigma_min < 0.011 and 156 < model.sigma_max < 158
    assert assets.digits(guidance=2.0).for_seeds([3]).guidance == 2.0
    x = unit_noise([13, 27], (1, 8, 8))
    sigma = torch.tensor(2.0)
    assert torch.equal(model.for_seeds([13, 27])(x, sigma), network.bind([3, 7])(x, sigma))


def test_network_file_is_small_and_loads_equal(network: NetworkDenoiser) -> None:
    file = assets.MODEL_FOLDER / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_size <= 4_000_000
    net = DiTTransformer2DModel.from_pretrained(assets.MODEL_FOLDER, local_files_only=True).eval()
    x, t, labels = unit_noise([1, 2], (1, 8, 8)), torch.tensor([800.0, 30.5]), torch.tensor([3, 10])
    with torch.no_grad():
        again = net.float()(x, timestep=t, class_labels=labels).sample
        assert torch.equal(assets.digits_transformer()(x, timestep=t, class_labels=labels).sample, again)
    with safe_open(str(file), "pt") as weights:
        stored = weights.get_tensor("proj_out_2.weight")
        assert stored.dtype == torch.float16 and torch.equal(stored.float(), net.float().proj_out_2.weight)


def test_network_denoises_images_it_never_saw(network: NetworkDenoiser) -> None:
    """Its error on held-out images is close to that of the exact posterior mean of all data, at every noise level."""
    images, labels = (part[assets.held_out()] for part in assets.digits_data())
    noise = unit_noise(range(200), (1, 8, 8))
    bound, smoothed = network.bind(labels), assets.digits_exact().bind(labels)
    for sigma in torch.tensor([0.3, 1.0, 3.0, 30.0]):
        x = images + sigma * noise
        error = (bound(x, sigma) - images).square().mean().sqrt()
        prior = (images - images.mean(0)).square().mean().sqrt()
        oracle = (smoothed(x, sigma) - images).square().mean().sqrt()  # knows these very images
        assert error < min(0.75 * float(sigma), 0.95 * float(prior)), f"error {error} at sigma {sigma}, oracle {oracle}"


def test_samples_are_of_the_class_that_was_asked_for(network: NetworkDenoiser, classifier: DigitsClassifier) -> None:
    seeds = range(40)
    images = heun(network.for_seeds(seeds), unit_noise(seeds, network.shape), 12)
    hits = classifier(images).argmax(1) == torch.tensor(seeds) % 10
    assert float(hits.float().mean()) >= 0.9
    assert float((network.decode(images) - network.decode(images).round()).abs().mean()) < 0.25  # not grey mush


def test_classifier_reads_images_it_never_saw(classifier: DigitsClassifier) -> None:
    images, labels = (part[assets.held_out()] for part in assets.digits_data())
    assert float((classifier(images).argmax(1) == labels).float().mean()) > 0.97
    assert classifier.features(images).shape == (200, 64)
    assert torch.equal(classifier.head(classifier.features(images)), classifier(images))
    with safe_open(str(assets.CLASSIFIER_FILE), "pt") as file:
        assert json.loads(file.metadata()["training"])["accuracy_held_out"] > 0.97


@pytest.mark.parametrize("channels", [1, 3])
def test_identity_autoencoder(channels: int) -> None:
    vae: Any = identity_vae(channels)
    x = 1.5 * unit_noise(range(4), (channels, 8, 8))
    torch.testing.assert_close(vae.decode(x).sample, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(vae.encode(x).latent_dist.mode(), x, rtol=0, atol=1e-4)
    assert float(vae.encode(x).latent_dist.std.max()) < 1e-6


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_stock_pipeline_is_the_same_sampler(
    network: NetworkDenoiser, classifier: DigitsClassifier, guidance: float
) -> None:
    pipe: Any = assets.digits_pipeline()
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in TEN]
    labels = pipe.get_label_ids("zero one two three four five six seven eight nine".split())
    assert labels == TEN
    result = pipe(labels, guidance, generators, num_inference_steps=25, output_type="np")
    images = torch.from_numpy(result.images)
    assert images.shape == (10, 8, 8, 1)
    assert float((classifier(images[..., 0][:, None] * 2 - 1).argmax(1) == torch.tensor(TEN)).float().mean()) >= 0.8
    # DDIM is the Euler method in our frame: same noise, same timesteps, then a last step to sigma 0.
    bound = network.bind(labels, guidance)
    timesteps = pipe.scheduler.timesteps
    sigmas = ((1 / pipe.scheduler.alphas_cumprod[timesteps].double()) - 1).sqrt().tolist() + [0.0]
    x = unit_noise(TEN, (1, 8, 8)) * (1 + sigmas[0] ** 2) ** 0.5
    with torch.no_grad():
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + (following - sigma) * (x - bound(x, torch.tensor(sigma))) / sigma
    torch.testing.assert_close(images[..., 0], network.decode(x)[:, 0], rtol=0, atol=2e-3)
