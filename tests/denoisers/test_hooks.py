"""One owner per network: changes are applied once, in order, for as long as somebody uses them."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import Tensor, nn

from epd.denoisers.arguments import NetworkArguments
from epd.denoisers.hooks import attach, attached


class Sum(nn.Module):
    def forward(self, sample: Tensor, timestep: Tensor, extra: Tensor | None = None) -> Tensor:
        return sample + timestep + (0 if extra is None else extra)


class User:
    pass


def double(module: nn.Module, call: NetworkArguments) -> bool:
    call.state = 2 * call.state
    return True


def later(module: nn.Module, call: NetworkArguments) -> bool:
    call.time = call.time + call.state
    return True


ONE, TEN = torch.ones(2), torch.full((2,), 10.0)


def test_users_share_a_change_and_the_last_one_takes_it_away() -> None:
    network, first, second = Sum(), User(), User()
    release = attach(network, "double", double, first)
    attach(network, "double", double, second)
    assert network(ONE, TEN).tolist() == [12, 12]
    attach(network, "later", later, second)
    assert network(ONE, timestep=TEN).tolist() == [14, 14]  # 2 + (10 + 2)
    release()
    release()
    assert attached(network, "double") and attached(nn.Sequential(network), "later")
    assert len(network._forward_pre_hooks) == len(network._forward_hooks) == 1
    del second
    gc.collect()
    assert not network._forward_pre_hooks and not network._forward_hooks
    assert not attached(network, "double")
    assert network(ONE, TEN).tolist() == [11, 11]


@pytest.mark.parametrize("named", [0, 1, 2, 3])
def test_state_and_time_by_place_or_name(named: int) -> None:
    values = {"sample": ONE, "timestep": TEN, "extra": 3 * ONE}
    names = list(values)
    args, kwargs = [values[n] for n in names[: 3 - named]], {n: values[n] for n in names[3 - named :]}
    call = NetworkArguments(tuple(args), kwargs)
    assert call.state is ONE and call.time is TEN
    call.state, call.time = 5 * ONE, 7 * ONE
    call.change_conditioning(lambda name, value: value * (2 if name in ("extra", "") else 100))
    back, named_back = call.pair()
    assert Sum()(*back, **named_back).tolist() == [18, 18]
    assert len(back) == 3 - named


def test_a_call_without_a_state() -> None:
    with pytest.raises(ValueError, match="without 'sample', by this or another name"):
        NetworkArguments((), {"timestep": TEN})


def test_the_output_of_the_same_call_alone_is_finished() -> None:
    network, user, finished = Sum(), User(), [True]

    def negate(module: nn.Module, call: NetworkArguments) -> bool:
        if finished.pop():
            call.finish = lambda output: -output
        return False

    attach(network, "negate", negate, user)
    assert network(ONE, TEN).tolist() == [-11, -11]
    finished += [False, True, False, True]
    assert network(ONE, TEN).tolist() == [-11, -11]
    assert network(ONE, TEN).tolist() == [11, 11]
    with pytest.raises(RuntimeError, match="size of tensor"):
        network(ONE, torch.ones(3))
    assert network(ONE, TEN).tolist() == [11, 11], "a call that failed is over"


def test_the_output_of_another_threads_call_is_not_finished() -> None:
    network, user, results = Sum(), User(), []

    def negate(module: nn.Module, call: NetworkArguments) -> bool:
        if threading.current_thread() is threading.main_thread():
            call.finish = lambda output: -output
            other = threading.Thread(target=lambda: results.append(network(ONE, TEN)))
            other.start()
            other.join()
        return False

    attach(network, "negate", negate, user)
    results.append(network(ONE, TEN))
    assert [result.tolist() for result in results] == [[11, 11], [-11, -11]]
