"""Logical axis names, spelled once.

A weight declares these words beside its shape; a rules table (``rules.py``) maps them to mesh axes.
Model code never names a mesh axis.
"""

# Weights.
EMBED = "embed"  # model width
HEADS = "heads"  # query heads
KV_HEADS = "kv_heads"  # key/value heads
HEAD_DIM = "head_dim"  # size of one head
MLP = "mlp"  # feed-forward width
EXPERTS = "experts"  # the leading axis of the weights of a layer's experts
EXPERT_EMBED = "expert_embed"  # their model width
VOCAB = "vocab"  # decoder vocabulary (or a token embedding table)
LAYERS = "layers"  # the leading axis of a scanned stack
CHANNELS_IN = "channels_in"  # convolution input channels
CHANNELS = "channels"  # convolution output channels
KERNEL = "kernel"  # taps of a convolution: never sharded
FEATURES = "features"  # acoustic input or output features (mel bins, stacked frames)
CODEBOOK = "codebook"  # entries of a quantiser
NORM = "norm"  # scales and biases of norms, and other small vectors: never sharded

# Activations.
BATCH = "batch"
ATTENDING = "attending"  # rows inside attention and in its cache: those of the batch, except to answer on a 2D mesh
LENGTH = "length"  # positions inside attention and feed-forward layers, at the input and at the logits
ACT_LENGTH = "act_length"  # positions of the residual stream between layers, where no layer mixes them
FRAMES = "frames"
ACT_EMBED = "act_embed"
ACT_HEADS = "act_heads"
ACT_KV_HEADS = "act_kv_heads"
ACT_MLP = "act_mlp"
ACT_EXPERTS = "act_experts"  # experts that tokens were sent to
ACT_VOCAB = "act_vocab"

WEIGHT_AXES = frozenset(
    {
        EMBED,
        HEADS,
        KV_HEADS,
        HEAD_DIM,
        MLP,
        EXPERTS,
        EXPERT_EMBED,
        VOCAB,
        LAYERS,
        CHANNELS_IN,
        CHANNELS,
        KERNEL,
        FEATURES,
        CODEBOOK,
        NORM,
    }
)
ACTIVATION_AXES = frozenset(
    {
        BATCH,
        ATTENDING,
        LENGTH,
        ACT_LENGTH,
        FRAMES,
        ACT_EMBED,
        ACT_HEADS,
        ACT_KV_HEADS,
        ACT_MLP,
        ACT_EXPERTS,
        ACT_VOCAB,
        HEAD_DIM,
    }
)
ALL_AXES = WEIGHT_AXES | ACTIVATION_AXES
