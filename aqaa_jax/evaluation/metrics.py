"""Figures of the evaluation and their 95 % intervals: proportions, edit rates, speaking rate and pitch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jiwer
import numpy as np

from aqaa_jax.evaluation.sphinx import normalize_text

Z95 = 1.959963984540054
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Chinese characters


class Estimate(NamedTuple):
    """A figure with its 95 % interval, from ``n`` observations."""

    value: float
    low: float
    high: float
    n: int


def proportion(hits: Sequence[bool]) -> Estimate:
    """Share of true values with the Wilson score interval (Wilson 1927); (0, 0, 1) of nothing."""
    n = len(hits)
    if n == 0:
        return Estimate(0.0, 0.0, 1.0, 0)
    p = sum(map(bool, hits)) / n
    scale = 1 + Z95**2 / n
    centre = (p + Z95**2 / (2 * n)) / scale
    half = Z95 / scale * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    # At 0 and 1 the bound is the value itself; rounding must not push it past.
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def bootstrap(values: Sequence[float], resamples: int = 2000, seed: int = 0, statistic: str = "mean") -> Estimate:
    """``statistic`` ("mean" or "median") with its percentile bootstrap interval."""
    if statistic not in ("mean", "median"):
        raise ValueError(f"statistic {statistic!r} is neither 'mean' nor 'median'")
    x = np.asarray(values, np.float64)
    if x.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    compute = np.mean if statistic == "mean" else np.median
    draws = np.random.default_rng(seed).integers(0, x.size, (resamples, x.size))
    low, high = np.quantile(compute(x[draws], axis=1), [0.025, 0.975])
    return Estimate(float(compute(x)), float(low), float(high), x.size)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> Estimate:
    """Share of hypotheses that equal their reference in words (case and punctuation aside). Empty never matches."""
    _same_length(hypotheses, references)
    pairs = [(normalize_text(h), normalize_text(r)) for h, r in zip(hypotheses, references, strict=True)]
    return proportion([h == r and h != "" for h, r in pairs])


def words(text: str) -> list[str]:
    """The words of a normalised text; of scripts written without spaces every character is one."""
    return re.sub(f"([{UNSPACED}])", r" \1 ", normalize_text(text)).split()


def word_edits(hypothesis: str, reference: str) -> tuple[int, int]:
    """(word edits, reference words) of one pair, by jiwer."""
    return _edits(" ".join(words(hypothesis)), " ".join(words(reference)), jiwer.process_words)


def character_edits(hypothesis: str, reference: str) -> tuple[int, int]:
    """(character edits, reference characters) of one pair, on normalised text, by jiwer."""
    return _edits(normalize_text(hypothesis), normalize_text(reference), jiwer.process_characters)


def _edits(hypothesis: str, reference: str, process: Any) -> tuple[int, int]:
    out = process([reference], [hypothesis])
    return out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> Estimate:
    """Word edits over reference words, summed over all pairs, with the bootstrap interval over pairs."""
    return error_rate([word_edits(h, r) for h, r in zip(hypotheses, references, strict=True)])


def character_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> Estimate:
    """Character edits over reference characters, summed over all pairs, with the bootstrap interval over pairs."""
    return error_rate([character_edits(h, r) for h, r in zip(hypotheses, references, strict=True)])


def error_rate(edits: Sequence[tuple[float, float]], resamples: int = 2000, seed: int = 0) -> Estimate:
    """Sum of edits over sum of lengths with its percentile bootstrap interval over pairs; nan where no length is."""
    x = np.asarray(edits, np.float64).reshape(-1, 2)
    total = x.sum(axis=0)
    if not len(x) or total[1] == 0:
        return Estimate(math.nan, math.nan, math.nan, len(x))
    draws = x[np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))].sum(axis=1)
    rates = draws[draws[:, 1] > 0]
    low, high = np.quantile(rates[:, 0] / rates[:, 1], [0.025, 0.975])
    return Estimate(float(total[0] / total[1]), float(low), float(high), len(x))


def crossed(tables: Sequence[np.ndarray], figure: Any, resamples: int = 2000, seed: int = 0) -> Estimate:
    """``figure`` of one ratio per table, with its percentile bootstrap interval over rows and columns at once.

    A table is float ``[rows, columns, 2]``: (sum, count) of every seed and case; its ratio is sum of sums over sum of
    counts. All tables are drawn alike, so that what differs is compared case by case. A table of one row stands for
    all. Over few rows a bootstrap is too narrow, as any interval is. nan where a table counts nothing.
    """
    rows, columns = max(len(t) for t in tables), tables[0].shape[1]
    rng = np.random.default_rng(seed)
    weights_RS = rng.multinomial(rows, np.full(rows, 1 / rows), resamples).astype(np.float64)
    weights_RC = rng.multinomial(columns, np.full(columns, 1 / columns), resamples).astype(np.float64)
    whole, drawn = [], []
    for table in tables:
        full = np.broadcast_to(table, (rows, columns, 2))
        total = full.sum(axis=(0, 1))
        if total[1] == 0:
            return Estimate(math.nan, math.nan, math.nan, 0)
        whole.append(total[0] / total[1])
        sums = np.einsum("rs,scx,rc->rx", weights_RS, full, weights_RC, optimize=True)
        drawn.append(sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan))
    low, high = np.nanquantile(figure(*drawn), [0.025, 0.975])
    return Estimate(float(figure(*whole)), float(low), float(high), rows * columns)


def repeats(text: str, longest: int = 12) -> bool:
    """Whether a text stutters: one word three times in a row, or a run of two to ``longest`` words twice in a row."""
    w = words(text)
    if any(w[i] == w[i + 1] == w[i + 2] for i in range(len(w) - 2)):
        return True
    return any(w[i : i + n] == w[i + n : i + 2 * n] for n in range(2, longest + 1) for i in range(len(w) - 2 * n + 1))


def active_seconds(wav: np.ndarray, rate: int, floor_db: float = -35.0) -> float:
    """Time from the first to the last 10 ms frame within ``floor_db`` of the loudest one; 0 for silence."""
    level = _frame_level(wav, max(1, rate // 100))
    if level.size == 0 or level.max() <= 1e-5:
        return 0.0
    active = np.flatnonzero(level > level.max() * 10 ** (floor_db / 20))
    return float(active[-1] - active[0] + 1) * max(1, rate // 100) / rate


def speaking_rate(wav: np.ndarray, neutral: np.ndarray, rate: int) -> float:
    """How much faster ``wav`` says what ``neutral`` says: above 1 faster, below 1 slower, nan if either is silent."""
    own, other = active_seconds(wav, rate), active_seconds(neutral, rate)
    return other / own if own > 0 and other > 0 else math.nan


def length_ratio(wav: np.ndarray, reference: np.ndarray) -> float:
    """Length of an answer over the length of its reference, both at one sample rate."""
    return len(wav) / len(reference) if len(reference) else math.nan


def median_f0(wav: np.ndarray, rate: int, fmin: float = 70.0, fmax: float = 450.0) -> float:
    """Median fundamental frequency in Hz over the clearly voiced 32 ms frames; nan if there is none.

    The peak of the normalised autocorrelation in [1/fmax, 1/fmin], the earliest one within 5 % of the highest so that
    a period is not taken for its double; voiced: peak above 0.5 and level within 20 dB of the loudest frame.
    """
    wav = np.asarray(wav, np.float64)
    hop, longest = rate // 100, int(rate / fmin)
    size = max(2 * longest, int(0.032 * rate))
    if len(wav) < size:
        return math.nan
    frames = np.lib.stride_tricks.sliding_window_view(wav, size)[::hop]
    frames = frames - frames.mean(axis=1, keepdims=True)
    level = np.sqrt((frames**2).mean(axis=1))
    if level.max() <= 1e-5:
        return math.nan
    frames = frames[level > 0.1 * level.max()]
    correlation = _normalized_autocorrelation(frames, longest + 2)
    first = max(2, int(rate / fmax))
    pitches = [_period(row, first, longest) for row in correlation]
    voiced = [rate / p for p in pitches if p > 0]
    return float(np.median(voiced)) if voiced else math.nan


def _normalized_autocorrelation(frames: np.ndarray, lags: int) -> np.ndarray:
    """(frames, lags) correlation of each frame's beginning with its shifted self, in [-1, 1]."""
    size = frames.shape[1]
    spectrum = np.fft.rfft(frames, 2 * size)
    products = np.fft.irfft(np.abs(spectrum) ** 2)[:, :lags]
    energy = np.cumsum(frames**2, axis=1)
    total = energy[:, -1:]
    lag = np.arange(lags)
    head = energy[:, size - 1 - lag]  # energy of frame[: size - lag]
    tail = total - np.where(lag > 0, energy[:, np.maximum(lag - 1, 0)], 0.0)
    return products / np.sqrt(np.maximum(head * tail, 1e-20))


def _period(correlation: np.ndarray, first: int, last: int) -> float:
    """Lag of the period with parabolic refinement, 0 when unvoiced."""
    inner = correlation[first : last + 1]
    peaks = first + np.flatnonzero(
        (inner >= correlation[first - 1 : last]) & (inner > correlation[first + 1 : last + 2])
    )
    if peaks.size == 0 or correlation[peaks].max() < 0.5:
        return 0.0
    k = int(peaks[correlation[peaks] >= 0.95 * correlation[peaks].max()][0])
    left, mid, right = correlation[k - 1 : k + 2]
    return k + 0.5 * (left - right) / (left - 2 * mid + right)


def _frame_level(wav: np.ndarray, hop: int) -> np.ndarray:
    wav = np.asarray(wav, np.float64)
    frames = wav[: len(wav) // hop * hop].reshape(-1, hop)
    return np.sqrt((frames**2).mean(axis=1))


def _same_length(a: Sequence, b: Sequence) -> None:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} hypotheses for {len(b)} references")
