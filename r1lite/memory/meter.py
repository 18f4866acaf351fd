"""How many bytes a forward pass keeps for its backward pass."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class SavedTensors:
    """Counts the bytes that autograd saves inside the `with`.

    Each storage counts once, however many views of it are saved; parameters
    and buffers of `model` do not count. What a selective checkpoint keeps is
    not saved by autograd, and not seen here: `MemoryMeter` sees it.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = (*model.parameters(), *model.buffers())
        self._own = {t.untyped_storage().data_ptr() for t in tensors}
        self._kept: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(self._pack, lambda t: t)

    @property
    def bytes(self) -> int:
        """Bytes saved so far."""
        return sum(self._kept.values())

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, t: Tensor) -> Tensor:
        # Nothing saved is freed before backward, so no address is used twice.
        storage = t.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return t


class MemoryMeter(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the `with`.

    It sees every operation, forward and backward, and every storage's end.
    It slows them down: measure time without it.

    Attributes:
        alive: bytes in use now.
        peak: the most that were in use at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and count what it made anew."""
        out = func(*args, **(kwargs or {}))
        given = {s.data_ptr() for s in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage.data_ptr() not in given:  # no view, nothing in place
                given.add(storage.data_ptr())
                self._count(storage)
        return out

    def _count(self, storage: UntypedStorage) -> None:
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.alive -= size


def _storages(tree: Any) -> list[UntypedStorage]:
    return [
        leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, Tensor)
    ]
