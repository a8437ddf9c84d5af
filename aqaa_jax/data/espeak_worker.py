"""The process that owns espeak-ng: run by path, standard library only, never imported.

``espeak.py`` starts it as ``python -I -S espeak_worker.py LIBRARY DATA_FOLDER``, writes every request to its standard
input as one JSON line ``[text, voice, rate_wpm, pitch, seed]`` and closes it. One binary record per request comes
back in order: ``<iii`` (sample rate, byte lengths of the phone JSON and of the PCM), the JSON, the int16 PCM. A sample
rate of 0 marks a request that espeak-ng refused; the JSON is then its message.

Every utterance is spoken by a fresh fork of a parent that has initialised the engine and never spoken, with the
engine's random seed set first. Consecutive calls in one process differ even for one text (phases, jitter, filter
memories stay behind), so this is what makes an utterance a pure function of its request.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys

SYNCHRONOUS = 2
PHONEME_EVENTS, PHONEME_IPA, DONT_EXIT = 1, 2, 0x8000
RATE, PITCH = 1, 3
UTF8 = 1
EVENT_END, EVENT_PHONEME = 0, 7
STRESS_MARKS = "ˈˌ"


class Event(ctypes.Structure):
    """``espeak_EVENT`` of speak_lib.h; the 8-byte union is read as a string (phoneme events)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_ubyte * 8),
    )


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def record(sample_rate: int, phones: object, pcm: bytes = b"") -> bytes:
    text = json.dumps(phones, ensure_ascii=False).encode()
    return struct.pack("<iii", sample_rate, len(text), len(pcm)) + text + pcm


def speak(lib: ctypes.CDLL, sample_rate: int, text: str, voice: str, rate: int, pitch: int, seed: int) -> bytes:
    """The record of one request. Runs in a fork: whatever the engine keeps dies with the process."""
    chunks: list[bytes] = []
    phones: list[tuple[str, int]] = []

    def receive(samples, count, events):
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        k = 0
        while events[k].type != EVENT_END:
            if events[k].type == EVENT_PHONEME:
                name = bytes(events[k].name).split(b"\0")[0].decode("utf-8", "ignore")
                phones.append((name.strip(STRESS_MARKS), events[k].sample))
            k += 1
        return 0

    lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    if lib.espeak_SetVoiceByName(voice.encode()) != 0:
        return record(0, f"espeak-ng has no voice {voice!r}")
    lib.espeak_SetParameter(RATE, rate, 0)
    lib.espeak_SetParameter(PITCH, pitch, 0)
    callback = CALLBACK(receive)
    lib.espeak_SetSynthCallback(callback)
    data = text.encode() + b"\0"
    error = lib.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, UTF8, None, None)
    if error != 0:
        return record(0, f"espeak-ng error {error} on {text!r}")
    return record(sample_rate, phones, b"".join(chunks))


def main() -> int:
    requests = [json.loads(line) for line in sys.stdin.buffer]
    lib = ctypes.CDLL(sys.argv[1])
    options = PHONEME_EVENTS | PHONEME_IPA | DONT_EXIT
    sample_rate = lib.espeak_Initialize(SYNCHRONOUS, 500, sys.argv[2].encode(), options)
    if sample_rate <= 0:
        print(f"espeak-ng did not start with data folder {sys.argv[2]}", file=sys.stderr)
        return 1
    lib.espeak_SetVoiceByName(b"en-us")  # loads the English dictionary once, not in every fork (8 -> 4 ms)
    for request in requests:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                write(speak(lib, sample_rate, *request))
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status != 0:
            print(f"espeak-ng failed (status {status}) on {request!r}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
