"""Reading, writing, checking and preparing waveforms."""

import numpy as np
import pytest
import soundfile

from aqaa_jax.dsp.wav import check_question, energy_norm, read, resample, trim_silence, write

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_read_averages_channels(tmp_path, suffix):
    path = tmp_path / f"stereo.{suffix}"
    soundfile.write(path, np.stack([TONE, np.zeros_like(TONE)], axis=1), 16000)
    wav, rate = read(path)
    assert rate == 16000 and wav.dtype == np.float32 and wav.ndim == 1
    if suffix in ("wav", "flac"):
        assert np.abs(wav - TONE / 2).max() < 1e-4


def test_write_then_read_is_exact_on_16_bit_samples(tmp_path):
    wav = (np.arange(-100, 100) * 163 / 32768).astype(np.float32)
    write(tmp_path / "folder" / "a.wav", wav, 22050)
    back, rate = read(tmp_path / "folder" / "a.wav")
    assert rate == 22050 and np.array_equal(back, wav)
    write(tmp_path / "loud.wav", np.array([2.0, -2.0], np.float32), 16000)
    assert read(tmp_path / "loud.wav")[0].tolist() == [32767 / 32768, -1.0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "loud.wav"]


def test_write_refuses_what_is_not_a_waveform(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        write(tmp_path / "a.wav", np.array([np.nan], np.float32), 16000)
    with pytest.raises(ValueError, match="one-dimensional"):
        write(tmp_path / "a.wav", np.zeros((2, 3), np.float32), 16000)
    assert not list(tmp_path.iterdir())


def _bad_files(folder):
    whole = folder / "whole.wav"
    soundfile.write(whole, TONE, 16000)
    for suffix in ("flac", "mp3"):
        soundfile.write(folder / f"whole.{suffix}", TONE, 16000)
        data = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    (folder / "cut.wav").write_bytes(whole.read_bytes()[:5001])
    (folder / "header.wav").write_bytes(whole.read_bytes()[:30])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_bytes(b"not audio\n" * 50)
    soundfile.write(folder / "nosamples.wav", np.zeros(0), 16000)
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    return {
        "missing.wav": "no such audio file",
        "empty.wav": "empty",
        "text.wav": "not readable audio",
        "header.wav": "not readable audio",
        "cut.wav": "cut short",
        "cut.flac": "cut short",
        "cut.mp3": "cut short",
        "nosamples.wav": "no audio samples",
        "nan.wav": "not finite",
    }


def test_bad_files_give_one_line_that_names_them(tmp_path):
    for name, words in _bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=words) as error:
            read(tmp_path / name)
        message = str(error.value)
        assert str(tmp_path / name) in message and "\n" not in message, name
    with pytest.raises(ValueError, match="folder"):
        read(tmp_path)


def test_a_wav_written_into_a_pipe_is_read(tmp_path):
    path = tmp_path / "pipe.wav"
    soundfile.write(path, TONE, 16000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    assert len(read(path)[0]) == len(TONE)


@pytest.mark.parametrize(
    "wav, rate, words",
    [
        (TONE[:1599], 16000, "too short"),
        (np.zeros(0, np.float32), 16000, "too short"),
        (np.zeros(8000, np.float32), 16000, "silent"),
        (TONE * 1e-4, 16000, "silent"),
        (TONE, 7999, "sample rate"),
        (np.full(8000, np.inf, np.float32), 16000, "not finite"),
        (TONE[None], 16000, "one dimension"),
    ],
)
def test_question_is_refused(wav, rate, words):
    with pytest.raises(ValueError, match=f"^clip.wav: .*{words}"):
        check_question(wav, rate, "clip.wav")


def test_question_length_limits():
    check_question(TONE[:1600], 16000)
    check_question(TONE, 16000, max_seconds=0.5)
    with pytest.raises(ValueError, match="too long"):
        check_question(TONE, 16000, "q", max_seconds=0.49)


@pytest.mark.parametrize(
    "rate, new_rate", [(44100, 16000), (8000, 16000), (16000, 22050), (11025, 16000), (96000, 16000)]
)
def test_resampling_keeps_a_tone(rate, new_rate):
    seconds, hertz = 0.3, 600.0
    wav = np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32)
    out = resample(wav, rate, new_rate)
    assert len(out) == -(-len(wav) * new_rate // rate)
    expected = np.sin(2 * np.pi * hertz * np.arange(len(out)) / new_rate)
    assert np.abs(out - expected)[200:-200].max() < 1e-3


def test_resampling_removes_what_the_new_rate_cannot_hold():
    wav = np.sin(2 * np.pi * 11000 * np.arange(9600) / 48000).astype(np.float32)
    assert np.abs(resample(wav, 48000, 16000)[50:-50]).max() < 0.02


def test_resampling_edges():
    assert resample(TONE, 16000, 16000) is TONE
    assert len(resample(np.zeros(0, np.float32), 8000, 16000)) == 0
    with pytest.raises(ValueError, match="positive rates"):
        resample(TONE, 0, 16000)


def test_energy_norm():
    assert np.isclose(np.abs(energy_norm(TONE)).max(), 0.999)
    quiet = np.array([0.001, -0.002], np.float32)
    assert np.allclose(energy_norm(quiet), quiet * 99.9)
    assert len(energy_norm(np.zeros(0, np.float32))) == 0


def test_trim_pads_with_zeros_where_there_is_nothing_to_keep():
    trimmed = trim_silence(TONE)
    assert (len(trimmed) - 4320) % 240 == 0
    assert not np.any(trimmed[:800]) and np.array_equal(trimmed[800 : 800 + len(TONE)], TONE)
    assert len(trim_silence(np.zeros(0, np.float32))) == 0


def test_trim_cuts_quiet_edges():
    wav = np.concatenate([np.zeros(16000, np.float32), TONE, np.zeros(16000, np.float32)])
    trimmed = trim_silence(wav)
    assert len(trimmed) < len(TONE) + 4320 + 2000
    assert np.isclose(np.square(trimmed).sum(), np.square(TONE).sum(), rtol=1e-6)
