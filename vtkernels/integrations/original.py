"""The original LLaVA code base (haotian-liu/LLaVA and LLaVA-NeXT), recognised by its members: nothing here imports it.

Its prompt holds one id per image, and the embeddings of the image are put in its place, however many they are: fewer rows per
image need no change of the prompt. ``prepare_inputs_labels_for_multimodal`` encodes all crops together and arranges them
itself where images come as a list or with a dimension of crops. Here it is called with a stand-in of one crop per image, for
which it takes what ``encode_images`` returns as it is: the pruned and arranged tokens of every image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor, nn

from vtkernels.integrations.transformers import generation
from vtkernels.integrations.transformers.attach import Attachments, named_arguments
from vtkernels.integrations.transformers.capture import Encoding, Tower
from vtkernels.integrations.transformers.layout import NEWLINE, Geometry, Layout
from vtkernels.integrations.transformers.llava import LlavaImages
from vtkernels.integrations.transformers.llava_next import AnyresImages
from vtkernels.integrations.transformers.options import Options
from vtkernels.integrations.transformers.prompt import Text, text_of_rows
from vtkernels.integrations.transformers.pruning import MARK, TEXT, Pruning, holding
from vtkernels.integrations.transformers.record import Record
from vtkernels.integrations.transformers.visual import Visual, hook_projector
from vtkernels.methods import Method

IMAGE_TOKEN = -200  # the code base's IMAGE_TOKEN_INDEX, in every version

_MEMBERS = ("get_model", "get_vision_tower", "encode_images", "prepare_inputs_labels_for_multimodal")
_MERGES = ("flat", "spatial", "spatial_unpad")
_TOKENWISE = re.compile(r"linear|identity|mlp\d+x_\w*gelu")


def recognises(model: nn.Module) -> bool:
    """Whether a model is one of the code base's, with its vision modules."""
    members: list[Any] = [getattr(model, name, None) for name in _MEMBERS]
    return all(map(callable, members)) and hasattr(members[0](), "mm_projector")


@dataclass
class _Call:
    """A running ``prepare_inputs_labels_for_multimodal``: its arguments as given, and whether it has encoded the images."""

    visual: OriginalImages
    arguments: dict[str, Any]
    encoded: bool = False


# Per thread, so that calls that run side by side on one model do not mix their prompts.
_CALL: ContextVar[_Call | None] = ContextVar("vtkernels_original_call", default=None)


class OriginalPruning(Pruning):
    """A model of the original LLaVA code base with pruning attached; see :class:`Pruning`.

    ``forward`` returns logits of the shortened prompt. An image that is given for a row without an image (the code base wants
    one there) is encoded, pruned and recorded like the others, though its row does not show it.

    Raises:
        ValueError: the options, the method or the model's config ask for what cannot be done here.
        TypeError: the vision tower is not supported.
    """

    def __init__(self, model: nn.Module, method: Method, keep: int | float, options: Options) -> None:
        if options.positions == "original":
            name = type(method).__name__
            own = "" if "positions" in options.given else f" ({name} keeps the original positions unless it is told otherwise)"
            raise ValueError(
                "positions = 'original' is not possible on the original LLaVA code base, which counts positions along the "
                f"shortened prompt{own}; give positions='contiguous', or use the Hugging Face class"
            )
        super().__init__(model, method, keep, options, (OriginalImages,))

    def attach(self) -> OriginalPruning:
        """Attach to the model, wholly or not at all."""
        model: Any = self.model
        try:
            self.attachments.wrap(model, "generate", self._generate)
            hook_projector(model.get_model().mm_projector, self.attachments)
            for visual in self._visuals:
                visual.attach(self.attachments)
        except BaseException:
            self.remove()
            raise
        vars(self.model)[MARK] = self
        return self

    def measure(self) -> NoReturn:
        """Not on this code base.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("measure() does not know the original LLaVA code base; use the Hugging Face class")

    def _generate(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if self.attached and named_arguments(original, args, kwargs).get("images") is None:
            self.last = Record()
        return original(*args, **kwargs)

    def prompt_of(self, visual: Visual, images: int, device: torch.device) -> dict[str, Tensor]:
        """The prompt captures of ``images`` that are being encoded."""
        call = _CALL.get()
        ours = call if call is not None and call.visual is visual else None
        with holding(TEXT, None if ours is None else {visual.kind: self._text_of(ours.arguments, images)}):
            return super().prompt_of(visual, images, device)

    def _text_of(self, arguments: dict[str, Any], images: int) -> Text:
        """The text around each image of a prompt; a row without an image uses up one all the same."""
        ids, mask = arguments["input_ids"].cpu(), arguments.get("attention_mask")
        found = ids == IMAGE_TOKEN
        if mask is not None:
            found &= mask.cpu().ne(0)
        rows = [row for row, count in enumerate(found.sum(1).tolist()) for _ in range(max(count, 1))]
        if len(rows) != images:
            raise ValueError(
                f"input_ids does not match the images: its rows take {len(rows)} ({IMAGE_TOKEN} for each, and one for a row "
                f"without), but {images} were given"
            )
        special = getattr(self.method, "special_ids", None)
        pad = generation.option(self.model, {}, "pad_token_id")
        return text_of_rows(
            arguments,
            name="input_ids",
            rows=rows,
            special={IMAGE_TOKEN, *(_special_ids(self.model) if special is None else special)},
            pad=max(pad or 0, 0),
            who=type(self.method).__name__,
        )


class OriginalImages(AnyresImages, LlavaImages):
    """Images of a model of the original LLaVA code base."""

    encode = "encode_images"
    pixels = ("images",)
    projector_name = "mm_projector"

    def __init__(self, pruning: Pruning) -> None:
        self.pruning = pruning
        model: Any = pruning.model
        self.wrapper = model.get_vision_tower()
        self.tower = Tower(_vision_model(self.wrapper))
        self.clip = self.aspect.startswith("anyres")  # whether images have tokens of variable number
        self._layouts: dict[Any, Layout] = {}
        self._said = False

    @property
    def core(self) -> Any:
        model: Any = self.pruning.model
        return model.get_model()

    @property
    def config(self) -> Any:
        """The model's, with the tower's own beside it, where the Hugging Face classes have it."""
        return _twin(self.pruning.model.config, vision_config=self.wrapper.vision_tower.config)

    @property
    def token(self) -> int:
        return IMAGE_TOKEN

    @property
    def merge(self) -> str:
        """How crops of an image are put together."""
        return getattr(self.config, "mm_patch_merge_type", None) or "flat"

    @property
    def aspect(self) -> str:
        """What is done to an image that is not square."""
        return getattr(self.config, "image_aspect_ratio", None) or "square"

    def feature_layer(self, arguments: dict[str, Any]) -> int:
        # the fork's SigLIP tower says nothing: it takes the last layer that it has left, and all its tokens
        return getattr(self.wrapper, "select_layer", -1)

    def strategy(self, arguments: dict[str, Any]) -> str:
        return "default" if getattr(self.wrapper, "select_feature", "cls_patch") == "patch" else "full"

    def check(self) -> None:
        name = type(self.pruning.model).__name__
        select = getattr(self.wrapper, "select_feature", None)
        if select not in ("patch", "cls_patch") and (select is not None or self.tower.prefix):
            raise ValueError(f"mm_vision_select_feature must be 'patch' or 'cls_patch' for vt.prune, {name} has {select!r}")
        if self.merge not in _MERGES:
            raise ValueError(
                f"mm_patch_merge_type must be {', '.join(map(repr, _MERGES[:-1]))} or {_MERGES[-1]!r} for vt.prune, {name} has "
                f"{self.merge!r}"
            )
        projector = getattr(self.config, "mm_projector_type", "linear")
        if not _TOKENWISE.fullmatch(projector):
            raise ValueError(
                f"mm_projector_type = {projector!r} is none that projects every token on its own (linear, identity, "
                f"mlp2x_gelu and others like it), and a projector of whole grids cannot be given fewer tokens"
            )
        super().check()

    # ---------------------------------------------------------------------------------------------- the images

    def layouts(self, arguments: dict[str, Any], count: int) -> list[Layout]:
        call = _CALL.get()
        if call is None or call.visual is not self:
            return [self.single()] * count  # encode_images called from outside
        images = call.arguments["images"]
        if _are_single(images):
            return [self.single()] * count
        crops = [1 if image.dim() == 3 else image.shape[0] for image in images]
        if self.merge == "flat":
            return [self.flat(n) for n in crops]
        if self.class_tokens(self.strategy({})) or self.grid(self.strategy({})) is None:
            raise ValueError(
                f"mm_patch_merge_type = {self.merge!r} needs a full grid of patches alone: set mm_vision_select_feature = "
                f"'patch', or mm_patch_merge_type = 'flat'"
            )
        sizes = call.arguments.get("image_sizes")
        return [self.end() if n == 1 else self.tiled(i, n, sizes) for i, n in enumerate(crops)]

    def single(self) -> Layout:
        """An image of one crop."""
        return self.layout("single", lambda: self.frames(1, self.strategy({})), clip=self.clip)

    def flat(self, crops: int) -> Layout:
        """Crops one behind the other."""
        return self.single() if crops == 1 else self.layout(crops, lambda: self.frames(crops, self.strategy({})))

    def end(self) -> Layout:
        """An image of one crop among others that may have tiles: the newline comes at its end."""
        if "unpad" not in self.merge:
            return self.single()

        def geometry() -> Geometry:
            plain = self.frames(1, self.strategy({}))
            order = torch.cat([plain.order, torch.tensor([NEWLINE])])
            return replace(plain, order=order, inside=torch.ones_like(order, dtype=torch.bool), newline_is_end=True)

        return self.layout("end", geometry)

    def tiled(self, image: int, crops: int, sizes: Any) -> Layout:
        """A base crop and tiles, image number ``image`` of the call.

        Raises:
            ValueError: they are not arranged in a grid of known shape.
        """
        if self.aspect != "anyres":
            raise ValueError(
                f"image {image} has {crops} crops; with mm_patch_merge_type = {self.merge!r} vt.prune takes those of "
                f"image_aspect_ratio = 'anyres', not {self.aspect!r}: set mm_patch_merge_type = 'flat', or use the Hugging "
                f"Face class"
            )
        if sizes is None:
            raise ValueError("image_sizes is missing: give width and height of every image, which tiles are arranged by")
        width, height = (int(x) for x in sizes[image])
        rows, columns = self.tiles((height, width))
        if crops != rows * columns + 1:
            raise ValueError(
                f"image {image} has {crops} crops, but its size {width} x {height} makes {rows * columns + 1}: process it with "
                f"the image_grid_pinpoints of the model's config"
            )
        return self.layout((height, width), lambda: self.learn((height, width), self._order))

    def tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        # the code base speaks of widths first
        columns, rows = self._helper("get_anyres_image_grid_shape")(
            size[::-1], self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )
        return rows, columns

    def _order(self, crops: list[Tensor], sizes: Tensor, newline: Tensor) -> Tensor:
        """What the code base's own preparation makes of crops [C, P, 1] of an image."""
        (height, width), (indices,) = sizes[0].tolist(), crops
        model: Any = self.pruning.model
        core = _twin(self.core, image_newline=newline, embed_tokens=lambda ids: indices.new_zeros(len(ids), 1))
        config = _twin(model.config, tokenizer_model_max_length=None)  # which cuts prompts off
        blind = _twin(model, model=core, get_model=lambda: core, encode_images=lambda images: indices, config=config)
        prompt = torch.tensor([[IMAGE_TOKEN, 0]])  # of a single id the code base makes nothing
        pixels = [indices.new_zeros(len(indices), 3, 1, 1)]
        unused = dict.fromkeys(("position_ids", "attention_mask", "past_key_values", "labels"))
        prepared = type(model).prepare_inputs_labels_for_multimodal(
            blind, input_ids=prompt, images=pixels, image_sizes=[(width, height)], **unused
        )
        embedded: Tensor = prepared[4]
        return embedded[0, :-1].cpu()

    # ---------------------------------------------------------------------------------------------- the calls

    def attach(self, attachments: Attachments) -> None:
        model = self.pruning.model
        attachments.wrap(model, "prepare_inputs_labels_for_multimodal", self._prepare)
        attachments.wrap(model, "encode_images", self._encode)
        if self.needs_layer:
            self.tower.watch(self.tower.layer_of(self.feature_layer({})), attachments)

    def _prepare(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.pruning.attached:
            return original(*args, **kwargs)
        arguments = named_arguments(original, args, kwargs)
        images = arguments.get("images")
        if images is None:
            if arguments.get("past_key_values") is None:  # not a decoding step
                self.pruning.last = Record()
            return original(*args, **kwargs)
        if "video" in (arguments.get("modalities") or ()):
            raise ValueError(
                "modalities holds 'video', whose frames the code base pools as whole grids: give frames as images, or use the "
                "Hugging Face class"
            )
        # An image of one crop is encoded and put into the prompt as it comes. The pixels wait in _CALL until the code base,
        # which alone knows whether this call is a prefill, asks for them.
        call, stand_in = _Call(self, arguments), torch.empty(len(images), 3, 1, 1)
        with holding(_CALL, call):
            result = original(**arguments | {"images": stand_in})
        if not call.encoded and arguments["input_ids"].shape[1] > 1:
            name = type(self.pruning.model).__name__
            raise RuntimeError(
                f"{name}.prepare_inputs_labels_for_multimodal did not ask encode_images for the images, as the original LLaVA "
                f"code base does: this version of it is not supported"
            )
        return result

    def _encode(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get()
        if self.pruning.attached and call is not None and call.visual is self:
            args, kwargs, call.encoded = (_stacked(call.arguments["images"]),), {}, True
        return super()._encode(original, *args, **kwargs)

    def finish(self, encoding: Encoding, result: Any) -> list[Tensor] | Tensor:
        """Tokens [after, D] of every image; stacked where they are equally many, as the code base has it."""
        tokens = super().finish(encoding, list(result))
        return torch.stack(tokens) if len({len(x) for x in tokens}) == 1 else tokens


def _twin(original: Any, **attributes: Any) -> Any:
    """A shallow copy, with other values for some attributes."""
    twin = object.__new__(type(original))
    vars(twin).update(vars(original) | attributes)
    return twin


def _are_single(images: Any) -> TypeGuard[Tensor]:
    """Whether images come without a dimension of crops: [images, 3, H, W]."""
    return isinstance(images, Tensor) and images.dim() == 4


def _stacked(images: Tensor | Sequence[Tensor]) -> Tensor:
    """All crops of all images, [crops, 3, H, W]."""
    if _are_single(images):
        return images
    return torch.cat([image.unsqueeze(0) if image.dim() == 3 else image for image in images])


def _vision_model(wrapper: Any) -> nn.Module:
    """The Hugging Face model inside the code base's tower."""
    name = type(wrapper).__name__
    if getattr(wrapper, "vision_tower", None) is None:
        raise TypeError(
            f"vt.prune: {name} has no vision model inside: call model.get_vision_tower().load_model() first; a tower of "
            f"another kind is not supported"
        )
    if hasattr(wrapper, "s2_scales"):
        raise TypeError(f"vt.prune: unsupported vision tower {name}, which looks at an image in several sizes")
    tower: nn.Module = wrapper.vision_tower
    return tower


def _special_ids(model: nn.Module) -> set[int]:
    """Ids of the padding, start and end tokens, as the model's configs name them."""
    found: set[int] = set()
    for source in (model.generation_config, model.config):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(source, name, None)
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return found
