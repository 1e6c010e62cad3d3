"""Attention of networks whose processors in diffusers bypass its dispatcher: the same, through the dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn


def replace_processors(network: nn.Module, before: type, after: Any) -> None:
    """Replace a network's attention processors of a class by another one."""
    for module in network.modules():
        if type(getattr(module, "processor", None)) is before:
            module.processor = after


def by_heads(tokens: Tensor, heads: int, *layers: nn.Module) -> Iterator[Tensor]:
    """Projections of tokens by some layers, each `b tokens heads channels`."""
    return (layer(tokens).unflatten(-1, (heads, -1)) for layer in layers)


class CogVideoXProcessor:
    """Joint attention of CogVideoX: text tokens before those of the video, of which alone the positions are rotated."""

    _attention_backend = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden_states: `b tokens c` of the video.
            encoder_hidden_states: `b tokens c` of the text.

        Returns:
            Those of the video, and those of the text.
        """
        text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], 1)
        query, key, value = by_heads(tokens, attn.heads, attn.to_q, attn.to_k, attn.to_v)
        query, key = (norm(x) if norm else x for norm, x in ((attn.norm_q, query), (attn.norm_k, key)))
        if image_rotary_emb is not None:
            query, key = (self._rotate(x, text, image_rotary_emb) for x in (query, key))
        out = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        out = attn.to_out[1](attn.to_out[0](out.flatten(2)))
        return out[:, text:], out[:, :text]

    @staticmethod
    def _rotate(x: Tensor, text: int, rotary: Any) -> Tensor:
        rotated: Any = apply_rotary_emb(x[:, text:], rotary, sequence_dim=1)
        return torch.cat([x[:, :text], rotated], 1)


class MochiProcessor:
    """Joint attention of Mochi: video tokens before those of the text, without the text's padding."""

    _attention_backend = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden_states: `b tokens c` of the video.
            encoder_hidden_states: `b tokens c` of the text.
            attention_mask: `b tokens`, whether a token of the text is not padding.

        Returns:
            Those of the video, and those of the text.
        """
        video, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        query, key, value = by_heads(hidden_states, attn.heads, attn.to_q, attn.to_k, attn.to_v)
        text_query, text_key, text_value = by_heads(
            encoder_hidden_states, attn.heads, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        text_query, text_key = attn.norm_added_q(text_query), attn.norm_added_k(text_key)
        if image_rotary_emb is not None:
            query, key = (self._rotate(x, *image_rotary_emb) for x in (query, key))
        clips = []
        for row, mask in enumerate(attention_mask.bool()):
            q, k, v = (
                torch.cat([x[row], y[row, mask]])[None]
                for x, y in ((query, text_query), (key, text_key), (value, text_value))
            )
            out = dispatch_attention_fn(q, k, v, backend=self._attention_backend)
            clips.append(F.pad(out, (0, 0, 0, 0, 0, video + text - out.shape[1])))
        of_video, of_text = torch.cat(clips).flatten(2).split([video, text], 1)
        of_video = attn.to_out[1](attn.to_out[0](of_video))
        return of_video, attn.to_add_out(of_text) if hasattr(attn, "to_add_out") else of_text

    @staticmethod
    def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate pairs of neighbouring channels, in float32."""
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        pairs = (even * cos - odd * sin).to(x.dtype), (even * sin + odd * cos).to(x.dtype)
        return torch.stack(pairs, -1).flatten(-2)
