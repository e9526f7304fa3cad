"""A dry run: a training step at its real size that allocates nothing and counts what it would have.

Inside `DryRun` every large tensor has a shape, a dtype and strides, but no values (torch's meta device does the
arithmetic of shapes); a small one (up to `SMALL` values) has values as well, so that code which looks at numbers (a
router's choice, the row of a label) takes a real path. A small tensor that is computed from large ones gets arbitrary
values in (0, 1). What is counted, in bytes and operations, is exact for the kernels that torch's CPU backend would
call, which keep the same tensors for the backward pass as those of a GPU (fused attention, no matrix of scores); what
a kernel takes for itself while it runs, and what an allocator loses between blocks, is not in it. Attention
with dropout is counted with its matrix of scores, as the CPU does it.

    model = describe(config)                          # a module on the meta device, or a real one
    with DryRun() as dry:
        dry.weights(model)                            # its tensors lose their values, too
        latent = dry.tensor(2, 16, 21, 60, 104)
        work = dry.step(lambda: model(latent).square().mean(), model.parameters())
    print(work.kept, work.peak, work.flops)

The work is kept apart by kind: operations of matrix products and convolutions by dtype (what the tensor cores do), and
the bytes that all other kernels read and write, each as if it ran alone (nothing is fused).
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.flop_counter import flop_registry

__all__ = ["SMALL", "DryRun", "DryTensor", "Work"]

META = torch.device("meta")
SMALL = 8192
"""Tensors of up to this many values have them: enough for labels, routing weights, noise levels, a generator."""
MASKS = (torch.bool, torch.uint8)
BLOCK = 512
"""Bytes that the CUDA allocator rounds up to."""

aten = torch.ops.aten
# What these return depends on values, so there is nothing that the meta device could say.
_ASKS_VALUES = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}


@dataclass(frozen=True)
class Work:
    """What a step takes, beside weights, gradients and the optimizer's state: bytes that forward keeps for backward,
    the most bytes at any moment, operations by kind, bytes moved by what is no product.
    """

    kept: int
    peak: int
    flops: dict[str, int]
    traffic: int


class _Held:
    """One storage: when its last tensor is gone, the bytes are free."""


class DryTensor(torch.Tensor):
    """A tensor without values, or with them where it is small; made by `DryRun`, on a device that it calls the CPU."""

    shape_of: Tensor
    value: Tensor | None
    held: _Held | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, shape_of: Tensor, value: Tensor | None, held: _Held | None) -> "DryTensor":
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            shape_of.shape,
            strides=shape_of.stride(),
            storage_offset=shape_of.storage_offset(),
            dtype=shape_of.dtype,
            device=torch.device("cpu"),
        )
        made.shape_of, made.value, made.held = shape_of, value, held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.detach.default:  # outside of a dry run tensors can be kept and looked at, no more
            return cls(args[0].shape_of.detach(), args[0].value, args[0].held)
        raise RuntimeError(f"{func} on a tensor of a dry run outside of it: call it inside `with DryRun()`")

    def known(self, what: str) -> Tensor:
        """The values; ValueError where there are none."""
        if self.value is None:
            raise ValueError(
                f"a dry run cannot go on: {what} asks for the values of a tensor {tuple(self.shape)}, which is too "
                f"large to have any (more than {SMALL}); keep what steers the computation small"
            )
        return self.value

    def tolist(self) -> Any:
        """The values as a list."""
        return self.known("tolist").tolist()

    def numpy(self, *, force: bool = False) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The values as an array."""
        return self.known("numpy").numpy(force=force)

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"DryTensor({tuple(self.shape)}, {self.dtype}{'' if self.value is None else ', with values'})"


class DryRun(TorchDispatchMode):
    """Count the memory and the work of what runs inside, without doing it.

    `live`: bytes of tensors made inside that are alive now; `peak`: the most there were since the last step began;
    `flops`: operations (a multiply and an add are two) of matrix products by dtype, of convolutions by "dtype
    convolution"; `traffic`: bytes that all other kernels read and write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.traffic = 0
        self.flops: Counter[str] = Counter()
        self._random = torch.rand(4 * SMALL, generator=torch.Generator().manual_seed(0)).clamp(1 / 256, 255 / 256)
        self._next = 0

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Make a tensor that counts as there already: an input, not a part of `live`."""
        with torch._C._DisableTorchDispatch():  # pyright: ignore
            return self._wrap(torch.empty(shape, dtype=dtype, device="meta"), None, None)

    def weights(self, *modules: nn.Module) -> None:
        """Replace the parameters and buffers of modules, in place, by tensors of a dry run; they are no part of
        `live`.
        """
        for module in {m for whole in modules for m in whole.modules()}:
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is None or isinstance(tensor, DryTensor):
                        continue
                    with torch._C._DisableTorchDispatch():  # pyright: ignore
                        real = tensor.numel() <= SMALL and not tensor.is_meta
                        bare = self._wrap(_shape_of(tensor), tensor.detach().clone() if real else None, None)
                    made: Any = nn.Parameter(bare, tensor.requires_grad) if store is module._parameters else bare
                    store[name] = made

    def step(self, loss: Callable[[], Any], trained: Iterable[nn.Parameter] = ()) -> Work:
        """Count one forward and backward of a loss (a scalar, or terms that are summed except for those under `log/`)
        beside gradients of `trained` that are there already, as when gradients are accumulated.
        """
        for p in trained:
            if p.requires_grad:
                with torch._C._DisableTorchDispatch():  # pyright: ignore
                    gradient = self._wrap(_shape_of(p), None, None)
                p.grad = gradient
        before, self.peak, self.traffic = self.live, self.live, 0
        self.flops.clear()
        terms = loss()
        if isinstance(terms, Mapping):
            terms = [t for name, t in terms.items() if not name.startswith("log/")]
            terms = sum(terms[1:], start=terms[0])
        kept = self.live - before
        if terms.requires_grad:
            terms.backward()
        return Work(kept, self.peak - before, dict(self.flops), self.traffic)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        given = [self._dry(a) if isinstance(a, Tensor) else a for a in flat]
        inputs = [a for a in given if isinstance(a, DryTensor)]
        known = all(a.value is not None for a in inputs)
        if func in _ASKS_VALUES or (func is aten.index.Tensor and any(a.dtype in MASKS for a in inputs[1:])):
            values = [a.known(str(func)) if isinstance(a, DryTensor) else a for a in given]
            out = _call(func, values, spec)
            return tree_map_only(Tensor, lambda t: self._wrap(_shape_of(t), t, None), out)
        shapes = [a.shape_of if isinstance(a, DryTensor) else a for a in given]
        leaves, outer = self._shapes(func, shapes, spec)
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        values: list[Any] = [None] * len(leaves)
        if known and all(t.numel() <= SMALL for t in tensors):
            values = tree_flatten(_call(func, [a.value if isinstance(a, DryTensor) else a for a in given], spec))[0]
        owners = {a.shape_of.untyped_storage()._cdata: a for a in inputs}
        same = {id(a.shape_of): a for a in inputs}
        wrapped: list[Any] = []
        for leaf, value in zip(leaves, values, strict=True):
            if not isinstance(leaf, Tensor):
                wrapped.append(leaf)
            else:
                wrapped.append(same[id(leaf)] if id(leaf) in same else self._own(leaf, value, owners))
        # An operation in place returns the tensor that it was given, be it one of ours or a real one.
        back = {id(dry): real for dry, real in zip(given, flat, strict=True) if isinstance(dry, DryTensor)}
        return tree_unflatten([back.get(id(w), w) for w in wrapped], outer)

    def _shapes(self, func: Any, given: list[Any], spec: Any) -> tuple[list[Any], Any]:
        """The output of an operation as shapes, and its work counted; what was asked before is answered from memory,
        as every block of a model asks what the first one did.
        """
        key = _key(func, given, spec)
        seen = _SEEN.get(key)
        if seen is None:
            before = _layouts(given)
            placed = [META if isinstance(a, torch.device) else a for a in given]
            out = _call(func, [None if isinstance(a, torch.Generator) else a for a in placed], spec)
            leaves, outer = tree_flatten(out)
            flops, traffic = _work(func, given, spec, out, [t for t in leaves if isinstance(t, Tensor)])
            made = [_Made.of(leaf, given) for leaf in leaves]
            fresh = [t.untyped_storage()._cdata for t, m in zip(leaves, made, strict=True) if m.fresh]
            stays = len(set(fresh)) == len(fresh) and before == _layouts(given)
            if stays and all(m.lasting for m in made):
                _SEEN[key] = (made, outer, flops, traffic)
        else:
            made, outer, flops, traffic = seen
            leaves = [m.again(given) for m in made]
        self.flops.update(flops)
        self.traffic += traffic
        return leaves, outer

    def _dry(self, tensor: Tensor) -> DryTensor:
        """Any tensor as one of ours; a real one keeps its values where it is small."""
        if isinstance(tensor, DryTensor):
            return tensor
        value = tensor.detach() if tensor.device.type != "meta" and tensor.numel() <= SMALL else None
        return self._wrap(_shape_of(tensor), value, None)

    def _own(self, shape_of: Tensor, value: Any, owners: dict[int, DryTensor]) -> DryTensor:
        """Wrap an output: a view belongs to the storage of what it looks at, anything else takes new memory."""
        owner = owners.get(shape_of.untyped_storage()._cdata)
        if owner is not None:
            return self._wrap(shape_of, value, owner.held)
        size = -(-shape_of.untyped_storage().nbytes() // BLOCK) * BLOCK
        held = _Held()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(held, self._free, size).atexit = False
        return self._wrap(shape_of, value, held)

    def _drawn(self, count: int) -> Tensor:
        """Arbitrary numbers in (0, 1), in half precision too, from a stock: drawing them anew is most of the time."""
        if self._next + count > len(self._random):
            self._next = 0
        self._next += count
        return self._random[self._next - count : self._next]

    def _free(self, size: int) -> None:
        self.live -= size

    def _wrap(self, shape_of: Tensor, value: Tensor | None, held: _Held | None) -> DryTensor:
        if value is None and shape_of.numel() <= SMALL:
            value = torch.empty_strided(shape_of.shape, shape_of.stride(), dtype=shape_of.dtype)
            if shape_of.is_floating_point():
                value.copy_(self._drawn(shape_of.numel()).view(shape_of.shape))
            else:  # flags are set: a check on large tensors passes
                value.fill_(shape_of.is_complex() or shape_of.dtype == torch.bool)
        return DryTensor(shape_of, value, held)


@dataclass(frozen=True)
class _Made:
    """An output as it can be made again: a plain value, one of the inputs (`same`), a view of one (`of_input`), or new
    memory; `lasting` where it can.
    """

    value: Any = None
    tensor: bool = False
    same: int | None = None
    of_input: int | None = None
    dtype: torch.dtype | None = None
    layout: tuple[Any, Any, Any] = ((), (), 0)
    lasting: bool = True

    @classmethod
    def of(cls, leaf: Any, given: list[Any]) -> "_Made":
        if not isinstance(leaf, Tensor):
            return cls(value=leaf)
        layout = (leaf.shape, leaf.stride(), leaf.storage_offset())
        for i, a in enumerate(given):
            if leaf is a:
                return cls(tensor=True, same=i)
            if isinstance(a, Tensor) and a.untyped_storage()._cdata == leaf.untyped_storage()._cdata:
                return cls(tensor=True, of_input=i, dtype=leaf.dtype, layout=layout, lasting=a.dtype == leaf.dtype)
        return cls(tensor=True, dtype=leaf.dtype, layout=layout, lasting=bool(leaf.storage_offset() == 0))

    @property
    def fresh(self) -> bool:
        return self.tensor and self.same is None and self.of_input is None

    def again(self, given: list[Any]) -> Any:
        if not self.tensor:
            return self.value
        if self.same is not None:
            return given[self.same]
        shape, stride, offset = self.layout
        if self.of_input is not None:
            return given[self.of_input].as_strided(shape, stride, offset)
        return torch.empty_strided(shape, stride, dtype=self.dtype, device=META)


_SEEN: dict[Any, tuple[list[_Made], Any, dict[str, int], int]] = {}


def _layouts(given: list[Any]) -> list[Any]:
    return [(a.shape, a.stride()) for a in given if isinstance(a, Tensor)]


def _key(func: Any, given: list[Any], spec: Any) -> Any:
    """All that the shapes of an operation's output and its work depend on."""
    parts: list[Any] = [func, spec, torch.get_default_dtype()]
    storages: dict[int, int] = {}
    for a in given:
        if isinstance(a, Tensor):
            place = storages.setdefault(a.untyped_storage()._cdata, len(storages))
            parts.append((a.dtype, a.shape, a.stride(), a.storage_offset(), place))
        elif isinstance(a, torch.Generator):
            parts.append(None)
        else:
            parts.append((type(a), a))
    return tuple(parts)


def _work(func: Any, given: list[Any], spec: Any, out: Any, tensors: list[Tensor]) -> tuple[dict[str, int], int]:
    """Count what an operation does: its products by kind, or the bytes that it moves; views do nothing."""
    formula: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
    read = [a for a in given if isinstance(a, Tensor)]
    if formula is not None:
        args, kwargs = tree_unflatten(given, spec)
        dtype = str(next(t.dtype for t in read if t.is_floating_point())).removeprefix("torch.")
        kind = f"{dtype} convolution" if "convolution" in str(func) else dtype
        return {kind: int(formula(*args, **kwargs, out_val=out))}, 0
    if func.is_view:
        return {}, 0
    touched = {(t.untyped_storage()._cdata, t.shape): t.numel() * t.element_size() for t in (*read, *tensors)}
    storages = {t.untyped_storage()._cdata for t in read}
    looks = read and not func._schema.is_mutable
    only_looks = looks and all(t.untyped_storage()._cdata in storages for t in tensors)
    return {}, 0 if only_looks else sum(touched.values())


def _call(func: Any, flat: list[Any], spec: Any) -> Any:
    args, kwargs = tree_unflatten(flat, spec)
    return func(*args, **kwargs)


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
