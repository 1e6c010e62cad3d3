"""How much memory tensors take while something runs."""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Within this context, bytes of the tensors that come into being: those that live now, and their most so far."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage(), given)
        return made

    def _follow(self, storage, given):
        key = storage._cdata
        if key in self._alive or key in given:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self._alive.discard(key)
        self.bytes -= size
