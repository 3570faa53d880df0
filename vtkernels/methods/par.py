"""PAR: the parts of the image that the prompt asks about, without their repetitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vtkernels import ops
from vtkernels.methods._base import Context, Policy, Selection


@dataclass(frozen=True)
class PAR:
    """PAR: retrieve the clusters of visual tokens that are close to the prompt, then reduce each cluster.

    This is *our definition* of the two stages that the paper's abstract describes, not a reproduction: no code was published,
    and no constants. The paper states that reduction is training-free and guided by the prompt instead of by attention; that
    *external* redundancy (what the prompt does not ask about) is removed by semantic retrieval and *internal* redundancy (what
    is left twice) by token routing; and that clusters come from a graph. Here:

    1. a token's relevance is its cosine with the prompt (``vt.prompt_relevance``);
    2. clusters are connected components of the graph of cosines >= ``threshold`` (``vt.token_clusters``);
    3. the most relevant clusters are retrieved until they hold a share ``pool`` of the tokens, the budget is shared over them
       by size, and each keeps its most relevant tokens (``vt.cluster_topk``);
    4. every other token of a retrieved cluster is averaged into the kept token of its cluster that is most similar to it
       (``vt.route_tokens``, ``vt.merge_tokens``); tokens of other clusters are dropped.

    Visual tokens are taken after the projector; all crops of an image are one set. The prompt is all text of the image's row
    that is neither placeholder, padding nor special, as input embeddings of the language model; ``text_encoder`` replaces it by
    a better space.

    Args:
        threshold: the least cosine of two tokens that are alike, in (0, 1].
        pool: share of the tokens to retrieve, in [0, 1].
        reduce: relevance is the ``"max"`` over prompt vectors, or the cosine with their ``"mean"``.
        route: ``"merge"`` as in step 4, or ``"drop"`` the tokens that are not kept.
        text_encoder: a callable from the prompts' token ids [B, L] (a padding id behind the end) to vectors [B, L, D'], or to
            vectors [B, T, D'] and their number int64 [B] where there are more or fewer of them than ids. D' is the width of the
            projected tokens; an encoder with a method ``project`` has the visual side made by it instead, from the features
            before the projector [B, N, D] to [B, N, D'].
        special_ids: token ids that are no text; None takes the model's padding, start and end tokens.

    Raises:
        ValueError: an argument is none of these.

    Source: arXiv 2410.07278; definitions as above.
    """

    threshold: float = 0.7
    pool: float = 0.5
    reduce: str = "max"
    route: str = "merge"
    text_encoder: Callable[[Tensor], Any] | None = None
    special_ids: Iterable[int] | None = None

    policy: ClassVar[Policy] = Policy(budgets=("joint",))

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"PAR: threshold must be in (0, 1], got {self.threshold:g}")
        if not 0 <= self.pool <= 1:
            raise ValueError(f"PAR: pool must be in [0, 1], got {self.pool:g}")
        if self.reduce not in ("max", "mean"):
            raise ValueError(f"PAR: reduce must be 'max' or 'mean', got {self.reduce!r}")
        if self.route not in ("merge", "drop"):
            raise ValueError(f"PAR: route must be 'merge' or 'drop', got {self.route!r}")
        if self.text_encoder is not None and not callable(self.text_encoder):
            raise ValueError(f"PAR: text_encoder must be callable or None, got {type(self.text_encoder).__name__}")
        if self.special_ids is not None:
            object.__setattr__(self, "special_ids", tuple(self.special_ids))  # frozen and hashable

    @property
    def needs(self) -> frozenset[str]:
        """The features before the projector only where the text encoder has a projection of its own for them."""
        return frozenset({"projected", "prompt"} | ({"features"} if hasattr(self.text_encoder, "project") else set()))

    def select(self, context: Context, k: int) -> Selection:
        """Scores are the relevance."""
        vision, text, lengths = self._same_space(context)
        relevance = ops.prompt_relevance(vision, text, text_lengths=lengths, reduce=self.reduce)
        labels = ops.token_clusters(vision, threshold=self.threshold)
        indices = ops.cluster_topk(labels, relevance, k, pool=self.pool)
        routed = ops.route_tokens(vision, indices, labels) if self.route == "merge" else None
        return Selection(indices, relevance, routed)

    def _same_space(self, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Visual tokens, prompt vectors and how many of these each prompt has."""
        assert context.projected is not None and context.prompt_lengths is not None  # among the needs
        if self.text_encoder is None:
            assert context.prompt is not None
            return context.projected, context.prompt, context.prompt_lengths
        assert context.prompt_ids is not None
        text = self.text_encoder(context.prompt_ids)
        text, lengths = text if isinstance(text, tuple) else (text, context.prompt_lengths)
        project = getattr(self.text_encoder, "project", None)
        vision = context.projected if project is None else project(context.features)
        return vision, text.to(vision), lengths.to(vision.device)
