"""mPLUG-Owl3 in PyTorch, as the reference of the parity ladder.

SigLIP and Qwen2 are transformers' own. Hyper attention is written here from the formulas, plainly: one sample at a
time, whole score matrices, no cache. Submodules carry the official names, so `state_dict()` is an official checkpoint.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from owl3_jax.config import ModelConfig


class TorchOutputs(NamedTuple):
    logits: Tensor  # [T, V]
    image_embeds: Tensor  # [I, L, E]
    hidden_states: Tensor  # [N + 1, T, E]: embedding, then each layer's, the last one normed


class TorchOwl3(nn.Module):
    """The whole model with random weights that keep activations near 1."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = config
        self.vision_model = SiglipVisionModel(siglip_config(config))
        self.language_model = Qwen2ForCausalLM(qwen2_config(config))
        self.vision2text_model = _projector(config)
        for layer in config.hyper_layer_indices:
            _add_hyper_attention(self.language_model.model.layers[layer].self_attn, config)
        _randomize(self)
        self.eval()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[I, 3, S, S] -> [I, L, E]"""
        if len(pixels) == 0:  # transformers' SigLIP does not take it
            return torch.zeros(0, self.config.vision.tokens_per_image, self.config.hidden_size, dtype=pixels.dtype)
        states = self.vision_model(pixels, output_hidden_states=True).hidden_states
        return self.vision2text_model(states[-2])

    def forward(self, input_ids: Tensor, pixels: Tensor, starts: Tensor) -> TorchOutputs:
        """input_ids [T], pixels [I, 3, S, S] normalised, starts [I]"""
        return self.decode(input_ids, self.encode_images(pixels), starts)

    def decode(self, input_ids: Tensor, image_embeds: Tensor, starts: Tensor) -> TorchOutputs:
        """As `forward`, from image_embeds [I, L, E]."""
        decoder = self.language_model.model
        x = decoder.embed_tokens(input_ids)
        states = [x]
        for layer in decoder.layers:
            x = self.decoder_layer(layer, x, image_embeds, starts)
            states.append(x)
        states[-1] = decoder.norm(x)
        return TorchOutputs(self.language_model.lm_head(states[-1]), image_embeds, torch.stack(states))

    def decoder_layer(self, layer: nn.Module, x: Tensor, image_embeds: Tensor, starts: Tensor) -> Tensor:
        """One decoder layer, [T, E] -> [T, E]: transformers' own where it has no hyper attention."""
        if not hasattr(layer.self_attn, "v_kv_proj"):
            mask = torch.full((len(x), len(x)), -torch.inf, dtype=x.dtype).triu(1)
            return layer(
                x[None], attention_mask=mask[None, None], position_embeddings=self.rotary(torch.arange(len(x)), x)[:2]
            )[0]
        x = x + self.hyper_attention(layer.self_attn, layer.input_layernorm(x), layer.input_layernorm(image_embeds), starts)
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def rotary(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [1, *, D] of positions [*], by transformers' float32 RoPE."""
        return self.language_model.model.rotary_emb(like, positions[None])

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """[*, heads, D] at positions [*]"""
        cos, sin = (part[0][:, None] for part in self.rotary(positions, x))
        return x * cos + rotate_half(x) * sin

    def hyper_attention(self, attn: nn.Module, h: Tensor, images: Tensor, starts: Tensor) -> Tensor:
        """h [T, E] and images [I, L, E], both normed -> [T, E]"""
        config, (T, L, D) = self.config, (len(h), images.shape[1], self.config.head_dim)
        H, K = config.num_attention_heads, config.num_key_value_heads
        positions = torch.arange(T)
        late = 0 if config.form == "joint" else 1
        q = self.rotate(attn.q_proj(h).view(T, H, D), positions)
        k = self.rotate(attn.k_proj(h).view(T, K, D), positions)
        v = attn.v_proj(h).view(T, K, D)
        kv = attn.v_kv_proj(images).view(-1, K, 2, D)  # [I * L, K, (key, value), D]
        image_k = self.rotate(kv[:, :, 0], (starts + late).repeat_interleave(L))
        visible = (positions[:, None] >= starts + late).repeat_interleave(L, dim=1)  # [T, I * L]
        causal = positions[:, None] >= positions
        if config.form == "joint":
            keys, values = torch.cat([image_k, k]), torch.cat([kv[:, :, 1], v])
            return attn.o_proj(_attend(q, keys, values, torch.cat([visible, causal], dim=1)).reshape(T, -1))
        s = _attend(q, k, v, causal)  # [T, H, D]
        c = _attend(q, image_k, kv[:, :, 1], visible)
        gate = torch.sigmoid(attn.gate_proj(s) if config.form == "gated" else attn.gate.view(H, D))
        sees_one = visible.any(dim=1)[:, None, None]
        return attn.o_proj(torch.where(sees_one, (1 - gate) * s + gate * c, s).reshape(T, -1))


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """q [T, H, D], k and v [C, K, D], visible [T, C] -> [T, H, D]; 0 where nothing is visible."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum("thd,chd->htc", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    return torch.einsum("htc,chd->thd", weights, v)


def siglip_config(config: ModelConfig) -> SiglipVisionConfig:
    v = config.vision
    return SiglipVisionConfig(
        hidden_size=v.hidden_size,
        intermediate_size=v.intermediate_size,
        num_hidden_layers=v.num_hidden_layers,
        num_attention_heads=v.num_attention_heads,
        image_size=v.image_size,
        patch_size=v.patch_size,
        layer_norm_eps=v.layer_norm_eps,
        attn_implementation="eager",
    )


def qwen2_config(config: ModelConfig) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        attn_implementation="eager",
    )


def _projector(config: ModelConfig) -> nn.Module:
    width, E = config.vision.hidden_size, config.hidden_size
    if config.form != "joint":
        return nn.Linear(width, E)
    return nn.Sequential(nn.Linear(width, E), nn.GELU(), nn.Linear(E, E))


def _add_hyper_attention(attn: nn.Module, config: ModelConfig) -> None:
    D = config.head_dim
    attn.v_kv_proj = nn.Linear(config.hidden_size, 2 * config.num_key_value_heads * D)
    if config.form == "gated":
        attn.gate_proj = nn.Sequential(nn.Linear(D, D))
    elif config.form == "static":
        attn.gate = nn.Parameter(torch.empty(config.hidden_size))


def _randomize(model: nn.Module) -> None:
    """Every norm, bias and gate away from its neutral value; matrices with variance 1 / fan-in."""
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=fan_in**-0.5)
