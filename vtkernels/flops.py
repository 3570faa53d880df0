"""How many floating-point operations a LLaVA-style model spends, as a function of the visual tokens kept and of the method.

Pure arithmetic on plain numbers. A multiply-add counts as 2. Counted: every matrix product and both products of attention.
Not counted: softmax, norms, activations, rotary embeddings, embedding look-ups (below 1 % together in these models). Attention
counts every query against every key: what a dense kernel does and what PyTorch's own counter reports; a causal kernel may skip
up to half of the prefill's share. The vision tower runs all its layers, as Hugging Face models do, even where a layer before
the last one feeds the projector. Selection counts what the native kernels of this package do, not the published loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "SELECTION", "Cost", "Llava", "Selector", "Transformer", "attention_profile", "attention_topk", "cost", "crop_topk", "gram",
    "graph_propagate", "graph_propagate_published", "linear", "scope", "transformer",
]  # fmt: skip

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
    projector (a multiple of the tower's width where several layers are concatenated). ``newlines`` are learned tokens that
    anyres models put at the ends of rows: the language model sees them, tower and projector do not.
    """

    vision: Transformer
    text: Transformer
    patches: int
    patch: int
    features: int
    vocabulary: int
    crops: int = 1
    newlines: int = 0

    @classmethod
    def from_config(cls, config: Any) -> Llava:
        """Read the sizes from a Hugging Face ``LlavaConfig`` or ``LlavaNextConfig`` (or another with the same fields).

        Of an anyres model these are the sizes for a picture that fills 2 x 2 crops, the "2880 tokens" of the literature.
        """
        vision, text = config.vision_config, config.text_config
        layer = config.vision_feature_layer
        side = vision.image_size // vision.patch_size
        anyres = bool(getattr(config, "image_grid_pinpoints", None))
        return cls(
            vision=Transformer.from_config(vision, gated=False),
            text=Transformer.from_config(text, gated=True),
            patches=side**2,
            patch=vision.patch_size,
            features=vision.hidden_size * (1 if isinstance(layer, int) else len(layer)),
            vocabulary=text.vocab_size,
            crops=5 if anyres else 1,
            newlines=2 * side if anyres else 0,
        )

    @property
    def tokens(self) -> int:
        """Patch tokens of one picture: what a method chooses from."""
        return self.crops * self.patches

    def vision_tower(self) -> int:
        """FLOPs of the vision tower on all crops: patch embedding and all layers. Pruning after it changes nothing."""
        embed = linear(self.patches, 3 * self.patch**2, self.vision.width)
        return self.crops * (embed + transformer(self.vision, self.patches + 1, self.patches + 1))

    def projector(self, tokens: int) -> int:
        """FLOPs of the projector on ``tokens`` visual tokens."""
        return linear(tokens, self.features, self.text.width) + linear(tokens, self.text.width, self.text.width)

    def prefill(self, tokens: int) -> int:
        """FLOPs of the language model on a prompt of ``tokens`` text and visual tokens, and of its head on the last one."""
        return transformer(self.text, tokens, tokens) + linear(1, self.text.width, self.vocabulary)

    def decode(self, context: int) -> int:
        """FLOPs of one decoded token that attends to ``context`` tokens, itself included."""
        return transformer(self.text, 1, context) + linear(1, self.text.width, self.vocabulary)

    def kv_cache(self, tokens: int, dtype_bytes: float = 2) -> int:
        """Bytes of the keys and values of ``tokens`` tokens in all layers; grouped queries share theirs."""
        return round(2 * self.text.layers * self.text.kv_heads * self.text.head_dim * tokens * dtype_bytes)


@dataclass(frozen=True)
class Cost:
    """FLOPs of an answer by stage, and bytes of its KV cache.

    ``decode`` is of all tokens after the first; ``kv_cache`` is when the last token is computed.
    """

    visual_tokens: int
    vision: int
    selection: int
    projector: int
    prefill: int
    decode: int
    kv_cache: int

    @property
    def first_token(self) -> int:
        """From the pixels to the first token."""
        return self.vision + self.selection + self.projector + self.prefill

    @property
    def answer(self) -> int:
        """From the pixels to the last token."""
        return self.first_token + self.decode


def cost(
    model: Llava,
    method: str | None,
    keep: int,
    *,
    prompt_tokens: int,
    new_tokens: int = 1,
    batch: int = 1,
    dtype_bytes: float = 2,
) -> Cost:
    """What ``batch`` prompts with one picture each and ``prompt_tokens`` text tokens cost.

    Args:
        model: the sizes.
        method: class name of a method of this package; None is the unpruned model, whatever ``keep`` is.
        keep: patch tokens that reach the language model. Newlines come on top where the method keeps them.
        prompt_tokens: tokens of text, the template included.
        new_tokens: tokens of the answer; the prefill gives the first.
        batch: prompts side by side.
        dtype_bytes: bytes of a number in the cache.
    """
    selector = Selector() if method is None else SELECTION[method]
    kept = model.tokens if method is None else keep
    visual = kept + (model.newlines if selector.newlines else 0)
    prompt, later = prompt_tokens + visual, new_tokens - 1
    return Cost(
        visual_tokens=visual,
        vision=batch * model.vision_tower(),
        selection=batch * selector.flops(model, kept, prompt_tokens),
        projector=batch * model.projector(model.tokens if selector.after_projector else kept),
        prefill=batch * model.prefill(prompt),
        # the cost of a token is linear in its context, so the sum is that of an arithmetic series
        decode=batch * (later * (model.decode(prompt + 1) + model.decode(prompt + later)) // 2),
        kv_cache=batch * model.kv_cache(prompt + later, dtype_bytes),
    )


def gram(tokens: int, width: int) -> int:
    """FLOPs of the similarities of all pairs of ``tokens`` vectors. They are symmetric, and the kernels compute one triangle
    with its diagonal; a matrix product computes both, 2 * tokens**2 * width.
    """
    return tokens * (tokens + 1) * width


def attention_topk(tokens: int, heads: int, head_dim: int) -> int:
    """FLOPs of the class token's attention over ``tokens`` patches and itself, one query row per head. Ranking costs none."""
    return heads * linear(1, head_dim, tokens + 1)


def attention_profile(tokens: int, heads: int, head_dim: int) -> int:
    """FLOPs of FoPru's map: all patches against all patches and the class token, then the sums of its columns and rows."""
    return heads * (linear(tokens, head_dim, tokens + 1) + 2 * tokens**2)


def scope(tokens: int, width: int, keep: int, heads: int, head_dim: int) -> int:
    """FLOPs of SCOPE: class-token attention, cosine similarities, and ``keep`` lazy greedy steps."""
    greedy = keep * _SCOPE_EVALUATIONS * tokens * _SCOPE_ENTRY
    return attention_topk(tokens, heads, head_dim) + gram(tokens, width) + greedy


def graph_propagate(tokens: int, width: int, iterations: int = 5) -> int:
    """FLOPs of G-Prune: similarities, the sums of the softmax rows, and a vector-matrix product per iteration."""
    return gram(tokens, width) + tokens**2 + iterations * linear(1, tokens, tokens)


def graph_propagate_published(tokens: int, width: int, iterations: int = 5) -> int:
    """FLOPs of the published code for the same scores: both triangles, and the matrix to the power ``iterations`` by repeated
    squaring (3 dense products for 5) before its one product with the vector.
    """
    products = iterations.bit_length() + iterations.bit_count() - 2
    return linear(tokens, width, tokens) + products * linear(tokens, tokens, tokens) + linear(1, tokens, tokens)


def crop_topk(tokens: int, width: int, crops: int) -> int:
    """FLOPs of HoloV's budgets: similarities inside each of ``crops`` runs, the sum and the sum of squares of their rows."""
    size, longer = divmod(tokens, crops)
    return sum(count * (gram(n, width) + 3 * n**2) for n, count in ((size + 1, longer), (size, crops - longer)))


def _holov(model: Llava, tokens: int, keep: int, text: int) -> int:
    runs = min(tokens, max(1, 1024 * tokens // (576 * max(1, keep))))  # the rule of vtkernels.methods.HoloV
    attention = model.crops * attention_topk(model.patches, model.vision.heads, model.vision.head_dim)
    return attention + crop_topk(tokens, model.text.width, runs)


def _par(model: Llava, tokens: int, keep: int, text: int) -> int:
    """Every token against every prompt vector, against every token, against every kept token; then at most one sum per
    token that is merged.
    """
    width = model.text.width
    return linear(tokens, width, text) + gram(tokens, width) + linear(tokens, width, keep) + tokens * width


@dataclass(frozen=True)
class Selector:
    """What a method's selection costs and where it stands.

    ``one(model, tokens, keep, text_tokens)`` is one selection of ``keep`` among ``tokens``. ``among`` says how many of these a
    picture of several crops takes: one per ``"crop"``, one for the base crop and one for the ``"grid"`` of the others, or one
    for the whole ``"image"``. ``after_projector``: it needs projected tokens, so the projector runs on all of them.
    ``newlines``: it leaves these in the prompt.
    """

    one: Callable[[Llava, int, int, int], int] = lambda model, tokens, keep, text: 0
    among: str = "image"
    after_projector: bool = False
    newlines: bool = True

    def flops(self, model: Llava, keep: int, text_tokens: int) -> int:
        """FLOPs of the selections of one picture."""
        grid = model.tokens - model.patches
        groups = {"crop": [model.patches] * model.crops, "grid": [model.patches, grid], "image": [model.tokens]}[self.among]
        return sum(self.one(model, tokens, keep * tokens // model.tokens, text_tokens) for tokens in groups if tokens)


# By class name of the method, with its default options.
SELECTION: dict[str, Selector] = {
    "Scope": Selector(
        lambda model, tokens, keep, text: scope(tokens, model.features, keep, model.vision.heads, model.vision.head_dim),
        among="crop",
        newlines=False,
    ),
    "FoPru": Selector(
        lambda model, tokens, keep, text: attention_profile(tokens, model.vision.heads, model.vision.head_dim),
        among="crop",
        newlines=False,
    ),
    "GPrune": Selector(
        lambda model, tokens, keep, text: graph_propagate(tokens, model.text.width), among="grid", after_projector=True
    ),
    "HoloV": Selector(_holov, after_projector=True, newlines=False),
    "PAR": Selector(_par, after_projector=True),
    "TopAttention": Selector(
        lambda model, tokens, keep, text: attention_topk(tokens, model.vision.heads, model.vision.head_dim), among="crop"
    ),
    "Random": Selector(),
    "Uniform": Selector(),
}
