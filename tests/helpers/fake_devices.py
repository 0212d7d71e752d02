"""Accelerators that are not there: a fake tensor has a device and a shape but no numbers.

So whatever mixes devices, or would wait for a GPU, is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode


class FakeDevices(FakeTensorMode):
    """Also refuses float64 on MPS, which has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                assert value.device.type != "mps" or value.dtype != torch.float64, f"{func} makes float64 on MPS"
        return out


class Unlinked(TorchFunctionMode):
    """x[...], x.copy_(y) and x.to(device) in operations of their own: without CUDA they lack the device's guard."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func is Tensor.to and len(args) == 2 and isinstance(args[1], (str, torch.device)):
            return args[0].to(torch.empty(0, dtype=args[0].dtype, device=args[1]))
        if func is Tensor.copy_:
            return torch.ops.aten.copy_(args[0], args[1])
        if func is not Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        x, key = args
        keys = list(key) if isinstance(key, tuple) else [key]
        if ... in keys:
            place = keys.index(...)
            keys[place : place + 1] = [slice(None)] * (x.ndim - sum(k is not None and k is not ... for k in keys))
        at = 0
        for k in keys:
            if k is None:
                x, at = x.unsqueeze(at), at + 1
            elif isinstance(k, int):
                x = x.select(at, k)
            elif isinstance(k, slice):
                x, at = torch.ops.aten.slice.Tensor(x, at, k.start, k.stop, k.step or 1), at + 1
            else:
                index = k if isinstance(k, Tensor) else torch.empty(len(k), dtype=torch.long, device=x.device)
                x, at = x.index_select(at, index), at + 1
        return x
