"""``aqaa export CHECKPOINT FOLDER``: trained weights as files that PyTorch users load."""

from __future__ import annotations

import argparse
import sys

from aqaa_jax.cli.arguments import add_parts, add_shard_size, shard_bytes

DESCRIPTION = """Write trained weights as files that PyTorch users load as they are.

CHECKPOINT is a model folder (the shipped one: `pocket`):
  FOLDER                        the decoder for transformers and vLLM: config.json, model-*.safetensors,
                                tokenizer files, modeling_step1.py (for trust_remote_code)
  FOLDER/Step-Audio-Tokenizer   linguistic_tokenizer.npy, the Paraformer's model.pt, am.mvn and config.yaml,
                                speech_tokenizer_v1.onnx
  FOLDER/CosyVoice-300M-25Hz    flow.pt, hift.pt, cosyvoice.yaml; campplus.onnx if it was imported
or the checkpoints of a training stage (runs/NAME/STAGE): FOLDER gets model.safetensors in this project's own names, and
checkpoint.json that names the step.
Torch is not needed. The same command again goes on after an interruption.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="model folder, `pocket`, or runs/NAME/STAGE; only read")
    p.add_argument("folder", metavar="FOLDER", help="where the files go: a new folder, or one to be completed")
    add_parts(p, "of linguistic, semantic, decoder, flow, hift (all there)")
    p.add_argument(
        "--dtype",
        default="",
        metavar="NAME",
        help="bfloat16 (default of the decoder; the rest is float32), float16, float32",
    )
    add_shard_size(p)
    p.add_argument("--step", type=int, metavar="N", help="of a training stage (default: the newest)")
    p.add_argument(
        "--dry-run", action="store_true", help="check names and shapes in the headers, tell sizes; write nothing"
    )
    p.add_argument("--verify", action="store_true", help="read everything written again and compare it with the source")
    return p


def run(argv: list[str]) -> int:
    """Export what is there; the plan goes to stdout, progress to stderr."""
    args = parser().parse_args(argv)
    max_bytes = shard_bytes(args.shard_gb)
    from aqaa_jax.convert import export, export_checkpoint
    from aqaa_jax.convert.progress import peak_memory
    from aqaa_jax.inference.system import SHIPPED, shipped_folder

    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    source = shipped_folder() if args.checkpoint == SHIPPED else args.checkpoint
    if export_checkpoint.is_checkpoint(source):
        if args.parts:
            raise ValueError(f"--parts: {source} is the checkpoint of one part; expected no such option")
        export_checkpoint.run(
            source, args.folder, step=args.step, dtype=args.dtype, dry_run=args.dry_run, check=args.verify, say=say
        )
    else:
        planned = export.plan(source, args.parts, args.dtype or "bfloat16")
        print(export.report(planned, args.folder))
        if not args.dry_run:
            export.write(planned, args.folder, max_bytes=max_bytes, say=say)
            if args.verify:
                print(f"verified {export.verify(planned, args.folder, say=say)} tensors in {args.folder}")
    say(f"peak resident memory {peak_memory() / 1e9:.2f} GB")
    return 0
