"""Sound as Whisper sees it: how loud each of some pitches is, a hundred times a second."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from wherry.worker.runtimes.graphs.graph import Array

RATE = 16_000
WINDOW_SECONDS = 30
WINDOW_SAMPLES = RATE * WINDOW_SECONDS
FRAME_SAMPLES, HOP_SAMPLES = 400, 160
FRAMES = WINDOW_SAMPLES // HOP_SAMPLES
LEAST_POWER = 1e-10
RANGE = 8.0
"""Powers of ten below the loudest: what is softer counts as that soft."""
LINEAR_HERTZ, LINEAR_MELS = 1000.0, 15.0
"""Slaney's scale of pitch: even up to here, then by ratios."""
MELS_PER_RATIO = 27.0 / np.log(6.4)


def log_mel_spectrum(samples: Array, bins: int) -> Array:
    """Of at most half a minute at 16 kHz, silence behind it: float32 [bins, 3000], about -1 to 1."""
    window = np.zeros(WINDOW_SAMPLES)
    window[: len(samples)] = samples
    padded = np.pad(window, FRAME_SAMPLES // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME_SAMPLES)[::HOP_SAMPLES][:FRAMES]
    powers = np.abs(np.fft.rfft(frames * _hann(), axis=1)) ** 2
    logs = np.log10(np.maximum(powers @ mel_filters(bins), LEAST_POWER)).T
    return ((np.maximum(logs, logs.max() - RANGE) + 4.0) / 4.0).astype(np.float32)


@lru_cache(maxsize=4)
def mel_filters(bins: int) -> Array:
    """Triangles over frequencies, [frequencies, bins], each of the same area."""
    frequencies = np.linspace(0.0, RATE / 2, FRAME_SAMPLES // 2 + 1)
    mels = np.linspace(0.0, _mels_of(RATE / 2), bins + 2)
    corners = _hertz_of(mels)
    widths = np.diff(corners)
    distances = corners[np.newaxis] - frequencies[:, np.newaxis]
    rising = -distances[:, :-2] / widths[:-1]
    falling = distances[:, 2:] / widths[1:]
    heights = 2.0 / (corners[2:] - corners[:-2])
    return np.maximum(0.0, np.minimum(rising, falling)) * heights


def _mels_of(hertz: float) -> float:
    return float(LINEAR_MELS + np.log(hertz / LINEAR_HERTZ) * MELS_PER_RATIO)


def _hertz_of(mels: Array) -> Array:
    above = LINEAR_HERTZ * np.exp((mels - LINEAR_MELS) / MELS_PER_RATIO)
    return np.where(mels < LINEAR_MELS, mels * LINEAR_HERTZ / LINEAR_MELS, above)


def _hann() -> Array:
    return np.hanning(FRAME_SAMPLES + 1)[:-1]
