"""The distributions of a policy's decisions against torch's own, against counting, and where they begin."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Beta, Categorical

from epd.accelerators.decisions import (
    INSIDE,
    Dice,
    beta_entropy,
    beta_log_prob,
    beta_mode,
    choice_entropy,
    choice_log_prob,
    jump_of,
    jump_parameters,
    start_logits,
)
from epd.accelerators.heads import Heads, Layout, Seen, Taken, as_map, look, trajectory_log_prob


def seen_of(rows: int, channels: int = 2, steps: int = 10, seed: int = 0) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    state, other = (torch.randn(rows, channels, 8, 8, generator=generator) for _ in range(2))
    remaining = torch.arange(rows) % (steps - 1) + 2
    return look(state, 3 * other, 0.7, steps, remaining, remaining * 0, remaining * 0)


def moved(heads: Heads, seed: int = 1) -> Heads:
    """The same heads with outputs that depend on what they see."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for head in heads.parts.values():
            head.last.weight.copy_(0.3 * torch.randn(head.last.weight.shape, generator=generator))  # type: ignore[union-attr]
    return heads


def test_densities_and_entropies_are_torchs() -> None:
    outputs = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    remaining = torch.arange(50) % 20 + 1
    alpha, beta = jump_parameters(outputs, remaining, 1, 2.0)
    assert bool((alpha > 1).all() and (beta > 1).all())
    share = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(beta_log_prob(share, alpha, beta), Beta(alpha, beta).log_prob(share))
    torch.testing.assert_close(beta_entropy(alpha, beta), Beta(alpha, beta).entropy())
    torch.testing.assert_close(beta_mode(alpha, beta), Beta(alpha, beta).mode)
    choice = torch.arange(50) % 2
    torch.testing.assert_close(choice_log_prob(choice, outputs), Categorical(logits=outputs).log_prob(choice))
    torch.testing.assert_close(choice_entropy(outputs), Categorical(logits=outputs).entropy())


@pytest.mark.parametrize("jump", [1, 3])
def test_outputs_of_zero_jump_as_far_as_they_should(jump: int) -> None:
    remaining = torch.arange(jump, 60)
    alpha, beta = jump_parameters(torch.zeros(len(remaining), 2, dtype=torch.float64), remaining, jump, 2.0)
    assert jump_of(beta_mode(alpha, beta), remaining).tolist() == [jump] * len(remaining)


def test_a_jump_goes_on_and_never_beyond_the_end() -> None:
    share = torch.tensor([INSIDE, 0.5, 0.5, 0.999, 0.93, 0.999])
    remaining = torch.tensor([10, 10, 1, 10, 50, 2])
    assert jump_of(share, remaining).tolist() == [10, 5, 1, 1, 4, 1]


def test_choices_follow_their_probabilities_and_no_sample_another_one() -> None:
    logits = torch.tensor(start_logits(4, 0.3)).expand(4000, 4)
    drawn = Dice(list(range(4000))).choices(torch.arange(4000), logits)
    torch.testing.assert_close(
        torch.bincount(drawn, minlength=4) / 4000, torch.tensor([0.7, 0.1, 0.1, 0.1]), atol=0.03, rtol=0
    )
    alpha, beta = torch.full((4000,), 8.0), torch.full((4000,), 2.0)
    shares = Dice(list(range(4000))).shares(torch.arange(4000), alpha, beta)
    assert abs(float(shares.mean()) - 0.8) < 0.01
    some = torch.tensor([7, 3999, 12])
    assert torch.equal(Dice(list(range(4000))).shares(some, alpha[some], beta[some]), shares[some])


def test_heads_begin_with_what_computes_everything_densely() -> None:
    heads = Heads(Layout(2, 10, ("step", "cache", "sparse"), (0.9, 0.5), (0.95, 0.7)))
    seen = seen_of(9)
    assert not heads.likeliest("cache", seen).any() and not heads.likeliest("sparse", seen).any()
    assert jump_of(heads.likeliest("step", seen), seen.remaining).tolist() == [1] * 9
    torch.testing.assert_close(heads.outputs("sparse", seen).softmax(1)[0], torch.tensor([0.9, 0.05, 0.05]))


def test_a_trajectory_is_the_sum_of_its_decisions() -> None:
    heads = moved(Heads(Layout(2, 10)))
    seen = seen_of(6)
    samples = torch.tensor([0, 2, 2, 0, 3, 2])
    taken = {
        "step": Taken(samples, samples, seen, torch.linspace(0.2, 0.8, 6)),
        "cache": Taken(samples, samples, seen, torch.tensor([0, 1, 0, 1, 1, 0])),
    }
    log_prob, entropy = trajectory_log_prob(heads, taken, 4)  # type: ignore[arg-type]
    for b in range(4):
        rows = (samples == b).nonzero().flatten()
        pairs = [heads.log_prob_and_entropy(h, t.seen[rows], t.action[rows]) for h, t in taken.items()]  # type: ignore[arg-type]
        parts, spread = (torch.cat(own).sum().double() for own in zip(*pairs, strict=True))
        torch.testing.assert_close(log_prob[b], parts, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy[b], spread, atol=1e-5, rtol=1e-5)
    assert log_prob[1] == 0 and entropy[1] == 0


def test_a_head_that_was_not_asked_has_no_gradient_at_all() -> None:
    """Reused slopes ask no sparse head: nothing of it is moved, to the last bit."""
    heads = moved(Heads(Layout(2, 10, ("step", "cache", "sparse"), (0.5,), (0.7,))))
    seen, samples = seen_of(5), torch.arange(5)
    taken = {"cache": Taken(samples, samples, seen, torch.ones(5, dtype=torch.long))}
    trajectory_log_prob(heads, taken, 5)[0].sum().backward()  # type: ignore[arg-type]
    for name, parameter in heads.named_parameters():
        assert (parameter.grad is None) == ("cache" not in name)


def test_maps_keep_small_pictures_and_average_large_ones() -> None:
    small = torch.randn(2, 3, 8, 8)
    assert torch.equal(as_map(small, 32), small)
    large = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(as_map(large, 32), large.unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean((3, 5)))
    assert as_map(torch.randn(2, 3, 4, 8, 8), 32).shape == (2, 3, 32, 8)
    tokens = torch.randn(2, 5, 7)  # packed tokens: channels last
    assert torch.equal(as_map(tokens, 32)[:, :, :, 0], tokens.transpose(1, 2))
    assert as_map(torch.randn(2, 6), 32).shape == (2, 1, 1, 6)


def test_what_is_seen_does_not_depend_on_the_scale_but_tells_it() -> None:
    state, other = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    count = torch.tensor([4, 5, 6])
    one, ten = (look(s * state, s * other, 0.5, 8, count, count, count) for s in (1.0, 10.0))
    torch.testing.assert_close(one.maps, ten.maps)
    torch.testing.assert_close(ten.numbers - one.numbers, torch.tensor([[0, 0, 2.302585, 0, 0, 0]]).expand(3, 6))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"heads": ("step", "step")}, "each once"),
        ({"heads": ()}, "heads"),
        ({"jump": 11}, "jump = 11"),
        ({"explored": 1.0}, "explored = 1.0"),
        ({"levels": (0.5,)}, "sparse head"),
        ({"heads": ("sparse",), "levels": (1.5,), "costs": (0.5,)}, "levels"),
    ],
)
def test_layouts_that_make_no_sense_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Layout(**{"channels": 2, "steps": 10, **changes})  # type: ignore[arg-type]
