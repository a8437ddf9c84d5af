"""Typed configuration values: frozen dataclasses, built from plain dicts at the door.

``configs/*.py`` hold values as ``ml_collections.ConfigDict``; ``cli/`` turns them into these types with
``from_dict``, which refuses an unknown key by name. Each part of the system receives only its own part.
Defaults are the published sizes (Step-Audio-Chat / -Tokenizer / CosyVoice-300M-25Hz).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aqaa_jax.values import from_dict as from_dict
from aqaa_jax.values import to_dict as to_dict


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has; -1 on one axis within a slice, or between slices: all that are left.

    The first five are within a slice, where links are fast; ``dcn_data`` and ``dcn_fsdp`` are numbers of slices,
    which prolong the axes ``data`` and ``fsdp`` across the data-centre network.
    """

    data: int = 1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    dcn_data: int = 1
    dcn_fsdp: int = 1


@dataclass(frozen=True)
class ShardingConfig:
    """Devices, and what is split over which of them."""

    mesh: MeshConfig = field(default_factory=MeshConfig)
    strategy: str = "data"  # a table of ``sharding/rules.py``
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # logical axis -> mesh axes, in place of its own


@dataclass(frozen=True)
class LinguisticConfig:
    """Paraformer-large online encoder (SANM, chunked) + k-means codebook."""

    sample_rate: int = 16000
    num_mels: int = 80
    lfr_stack: int = 7  # frames stacked into one (m)
    lfr_hop: int = 6  # frames between stacks (n)
    dither: float = 0.0  # upstream default is 1.0 (random); 0 is deterministic
    embed: int = 512
    heads: int = 4
    mlp: int = 2048
    layers: int = 50  # the first block changes the width from num_mels * lfr_stack to embed
    fsmn_kernel: int = 11
    chunk: int = 4  # new frames per chunk
    overlap: int = 5  # frames of the previous chunk recomputed in front of it
    look_back: int = 4  # chunks kept in the key/value cache
    norm_eps: float = 1e-12
    codes: int = 1024

    @property
    def features(self) -> int:
        return self.num_mels * self.lfr_stack


@dataclass(frozen=True)
class SemanticConfig:
    """CosyVoice-1 S3 tokenizer, 25 Hz: Whisper-style encoder + vector quantiser."""

    sample_rate: int = 16000
    num_mels: int = 128
    embed: int = 1280
    heads: int = 20
    mlp: int = 5120
    layers: int = 6
    max_positions: int = 1500
    norm_eps: float = 1e-5
    codes: int = 4096


@dataclass(frozen=True)
class TokenizerConfig:
    """The dual tokenizer: both encoders on one waveform."""

    linguistic: LinguisticConfig = field(default_factory=LinguisticConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    energy_norm: bool = True
    trim: bool = False  # silence trim: published default for text-to-speech prompts, off for questions


@dataclass(frozen=True)
class VocabConfig:
    """Id layout of the decoder: text and control ids, then linguistic, then semantic audio ids."""

    size: int = 74752
    audio_start: int = 65536
    linguistic: int = 1024
    semantic: int = 4096


@dataclass(frozen=True)
class WeaveConfig:
    """Output pattern of an answer: blocks of text:linguistic:semantic tokens."""

    pattern: str = "interleave"  # interleave | audio_only | text_cot
    text: int = 10
    linguistic: int = 6
    semantic: int = 9
    joining: str = "marker_preserving"  # of segments that are spoken differently | marker_removal | pre_interleaved


@dataclass(frozen=True)
class ExpertsConfig:
    """Mixture-of-experts MLPs in place of the dense one (``nn/moe.py``); the widths are feed-forward widths."""

    experts: int = 64
    top_k: int = 4  # experts that a token goes to
    mlp: int = 2048  # of one expert
    shared_mlp: int = 0  # of the expert that every token goes to besides; 0: none
    score: str = "softmax"  # of the router's logits, or "sigmoid"
    normalise: bool = True  # the weights of a token's experts add up to 1
    balance_weight: float = 0.01  # of the load-balance loss
    router_z_weight: float = 0.001  # of the router z-loss
    bias_rate: float = 0.0  # step of the bias that balances without a loss; 0: no bias


@dataclass(frozen=True)
class DecoderConfig:
    """Step1: RMSNorm, SwiGLU (or experts), grouped-query attention, sqrt-ALiBi, untied head."""

    vocab: int = 74752
    embed: int = 12288
    mlp: int = 31232  # of the dense layer; without meaning where there are experts
    heads: int = 96
    kv_heads: int = 8
    head_dim: int = 128
    layers: int = 88
    max_length: int = 32768
    norm_eps: float = 1e-5
    alibi_slopes: tuple[float, ...] = ()  # one per head; empty: the published series (vLLM's step1 has this override)
    attention: str = "auto"  # | reference | blocked | flash (nn/attention.py)
    dtype: str = "bfloat16"  # of activations
    param_dtype: str = "bfloat16"
    remat: str = "none"  # what the backward pass finds saved: a policy of nn/remat.py
    unroll: int = 1  # layers in one turn of the scan
    experts: ExpertsConfig | None = None
    scan: bool = True  # False: layers one by one; a few large programs, a fifth faster to train on a CPU


@dataclass(frozen=True)
class MelConfig:
    """The vocoder's log-mel: 22.05 kHz, 80 Slaney bins."""

    sample_rate: int = 22050
    n_fft: int = 1024
    hop: int = 256
    win: int = 1024
    num_mels: int = 80
    fmin: float = 0.0
    fmax: float = 8000.0


@dataclass(frozen=True)
class FlowEncoderConfig:
    """Conformer encoder over audio-token embeddings (relative attention, no convolution module)."""

    embed: int = 512
    heads: int = 8
    mlp: int = 2048
    layers: int = 6


@dataclass(frozen=True)
class EstimatorConfig:
    """U-Net velocity estimator: ResNet-1D + transformer blocks."""

    channels: tuple[int, ...] = (256, 256)
    heads: int = 8
    head_dim: int = 64
    blocks: int = 4  # transformer blocks per stage
    mid_blocks: int = 12
    mlp_ratio: int = 4


@dataclass(frozen=True)
class FlowConfig:
    """Audio tokens to mel: embedding, encoder, length regulator, conditional flow matching."""

    vocab: int = 5120
    frame_rate: float = 41.667  # tokens per second of the woven stream
    mel: MelConfig = field(default_factory=MelConfig)
    speaker_dim: int = 192
    encoder: FlowEncoderConfig = field(default_factory=FlowEncoderConfig)
    regulator_layers: int = 4
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    temperature: float = 1.0  # scale of the starting noise
    training_noise: float = 1.0  # its scale in training
    mel_mean: float = 0.0  # the flow works on (mel - mean) / std; the published one on the log-mel itself
    mel_std: float = 1.0
    sigma_min: float = 1e-6
    steps: int = 10
    guidance: float = 0.7
    condition_dropout: float = 0.2
    prompt_probability: float = 0.5
    prompt_fraction: float = 0.3


@dataclass(frozen=True)
class HiftConfig:
    """Mel to waveform: F0 predictor, harmonic source, upsampling network, inverse STFT."""

    sample_rate: int = 22050
    num_mels: int = 80
    channels: int = 512
    f0_channels: int = 512
    f0_layers: int = 5
    harmonics: int = 8
    sine_amplitude: float = 0.1
    noise_sigma: float = 0.003
    voiced_threshold: float = 10.0
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernels: tuple[int, ...] = (16, 16)
    istft_n_fft: int = 16
    istft_hop: int = 4
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_kernels: tuple[int, ...] = (7, 11)
    source_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))
    leaky_slope: float = 0.1
    audio_limit: float = 0.99


@dataclass(frozen=True)
class VocoderConfig:
    """Audio tokens to waveform."""

    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiftConfig = field(default_factory=HiftConfig)


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. ``temperature`` 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0  # 0: off
    repetition_window: int = 0  # 0: off; published TTS value 10
    repetition_threshold: float = 0.1
    max_new_tokens: int = 2048
    hold_pattern: bool = False  # spoken answers can only take the form of ``WeaveConfig`` (inference/pattern.py)


@dataclass(frozen=True)
class SystemConfig:
    """Everything that is needed to answer speech with speech."""

    name: str = "aqaa_130b"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    vocab: VocabConfig = field(default_factory=VocabConfig)
    weave: WeaveConfig = field(default_factory=WeaveConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    system_prompt: str = ""
