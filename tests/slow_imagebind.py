"""ImageBind's preprocessing the slow, obvious way, to hold the quick one against: everything is decoded, everything is resampled, in torch.

Written from the definitions (clip sampling, bilinear scaling, windowed sinc, Kaldi's filter bank), sharing no code with the package.
"""
import math
from fractions import Fraction

import av
import numpy as np
import torch
from torch.nn import functional as F

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1, 1)
SPREAD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1, 1)


def starts(length, clips):
    last = Fraction(max(length - 2, 0))
    return [last / (clips - 1) * k for k in range(clips)]


def all_frames(path):
    "uint8 rgb of every frame of a film, one after the other, each turned upright."
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def count_frames(path):
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def frame_rate(path):
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate)


def slow_views(path):
    "float32[15, 3, 2, 224, 224]"
    rate, n = frame_rate(path), count_frames(path)
    clips = [(math.ceil(rate * start), min(math.ceil(rate * (start + 2)), n)) for start in starts(n / rate, 5)]
    picked = {a + k for a, b in clips for k in (0, b - a - 1)}
    kept = {k: frame.copy() for k, frame in enumerate(all_frames(path)) if k in picked}
    return torch.cat([crops_of(np.stack([kept[a], kept[b - 1]])) for a, b in clips]).numpy()


def slow_range_views(path, first, last):
    "float32[15, 3, 2, 224, 224] of the film that consists of the frames from `first` up to `last`"
    rate, frames = frame_rate(path), list(all_frames(path))[first:last]
    clips = [frames[math.ceil(rate * start):math.ceil(rate * (start + 2))] for start in starts(len(frames) / rate, 5)]
    return torch.cat([crops_of(np.stack([clip[0], clip[-1]])) for clip in clips]).numpy()


def crops_of(pair):
    "float32[3, 3, 2, 224, 224] of the two frames of a clip"
    frames = torch.from_numpy(pair).permute(3, 0, 1, 2).float() / 255  # colour, time, height, width
    height, width = pair.shape[1:3]
    size = (int(height / width * 224), 224) if width < height else (224, int(width / height * 224))
    frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    frames = (frames - MEAN) / SPREAD
    top, left = math.ceil((size[0] - 224) / 2), math.ceil((size[1] - 224) / 2)
    corners = [(0, left), (top, left), (size[0] - 224, left)] if size[0] > size[1] else [(top, 0), (top, left), (top, size[1] - 224)]
    return torch.stack([frames[:, :, y:y + 224, x:x + 224] for y, x in corners])


def all_samples(path):
    "float32[n] of the first channel, and its rate; the edit list ignored"
    parts, rate = [], 0
    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        for frame in container.decode(container.streams.audio[0]):
            block = frame.to_ndarray()
            if not frame.format.is_planar:
                block = block.reshape(-1, len(frame.layout.channels)).T
            parts.append(block[0] / 2.0 ** (8 * block.itemsize - 1) if block.dtype.kind == "i" else block[0])
            rate = frame.sample_rate
    return torch.from_numpy(np.concatenate(parts).astype(np.float32)), rate


def resample(sound, rate):
    "float32[ceil(n * 16000 / rate)]: every output sample is a sum over the input under a windowed sinc"
    common = math.gcd(rate, 16_000)
    given, made = rate // common, 16_000 // common
    if given == made:
        return sound
    corner = min(given, made) * 0.99
    width = math.ceil(6 * given / corner)
    at = torch.arange(-width, width + given, dtype=torch.float64)[None] / given - torch.arange(made, dtype=torch.float64)[:, None] / made
    at = (at * corner).clamp(-6, 6)
    kernel = torch.cos(at * math.pi / 12) ** 2 * torch.sinc(at) * corner / given
    padded = F.pad(sound[None, None], (width, width + given))
    out = F.conv1d(padded, kernel.float()[:, None], stride=given)[0].T.reshape(-1)
    return out[:math.ceil(made * len(sound) / given)]


def mel_weights():
    mel = lambda hertz: 1127.0 * math.log(1 + hertz / 700.0)  # noqa: E731
    step = (mel(8000) - mel(20)) / 129
    weights = torch.zeros(257, 128)
    for band in range(128):
        left, centre, right = (mel(20) + (band + k) * step for k in range(3))
        for line in range(256):
            here = mel(line * 16_000 / 512)
            weights[line, band] = max(0.0, min((here - left) / (centre - left), (right - here) / (right - centre)))
    return weights


MEL = mel_weights()


def fbank(sound):
    "float32[windows, 128], window after window"
    rows = []
    for begin in range(0, len(sound) - 399, 160):
        window = sound[begin:begin + 400]
        window = window - window.mean()
        window = window - 0.97 * torch.cat([window[:1], window[:-1]])
        window = window * torch.hann_window(400, periodic=False)
        power = torch.fft.rfft(F.pad(window, (0, 112))).abs() ** 2
        rows.append(torch.log(torch.clamp(power @ MEL, min=torch.finfo(torch.float32).eps)))
    return torch.stack(rows) if rows else torch.zeros(0, 128)


def slow_clips(path):
    "float32[3, 1, 128, 204]"
    return clips_of(*all_samples(path))


def clips_of(sound, rate):
    sound = resample(sound, rate)
    out = []
    for start in starts(len(sound) / 16_000, 3):
        clip = sound[int(start * 16_000):int((start + 2) * 16_000)]
        bands = fbank(clip - clip.mean())
        bands = F.pad(bands, (0, 0, 0, max(0, 204 - len(bands))))[:204]
        out.append(((bands + 4.268) / 9.138).T[None])
    return torch.stack(out).numpy()
