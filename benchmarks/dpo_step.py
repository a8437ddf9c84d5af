"""What a DPO step costs beside an SFT step over the same rows: the stages' own train steps, taken in turn.

    python benchmarks/dpo_step.py [--embed 256 --layers 4 --rows 8] [--json out/dpo_step.json]

Rows hold the two answers of a pair, as the dpo stage lays them out. `sft` counts every answer id; `dpo text` is the
paper's masked loss with stored reference log-probabilities, `dpo all` counts every id, `dpo live` is `dpo all` with
the reference model run in the step, which is what stored log-probabilities save. CPU seconds count too: on a machine
that others use they are the steadier figure.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx

from aqaa_jax.atomic import write_json
from aqaa_jax.config import DecoderConfig, VocabConfig, WeaveConfig
from aqaa_jax.data.pairs import KINDS, Pair, pair_batch
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.tokens.interleave import weave_answer
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training.config import OptimizerConfig, PreferenceConfig
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.stages.language import answer_terms, target_scores
from aqaa_jax.training.stages.preference import PreferenceStage, preference_terms
from aqaa_jax.training.state import init_state
from aqaa_jax.training.step import make_train_step

TEXT_IDS = 1024


def make_pair(rng: np.random.Generator, vocab: Vocab, prompt: int, text: int, groups: int) -> Pair:
    def answer() -> np.ndarray:
        codes = np.concatenate(
            [
                vocab.linguistic_ids(rng.integers(0, vocab.linguistic, (groups, 2))),
                vocab.semantic_ids(rng.integers(0, vocab.semantic, (groups, 3))),
            ],
            axis=1,
        )
        return weave_answer(rng.integers(324, TEXT_IDS, text), codes.ravel(), WeaveConfig())

    return Pair(rng.integers(TEXT_IDS, vocab.audio_end, prompt).astype(np.int32), answer(), answer())


@dataclass(frozen=True)
class Live:
    """The reference model inside the step."""

    reference: Decoder
    config: PreferenceConfig

    def loss(self, model, batch, key):
        reference_BK = jax.lax.stop_gradient(target_scores(self.reference, batch)[0])
        return preference_terms(target_scores(model, batch)[0], {**batch, "reference": reference_BK}, self.config)


def sft_loss(vocab: VocabConfig):
    def loss(model, batch, key):
        log_probs_BK, right_BK, _ = target_scores(model, batch)
        return answer_terms(log_probs_BK, right_BK, batch["targets"], batch["loss_mask"], vocab)

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value, what in (
        ("embed", 256, "width"),
        ("layers", 4, "layers"),
        ("rows", 8, "pairs in a step"),
        ("prompt", 96, "ids of a prompt"),
        ("text", 8, "text ids of an answer"),
        ("groups", 14, "groups of five audio ids of an answer"),
        ("steps", 12, "timed steps of each kind"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{what} (default {value})")
    parser.add_argument("--json", help="also write the figures there")
    args = parser.parse_args()
    vocab_config = VocabConfig(size=TEXT_IDS + 5120, audio_start=TEXT_IDS)
    vocab, heads = Vocab(vocab_config), max(2, args.embed // 32)
    decoder = DecoderConfig(
        vocab=vocab_config.size,
        embed=args.embed,
        mlp=3 * args.embed,
        heads=heads,
        kv_heads=heads // 2,
        head_dim=32,
        layers=args.layers,
        scan=False,
        dtype="float32",
        param_dtype="float32",
    )
    rng = np.random.default_rng(0)
    pairs = [make_pair(rng, vocab, args.prompt, args.text, args.groups) for _ in range(args.rows)]
    references = [np.full(len(p.chosen) + len(p.rejected), -2.0, np.float32) for p in pairs]
    length = -(-max(p.length for p in pairs) // 32) * 32

    def batch(kinds):
        return pair_batch([[row] for row in zip(pairs, references, strict=True)], length, vocab, kinds)

    def no_data(step):
        raise NotImplementedError(f"the loss alone is timed; no batch of step {step}")

    model, every = Decoder(decoder, rngs=nnx.Rngs(0)), tuple(KINDS)
    masked, plain = (PreferenceConfig(counted=kinds) for kinds in (("text", "end"), every))
    kinds = {
        "sft": (sft_loss(vocab_config), {"answer": 1.0}, batch(every)),
        **{
            name: (
                PreferenceStage("dpo", decoder, config, no_data).loss,
                {"preference": 1.0},
                batch(config.counted),
            )
            for name, config in (("dpo text", masked), ("dpo all", plain))
        },
        "dpo live": (Live(model, plain).loss, {"preference": 1.0}, batch(every)),
    }
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-5), 1000)
    steps, states = {}, {}
    for name, (loss, weights, data) in kinds.items():
        steps[name] = make_train_step(loss, weights, optimizer)
        state = init_state(jax.tree.map(jax.numpy.copy, model), optimizer, ema=False)
        states[name] = jax.block_until_ready(steps[name](state, data, jax.random.key(0)))[0]
    clocks = {"wall": time.perf_counter, "CPU": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in kinds}
    for _ in range(args.steps):  # in turn, so that all kinds see the same machine
        for name, (_, _, data) in kinds.items():
            began = {clock: read() for clock, read in clocks.items()}
            states[name] = jax.block_until_ready(steps[name](states[name], data, jax.random.key(0)))[0]
            for clock, read in clocks.items():
                seconds[name][clock].append(read() - began[clock])
    median = {name: {clock: float(np.median(t)) for clock, t in times.items()} for name, times in seconds.items()}
    print(f"{args.rows} rows of {length} ids; decoder {args.embed} wide, {args.layers} layers; {jax.devices()[0]}")
    for name, times in median.items():
        shown = (f"{clock} {s * 1e3:8.1f} ms, {s / median['sft'][clock]:.2f} of sft" for clock, s in times.items())
        print(f"{name:10}" + "    ".join(shown))
    if args.json:
        write_json(args.json, {"rows": args.rows, "length": length, "seconds": median})


if __name__ == "__main__":
    main()
