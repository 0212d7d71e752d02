"""Slices: equal to the whole within and after every block, in as many bytes as were asked for, and gone afterwards."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.accelerating import drivers, traces
from helpers.tiny_pipelines import build, diffusers, run
from helpers.tiny_videos import run_svd, svd_pipeline, video
from torch import Tensor

import epd
from epd.accelerators.cuts import Sizes
from epd.accelerators.group_norm import normalised, statistics
from epd.accelerators.names import parse, spelt
from epd.accelerators.parts import ranges, tiles
from epd.accelerators.site import Site, Under
from epd.accelerators.slices import Slicing, largest
from epd.denoisers.live_memory import measured

KINDS = ("animatediff", "svd")
BLOCKS = ("resnets", "attentions", "motion_modules", "downsamplers", "upsamplers")


@contextmanager
def slicing(network: Any) -> Iterator[Slicing]:  # noqa: ANN401
    site = Site({"unet": network}, None, Under())
    try:
        yield epd.Slices(rows=1).attach(site)
    finally:
        site.undo()


def outputs(network: Any, arguments: tuple[Tensor, ...]) -> dict[str, Tensor]:  # noqa: ANN401
    """Of every block and layer of a call."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in network.named_modules():
        parts = name.split(".")
        if name == "" or (name == "mid_block") or (len(parts) > 1 and parts[-1].isdigit() and len(parts) <= 5):
            if parts[-2:-1] and parts[-2] not in (*BLOCKS, "down_blocks", "up_blocks"):
                continue

            def keep(_: object, __: object, output: Any, name: str = name) -> None:  # noqa: ANN401
                while not isinstance(output, Tensor):
                    output = output[0]
                found[name] = output.clone()

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        network(*arguments)
    for handle in handles:
        handle.remove()
    return found


def apart(own: Tensor, whole: Tensor) -> float:
    return float((own - whole).abs().max() / whole.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_is_that_of_the_whole(kind: str) -> None:
    network, arguments = video(kind)
    whole, draw = outputs(network, arguments), random.Random(0)
    assert len(whole) >= 18 and whole[""].shape == (arguments[0][:, :, :4] if kind == "svd" else arguments[0]).shape
    cuts = [Sizes(draw.randint(1, 5), draw.randint(4, 47)) for _ in range(16)]
    cuts += [Sizes(None, 7), Sizes(4), Sizes(parts=2), Sizes(parts=3)]
    with slicing(network) as live:
        for cut in cuts:
            with live.cuts.by(cut):
                own = outputs(network, arguments)
            assert max(apart(own[name], whole[name]) for name in whole) <= 1e-5, cut
            assert not torch.equal(own[""], whole[""])  # it was cut at all
        with live.cuts.by(Sizes(6, 48)):
            assert torch.equal(outputs(network, arguments)[""], whole[""])


def test_what_a_temporal_block_gave_stays_as_it_was() -> None:
    network, arguments = video("svd")
    block = network.down_blocks[0].attentions[0].temporal_transformer_blocks[0]
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad(), slicing(network) as live:
        network(*arguments)
        with live.cuts.by(Sizes(2, 9)):
            network(*arguments)
    handle.remove()
    assert apart(seen[1], seen[0]) <= 1e-5


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_norm_errs_no_more_than_that_of_torch(mean: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 5, 12, 10, generator=generator) + mean
    norm = torch.nn.GroupNorm(4, 16)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    with torch.no_grad():
        exact = torch.nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
        own = (norm(x).double() - exact).abs().max()
        for frames in (1, 2, 5):
            known = statistics(x, norm, frames)
            for samples, pixels in tiles(2, 120, 70):
                part = normalised(x.flatten(3)[samples, ..., pixels], norm, known.of(samples))
                assert (part - exact.flatten(3)[samples, ..., pixels]).abs().max() <= 2 * own


def test_the_norm_of_halves_keeps_its_type() -> None:
    x = (torch.randn(1, 8, 3, 40, generator=torch.Generator().manual_seed(0)) * 5 + 50).half()
    norm = torch.nn.GroupNorm(2, 8, affine=False)
    own = normalised(x[..., :13], norm, statistics(x, norm, 2))
    assert own.dtype == torch.float16
    torch.testing.assert_close(own, norm(x.float())[..., :13].half(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("samples", "pixels", "most"), [(3, 10, 4), (3, 10, 20), (2, 7, 7), (1, 5, 9), (4, 3, 1)])
def test_tiles_are_a_partition_within_the_limit(samples: int, pixels: int, most: int) -> None:
    pairs = []
    for own, part in tiles(samples, pixels, most):
        found = list(itertools.product(range(samples)[own], range(pixels)[part]))
        assert 0 < len(found) <= most
        pairs += found
    assert sorted(pairs) == list(itertools.product(range(samples), range(pixels)))
    sizes = [part.stop - part.start for part in ranges(pixels, most)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_kept(kind: str) -> None:
    """The operations without numbers need what those with numbers need, and the largest parts that fit are taken."""
    network, arguments = video(kind, size=(8, 8))
    with torch.no_grad(), slicing(network) as live:
        cuts = [Sizes(parts=parts) for parts in (1, 2, 4)]
        told = live.pretended(network.forward, arguments, {}, lambda peak: [peak(cut) for cut in cuts])
        for cut, expected in zip(cuts, told, strict=True):
            with live.cuts.by(cut):
                assert expected == pytest.approx(measured(lambda: network(*arguments)).peak, rel=0.01)
    assert told == sorted(told, reverse=True) and told[0] > 1.3 * told[2]


@pytest.mark.slow
def test_bytes_in_a_pipeline() -> None:
    pipe = build("animatediff")
    with epd.measure(pipe) as whole:
        expected = run(pipe, "animatediff", 2)
    epd.accelerate(pipe, epd.Slices(bytes=round(0.8 * whole.peak)))
    with epd.measure(pipe) as cut:
        assert apart(run(pipe, "animatediff", 2), expected) <= 1e-5
    assert cut.peak <= 1.1 * 0.8 * whole.peak
    assert cut.flops == pytest.approx(whole.flops, rel=1e-3)  # what was planned is not counted
    assert cut.cost == whole.cost and cut.store == 0
    epd.accelerate(pipe, epd.Slices(bytes=1000))
    with pytest.raises(ValueError, match=r"bytes = 1000 is not enough: .* need \d+"):
        run(pipe, "animatediff", 2)


def test_the_largest_parts_that_fit() -> None:
    def peak(sizes: Sizes) -> int:  # 100 that stay, 640 in parts
        return 100 + -(-640 // sizes.parts)

    for most, parts in ((740, 1), (739, 2), (420, 2), (330, 3), (300, 4), (111, 64), (110, 64)):
        assert largest(most, peak) == Sizes(parts=parts)
    with pytest.raises(ValueError, match="give bytes=110 or more"):
        largest(109, peak)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory(kind: str) -> None:
    """In 4 parts at most .40 of the whole's, and .75 of that of diffusers' own split inference in as many."""
    network, arguments = video(kind, size=(16, 16), frames=8)
    with torch.no_grad():
        whole = measured(lambda: network(*arguments)).peak
        with slicing(network) as live, live.cuts.by(Sizes(parts=4)):
            own = measured(lambda: network(*arguments)).peak
        assert own <= 0.40 * whole
        if kind == "animatediff":
            pipe = build("animatediff")
            pipe.unet = network
            pipe.enable_free_noise_split_inference(2 * 16 * 16 // 4, 2 * 8 // 4)
            assert own <= 0.75 * measured(lambda: network(*arguments)).peak


def test_under_every_driver_and_gone_afterwards() -> None:
    pipe = build("animatediff")
    expected = [made() for _, made in drivers("animatediff", pipe)]
    before = traces(pipe)  # a run leaves the pipeline's own
    for rows, pixels, looked_at in ((3, 50, 5), (10**6, 10**6, 1)):
        epd.accelerate(pipe, epd.Slices(rows=rows, pixels=pixels))
        for place, (_, made) in enumerate(drivers("animatediff", pipe)):
            if place < looked_at:
                own = made()
                assert apart(own, expected[place]) <= 1e-5
                assert torch.equal(own, expected[place]) == (rows > 3)
        epd.decelerate(pipe)
        assert traces(pipe) == before


def test_the_pipeline_of_svd() -> None:
    pipe = svd_pipeline()
    expected = run_svd(pipe)
    before = traces(pipe)
    epd.accelerate(pipe, epd.Slices(rows=2, pixels=11))
    own = run_svd(pipe)
    # Two guided steps at the largest noise: each call is as near as above.
    assert apart(own, expected) <= 1e-4 and not torch.equal(own, expected)
    epd.decelerate(pipe)
    assert traces(pipe) == before and torch.equal(run_svd(pipe), expected)


def test_nothing_is_cut_where_gradients_are_recorded() -> None:
    pipe = build("animatediff")
    epd.accelerate(pipe, epd.Slices(rows=1, pixels=5))
    model = epd.from_pipeline(pipe, ["a red fox"], height=64, width=64, num_frames=4)
    noise = epd.unit_noise([0], model.shape)
    sigmas = torch.tensor([3.0, 0.0], dtype=torch.float64)

    def gradient() -> Tensor:
        x = noise.clone().requires_grad_()
        epd.solve(epd.rules.euler(), model, x, sigmas).square().sum().backward()
        assert x.grad is not None
        return x.grad

    cut = gradient()
    epd.decelerate(pipe)
    assert torch.equal(cut, gradient())


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="UNet2DConditionModel has no layers over time"):
        epd.accelerate(build("sd"), epd.Slices(rows=1))
    pipe = build("animatediff")
    pipe.unet.enable_forward_chunking(2)
    with pytest.raises(ValueError, match="disable_forward_chunking"):
        epd.accelerate(pipe, epd.Slices(rows=1))
    pipe.unet.disable_forward_chunking()
    assert isinstance(pipe.unet, diffusers.UNetMotionModel)
    before = traces(pipe)
    epd.decelerate(epd.accelerate(pipe, epd.Slices(rows=1)))
    assert traces(pipe) == before


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "give either bytes="),
        ({"bytes": 1, "rows": 2}, "give either"),
        ({"parts": 2, "pixels": 9}, "give either"),
        ({"pixels": 0}, "pixels = 0 must be at least 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        epd.Slices(**settings)
    assert parse(spelt(epd.Slices(rows=2, pixels=9))) == epd.Slices(rows=2, pixels=9)
    assert parse("slices:bytes=1000000") == epd.Slices(bytes=10**6)
