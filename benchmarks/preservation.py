"""What a set of kept tokens preserves of all of them, in float64, one image at a time.

Everything about features is a function of their inner products, so the measures take these: ``gram`` is float64 [N, N] of
:func:`inner_products`, ``kept`` int64 [K] with K >= 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inner_products(features: Tensor) -> Tensor:
    """float64 [N, N] of features [N, D]."""
    x = features.double()
    return x @ x.T


def cosines(gram: Tensor) -> Tensor:
    """float64 [N, N]; a zero row has cosine 0 with everything."""
    norms = gram.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0)
    return inverse[:, None] * gram * inverse


def coverage(gram: Tensor, kept: Tensor) -> float:
    """Mean over all tokens of the cosine with the most similar kept token."""
    return cosines(gram)[:, kept].amax(1).mean().item()


def attention_mass(attention: Tensor, kept: Tensor) -> float:
    """Share of the patches' attention [N] that is on kept tokens."""
    attention = attention.double()
    return (attention[kept].sum() / attention.sum()).item()


def effective_tokens(attention: Tensor) -> float:
    """Exponential of the entropy of attention [N] over the patches: N if it is flat, 1 if one token has it all."""
    attention = attention.double()
    entropy: Tensor = torch.special.entr(attention / attention.sum()).sum()
    return entropy.exp().item()


def span_error(gram: Tensor, kept: Tensor) -> float:
    """Share of the variance that least squares from the kept tokens S misses.

    ``sum_i |x_i - X_S c_i|^2 / sum_i |x_i - mean|^2``: both sums are over all tokens, each ``c_i`` minimises its term, and the
    mean is that of all tokens. So this is what the dropped tokens have outside the span of the kept ones; 1 is no better than
    the mean token in the place of every token.
    """
    own = gram[kept][:, kept]
    # kept tokens may repeat each other, so a ridge far below anything that is shown
    own = own + 1e-10 * own.diagonal().mean() * torch.eye(len(kept), dtype=own.dtype)
    explained = torch.linalg.solve_triangular(torch.linalg.cholesky(own), gram[kept], upper=False).square().sum()
    return _share(gram.trace() - explained, gram)


def nearest_error(gram: Tensor, kept: Tensor) -> float:
    """As :func:`span_error`, with the kept token of the greatest cosine, as it is, in the place of every token."""
    nearest = kept[cosines(gram)[:, kept].argmax(1)]
    squares = gram.diagonal()
    between = gram.gather(1, nearest[:, None])[:, 0]
    return _share((squares + squares[nearest] - 2 * between).sum(), gram)


def groups_hit(labels: Tensor, kept: Tensor) -> float:
    """Share of the groups that have a kept token, by int64 labels [N]."""
    hit, groups = (len(x.unique()) for x in (labels[kept], labels))
    return hit / groups


def overlap(a: Tensor, b: Tensor) -> float:
    """Jaccard index of two sets of kept tokens: shared over all. Two random K of N have about ``K / (2 N - K)``."""
    one, other = set(a.tolist()), set(b.tolist())
    return len(one & other) / len(one | other)


def _share(missed: Tensor, gram: Tensor) -> float:
    """Of the variance; 0 where there is none."""
    variance = gram.trace() - gram.mean() * len(gram)
    return (missed.clamp_min(0) / variance).item() if variance > 0 else 0.0
