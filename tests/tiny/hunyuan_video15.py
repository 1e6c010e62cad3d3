"""HunyuanVideo 1.5. Its pipelines take the guidance scale from their guider, not when they are called."""

from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from transformers import ByT5Tokenizer, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

from tests.tiny.parts import Tiny, tokenizer, without_zeros

CHAT = """\
{{ '. ' * 8 }}{# with the system's message these are 108 tokens before the prompt, as of the real one #}
{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def vae() -> AutoencoderKLHunyuanVideo15:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
        scaling_factor=0.7,
    )


def transformer() -> HunyuanVideo15Transformer3DModel:
    return without_zeros(
        HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=1,
            attention_head_dim=16,
            num_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=16,
            text_embed_2_dim=8,
            image_embed_dim=8,
            rope_axes_dim=(4, 4, 8),
            target_size=64,
            task_type="t2v",
        )
    )


def qwen() -> Qwen2_5_VLTextModel:
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextModel.config_class(
            vocab_size=len(tokenizer()),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,  # the embeddings are those before the last two
            num_attention_heads=1,
            num_key_value_heads=1,
            rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3]},
            pad_token_id=0,
        )
    )


def byt5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(ByT5Tokenizer()), d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    )


def pipeline():
    reader = tokenizer()
    reader.chat_template = CHAT
    return HunyuanVideo15Pipeline(
        text_encoder=qwen(),
        tokenizer=reader,
        text_encoder_2=byt5(),
        tokenizer_2=ByT5Tokenizer(),
        vae=vae(),
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


class PipelineWithGuider:
    """Sets the guider of the pipeline that is called next: `pack` is shown the pipeline, and `call` the scale."""

    def pack(self, pipeline, latents):
        self.guider = pipeline.guider
        return latents

    def call(self, guidance):
        self.guider.guidance_scale = guidance
        return {}


pipeline_with_guider = PipelineWithGuider()
SIZE = (5, 32, 48)
TINY = {
    "hunyuan-video-1.5": Tiny(pipeline, SIZE, ((5, 40, 48), 32), pipeline_with_guider.call, pipeline_with_guider.pack)
}
