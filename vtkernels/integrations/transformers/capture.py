"""The vision tower: its tokens, and the queries and keys of the layer that a method looks at."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vtkernels.integrations.transformers.attach import Attachments

if TYPE_CHECKING:
    from vtkernels.integrations.transformers.layout import Layout
    from vtkernels.integrations.transformers.selection import Kept
    from vtkernels.integrations.transformers.visual import Visual

_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}


@dataclass
class Encoding:
    """One call of ``get_image_features`` or ``get_video_features``: what it is about, and what comes out.

    Attributes:
        visual: whose call it is.
        arguments: of the call, by name.
        layouts: of its images.
        layer: the encoder layer whose queries and keys are captured, if any.
        captured: these.
        entered, left: whether the projector's hooks have run.
        features: what the projector was given, where the choice comes after it; ``rows`` and ``visible`` are its shape.
        kept: the choice, one for each image.
        tokens: [after, D] of each image, projected and in order; ``ranks`` are their places among all its visual tokens.
    """

    visual: Visual
    arguments: dict[str, Any]
    layouts: tuple[Layout, ...]
    layer: int | None = None
    captured: dict[str, Tensor] = field(default_factory=dict)
    entered: bool = False
    left: bool = False
    features: Tensor | None = None
    rows: int = 0
    visible: int = 0
    kept: list[Kept] | None = None
    tokens: list[Tensor] | None = None
    ranks: list[Tensor] = field(default_factory=list)


# Per thread, so that calls that run side by side on one model do not mix their captures.
ENCODING: ContextVar[Encoding | None] = ContextVar("vtkernels_encoding", default=None)


class Tower:
    """A vision tower with a fixed patch grid.

    Attributes:
        name: class of the tower.
        grid: rows and columns of patches.
        prefix: class tokens in front of the patches.

    Raises:
        TypeError: a tower of another kind.
    """

    def __init__(self, tower: nn.Module) -> None:
        self.name = type(tower).__name__
        config: Any = tower.config
        kind = getattr(config, "model_type", None)
        if kind not in _CLASS_TOKENS:
            raise TypeError(f"vt.prune: unsupported vision tower {self.name}; supported: CLIPVisionModel, SiglipVisionModel")
        side: int = config.image_size // config.patch_size
        self.grid = (side, side)
        self.prefix = _CLASS_TOKENS[kind]
        # transformers 5 moved the encoder up into the model
        model: Any = getattr(tower, "vision_model", tower)
        self._layers = model.encoder.layers

    def layer_of(self, feature_layer: int | Sequence[int]) -> int:
        """Index of the encoder layer whose output is ``hidden_states[feature_layer]``; of a list, the last entry counts.

        Raises:
            ValueError: no encoder layer has that output.
        """
        last = feature_layer if isinstance(feature_layer, int) else feature_layer[-1]
        n = len(self._layers)
        layer = last - 1 if last >= 0 else last + n
        if not 0 <= layer < n:
            raise ValueError(
                f"vision_feature_layer = {last} is not the output of one of the {n} layers of {self.name}, so it has no "
                f"attention; take a layer from 1 to {n} (or -{n} to -1), or vt.Random() or vt.Uniform()"
            )
        return layer

    def watch(self, layer: int, attachments: Attachments) -> None:
        """Capture queries and keys of ``layer`` from now on, during an :class:`Encoding` that asks for it.

        Called again before every encoding, for a projection whose place an adapter has taken since.
        """
        attention = self._layers[layer].self_attn
        for name, projection in (("query", attention.q_proj), ("key", attention.k_proj)):
            if attachments.first(projection):
                attachments.hook(projection.register_forward_hook, functools.partial(_capture, layer, name))

    def attention(self, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """Queries and keys of all tokens, [B, H, T, d] each.

        Raises:
            RuntimeError: a compiled tower ran without its hooks.
        """
        if encoding.captured.keys() != {"query", "key"}:
            raise RuntimeError(
                f"no queries and keys came from layer {encoding.layer} of {self.name}: torch.compile ran it without its hooks; "
                f"leave the vision tower uncompiled, or set torch._dynamo.config.skip_nnmodule_hook_guards = False first"
            )
        d = self._layers[encoding.layer].self_attn.head_dim
        queries, key = (encoding.captured[name].unflatten(-1, (-1, d)).transpose(1, 2) for name in ("query", "key"))
        return queries, key


def _capture(layer: int, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    encoding = ENCODING.get()
    if encoding is not None and encoding.layer == layer:
        encoding.captured[name] = output.detach()
