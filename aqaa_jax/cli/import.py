"""``aqaa import SOURCE TARGET``: published weights into a model folder."""

from __future__ import annotations

import argparse
import sys

from absl import flags
from ml_collections import config_flags

from aqaa_jax.cli.arguments import add_parts, add_shard_size, shard_bytes
from aqaa_jax.config import SystemConfig, from_dict

DESCRIPTION = """Import published weights into a model folder of this project.

SOURCE is a folder of one published file set, recognised by its files:
  Step-Audio-AQAA, Step-Audio-Chat, Step-Audio-TTS-3B   config.json, model*.safetensors    -> decoder
  Step-Audio-Tokenizer   (…/speech_paraformer…) am.mvn, model.pt, config.yaml,
                         linguistic_tokenizer.npy                                          -> linguistic
                         speech_tokenizer_v1.onnx                                          -> semantic
  CosyVoice-300M-25Hz    cosyvoice.yaml, flow.pt, hift.pt                                  -> flow, hift
                         campplus.onnx, if it is there: copied with flow, for `aqaa ask --voice`
and tokenizer.model where there is one. Import each set into the same TARGET; when all five parts and the text
tokenizer are there, `aqaa ask --model TARGET` answers with them. A .pt file needs torch (extra [torch]) and may hold
tensors only. The same command again goes on after an interruption and keeps what is done.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="aqaa import", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("source", metavar="SOURCE", help="folder of published files; it is only read")
    p.add_argument("target", metavar="TARGET", help="model folder, made if it does not exist")
    p.add_argument(
        "--config",
        metavar="FILE.py",
        help="a config whose sizes the files must have, and which gives what they do not say: answer pattern, prompt, "
        "sampling (default: the published values)",
    )
    add_parts(p, "only these parts of the file set")
    p.add_argument("--dtype", default="", metavar="NAME", help="store float weights as bfloat16, float16 or float32")
    p.add_argument(
        "--dry-run", action="store_true", help="check names, shapes and dtypes in the headers; write nothing"
    )
    p.add_argument("--verify", action="store_true", help="read everything written again and compare hashes")
    p.add_argument("--keep-unexpected", action="store_true", help="keep tensors that are not known aside, do not stop")
    add_shard_size(p)
    p.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="also tell how much of each part a device of such a mesh would hold, for instance of fsdp=8,tensor=4",
    )
    p.add_argument("--strategy", default="fsdp_tensor", metavar="NAME", help="rules for --mesh (default fsdp_tensor)")
    return p


def run(argv: list[str]) -> int:
    """Import what is there; the report goes to stdout, progress to stderr."""
    args = parser().parse_args(argv)
    max_bytes = shard_bytes(args.shard_gb)
    base = load_system_config(args.config) if args.config else SystemConfig()
    from aqaa_jax.convert.importer import Options, import_folder
    from aqaa_jax.convert.progress import peak_memory
    from aqaa_jax.sharding.mesh import parse_mesh

    options = Options(
        dtype=args.dtype,
        parts=args.parts,
        dry_run=args.dry_run,
        verify=args.verify,
        keep_unexpected=args.keep_unexpected,
        shard_bytes=max_bytes,
        mesh=parse_mesh(args.mesh) if args.mesh else None,
        strategy=args.strategy,
    )
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    import_folder(args.source, args.target, base, options, given=bool(args.config), say=say)
    say(f"peak resident memory {peak_memory() / 1e9:.2f} GB")
    return 0


def load_system_config(path: str) -> SystemConfig:
    """The ``SystemConfig`` of a config file, or ``system`` of a recipe. Raises ``ValueError`` naming the file."""
    values = flags.FlagValues()
    argument = f"--config={path}"
    try:
        holder = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=["aqaa", argument])
        values(["aqaa", argument])
        chosen = holder.value.to_dict()
    except (flags.Error, TypeError, OSError, AttributeError, KeyError, SyntaxError) as error:
        raise ValueError(f"--config={path}: {' '.join(str(error).split())}") from None
    return from_dict(SystemConfig, chosen.get("system", chosen))
