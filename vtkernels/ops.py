"""Typed public wrappers of the ops: same names, same keywords, ``ValueError`` and ``TypeError`` on bad arguments.

Shape letters: B images (or crops, tiles, frames), N tokens, D channels, H heads of d channels, T tokens with their class
token, K budget. Every floating input may be float32, float16, bfloat16 or (on the CPU) float64, with any strides; scores
and sums are float32 or wider. Every op is deterministic, reads nothing back to the host, and takes the lowest index among
equal scores.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtkernels import _checks
from vtkernels._ops import ops
from vtkernels._schemas import OUT, SHAPES

__all__ = [
    "attention_topk",
    "cls_attention",
    "compact_",
    "coverage_select",
    "gather_tokens",
    "scope_select",
    "topk_select",
]


def scope_select(
    features: Tensor,
    saliency: Tensor | None,
    k: int,
    *,
    alpha: float = 1.0,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """SCOPE: choose k tokens that cover the features and are salient, in one fused greedy pass.

    With ``C`` the cosine similarity of the features and ``w_j = max(0, saliency_j) ** alpha``, each of the k steps takes the
    token j that maximises ``w_j * sum_i max(0, C_ij - m_i)`` and raises the coverage ``m_i`` to ``C_ij``.

    Args:
        features: [B, N, D], the tokens as the vision tower gives them; normalised here. A row that is zero or has a
            non-finite entry (or whose squared float32 norm overflows) has similarity 0 with every token.
        saliency: [B, N] or None for all ones. Negative counts as 0; a non-finite entry ranks its token last.
        k: tokens to keep, 0 <= k <= N.
        alpha: exponent of the saliency, finite and >= 0.
        combine: ``"multiply"`` gain and weight (published ``multi``) or ``"add"`` them (published ``add``; there a missing
            saliency adds nothing).
        lengths: [B] int32 or int64, valid tokens of each row (a prefix); clamped to [0, N]. Default: all.
        sort: True gives ascending token order; False the order of choice, whose first j entries are the answer for budget j.
        out: int64 [B, k] to write into instead of allocating.

    Returns:
        int64 [B, k]; -1 at the end where a row has fewer than k valid tokens.

    Raises:
        ValueError: a shape, device, option or k that does not fit; the message names argument, value and what it takes.
        TypeError: a wrong dtype or type.

    Complexity: O(N^2 D) for the similarity, then about 10 evaluations of O(N) per step (lazy greedy, exact); O(N^2)
    float32 workspace. Not differentiable.

    Source: SCOPE, arXiv 2510.24214, eq. 5-10; published code kinredon/SCOPE @ 6bf7306 (float32 state here).

    Example:
        >>> import torch, vtkernels as vt
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
        >>> vt.scope_select(features, torch.ones(1, 3), k=2)
        tensor([[1, 2]])
    """
    return _run("scope_select", features, saliency, k, alpha=alpha, combine=combine, lengths=lengths, sort=sort, out=out)


def coverage_select(
    similarity: Tensor,
    weight: Tensor | None,
    k: int,
    *,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> tuple[Tensor, Tensor]:
    """Greedy coverage (facility location) on a similarity of your own: the loop of :func:`scope_select` for any matrix.

    Each of the k steps takes the candidate j that maximises ``weight_j * sum_i max(0, similarity_ij - m_i)`` and raises the
    coverage ``m_i`` to ``similarity_ij``; ``m`` starts at 0, so negative similarity never counts.

    Args:
        similarity: [B, M, N], M items to be covered by N candidates. A non-finite entry counts as 0.
        weight: [B, N] or None (all ones for ``"multiply"``, zeros for ``"add"``). Negative counts as 0; a non-finite entry
            ranks its candidate last.
        k: candidates to keep, 0 <= k <= N.
        combine: ``"multiply"`` or ``"add"``.
        lengths: [B] int32 or int64, valid candidates of each row (a prefix); clamped to [0, N]. An invalid item is a zero
            row of ``similarity``.
        sort: True gives ascending candidate order; False the order of choice.

    Returns:
        indices: int64 [B, k], -1 at the end where a row has fewer than k valid candidates.
        gains: float32 [B, k], the winning scores in the order of ``indices``; 0 for a -1.

    Raises:
        ValueError: a shape, device, option or k that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(M N) once, then about 10 evaluations of O(M) per step. Not differentiable.

    Source: the greedy step of SCOPE, arXiv 2510.24214; with a rectangular matrix, of MMTok, arXiv 2508.18264.

    Example:
        >>> import torch, vtkernels as vt
        >>> similarity = torch.tensor([[[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> indices, gains = vt.coverage_select(similarity, None, k=2)
        >>> indices
        tensor([[0, 2]])
    """
    return _run("coverage_select", similarity, weight, k, combine=combine, lengths=lengths, sort=sort)


def cls_attention(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    prefix: int = 1,
    reduce: str = "mean",
    lengths: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention that one query row (the class token) pays to every patch, without an attention map.

    ``softmax_t(scale * q_h . k_ht)`` over all T tokens, reduced over heads; the first ``prefix`` columns are dropped after
    the softmax and not renormalised.

    Args:
        query: [B, H, d], the query of the class token.
        key: [B, H, T, d], same dtype.
        scale: finite; None means ``d ** -0.5``.
        prefix: leading columns to drop, 0 <= prefix <= T (1: the class token itself).
        reduce: ``"mean"`` or ``"sum"`` over heads.
        lengths: [B] int32 or int64, valid tokens of all T (a prefix); clamped to [0, T]. Later tokens get 0.
        out: float32 [B, T - prefix] to write into instead of allocating.

    Returns:
        float32 [B, T - prefix]. A key whose logit is not finite gets no mass; a head without any mass adds nothing.

    Raises:
        ValueError: a shape, device, option or scale that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(H T d), one read of the keys. Not differentiable.

    Source: the saliency of SCOPE (sum) and HoloV (mean), arXiv 2510.24214 and 2510.02912.

    Example:
        >>> import torch, vtkernels as vt
        >>> vt.cls_attention(torch.zeros(1, 2, 4), torch.zeros(1, 2, 5, 4))
        tensor([[0.2000, 0.2000, 0.2000, 0.2000]])
    """
    return _run("cls_attention", query, key, scale=scale, prefix=prefix, reduce=reduce, lengths=lengths, out=out)


def topk_select(
    scores: Tensor, k: int, *, lengths: Tensor | None = None, sort: bool = True, out: Tensor | None = None
) -> Tensor:
    """The k best scores of each row, with the tie rule that ``torch.topk`` does not promise.

    Args:
        scores: [B, N]. Ranked falling, then -inf, then NaN; 0.0 and -0.0 are equal.
        k: entries to keep, 0 <= k <= N.
        lengths: [B] int32 or int64, valid entries of each row (a prefix); clamped to [0, N].
        sort: True gives ascending indices; False falling scores.
        out: int64 [B, k] to write into instead of allocating.

    Returns:
        int64 [B, k]; among equals the lowest index; -1 at the end where a row has fewer than k valid entries.

    Raises:
        ValueError: a shape, device or k that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(N + k log k). Not differentiable.

    Example:
        >>> import torch, vtkernels as vt
        >>> vt.topk_select(torch.tensor([[0.1, 0.3, 0.3, 0.3]]), k=2)
        tensor([[1, 2]])
    """
    return _run("topk_select", scores, k, lengths=lengths, sort=sort, out=out)


def attention_topk(
    query: Tensor,
    key: Tensor,
    k: int,
    *,
    scale: float | None = None,
    prefix: int = 1,
    lengths: Tensor | None = None,
    sort: bool = True,
) -> tuple[Tensor, Tensor]:
    """The k patches that the class token attends to most: :func:`cls_attention` and :func:`topk_select` in one launch.

    Args:
        query: [B, H, d].
        key: [B, H, T, d], same dtype.
        k: patches to keep, 0 <= k <= T - prefix.
        scale: finite; None means ``d ** -0.5``.
        prefix: leading columns to drop, 0 <= prefix <= T.
        lengths: [B] int32 or int64, valid tokens of all T (a prefix); clamped to [0, T].
        sort: True gives ascending indices; False falling attention.

    Returns:
        indices: int64 [B, k], counted from the first token after the prefix; -1 at the end where a row has too few.
        scores: float32 [B, T - prefix], mean over heads.

    Raises:
        ValueError: a shape, device, scale or k that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(H T d). Not differentiable.

    Source: class-token ranking as in FasterVLM, arXiv 2412.01818.

    Example:
        >>> import torch, vtkernels as vt
        >>> key = torch.zeros(1, 1, 4, 2)
        >>> key[0, 0, 3] = 5.0
        >>> vt.attention_topk(torch.ones(1, 1, 2), key, k=1)[0]
        tensor([[2]])
    """
    return _run("attention_topk", query, key, k, scale=scale, prefix=prefix, lengths=lengths, sort=sort)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The chosen rows of each image; -1 gives a zero row. Differentiable in ``tokens``.

    Args:
        tokens: [B, N, D].
        indices: int64 [B, K], each in [0, N) or -1, in any order, repeats allowed.

    Returns:
        [B, K, D] in the dtype of ``tokens``, contiguous.

    Raises:
        ValueError: a shape or device that does not fit; on the CPU, an index outside [-1, N).
        TypeError: a wrong dtype or type.

    Complexity: O(K D).

    Example:
        >>> import torch, vtkernels as vt
        >>> vt.gather_tokens(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[2, -1]]))
        tensor([[[3.],
                 [0.]]])
    """
    return _run("gather_tokens", tokens, indices)


def compact_(tokens: Tensor, indices: Tensor) -> None:
    """Move the kept rows of each image to the front, in place, without a second buffer.

    Args:
        tokens: [B, N, D], written in place: row s becomes row ``indices[:, s]`` (a zero row for -1), rows from K on keep what
            they held. Must not require grad.
        indices: int64 [B, K], K <= N, ascending and distinct, -1 only at the end. The CPU checks this order before it
            writes anything; a GPU does not.

    Raises:
        ValueError: a shape, device or (on the CPU) an index or order that does not fit.
        TypeError: a wrong dtype or type.
        RuntimeError: ``tokens`` requires grad.

    Complexity: O(K D).

    Example:
        >>> import torch, vtkernels as vt
        >>> tokens = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> vt.compact_(tokens, torch.tensor([[1, 2]]))
        >>> tokens.flatten()
        tensor([2., 3., 3.])
    """
    return _run("compact_", tokens, indices)


def _run(name: str, *args: Any, out: Tensor | None = None, **kwargs: Any) -> Any:
    op = getattr(ops, name)
    try:
        if out is None:
            return op.default(*args, **kwargs)
        op.out(*args, **kwargs, out=out)
        return out
    except RuntimeError:
        # A native kernel says the same as the checks, but every C++ error arrives as RuntimeError.
        getattr(_checks, name)(*args, **kwargs)
        if name in _checks.DATA:
            _checks.DATA[name](*args, **kwargs)
        if out is not None:
            _checks.out(name, out, OUT[name], SHAPES[name](*args, **kwargs).shape, args[0])
        raise
