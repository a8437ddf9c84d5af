"""Typed configuration of training: optimizer, loop, stages and the recipe that strings them together."""

from __future__ import annotations

from dataclasses import dataclass, field

from aqaa_jax.config import ShardingConfig, SystemConfig

PRETRAINING = ("corpus", "linguistic", "semantic", "tokenize", "flow", "hift", "pretrain")
POST_TRAINING = ("sft1", "select", "sft2", "pairs", "dpo", "merge")  # AQAA paper, section 3: merge is 5:5:1
STAGES = (*PRETRAINING, *POST_TRAINING, "package")


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
    frozen: tuple[str, ...] = ()  # patterns (``blocks.*``) of names of weights that stay as they are


@dataclass(frozen=True)
class GuardConfig:
    """Which steps are skipped, and when the run goes back to a checkpoint and on behind the steps that were skipped.

    A step whose loss or gradient is not finite is always skipped.
    """

    spike: float = 0.0  # mean deviations above its running level at which loss or gradient norm is a spike; 0: never
    memory: int = 200  # steps that the running level looks back over
    warmup: int = 100  # finite steps before spikes are looked for
    patience: int = 10  # skipped steps in a row before the run goes back; 0: it never does
    rollbacks: int = 3  # with fewer than ``save_every`` good steps between them; at the next one the run ends


@dataclass(frozen=True)
class LoopConfig:
    """What the training loop needs to know of time: steps, saving, logging."""

    steps: int = 1000
    seed: int = 0
    ema_decay: float = 0.0  # 0: off
    log_every: int = 20
    save_every: int = 200
    keep: int = 2  # newest checkpoints of those at multiples of save_every
    keep_every: int = 0  # checkpoints at multiples of this stay for good; 0: none
    evaluate_every: int = 0  # steps between evaluations on held-out data; 0: at the end only
    keep_best: str = ""  # figure of the evaluation whose least (with a minus sign before it: greatest) value is kept
    sample_every: int = 0  # steps between samples of what the model makes, where a stage has them; 0: none
    profile: tuple[int, int] = (0, 0)  # first step and the one after the last that the profiler records
    tensorboard: bool = False  # event files beside metrics.jsonl (extra: tensorboard)
    ahead: int = 2  # batches made in a thread while steps run; 0: between the steps
    guard: GuardConfig = field(default_factory=GuardConfig)
    microbatches: int = 1  # parts of a batch that go through one after another; the step is that of the whole
    by_rows: bool = False  # devices work on their own rows, gradients are added up once a step (sharding/manual.py)
    rings: bool = False  # with by_rows: gradients of large weights are added up round rings of devices (nn/ring.py)
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
    dataset: str = ""  # language-model stages: a packed dataset (``aqaa pack``) in place of the recipe's corpus
    held_out: str = ""  # language-model stages: a packed dataset to evaluate on; empty: none
    held_out_steps: int = 8  # batches of it
    workers: int = 0  # processes that read the packed dataset; 0: threads of this one
    head_chunk: int = 0  # language-model stages: positions of a row whose logits exist at one time; 0: all


@dataclass(frozen=True)
class CorpusConfig:
    """How much speech is rendered."""

    seed: int = 0
    codec_utterances: int = 6000  # many voices, for the tokenizers
    voice_utterances: int = 1500  # general text in the answer voice, for tokenizers and vocoder
    questions: int = 16000  # spoken training questions, for the decoder
    changing: int = 0  # more of them that ask for the answer twice, in two ways of speaking
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
    emphasis: tuple[str, ...] = ()  # question families or styles seen once more for every time they are named
    code_noise: float = 0.0  # probability that an input audio code is replaced by a random one
    streams: tuple[str, ...] = ("linguistic", "semantic")  # codebooks whose ids examples hold; one alone: an ablation


@dataclass(frozen=True)
class PreferenceConfig:
    """The loss of the dpo stage (``losses/dpo.py``), and the kinds of answer ids that carry it (``data/pairs.py``)."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    kind: str = "sigmoid"  # or "ipo"
    length_normalised: bool = False  # the mean over the counted ids of an answer in place of the sum
    held_out: int = 0  # of the last pairs: not trained on
    counted: tuple[str, ...] = ("text", "end")  # with "audio" and "markers" too: plain DPO


@dataclass(frozen=True)
class SelectConfig:
    """Which spoken answers sft2 learns from (``recipe/select.py``)."""

    listen: bool = True  # those that the judge understands; else all


@dataclass(frozen=True)
class PairsConfig:
    """How preference pairs are made from the sft1 model's own answers (``recipe/pairs.py``)."""

    seed: int = 0
    questions: int = 2000  # of the tokenized training questions, the first ones
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0, 1.3)  # one answer each; 0 is the greedy one
    top_p: float = 1.0
    listen: bool = True  # speak every answer and have it judged; else the text alone decides
    own_answers: bool = False  # leave out questions that no sample answers; else the corpus's answer is chosen there
    batch: int = 50  # questions at a time, and in a file


@dataclass(frozen=True)
class MergeConfig:
    """Weights of the mean; every stage with a positive one must have run (AQAA paper, Eq. 3)."""

    sft1: float = 5.0
    sft2: float = 5.0
    dpo: float = 1.0


@dataclass(frozen=True)
class RecipeConfig:
    """From nothing to a shipped model."""

    name: str = "pocket"  # of the run folder
    config: str = "configs/pocket.py"  # where these values come from, for the model card
    start: str = ""  # a model folder: its tokenizers, vocoder and text pieces are kept, its decoder goes into sft1
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
    sft1: StageConfig = field(default_factory=StageConfig)
    sft1_mix: MixConfig = field(default_factory=MixConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    sft2: StageConfig = field(default_factory=StageConfig)
    sft2_mix: MixConfig = field(default_factory=MixConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    dpo: StageConfig = field(default_factory=StageConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    stages: tuple[str, ...] = (*PRETRAINING, "sft1", "package")
    only: tuple[str, ...] = ()  # of these stages, the ones that a command runs; empty: all
