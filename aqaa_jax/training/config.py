"""Typed configuration of training: optimizer, loop, stages and the recipe that strings them together."""

from __future__ import annotations

from dataclasses import dataclass, field

from aqaa_jax.config import ShardingConfig, SystemConfig

STAGES = ("corpus", "linguistic", "semantic", "tokenize", "flow", "hift", "pretrain", "sft", "package")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with warm-up, cosine decay to ``final_fraction`` of the peak, and global-norm clipping."""

    kind: str = "adamw"  # or "muon": hidden matrices orthogonalised, everything else AdamW
    peak_lr: float = 1e-3
    final_fraction: float = 0.05
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.98
    muon_beta: float = 0.95  # momentum of the hidden matrices
    eps: float = 1e-8
    weight_decay: float = 0.01  # on matrices only
    clip_norm: float = 1.0
    mu_dtype: str = ""  # of the first moment; empty: that of the weights, as the second moment always


@dataclass(frozen=True)
class LoopConfig:
    """What the training loop needs to know of time: steps, saving, logging."""

    steps: int = 1000
    seed: int = 0
    ema_decay: float = 0.0  # 0: off
    log_every: int = 20
    save_every: int = 200
    keep: int = 2
    microbatches: int = 1  # parts of a batch that go through one after another; the step is that of the whole
    by_rows: bool = False  # devices work on their own rows, gradients are added up once a step (sharding/manual.py)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    xla: tuple[str, ...] = ()  # compiler options on top of the TPU's table: offload, or NAME=VALUE
    executable: str = ""  # a step compiled by `aqaa plan --save`, run in place of one compiled here


@dataclass(frozen=True)
class StageConfig:
    """One stage: its loop, its optimizer, and the size of a batch."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: int = 32  # rows (speech stages) per step
    length: int = 48  # frames per row, in the stage's own frame rate
    tokens: int = 0  # language-model stages: tokens per step instead of rows
    head_chunk: int = 0  # language-model stages: positions of a row whose logits exist at one time; 0: all


@dataclass(frozen=True)
class CorpusConfig:
    """How much speech is rendered."""

    seed: int = 0
    codec_utterances: int = 6000  # many voices, for the tokenizers
    voice_utterances: int = 1500  # general text in the answer voice, for tokenizers and vocoder
    questions: int = 16000  # spoken training questions, for the decoder
    workers: int = 2


@dataclass(frozen=True)
class MixConfig:
    """Shares of the language-model tasks (any positive numbers; normalised)."""

    asr: float = 1.0  # spoken question -> its text
    tts: float = 1.0  # text -> speech of it in the answer voice
    continuation: float = 0.0  # first part of a spoken question -> the rest
    tqtaa: float = 1.0  # written question -> woven answer
    tqta: float = 0.0  # written question -> written answer
    aqta: float = 1.0  # spoken question -> written answer
    aqtaa: float = 4.0  # spoken question -> woven answer
    transcript_first: float = 0.0  # spoken question -> its text, then the woven answer
    emphasis: tuple[str, ...] = ()  # question families seen once more for every time they are named
    code_noise: float = 0.0  # probability that an input audio code is replaced by a random one


@dataclass(frozen=True)
class RecipeConfig:
    """From nothing to a shipped model."""

    name: str = "pocket"
    start: str = ""  # a model folder: its tokenizers, vocoder and text pieces are kept, its decoder goes into sft
    system: SystemConfig = field(default_factory=SystemConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    text_pieces: int = 400  # of the text tokenizer: few, so that text runs beside the audio it belongs to
    prior_weight: float = 1.0  # of the term that pulls the flow's mu towards the mel (0 is the published loss)
    linguistic: StageConfig = field(default_factory=StageConfig)
    semantic: StageConfig = field(default_factory=StageConfig)
    flow: StageConfig = field(default_factory=StageConfig)
    hift: StageConfig = field(default_factory=StageConfig)
    pretrain: StageConfig = field(default_factory=StageConfig)
    pretrain_mix: MixConfig = field(default_factory=MixConfig)
    sft: StageConfig = field(default_factory=StageConfig)
    sft_mix: MixConfig = field(default_factory=MixConfig)
    stages: tuple[str, ...] = STAGES
