"""Sparse attention: the blocks that are kept, by hand and by counting, and what happens in networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.heads import always, layout_of, saved
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

import epd
from epd.accelerators.sparse_attention import SparseAttention, attention_over, flex_mask, kept_blocks
from epd.accelerators.sparsity import attention_share


def blocks_alike(rows: int = 1, blocks: int = 4, block: int = 4, depth: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys whose tokens are equal within a block: block i of the queries looks for block i + 1."""
    one = 6 * torch.eye(depth)[:blocks]
    key = one.repeat_interleave(block, 0).expand(rows, 1, -1, -1)
    return key.roll(-block, 2), key


def attend(parts: list[torch.Tensor]) -> torch.Tensor:
    query, key, value = parts
    return F.scaled_dot_product_attention(query, key, value)


def test_the_fewest_blocks_that_reach_the_mass_are_kept_and_the_diagonal() -> None:
    query, key = blocks_alike()
    share = (36 / 8**0.5 * torch.eye(4)).roll(-1, 0).softmax(-1)
    assert float(share.max()) > 0.99
    kept = kept_blocks(query, key, torch.tensor([0.9]), 4)[0, 0]
    expected = torch.eye(4, dtype=torch.bool) | torch.eye(4, dtype=torch.bool).roll(-1, 0)
    assert torch.equal(kept, expected)
    assert bool(kept_blocks(query, key, torch.tensor([1.0]), 4).all())


def test_text_and_blocks_of_unlike_tokens_are_always_kept() -> None:
    query, key = blocks_alike()
    kept = kept_blocks(query, key, torch.tensor([0.5]), 4, text=3)[0, 0]
    assert bool(kept[3].all() and kept[:, 3].all()) and not bool(kept[:3, :3].all())
    unlike = key.clone()
    unlike[0, 0, 4:8] = 6 * torch.eye(8)[[4, 4, 5, 5]] * torch.tensor([[1.0], [-1.0]]).repeat(2, 1)
    kept = kept_blocks(query, unlike, torch.tensor([0.5]), 4)[0, 0]
    assert bool(kept[:, 1].all()) and not bool(kept.all())


def test_kept_blocks_are_attended_to_and_no_others() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 10, 8, generator=generator) for _ in range(3))
    kept = torch.rand(2, 3, 3, 3, generator=generator) < 0.4
    kept |= torch.eye(3, dtype=torch.bool)
    out = attention_over(query, key, value, kept, 4, None)
    for row, head, token in ((0, 0, 0), (1, 2, 9), (0, 1, 5)):
        others = [t for t in range(10) if kept[row, head, token // 4, t // 4]]
        weights = (query[row, head, token] @ key[row, head, others].T / 8**0.5).softmax(-1)
        torch.testing.assert_close(out[row, head, token], weights @ value[row, head, others], atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_what_flex_attention_is_given_are_the_same_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 512, 16, generator=generator) for _ in range(3))
    kept = (torch.rand(2, 3, 4, 4, generator=generator) < 0.4) | torch.eye(4, dtype=torch.bool)
    mask = flex_mask(kept, 128)
    assert torch.equal(mask.to_dense().bool(), kept)
    expected = attention_over(query, key, value, kept, 128, None)
    found = flex_attention(query, key, value, block_mask=mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_each_row_has_its_own_level_and_dense_ones_keep_their_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 2, 16, 8, generator=generator) for _ in range(3)]
    dense = attend(parts)
    told: list[torch.Tensor] = []
    with SparseAttention(torch.tensor([1.0, 0.3, 1.0]), 4, 0, told.append):
        mixed = attend(parts)
    assert torch.equal(mixed[[0, 2]], attend([p[[0, 2]] for p in parts]))
    torch.testing.assert_close(mixed[[0, 2]], dense[[0, 2]])
    assert not torch.allclose(mixed[1], dense[1], atol=1e-3) and 0 < told[0][1] < 1 and told[0][0] == 1
    with SparseAttention(torch.tensor([0.3]), 4, 0):
        alone = attend([p[1:2] for p in parts])
    torch.testing.assert_close(mixed[1:2], alone)


@pytest.mark.parametrize("name", ["sd3", "dit", "pixart"])
def test_levels_act_in_a_pipelines_network_and_only_there(name: str, tmp_path: Path) -> None:
    pipe = tiny_pipelines.build(name)
    channels = tiny_pipelines.network(pipe).config.in_channels
    plain = tiny_pipelines.run(pipe, name, 3)
    own: dict[str, Any] = {"heads": ("sparse",), "levels": (0.99, 0.3), "costs": (0.95, 0.6), "block": 4}
    results = []
    for level in (0, 1, 2):
        epd.accelerate(pipe, epd.RAPID3(saved(always(layout_of(channels, 3, **own), "sparse", level), tmp_path)))
        with epd.measure(pipe, counts=False) as measured:
            results.append(tiny_pipelines.run(pipe, name, 3))
        assert measured.cost.share == pytest.approx((1.0, 0.95, 0.6)[level])
    assert torch.equal(results[0], plain)
    errors = [float((result - plain).abs().max()) for result in results]
    assert 0 < errors[2] < 0.2 * float(plain.abs().max()) and errors[1] <= errors[2]
    assert torch.equal(tiny_pipelines.run(epd.decelerate(pipe), name, 3), plain)


def test_a_network_without_known_attention_is_refused(tmp_path: Path) -> None:
    pipe = tiny_pipelines.build("flux")
    own: dict[str, Any] = {"heads": ("sparse",), "levels": (0.5,), "costs": (0.8,)}
    path = saved(always(layout_of(16, 3, **own), "sparse", 1), tmp_path)
    with pytest.raises(ValueError, match="it works in DiT"):
        epd.accelerate(pipe, epd.RAPID3(path))


def test_attentions_share_is_counted() -> None:
    parts = [torch.randn(1, 2, 64, 8) for _ in range(3)]
    weight = torch.randn(64, 64)

    def call() -> None:
        attend(parts)
        torch.mm(weight, weight)

    attention, product = 2 * 2 * 2 * 64 * 64 * 8, 2 * 64**3
    assert attention_share(call) == pytest.approx(attention / (attention + product))
