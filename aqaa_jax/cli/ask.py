"""``aqaa ask question.wav -o answer.wav``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from aqaa_jax import atomic

VOICE_HELP = """answer in the voice of this recording of up to 30 s, which the vocoder continues; needs a model whose
vocoder was trained with voice prompts (the shipped one was not); with campplus.onnx in the model folder also extra
[voice]"""
VOICE_TEXT_HELP = """what is said in PROMPT.wav; with it, the exchange of this text and that speech stands before the
question, as in the published text-to-speech prompt, so that the language model follows the voice too"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="aqaa ask", description="Answer a spoken question with speech.")
    p.add_argument("question", help="recording of the question: wav, flac, ogg or mp3, 8 kHz or more, mono or stereo")
    p.add_argument("-o", "--output", required=True, metavar="ANSWER.wav", help="where the spoken answer goes")
    p.add_argument("--text", metavar="FILE", help="also write the answer's text")
    p.add_argument("--plot", metavar="FILE.png", help="also draw the spectrograms of question and answer")
    p.add_argument("--model", metavar="DIR", help="model folder (default: the shipped pocket model)")
    p.add_argument("--voice", metavar="PROMPT.wav", help=VOICE_HELP)
    p.add_argument("--voice-text", default="", metavar="TEXT", help=VOICE_TEXT_HELP)
    p.add_argument("--transcript-first", action="store_true", help="let the model write down the question first")
    p.add_argument("--int8", action="store_true", help="round the decoder's matrices to int8: a quarter of the memory")
    p.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer (default 0)")
    p.add_argument("--json", action="store_true", help="print text, paths, durations and timings as JSON")
    return p


def run(argv: list[str]) -> int:
    """Read the question, answer it, write what was asked for, the speech last: where it is, nothing failed."""
    args = parser().parse_args(argv)
    for path in (args.output, args.text, args.plot):
        if path and not (parent := Path(path).parent).is_dir():
            raise FileNotFoundError(f"{path}: the folder {parent} does not exist")
    from aqaa_jax.dsp import wav as wavs
    from aqaa_jax.inference.answer import Aqaa

    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    question, rate = wavs.read(args.question)
    wavs.check_question(question, rate, args.question)
    prompt, prompt_rate = _read_voice(args)
    clock = time.perf_counter()
    say(f"loading {args.model or 'the shipped pocket model'} …")
    model = Aqaa.load(args.model, int8=args.int8)
    loaded = time.perf_counter() - clock
    voice = None
    if args.voice:
        say(f"taking the voice of {args.voice} ({len(prompt) / prompt_rate:.1f} s) …")
        voice = model.voice(prompt, sample_rate=prompt_rate, text=args.voice_text)
    say(f"listening to {args.question} ({len(question) / rate:.1f} s), then answering …")
    answer = model.ask(question, sample_rate=rate, seed=args.seed, transcript_first=args.transcript_first, voice=voice)
    if not len(answer.wav):
        raise ValueError(f"{args.question}: the model answered without speech (text: {answer.text!r})")
    if args.text:
        with atomic.written(args.text) as part:
            part.write_text(f"{answer.text}\n")
    if args.plot:
        from aqaa_jax.evaluation.plots import spectrograms

        titles = {f"question: {Path(args.question).name}": (question, rate)}
        titles[f"answer: “{answer.text}”"] = (answer.wav, answer.sample_rate)
        spectrograms(titles, args.plot)
    answer.save(args.output)
    report = {
        "text": answer.text,
        **({"heard": answer.heard} if args.transcript_first else {}),
        "question": args.question,
        "answer": args.output,
        **({"voice": args.voice, "voice_text": args.voice_text} if args.voice else {}),
        "text_file": args.text,
        "plot": args.plot,
        "question_seconds": round(len(question) / rate, 3),
        "answer_seconds": round(answer.seconds, 3),
        "stopped": answer.stopped,
        "load_seconds": round(loaded, 3),
        "timings": {k: round(v, 3) for k, v in answer.timings.items()},
    }
    if args.json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
        return 0
    print(f"answer: {answer.text}")
    for label, path in (("speech", args.output), ("text", args.text), ("picture", args.plot)):
        if path:
            print(f"{label:8}{path}")
    return 0


def _read_voice(args: argparse.Namespace) -> tuple[np.ndarray, int]:
    """The voice prompt and its rate, checked, with the model's configuration, before any weights are loaded."""
    from aqaa_jax.checkpoint.folder import read_config
    from aqaa_jax.dsp import wav as wavs
    from aqaa_jax.inference.system import shipped_folder
    from aqaa_jax.inference.voice import MAX_SECONDS, check_follows

    if not args.voice:
        if args.voice_text:
            raise ValueError("--voice-text is what a recording says; expected --voice PROMPT.wav beside it")
        return np.zeros(0, np.float32), 0
    check_follows(read_config(args.model or shipped_folder()))
    wav, rate = wavs.read(args.voice)
    wavs.check_question(wav, rate, args.voice, max_seconds=MAX_SECONDS)
    return wav, rate
