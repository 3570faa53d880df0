"""The catalogue: every op's schema, the shape of its result, and its answer to autograd.

Start reading here. What an op computes is in ``reference/<op>.py``, what it accepts in ``_checks.py``, how to call it in
``ops.py``. Implementations are registered elsewhere (``backends.py`` for Python, ``csrc/torch`` for the native library).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from vtkernels import _checks
from vtkernels._ops import NAMESPACE, ops, qualified
from vtkernels.reference.gather_tokens import gather_tokens
from vtkernels.reference.merge_tokens import members

Kernel = Callable[..., Any]  # what the dispatcher calls: arguments and result as the schema says

SCHEMAS = {
    # Weighted greedy facility location on cosine similarity. [B,N,D], [B,N] -> int64 [B,k]
    "scope_select": """(Tensor features, Tensor? saliency, SymInt k, *, float alpha=1.0, str combine="multiply",
                        Tensor? lengths=None, bool sort=True) -> Tensor""",
    # The same greedy loop on a caller's similarity. [B,M,N], [B,N] -> int64 [B,k], float32 [B,k]
    "coverage_select": """(Tensor similarity, Tensor? weight, SymInt k, *, str combine="multiply",
                           Tensor? lengths=None, bool sort=True) -> (Tensor indices, Tensor gains)""",
    # Token norms sent along a thresholded similarity graph. [B,N,D] -> float32 [B,N], int32 [B,N]
    "graph_propagate": """(Tensor features, *, float threshold=0.5, float temperature=0.03, int iterations=5,
                           Tensor? lengths=None) -> (Tensor scores, Tensor degree)""",
    # Softmax attention of one query row, reduced over heads. [B,H,d], [B,H,T,d] -> float32 [B,T-prefix]
    "cls_attention": """(Tensor query, Tensor key, *, float? scale=None, int prefix=1, str reduce="mean",
                         Tensor? lengths=None) -> Tensor""",
    # What every token receives and gives in the head-averaged map. [B,H,T,d], [B,H,T,d] -> float32 [B,T-prefix] twice
    "attention_profile": """(Tensor query, Tensor key, *, float? scale=None, int prefix=1, bool softmax=True,
                             Tensor? lengths=None) -> (Tensor received, Tensor given)""",
    # The k best scores of each row, lowest index on ties. [B,N] -> int64 [B,k]
    "topk_select": "(Tensor scores, SymInt k, *, Tensor? lengths=None, bool sort=True) -> Tensor",
    # cls_attention and topk_select in one launch. [B,H,d], [B,H,T,d] -> int64 [B,k], float32 [B,T-prefix]
    "attention_topk": """(Tensor query, Tensor key, SymInt k, *, float? scale=None, int prefix=1,
                          Tensor? lengths=None, bool sort=True) -> (Tensor indices, Tensor scores)""",
    # Whole image rows of greatest sum, lowest row on ties. [B,N] -> int64 [B,rows*width]
    "row_topk": "(Tensor scores, SymInt rows, *, SymInt width, bool sort=True) -> Tensor",
    # Budget shared over runs of tokens by attention and variance, top-k inside each. [B,N], [B,N,D] -> int64 [B,k]
    "crop_topk": """(Tensor attention, Tensor? features, SymInt k, *, SymInt crops=16, float beta=0.09,
                     str variant="released", Tensor? lengths=None, bool sort=True) -> Tensor""",
    # Connected components over cosine >= threshold, named by their smallest index. [B,N,D] -> int64 [B,N]
    "token_clusters": "(Tensor features, *, float threshold, Tensor? lengths=None) -> Tensor",
    # Cosine of each visual token with the prompt. [B,N,D], [B,T,D] -> float32 [B,N]
    "prompt_relevance": '(Tensor vision, Tensor text, *, Tensor? text_lengths=None, str reduce="max") -> Tensor',
    # The most relevant clusters, then the most relevant tokens inside them. [B,N], [B,N] -> int64 [B,k]
    "cluster_topk": """(Tensor labels, Tensor relevance, SymInt k, *, float pool=0.5, Tensor? lengths=None,
                        bool sort=True) -> Tensor""",
    # The slot of the most similar kept token. [B,N,D], [B,K], [B,N] -> int64 [B,N]
    "route_tokens": "(Tensor features, Tensor indices, Tensor? labels=None, *, Tensor? lengths=None) -> Tensor",
    # Mean of each kept token and what it absorbs. [B,N,D], [B,K], [B,N] -> [B,K,D]
    "merge_tokens": "(Tensor tokens, Tensor indices, Tensor assignment) -> Tensor",
    # Rows by index, -1 gives a zero row. [B,N,D], [B,K] -> [B,K,D]
    "gather_tokens": "(Tensor tokens, Tensor indices) -> Tensor",
    # Kept rows moved to the front, in place. [B,N,D], [B,K]
    "compact_": "(Tensor(a!) tokens, Tensor indices) -> ()",
}

# Ops with one result of a fixed dtype: their `.out` overload writes into the caller's buffer.
OUT = {
    "scope_select": torch.int64,
    "cls_attention": torch.float32,
    "topk_select": torch.int64,
    "row_topk": torch.int64,
    "crop_topk": torch.int64,
    "token_clusters": torch.int64,
    "prompt_relevance": torch.float32,
    "cluster_topk": torch.int64,
    "route_tokens": torch.int64,
}

DIFFERENTIABLE = {"gather_tokens", "merge_tokens"}  # in their tokens


def _scope_select(features: Tensor, saliency: Tensor | None, k: int, **_: object) -> Tensor:
    return features.new_empty((features.shape[0], k), dtype=torch.int64)


def _coverage_select(similarity: Tensor, weight: Tensor | None, k: int, **_: object) -> tuple[Tensor, Tensor]:
    shape = (similarity.shape[0], k)
    return similarity.new_empty(shape, dtype=torch.int64), similarity.new_empty(shape, dtype=torch.float32)


def _graph_propagate(features: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    shape = features.shape[:2]
    return features.new_empty(shape, dtype=torch.float32), features.new_empty(shape, dtype=torch.int32)


def _cls_attention(query: Tensor, key: Tensor, *, prefix: int = 1, **_: object) -> Tensor:
    return key.new_empty((key.shape[0], key.shape[2] - prefix), dtype=torch.float32)


def _attention_profile(query: Tensor, key: Tensor, *, prefix: int = 1, **_: object) -> tuple[Tensor, Tensor]:
    return _cls_attention(query, key, prefix=prefix), _cls_attention(query, key, prefix=prefix)


def _topk_select(scores: Tensor, k: int, **_: object) -> Tensor:
    return scores.new_empty((scores.shape[0], k), dtype=torch.int64)


def _attention_topk(query: Tensor, key: Tensor, k: int, *, prefix: int = 1, **_: object) -> tuple[Tensor, Tensor]:
    return key.new_empty((key.shape[0], k), dtype=torch.int64), _cls_attention(query, key, prefix=prefix)


def _row_topk(scores: Tensor, rows: int, *, width: int, **_: object) -> Tensor:
    return scores.new_empty((scores.shape[0], rows * width), dtype=torch.int64)


def _crop_topk(attention: Tensor, features: Tensor | None, k: int, **_: object) -> Tensor:
    return attention.new_empty((attention.shape[0], k), dtype=torch.int64)


def _token_clusters(features: Tensor, **_: object) -> Tensor:
    return features.new_empty(features.shape[:2], dtype=torch.int64)


def _prompt_relevance(vision: Tensor, text: Tensor, **_: object) -> Tensor:
    return vision.new_empty(vision.shape[:2], dtype=torch.float32)


def _cluster_topk(labels: Tensor, relevance: Tensor, k: int, **_: object) -> Tensor:
    return labels.new_empty((labels.shape[0], k))


def _route_tokens(features: Tensor, indices: Tensor, labels: Tensor | None = None, **_: object) -> Tensor:
    return features.new_empty(features.shape[:2], dtype=torch.int64)


def _merge_tokens(tokens: Tensor, indices: Tensor, assignment: Tensor) -> Tensor:
    return _gather_tokens(tokens, indices)


def _gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    return tokens.new_empty((tokens.shape[0], indices.shape[1], tokens.shape[2]))


def _compact_(tokens: Tensor, indices: Tensor) -> None:
    return None


SHAPES: dict[str, Kernel] = {name: globals()[f"_{name}"] for name in SCHEMAS}


class _Context(Protocol):
    """What autograd hands from the forward to the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    n: int

    def save_for_backward(self, *tensors: Tensor) -> None: ...


def _gather_tokens_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    return _rows_back(grad, indices, ctx.n), None


def _gather_tokens_context(ctx: _Context, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    tokens, indices = inputs
    ctx.n = tokens.shape[1]
    ctx.save_for_backward(indices)


def _merge_tokens_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None, None]:
    # a kept token gets the gradient of its own slots, any other that of the slot that absorbs it, each over the count
    indices, assignment = ctx.saved_tensors
    absorbed, count = members(indices, assignment)
    share = grad / count.unsqueeze(-1)
    return gather_tokens(share, absorbed) + _rows_back(share, indices, assignment.shape[1]), None, None


def _merge_tokens_context(ctx: _Context, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _rows_back(grad: Tensor, indices: Tensor, n: int) -> Tensor:
    """[B,K,D] -> [B,n,D]: each row added where its index says, nowhere for -1."""
    if n == 0:
        return grad.new_zeros((grad.shape[0], 0, grad.shape[2]))
    rows = indices.clamp_min(0).unsqueeze(-1).expand_as(grad)
    grad = grad.masked_fill((indices < 0).unsqueeze(-1), 0)
    zeros = grad.new_zeros((grad.shape[0], n, grad.shape[2]))
    return zeros.scatter_add(1, rows, grad)


def _refuse_gradient(name: str, mutated: str, overload: torch._ops.OpOverload) -> Kernel:
    """Autograd answer of an op that writes into an argument: that argument must not require grad."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        target = kwargs[mutated] if mutated in kwargs else args[0]
        if target is not None and target.requires_grad:
            raise RuntimeError(
                f"{qualified(name)}: {mutated} is written in place and cannot require grad; "
                f"pass {mutated}.detach() or use the functional op"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args, **kwargs)

    return kernel


def _bump_version(mutated: str, overload: torch._ops.OpOverload) -> Kernel:
    """Views and saved tensors of a mutated argument must notice the write."""

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> None:
        target = kwargs[mutated] if mutated in kwargs else args[0]
        with torch._C._AutoDispatchBelowADInplaceOrView():
            overload.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)
        torch.autograd.graph.increment_version(target)

    return kernel


def _checked(name: str) -> Kernel:
    """Shape function: the op's checks, then the empty result."""
    check, shape = getattr(_checks, name), SHAPES[name]

    @functools.wraps(shape)
    def fake(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return shape(*args, **kwargs)

    return fake


def _checked_out(name: str) -> Kernel:
    fake = _checked(name)

    def fake_out(*args: Any, out: Tensor, **kwargs: Any) -> None:
        like = fake(*args, **kwargs)
        _checks.out(name, out, OUT[name], like.shape, like)

    return fake_out


def out_schema(name: str) -> str:
    """``(...) -> Tensor`` becomes ``(..., Tensor(a!) out) -> ()``.

    Nothing is returned, so that functionalisation (``torch.compile``) accepts the op: it refuses results that alias inputs.
    """
    arguments = SCHEMAS[name].rsplit(")", 1)[0]
    return f"{arguments}, Tensor(a!) out) -> ()"


def _register() -> torch.library.Library:
    lib = torch.library.Library(NAMESPACE, "DEF")
    tags = (torch.Tag.pt2_compliant_tag,)
    for name, schema in SCHEMAS.items():
        lib.define(name + schema, tags=tags)
        torch.library.register_fake(qualified(name), _checked(name), lib=lib)
        if name in OUT:
            lib.define(f"{name}.out{out_schema(name)}", tags=tags)
            torch.library.register_fake(qualified(f"{name}.out"), _checked_out(name), lib=lib)

    for name in DIFFERENTIABLE:
        backward, context = globals()[f"_{name}_backward"], globals()[f"_{name}_context"]
        torch.library.register_autograd(qualified(name), backward, setup_context=context, lib=lib)
    mutating = {"compact_": ("tokens", ops.compact_.default)}
    mutating |= {f"{name}.out": ("out", getattr(ops, name).out) for name in OUT}
    for name, (mutated, overload) in mutating.items():
        lib.impl(name, _refuse_gradient(name, mutated, overload), "Autograd")
        lib.impl(name, _bump_version(mutated, overload), "ADInplaceOrView", with_keyset=True)
    for name in SCHEMAS.keys() - DIFFERENTIABLE - {"compact_"}:  # choosing and scoring are not differentiable
        lib.impl(name, torch.library.fallthrough_kernel, "Autograd")
    return lib


LIBRARY = _register()
