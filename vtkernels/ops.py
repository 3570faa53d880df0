"""Typed public wrappers of the ops: same names, same keywords, ``ValueError`` and ``TypeError`` on bad arguments.

Shape letters: B images (or crops, tiles, frames), N tokens, D channels, H heads of d channels, T tokens with their class
token, K budget. Every floating input may be float32, float16, bfloat16 or (on the CPU) float64, with any strides; scores
and sums are float32 or wider. Every op is deterministic, reads nothing back to the host, and takes the lowest index among
equal scores.
"""

from __future__ import annotations

from typing import Any, Literal, overload

from torch import Tensor

from vtkernels import _checks
from vtkernels._ops import ops
from vtkernels._schemas import OUT, SHAPES

__all__ = [
    "attention_profile",
    "attention_topk",
    "cls_attention",
    "cluster_topk",
    "compact_",
    "coverage_select",
    "crop_topk",
    "gather_tokens",
    "graph_propagate",
    "merge_tokens",
    "prompt_relevance",
    "route_tokens",
    "row_topk",
    "scope_select",
    "token_clusters",
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


def graph_propagate(
    features: Tensor,
    *,
    threshold: float = 0.5,
    temperature: float = 0.03,
    iterations: int = 5,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """G-Prune: token norms propagated over the graph of similar tokens, divided by the degree.

    Tokens i and j share an edge where their cosine similarity ``S_ij >= threshold``; a token shares one with itself, at
    similarity 1. ``P`` is the softmax of ``S / temperature`` over each token's edges, and the norms, as a row vector, are
    multiplied by ``P`` ``iterations`` times. The score of a token is what it then holds over its number of edges.

    Args:
        features: [B, N, D], projected tokens as they are; normalised here. A row that is zero or has a non-finite entry (or
            whose squared float32 norm overflows) has no edge, not even to itself: degree 0, score 0, and its norm counts 0.
        threshold: least similarity of an edge, in (0, 1]; compared in float32 (float64 where the features are).
        temperature: of the softmax, finite and > 0.
        iterations: steps of propagation, >= 0 (0: norm over degree).
        lengths: [B] int32 or int64, valid tokens of each row (a prefix); clamped to [0, N]. Later tokens are no neighbours
            and get score 0, degree 0.

    Returns:
        scores: float32 [B, N], the greater the more worth keeping.
        degree: int32 [B, N], edges of each token, its own included.

    Raises:
        ValueError: a shape, device or option that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(N^2 D) for the similarity, each pair once, then one vector-matrix product, O(N^2), per iteration. Not
    differentiable.

    Source: G-Prune, arXiv 2501.02268; published code jytmelon/G-Prune @ 762c637, which raises ``P`` to a power instead.

    Example:
        >>> import torch, vtkernels as vt
        >>> scores, degree = vt.graph_propagate(torch.tensor([[[3.0, 0.0], [3.0, 0.0], [0.0, 2.0]]]))
        >>> scores, degree
        (tensor([[1.5000, 1.5000, 2.0000]]), tensor([[2, 2, 1]], dtype=torch.int32))
    """
    return _run(
        "graph_propagate", features, threshold=threshold, temperature=temperature, iterations=iterations, lengths=lengths
    )


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


def attention_profile(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    prefix: int = 1,
    softmax: bool = True,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """FoPru: how much attention every patch receives and gives, mean over heads, without an attention map.

    With ``A`` the head mean of ``softmax_j(scale * q_hi . k_hj)`` over all T tokens (or of the logits themselves), and its
    first ``prefix`` rows and columns dropped, not renormalised: ``received_j = mean_i A_ij`` and ``given_i = mean_j A_ij``.

    Args:
        query: [B, H, T, d].
        key: [B, H, T, d], same dtype.
        scale: finite; None means ``d ** -0.5``.
        prefix: leading tokens to drop, 0 <= prefix <= T (1: the class token).
        softmax: True for attention, False for logits.
        lengths: [B] int32 or int64, valid tokens of all T (a prefix); clamped to [0, T]. Later tokens count in no mean and
            get 0.

    Returns:
        received: float32 [B, T - prefix], column means.
        given: float32 [B, T - prefix], row means.

        Of attention, a key whose logit is not finite gets no mass, and a row without any mass is a row of zeros. Of logits, a
        row of ``query`` or ``key`` with a non-finite entry (or whose squared float32 norm overflows) counts as zeros for all
        other tokens, and its own ``given`` (``query``) or ``received`` (``key``) is NaN.

    Raises:
        ValueError: a shape, device or scale that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(H T^2 d) time and O(T) workspace per row in flight; O(H T d) for logits, which are means of the queries
    and the keys. Not differentiable.

    Source: the token significance of FoPru, arXiv 2411.14164.

    Example:
        >>> import torch, vtkernels as vt
        >>> received, given = vt.attention_profile(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
        >>> received
        tensor([[0.2000, 0.2000, 0.2000, 0.2000]])
    """
    return _run("attention_profile", query, key, scale=scale, prefix=prefix, softmax=softmax, lengths=lengths)


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


def row_topk(scores: Tensor, rows: int, *, width: int, sort: bool = True, out: Tensor | None = None) -> Tensor:
    """All tokens of the image rows whose scores add up to most.

    Args:
        scores: [B, N], the image row by row; N is a multiple of ``width``. Row sums are float64; they rank falling, then
            -inf, then NaN.
        rows: image rows to keep, 0 <= rows <= N / width.
        width: tokens in an image row, >= 1.
        sort: True gives ascending indices; False falling row sums, the tokens of a row still ascending.
        out: int64 [B, rows * width] to write into instead of allocating.

    Returns:
        int64 [B, rows * width]; among rows of equal sum the lowest comes first.

    Raises:
        ValueError: a shape, device, width or number of rows that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(N). Not differentiable.

    Source: the row strategy of FoPru, arXiv 2411.14164.

    Example:
        >>> import torch, vtkernels as vt
        >>> vt.row_topk(torch.tensor([[0.1, 0.1, 0.4, 0.0, 0.2, 0.3]]), rows=2, width=2)
        tensor([[2, 3, 4, 5]])
    """
    return _run("row_topk", scores, rows, width=width, sort=sort, out=out)


def crop_topk(
    attention: Tensor,
    features: Tensor | None,
    k: int,
    *,
    crops: int = 16,
    beta: float = 0.09,
    variant: str = "released",
    lengths: Tensor | None = None,
    sort: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """HoloV: share the budget over runs of consecutive tokens, then keep the best tokens of each run.

    A run ("crop") of M >= 2 tokens scores ``1000 * mean(a) * (1 + beta * v / (v + 1e-6))``, where ``v`` is the mean over its
    tokens of the variance of their cosine similarities inside the run; a run of one token scores its attention ``a``. Run c
    gets ``floor(w_c * k)`` tokens, ``w`` the scores over their sum plus 1e-6; the remainder goes, one each, to the runs of
    greatest ``w``. Inside a run the tokens of greatest attention are kept.

    Args:
        attention: [B, N], what the class token pays to each token. Negative counts as 0; a non-finite entry counts as 0 in
            the score of its run and ranks its token last.
        features: [B, N, D] (projected tokens as published) or None, which takes ``v / (v + 1e-6)`` as 1. A row that is zero
            or has a non-finite entry has similarity 0 with every token.
        k: tokens to keep, 0 <= k <= N.
        crops: number of runs, >= 1. The first ``N mod crops`` are one token longer; runs without tokens vanish.
        beta: weight of the variance term, finite and >= 0. ``"paper"`` does not use it.
        variant: ``"released"`` does what the published code does: tokens beyond the size of a run are lost. ``"full"`` shares
            them among runs that have room, in proportion to weight times room, so that k distinct tokens come back.
            ``"paper"`` follows the text: runs share k by attention, the rest as in ``"full"``, and inside a run tokens rank by
            ``a + mean(a) / (v + 1e-6) * v_i``; it needs features.
        lengths: [B] int32 or int64, valid tokens of each row (a prefix), which alone are cut into runs; clamped to [0, N].
        sort: True gives ascending token order; False the published order: run by run, falling attention (``"paper"``: score)
            in a run that was cut, natural order in a run kept whole.
        out: int64 [B, k] to write into instead of allocating.

    Returns:
        int64 [B, k]; -1 at the end for tokens that ``"released"`` loses, and where a row has fewer than k valid tokens.

    Raises:
        ValueError: a shape, device, option, k, crops or beta that does not fit, or ``"paper"`` without features.
        TypeError: a wrong dtype or type.

    Complexity: O(N^2 D / crops) for the similarities inside runs, O(N log N) without features. Not differentiable. A
    ``w_c * k`` within rounding of an integer may floor either way between backends.

    Source: HoloV, arXiv 2510.02912, section 4.1; published code obananas/HoloV @ 1d2e65e (float32 state here).

    Example:
        >>> import torch, vtkernels as vt
        >>> attention = torch.tensor([[0.3, 0.1, 0.2, 0.1, 0.1, 0.2]])
        >>> vt.crop_topk(attention, None, k=4, crops=3)
        tensor([[0, 1, 2, 5]])
    """
    return _run(
        "crop_topk",
        attention,
        features,
        k,
        crops=crops,
        beta=beta,
        variant=variant,
        lengths=lengths,
        sort=sort,
        out=out,
    )


def token_clusters(features: Tensor, *, threshold: float, lengths: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Clusters of similar tokens: the connected components of the graph with an edge where the cosine reaches a threshold.

    Args:
        features: [B, N, D]. A row that is zero or has a non-finite entry is a cluster of its own.
        threshold: the least cosine of an edge, in (0, 1].
        lengths: [B] int32 or int64, valid tokens of each row (a prefix); clamped to [0, N].
        out: int64 [B, N] to write into instead of allocating.

    Returns:
        int64 [B, N]: the smallest token of each token's cluster; -1 behind the length.

    Raises:
        ValueError: a shape, device or threshold that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(N^2 D) for the similarity. Not differentiable.

    Source: the graph of PAR, arXiv 2410.07278, as this package defines it (no code was published).

    Example:
        >>> import torch, vtkernels as vt
        >>> vt.token_clusters(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]]), threshold=0.7)
        tensor([[0, 1, 0]])
    """
    return _run("token_clusters", features, threshold=threshold, lengths=lengths, out=out)


def prompt_relevance(
    vision: Tensor,
    text: Tensor,
    *,
    text_lengths: Tensor | None = None,
    reduce: str = "max",
    out: Tensor | None = None,
) -> Tensor:
    """How close each visual token is to the prompt: cosine similarity, reduced over the prompt's vectors.

    Args:
        vision: [B, N, D].
        text: [B, T, D], prompt vectors in the same space and dtype. In both, a row that is zero or has a non-finite entry has
            similarity 0 with everything.
        text_lengths: [B] int32 or int64, valid prompt vectors of each row (a prefix); clamped to [0, T].
        reduce: ``"max"`` over the prompt vectors, or ``"mean"``: the cosine with the mean of the normalised prompt vectors.
        out: float32 [B, N] to write into instead of allocating.

    Returns:
        float32 [B, N]; 0 where the prompt has no vector.

    Raises:
        ValueError: a shape, device or option that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(N T D), for ``"mean"`` O((N + T) D). Not differentiable.

    Source: the retrieval of PAR, arXiv 2410.07278, as this package defines it (no code was published).

    Example:
        >>> import torch, vtkernels as vt
        >>> vision = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
        >>> vt.prompt_relevance(vision, torch.tensor([[[5.0, 0.0]]]))
        tensor([[1., 0.]])
    """
    return _run("prompt_relevance", vision, text, text_lengths=text_lengths, reduce=reduce, out=out)


def cluster_topk(
    labels: Tensor,
    relevance: Tensor,
    k: int,
    *,
    pool: float = 0.5,
    lengths: Tensor | None = None,
    sort: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """PAR: retrieve the clusters that matter most to the prompt, then keep the best tokens of each.

    Clusters are retrieved in falling mean relevance (ties: the smaller label) until they hold at least
    ``max(k, ceil(pool * N - 1e-6))`` tokens. Of m retrieved clusters the first k give one token each if m >= k; otherwise each
    gives one, and the other k - m are shared in proportion to the size of the cluster less one: floor, then one more by
    largest remainder (ties: the more relevant cluster). Inside a cluster the most relevant tokens are kept.

    Args:
        labels: int64 [B, N], the cluster of each token, as from :func:`token_clusters`; any names in [0, N). A token of another
            label belongs to no cluster and is never kept.
        relevance: [B, N]. A non-finite entry counts as -1.
        k: tokens to keep, 0 <= k <= N.
        pool: share of the tokens to retrieve, in [0, 1].
        lengths: [B] int32 or int64, valid tokens of each row (a prefix), which is the N of that row; clamped to [0, N].
        sort: True gives ascending token order; False clusters in the order retrieved, falling relevance inside each.
        out: int64 [B, k] to write into instead of allocating.

    Returns:
        int64 [B, k]; -1 at the end where a row has fewer than k tokens in clusters.

    Raises:
        ValueError: a shape, device, k or pool that does not fit.
        TypeError: a wrong dtype or type.

    Complexity: O(N log N); shares in integer arithmetic. Not differentiable.

    Source: PAR, arXiv 2410.07278, as this package defines it (no code was published).

    Example:
        >>> import torch, vtkernels as vt
        >>> labels = torch.tensor([[0, 0, 2, 2, 4]])
        >>> vt.cluster_topk(labels, torch.tensor([[0.1, 0.2, 0.9, 0.8, 0.5]]), k=2)
        tensor([[2, 4]])
    """
    return _run("cluster_topk", labels, relevance, k, pool=pool, lengths=lengths, sort=sort, out=out)


def route_tokens(
    features: Tensor,
    indices: Tensor,
    labels: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """For every token, the kept token that is most similar to it: what :func:`merge_tokens` takes.

    Args:
        features: [B, N, D]. A row that is zero or has a non-finite entry has similarity 0 with every token.
        indices: int64 [B, K], the kept tokens, each in [0, N) or -1 for an empty slot.
        labels: int64 [B, N] or None. Where given, a token goes to a kept token of the same label only; a label outside [0, N)
            is like no other.
        lengths: [B] int32 or int64, valid tokens of each row (a prefix); clamped to [0, N]. Invalid tokens are not routed and
            nothing is routed to them.
        out: int64 [B, N] to write into instead of allocating.

    Returns:
        int64 [B, N]: the slot of the kept token of greatest cosine similarity, the lowest slot among equals; -1 where there
        is none. A kept token has its own slot.

    Raises:
        ValueError: a shape or device that does not fit; on the CPU, an index outside [-1, N).
        TypeError: a wrong dtype or type.

    Complexity: O(N K D). Not differentiable.

    Source: the routing of PAR, arXiv 2410.07278, as this package defines it (no code was published).

    Example:
        >>> import torch, vtkernels as vt
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.1, 1.0], [0.0, 1.0]]])
        >>> vt.route_tokens(features, torch.tensor([[1, 3]]))
        tensor([[0, 0, 1, 1]])
    """
    return _run("route_tokens", features, indices, labels, lengths=lengths, out=out)


def merge_tokens(tokens: Tensor, indices: Tensor, assignment: Tensor) -> Tensor:
    """The mean of each kept token and of the tokens it absorbs. Differentiable in ``tokens``.

    Args:
        tokens: [B, N, D].
        indices: int64 [B, K], the kept tokens, each in [0, N) or -1, which gives a zero row.
        assignment: int64 [B, N], the slot in [0, K) that each token is merged into, or -1 for none; as from
            :func:`route_tokens`. A kept token counts in its own slot alone, whatever stands here; a token assigned to an empty
            slot is dropped.

    Returns:
        [B, K, D] in the dtype of ``tokens``, contiguous; means in float32 or wider.

    Raises:
        ValueError: a shape or device that does not fit; on the CPU, an index outside [-1, N) or a slot outside [-1, K).
        TypeError: a wrong dtype or type.

    Complexity: O(N D).

    Source: the merging of PAR, arXiv 2410.07278, as this package defines it (no code was published).

    Example:
        >>> import torch, vtkernels as vt
        >>> tokens = torch.tensor([[[1.0], [2.0], [9.0], [5.0]]])
        >>> vt.merge_tokens(tokens, torch.tensor([[0, 3]]), torch.tensor([[0, 0, -1, 1]]))
        tensor([[[1.5000],
                 [5.0000]]])
    """
    return _run("merge_tokens", tokens, indices, assignment)


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
    _run("compact_", tokens, indices)


_One = Literal[
    "cls_attention",
    "cluster_topk",
    "crop_topk",
    "gather_tokens",
    "merge_tokens",
    "prompt_relevance",
    "route_tokens",
    "row_topk",
    "scope_select",
    "token_clusters",
    "topk_select",
]
_Two = Literal["attention_profile", "attention_topk", "coverage_select", "graph_propagate"]


@overload
def _run(name: _One, *args: Any, out: Tensor | None = None, **kwargs: Any) -> Tensor: ...
@overload
def _run(name: _Two, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]: ...
@overload
def _run(name: Literal["compact_"], *args: Any) -> None: ...
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
            _checks.apart(name, out, *args, **kwargs)
        raise
