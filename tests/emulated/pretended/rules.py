"""What CUDA does with torch's operations: which of them wait for the device, how many kernels they launch, and with
which of them a number on the CPU may be combined. From torch's sources (aten/src/ATen/native/cuda)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Operations after which the host waits, because the shape or an exception depends on numbers on the device.
WAITS = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "bincount": "bincount",
    "equal": "equal",
    "multinomial": "multinomial",
    "linalg_eig": "eig",
    "_linalg_eigh": "eigh",
    "_linalg_svd": "svd",
    "linalg_lstsq": "lstsq",
    "_linalg_check_errors": "a check of linear algebra",
}
_INDEXED = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")

#: Kernels of what is not one: backward passes of inputs and weights; statistics, then their use; passes of a sort.
_KERNELS = {
    "native_batch_norm": 2, "_native_batch_norm_legit": 2, "_native_batch_norm_legit_functional": 2,
    "native_batch_norm_backward": 2, "native_layer_norm_backward": 2, "native_group_norm": 2,
    "native_group_norm_backward": 3, "topk": 3, "sort": 3, "argsort": 3, "var_mean": 1, "_amp_update_scale_": 1,
}  # fmt: skip
#: Change the shape of a tensor in place.
RESHAPING = {"squeeze_", "unsqueeze_", "t_", "transpose_"}
#: Nothing is computed, only memory allocated or described.
_FREE = {
    "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "_unsafe_view",
    "_reshape_alias", "set_", "resize_", "detach_", "is_pinned", *RESHAPING,
    "lift_fresh", "lift", "is_same_size", "_local_scalar_dense", "_assert_tensor_metadata", "sym_size",
}  # fmt: skip
#: Results that share their argument's memory without saying so.
SHARING = {"_unsafe_view", "_reshape_alias", "lift", "lift_fresh", "set_"}
#: Tensors that one launch of a multi-tensor kernel takes, by the number of its lists; elements of a block, and blocks.
_TENSORS, _CHUNK, _BLOCKS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}, 65536, 320
#: Beside pointwise operations: those that take a 0-dim tensor from the CPU.
_TAKES_NUMBERS = {
    "fill_", "fill", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "index_put", "index_put_",
    "_index_put_impl_", "_unsafe_index_put",
}  # fmt: skip


def wait_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], pretended: type[Tensor]) -> str | None:
    """Returns why the host waits for this operation, or None.

    Args:
        name: of the operation, without namespace and overload.
        args: as it was called.
        kwargs: likewise.
        pretended: the class of tensors on the device.
    """
    if name in WAITS:
        return WAITS[name]
    if name in _INDEXED:
        return _wait_of_index(name, args, pretended)
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave without output_size"
    if name == "histc" and (len(args) < 4 or args[2] == args[3]):
        return "histc without limits"
    if name in ("index_fill", "index_fill_") and isinstance(args[3], pretended):
        return "index_fill by a number on the device"
    if name in ("where", "lerp", "lerp_") and any(_is_number(each, pretended) for each in args):
        return f"{name} copies a number from the CPU"
    return None


def _wait_of_index(name: str, args: Sequence[Any], pretended: type[Tensor]) -> str | None:
    indices = [index for index in args[1] if index is not None]
    if any(not isinstance(index, pretended) for index in indices):
        return "an index on the CPU"
    if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        # x[mask] = number is masked_fill, which needs no shape.
        fill = "put" in name and len(indices) == 1 and args[2].numel() == 1 and not isinstance(args[2], pretended)
        return None if fill else "a mask as index"
    return None


def _is_number(value: Any, pretended: type[Tensor]) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, pretended) and value.dim() == 0


def takes_numbers(func: torch._ops.OpOverload, name: str) -> bool:
    """Whether a 0-dim tensor on the CPU may be combined with tensors on the device."""
    return name in _TAKES_NUMBERS or torch.Tag.pointwise in func.tags or name.startswith(("_foreach", "_fused"))


def kernels_of(name: str, args: Sequence[Any], *, view: bool) -> tuple[int, bool]:
    """Returns how many kernels an operation launches, and whether it is a multi-tensor one that ran one by one."""
    if view or name in _FREE:
        return 0, False
    if name.startswith(("_foreach", "_fused", "_amp_foreach")):
        return _kernels_of_lists(name, args)
    if name == "convolution":
        return 1 + (args[2] is not None), False
    if name == "convolution_backward":
        return sum(bool(wanted) for wanted in args[-1]), False
    return _KERNELS.get(name, 1), False


def _kernels_of_lists(name: str, args: Sequence[Any]) -> tuple[int, bool]:
    lists = [each for each in args if isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor)]
    fused = name.startswith("_fused")
    if fused:  # the counters of Adam's steps are no list of the kernel
        lists = [each for each in lists if len(each) == len(lists[0]) and each[0].shape == lists[0][0].shape]
    if not lists:
        return 0, False
    tensors = [tensor for tensor in lists[0] if tensor.numel()]
    if not fused and not _together(lists):
        return len(lists[0]), len(lists[0]) > 1
    # A result is one more list; and norms are summed up by a second kernel.
    depth = min(len(lists) + (not name.endswith("_") and "norm" not in name), 5)
    chunks = sum(math.ceil(tensor.numel() / _CHUNK) for tensor in tensors)
    count = max(math.ceil(len(tensors) / _TENSORS[depth]), math.ceil(chunks / _BLOCKS), 1)
    return count + ("norm" in name), False


def _together(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the multi-tensor kernels take these lists: the same shapes and strides in each, one dtype, no gaps."""
    same = len({len(each) for each in lists}) == 1
    dtypes = {tensor.dtype for each in lists for tensor in each}
    rows = zip(*lists, strict=False)
    alike = all(len({(tuple(tensor.shape), _strides(tensor)) for tensor in row}) == 1 for row in rows)
    return same and len(dtypes) == 1 and alike and all(_dense(tensor) for each in lists for tensor in each)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Those that matter: not of dimensions of size 1."""
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1)


def _dense(tensor: Tensor) -> bool:
    """Whether its elements fill a block of memory, in any order of dimensions."""
    expected = 1
    sizes = [size for size in tensor.shape if size != 1]
    for stride, size in sorted(zip(_strides(tensor), sizes, strict=True)):
        if stride != expected:
            return False
        expected *= size
    return True
