"""How many floating-point operations a LLaVA-style model spends, as a function of the visual tokens kept.

Pure arithmetic on plain numbers; nothing here imports torch. A multiply-add counts as 2. Counted: every matrix product and
both products of attention. Not counted: softmax, norms, activations, rotary embeddings, embedding look-ups (below 1 % together
in these models). Attention counts every query against every key: what a dense kernel does and what PyTorch's own counter
reports; a causal kernel may skip up to half of the prefill's share. The vision tower runs all its layers, as Hugging Face
models do, even where a layer before the last one feeds the projector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["SELECTION", "Llava", "Transformer", "attention_topk", "linear", "scope", "transformer"]

# Evaluations per step of the lazy greedy loop, and FLOPs (subtract, clamp, add) of each entry in one.
_SCOPE_EVALUATIONS = 10
_SCOPE_ENTRY = 3


@dataclass(frozen=True)
class Transformer:
    """Sizes of a stack of equal layers: ``width`` channels, ``heads`` x ``head_dim`` queries, ``kv_heads`` keys and values.

    ``gated`` is True for an MLP of three matrices (gate, up, down) and False for one of two.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    gated: bool

    @classmethod
    def from_config(cls, config: Any, *, gated: bool) -> Transformer:
        """Read the sizes from a Hugging Face config of one tower."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
            gated=gated,
        )


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """FLOPs of a linear layer [tokens, inputs] -> [tokens, outputs]."""
    return 2 * tokens * inputs * outputs


def transformer(sizes: Transformer, queries: int, keys: int) -> int:
    """FLOPs of ``sizes.layers`` layers on ``queries`` new tokens that attend to ``keys`` tokens, the new ones included."""
    query_width, key_width = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    project = linear(queries, sizes.width, query_width + 2 * key_width) + linear(queries, query_width, sizes.width)
    attend = 2 * linear(queries, keys, query_width)
    mlp = (3 if sizes.gated else 2) * linear(queries, sizes.width, sizes.intermediate)
    return sizes.layers * (project + attend + mlp)


@dataclass(frozen=True)
class Llava:
    """Sizes of a LLaVA: a vision tower over square patches, a two-layer projector, a language model with its head.

    ``patches`` is the count per image or crop, the class token not included; ``features`` the channels that reach the
    projector (a multiple of the tower's width where several layers are concatenated).
    """

    vision: Transformer
    text: Transformer
    patches: int
    patch: int
    features: int
    vocabulary: int

    @classmethod
    def from_config(cls, config: Any) -> Llava:
        """Read the sizes from a Hugging Face ``LlavaConfig`` (or another config with the same fields)."""
        vision, text = config.vision_config, config.text_config
        layer = config.vision_feature_layer
        return cls(
            vision=Transformer.from_config(vision, gated=False),
            text=Transformer.from_config(text, gated=True),
            patches=(vision.image_size // vision.patch_size) ** 2,
            patch=vision.patch_size,
            features=vision.hidden_size * (1 if isinstance(layer, int) else len(layer)),
            vocabulary=text.vocab_size,
        )

    def vision_tower(self, crops: int = 1) -> int:
        """FLOPs of the vision tower on ``crops`` images: patch embedding and all layers. Pruning after it changes nothing."""
        embed = linear(self.patches, 3 * self.patch**2, self.vision.width)
        return crops * (embed + transformer(self.vision, self.patches + 1, self.patches + 1))

    def projector(self, tokens: int) -> int:
        """FLOPs of the projector on ``tokens`` visual tokens."""
        return linear(tokens, self.features, self.text.width) + linear(tokens, self.text.width, self.text.width)

    def prefill(self, tokens: int) -> int:
        """FLOPs of the language model on a prompt of ``tokens`` text and visual tokens, and of its head on the last one."""
        return transformer(self.text, tokens, tokens) + linear(1, self.text.width, self.vocabulary)

    def decode(self, context: int) -> int:
        """FLOPs of one decoded token that attends to ``context`` tokens, itself included."""
        return transformer(self.text, 1, context) + linear(1, self.text.width, self.vocabulary)

    def first_token(self, text_tokens: int, visual_tokens: int, *, selection: int = 0, crops: int = 1) -> int:
        """FLOPs from the pixels to the first token: tower, ``selection``, projector and prefill."""
        prompt = text_tokens + visual_tokens
        return self.vision_tower(crops) + selection + self.projector(visual_tokens) + self.prefill(prompt)


def attention_topk(tokens: int, heads: int, head_dim: int) -> int:
    """FLOPs of the class token's attention over ``tokens`` patches and itself, one query row per head. Ranking costs none."""
    return heads * linear(1, head_dim, tokens + 1)


def scope(tokens: int, width: int, keep: int, heads: int, head_dim: int) -> int:
    """FLOPs of SCOPE: class-token attention, the full cosine similarity, and ``keep`` lazy greedy steps.

    A kernel that uses the symmetry of the similarity spends half of the middle term.
    """
    greedy = keep * _SCOPE_EVALUATIONS * tokens * _SCOPE_ENTRY
    return attention_topk(tokens, heads, head_dim) + linear(tokens, width, tokens) + greedy


# Selection FLOPs of the methods by class name: a function of the model, its visual tokens and the tokens kept.
SELECTION: dict[str, Callable[[Llava, int, int], int]] = {
    "Scope": lambda model, tokens, keep: scope(tokens, model.features, keep, model.vision.heads, model.vision.head_dim),
    "TopAttention": lambda model, tokens, keep: attention_topk(tokens, model.vision.heads, model.vision.head_dim),
    "Random": lambda model, tokens, keep: 0,
    "Uniform": lambda model, tokens, keep: 0,
}
