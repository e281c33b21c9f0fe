"""A simulated device without hardware: a GPU's rules about the devices of tensors, with the CPU's numbers.

Inside ``with Elsewhere():`` whatever is moved to :data:`DEVICE` becomes a :class:`Moved` tensor, which computes on the
CPU, can't be mixed with tensors on the CPU, and can't become a NumPy array. What a GPU allows is allowed: tensors
without dimensions, indices, and copies from the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")  # its dispatch and its autograd work in every build of torch

aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Moved(Tensor):
    """A tensor on :data:`DEVICE`; ``inner`` is a CPU tensor with its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Moved:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"Moved({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """``torch.tensor`` and lists as indices lose their values on the meta device before dispatch: make them here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


class Elsewhere(TorchDispatchMode):
    """The mode in which tensors can be made on, and moved to, :data:`DEVICE`."""

    def __enter__(self) -> Elsewhere:
        self._numbers = _FromNumbers()
        self._numbers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Moved) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    moved = any(isinstance(value, Moved) for value in tensors)
    if any(value.is_meta and not isinstance(value, Moved) for value in tensors):
        raise RuntimeError(f"{func}: a tensor was made on {DEVICE} without values")
    if moved and func not in COPIES:
        alike = [args[0], *args[2:]] if func in INDEXING else (args, kwargs)
        behind = [v for v in tree_flatten(alike)[0] if isinstance(v, Tensor) and not isinstance(v, Moved) and v.dim()]
        if behind:
            raise RuntimeError(
                f"{func}: a tensor of shape {tuple(behind[0].shape)} is on the CPU, the others are on {DEVICE}"
            )
    asked = kwargs.get("device")
    here = dict(kwargs) if asked is None else kwargs | {"device": torch.device("cpu")}
    made = func(*tree_map(_inner, args), **tree_map(_inner, here))
    if func is aten.copy_.default:
        return args[0]
    there = torch.device(asked).type == DEVICE.type if asked is not None else moved
    if not there:
        return made
    wrapped = tree_map(lambda value: Moved(value) if isinstance(value, Tensor) else value, made)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if moved else wrapped
