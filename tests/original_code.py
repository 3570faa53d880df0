"""The original LLaVA code base in small: a stand-in with its members, and its real classes where they are installed."""

import packing
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers import SiglipVisionConfig as SiglipConfig
from transformers import SiglipVisionModel as SiglipModel

PAD, END, START, IMAGE = 0, 1, 2, -200  # token ids; ordinary words are 3 to 95
SIDE, PIXELS = 4, 56
PATCHES = SIDE * SIDE
TILES = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))  # rows, columns
PINPOINTS = [[columns * PIXELS, rows * PIXELS] for rows, columns in TILES]  # the code base's order: width, height


def get_anyres_image_grid_shape(image_size, grid_pinpoints, patch_size):
    """Columns and rows of tiles."""
    rows, columns = packing.tiles_of(image_size[::-1], [[h, w] for w, h in grid_pinpoints], patch_size)
    return columns, rows


class Tower(nn.Module):
    """The code base's shell around a vision model; a SigLIP shell has neither layer nor feature to select."""

    def __init__(self, vision_tower, config):
        super().__init__()
        self.vision_tower = vision_tower
        if vision_tower.config.model_type == "clip_vision_model":
            self.select_layer, self.select_feature = config.mm_vision_select_layer, config.mm_vision_select_feature

    def forward(self, images):
        hidden = self.vision_tower(images, output_hidden_states=True).hidden_states[getattr(self, "select_layer", -1)]
        return hidden[:, 1:] if getattr(self, "select_feature", None) == "patch" else hidden


class Core(LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        self.mm_projector = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, config.hidden_size))
        self.image_newline = nn.Parameter(torch.randn(config.hidden_size))

    def get_vision_tower(self):
        return self.vision_tower


class StandIn(LlamaForCausalLM):
    """One id per image in the prompt, embeddings in its place."""

    def __init__(self, config):
        super().__init__(config)
        self.model = Core(config)
        self.post_init()

    def get_model(self):
        return self.model

    def get_vision_tower(self):
        return self.get_model().get_vision_tower()

    def encode_images(self, images):
        return self.get_model().mm_projector(self.get_model().get_vision_tower()(images))

    def merge(self, crops, size):
        kind = self.config.mm_patch_merge_type
        if kind == "flat":
            return crops.flatten(0, 1)
        base, rest = crops[0], crops[1:]
        newline = self.model.image_newline[None]
        if not len(rest):
            return torch.cat([base, newline]) if "unpad" in kind else base
        columns, rows = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, PIXELS)
        grid = rest.unflatten(0, (rows, columns)).unflatten(2, (SIDE, SIDE))
        if "unpad" not in kind:
            return torch.cat([base, grid.transpose(1, 2).flatten(0, 3)])
        grid = grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        height, width = grid.shape[:2]
        if size[0] / size[1] > width / height:
            edge = (height - int(size[1] * (width / size[0]))) // 2
            grid = grid[edge : height - edge]
        else:
            edge = (width - int(size[0] * (height / size[1]))) // 2
            grid = grid[:, edge : width - edge]
        return torch.cat([base, *(torch.cat([row, newline]) for row in grid)])

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None
    ):
        if images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        if type(images) is list or images.ndim == 5:
            crops = [x[None] if x.ndim == 3 else x for x in images]
            encoded = torch.split(self.encode_images(torch.cat(crops)), [len(x) for x in crops])
            features = [self.merge(x, image_sizes[i] if image_sizes else None) for i, x in enumerate(encoded)]
        else:
            features = self.encode_images(images)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        wanted = torch.full_like(input_ids, -100) if labels is None else labels
        rows, targets, image = [], [], 0
        for ids, seen, label in zip(input_ids, mask.bool(), wanted, strict=True):
            parts, target = [], []
            for token, own in zip(ids[seen].tolist(), label[seen].tolist(), strict=True):
                if token == IMAGE:
                    parts.append(features[image])
                    target += [-100] * len(features[image])
                    image += 1
                else:
                    parts.append(self.get_model().embed_tokens(torch.tensor([token])))
                    target.append(own)
            image += IMAGE not in ids[seen].tolist()
            limit = getattr(self.config, "tokenizer_model_max_length", None)
            rows.append(torch.cat(parts)[:limit])
            targets.append(torch.tensor(target)[:limit])
        width = max(map(len, rows))
        left = getattr(self.config, "tokenizer_padding_side", "right") == "left"

        def pad(x, value):
            more = width - len(x)
            return nn.functional.pad(x, [0, 0] * (x.dim() - 1) + ([more, 0] if left else [0, more]), value=value)

        embeds = torch.stack([pad(row, 0.0) for row in rows])
        new_mask = torch.stack([pad(torch.ones(len(row), dtype=mask.dtype), 0) for row in rows])
        new_labels = None if labels is None else torch.stack([pad(target, -100) for target in targets])
        return None, None, None if attention_mask is None else new_mask, past_key_values, embeds, new_labels

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        images=None,
        image_sizes=None,
        **kwargs,
    ):
        past_key_values = kwargs.pop("cache", past_key_values)  # its name from transformers 5.24 on
        if inputs_embeds is None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes
                )
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **kwargs,
        )

    def generate(self, inputs=None, images=None, image_sizes=None, **kwargs):
        mask = kwargs.pop("attention_mask", None)
        if images is None:
            embeds = self.get_model().embed_tokens(inputs)
        else:
            _, _, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
                inputs, None, mask, None, None, images, image_sizes=image_sizes
            )
        return super().generate(attention_mask=mask, inputs_embeds=embeds, **kwargs)


def vision_model(tower):
    kind, config = {"clip": (CLIPVisionModel, CLIPVisionConfig), "siglip": (SiglipModel, SiglipConfig)}[tower]
    config = config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=PIXELS, patch_size=14
    )
    return sharpened(kind(config).eval())


def sharpened(model):
    """The initial weights are so small that attention is flat and every logit is the same."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "embed" not in name:
            weight.mul_(5)
        if "embed_tokens" in name or "position_embedding" in name:
            weight.mul_(20)
    return model


def options(folder, side="right", **more):
    return {
        "vocab_size": 96,
        "hidden_size": 24,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": START,
        "eos_token_id": END,
        "mm_vision_tower": folder,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": PINPOINTS,
        "tokenizer_padding_side": side,
        **more,
    }


def stand_in(side="right", tower="clip", **more):
    torch.manual_seed(1)
    config = LlamaConfig(**options("", side, **more))
    model = StandIn(config)
    sharpened(model)
    model.model.vision_tower = Tower(vision_model(tower), config)
    return ready(model)


def real(folder, side="right", **more):
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    torch.manual_seed(1)
    model = LlavaLlamaForCausalLM(LlavaConfig(**options(folder, side, **more)))
    sharpened(model)
    if hasattr(model.model, "image_newline"):
        model.model.image_newline.normal_()
    model.get_vision_tower().load_model()
    return ready(model)


def ready(model):
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model(torch.tensor([[START, IMAGE, 5]]), images=torch.zeros(1, 3, PIXELS, PIXELS))  # traces of transformers' own first use
    return model
