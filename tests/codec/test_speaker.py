"""Speaker vectors: what the network is given, what it must give back, and how it fails."""

import sys
import types

import numpy as np
import pytest

from aqaa_jax.codec import speaker


def noise(samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_features_have_zero_mean_and_follow_the_waveform():
    frames = speaker.features(noise(8000))
    assert frames.shape == (1 + (8000 - 400) // 160, 80) and frames.dtype == np.float32
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(speaker.features(2 * noise(8000)), frames, atol=2e-4)  # louder is a constant in the log
    with pytest.raises(ValueError, match="399 samples are too few"):
        speaker.features(noise(399))


@pytest.mark.torch
def test_a_network_runs_as_published(tmp_path, speaker_network):
    pytest.importorskip("onnxruntime")
    path, weight, bias = speaker_network(tmp_path / "campplus.onnx")
    for samples in (4000, 16000):
        vector = speaker.speaker_vector(path, noise(samples), 192)
        assert vector.shape == (192,) and vector.dtype == np.float32
        expected = np.abs(speaker.features(noise(samples))).mean(axis=0) @ weight + bias
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.torch
def test_networks_that_are_not_one_are_named(tmp_path, speaker_network):
    pytest.importorskip("onnxruntime")
    path, _, _ = speaker_network(tmp_path / "campplus.onnx", width=64)
    with pytest.raises(ValueError, match=r"campplus.onnx: gives a speaker vector of 64 values; the flow expects 192"):
        speaker.speaker_vector(path, noise(4000), 192)
    path.write_bytes(path.read_bytes()[:-100])
    for content in (path.read_bytes(), b"version https://git-lfs.github.com/spec/v1\n", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"campplus.onnx: not a network that onnxruntime can load \([^\n]*\)$"):
            speaker.speaker_vector(path, noise(4000), 192)
    with pytest.raises(ValueError, match=r"none.onnx: not a network that onnxruntime can load"):
        speaker.speaker_vector(tmp_path / "none.onnx", noise(4000), 192)


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"campplus.onnx: running it needs onnxruntime: pip .*'aqaa_jax\[voice\]'"):
        speaker.speaker_vector(tmp_path / "campplus.onnx", noise(4000), 192)


@pytest.mark.parametrize(
    ("result", "message"),
    [(np.full((1, 192), np.nan), "not finite"), (RuntimeError("rank\nof 2"), r"shape \[1, 23, 80\] \(rank of 2\)")],
)
def test_what_the_network_gives_is_checked(tmp_path, monkeypatch, result, message):
    class Session:
        def __init__(self, *args, **kwargs): ...

        def get_inputs(self):
            return [types.SimpleNamespace(name="input")]

        def run(self, outputs, values):
            if isinstance(result, Exception):
                raise result
            return [result]

    fake = types.SimpleNamespace(InferenceSession=Session, SessionOptions=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(ValueError, match=message):
        speaker.speaker_vector(tmp_path / "campplus.onnx", noise(4000), 192)
