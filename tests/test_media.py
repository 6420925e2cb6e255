"""Media files of the awkward kinds, made here with PyAV."""
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest

from omega_lab.media import MediaError, audio, cut, file_sha256, frames, open_media, probe, scene_changes, write_film


def shades(n, size=(48, 64)):
    return (np.full((*size, 3), 8 * (i % 30), np.uint8) for i in range(n))


def raw_film(path, times_ms, size=(64, 48), rate=None):
    """A film with frames at the given times, each a shade; optionally two seconds of a stereo tone at `rate`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("pcm_s16le", rate=rate, layout="stereo") if rate else None
        for i, ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 8 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = ms, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if rate:
            n = rate * 2
            tone = (9000 * np.sin(2 * np.pi * 500 * np.arange(n) / rate)).astype(np.int16)
            block = av.AudioFrame.from_ndarray(np.repeat(tone, 2)[None], format="s16", layout="stereo")
            block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
            container.mux([*sound.encode(block), *sound.encode()])
    return path


def test_a_phone_held_upright(tmp_path):
    "The picture is stored lying, with a note of the turn: what is seen stands."
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :, 0] = 255  # the upper half is red
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.set_display_rotation(90)
        for _ in range(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    info, (seen,) = probe(tmp_path / "turned.mp4"), frames(tmp_path / "turned.mp4", [0.5])
    assert seen.shape[:2] == (info.width, info.height) == (64, 48)
    assert seen[:, :20, 0].mean() > 200 and seen[:, 28:, 0].mean() < 40, "a quarter turn to the left brings the upper half to the left"


def test_silent_film(tmp_path):
    film = write_film(tmp_path / "silent.mp4", shades(30), fps=10)
    info = probe(film)
    assert info.has_video and not info.has_audio and info.sample_rate is None
    assert info.duration == pytest.approx(3, abs=0.15)
    assert audio(film) is None
    assert not probe(cut(film, 1, 2, tmp_path / "part.mp4")).has_audio


def test_portrait_and_odd_edges(tmp_path):
    film = write_film(tmp_path / "portrait.mp4", shades(10, size=(81, 45)), fps=10)
    assert (probe(film).width, probe(film).height) == (44, 80)
    assert frames(film, [0.5]).shape == (1, 80, 44, 3)
    small = cut(film, 0, 1, tmp_path / "small.mp4", height=41)
    assert (probe(small).width, probe(small).height) == (22, 40)


def test_frame_shown_at_a_time_with_variable_rate(tmp_path):
    film = raw_film(tmp_path / "vfr.mkv", [0, 40, 80, 1000, 1040, 3000])
    seen = frames(film, [0.05, 0.9, 1.01, 2.9, 3.0]).mean((1, 2, 3)).round()
    assert np.allclose(seen, [8, 16, 24, 32, 40], atol=3)
    steady = frames(cut(film, 0, 3, tmp_path / "steady.mp4", fps=10), [0.5, 2.0]).mean((1, 2, 3))
    assert np.allclose(steady, [16, 32], atol=3)


def test_times_in_any_order_and_twice(tmp_path):
    film = write_film(tmp_path / "film.mp4", shades(60), fps=10)
    times = [4.05, 0.05, 4.05, 2.55]
    assert np.allclose(frames(film, times).mean((1, 2, 3)), [80, 0, 80, 200], atol=4)


def test_a_header_that_lies(tmp_path):
    film = write_film(tmp_path / "film.mp4", shades(40), fps=10)
    data = bytearray(film.read_bytes())
    for box in (b"mvhd", b"tkhd"):  # the movie and track headers now claim far more
        at = data.index(box) + {b"mvhd": 4 + 4 + 8 + 4, b"tkhd": 4 + 4 + 8 + 8}[box]
        data[at:at + 4] = (3_600_000).to_bytes(4, "big")
    liar = tmp_path / "liar.mp4"
    liar.write_bytes(data)
    assert probe(liar).duration == pytest.approx(4, abs=0.2)
    with pytest.raises(MediaError, match="ends before"):
        frames(liar, [30.0])
    with pytest.raises(MediaError, match="ends before"):
        cut(liar, 30, 40, tmp_path / "none.mp4")
    assert not (tmp_path / "none.mp4").exists()


def test_a_file_that_breaks_off(tmp_path):
    film = write_film(tmp_path / "film.mp4", shades(100), fps=10)
    whole = film.read_bytes()
    short = tmp_path / "short.mp4"
    short.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(MediaError, match=r"short\.mp4"):
        frames(short, [0.5, 9.5])


@pytest.mark.parametrize("content", [b"", b"no media at all", b"\0" * 4096, b"\x1aE\xdf\xa3" + b"x" * 500])
def test_not_media(tmp_path, content):
    path = tmp_path / "what.mp4"
    path.write_bytes(content)
    for act in (probe, scene_changes, lambda p: frames(p, [0]), audio):
        with pytest.raises(MediaError, match=r"what\.mp4"):
            act(path)


def test_missing_file_and_bad_ranges(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        probe(tmp_path / "nothing.mp4")
    with pytest.raises(MediaError, match="no such file"):
        file_sha256(tmp_path / "nothing.mp4")
    film = write_film(tmp_path / "film.mp4", shades(10), fps=10)
    for bad in ([-1.0], [float("nan")], [float("inf")], []):
        with pytest.raises(MediaError):
            frames(film, bad)
    for start, end in ((1, 1), (-1, 1), (2, 1)):
        with pytest.raises(MediaError, match="empty or negative"):
            cut(film, start, end, tmp_path / "x.mp4")
        with pytest.raises(MediaError, match="empty or negative"):
            audio(film, start, end)
    with pytest.raises(MediaError, match="no pictures"):
        write_film(tmp_path / "empty.mp4", [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.mp4"]


def test_stereo_becomes_mono_at_the_wanted_rate_and_place(tmp_path):
    film = raw_film(tmp_path / "stereo.mkv", [0, 1000, 1960], rate=44_100)
    whole, part = audio(film), audio(film, 0.75, 1.25)
    assert len(part) == 8000 and abs(len(whole) - 32_000) < 50
    assert np.abs(np.fft.rfft(part)).argmax() == 250  # 500 Hz in half a second
    assert np.corrcoef(part, whole[12_000:20_000])[0, 1] > 0.99
    assert len(audio(film, 5, 6)) == 0


def test_sound_alone_has_no_frames(tmp_path):
    path = tmp_path / "tone.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        block.sample_rate = 8000
        container.mux([*stream.encode(block), *stream.encode()])
    assert probe(path).duration == pytest.approx(1, abs=0.01) and not probe(path).has_video
    with pytest.raises(MediaError, match="no video track"):
        frames(path, [0])


def test_same_input_same_bytes(tmp_path):
    sound = np.sin(np.arange(16_000) / 9).astype(np.float32)
    one, two = (write_film(tmp_path / n, shades(20), fps=10, sound=sound) for n in ("1.mp4", "2.mp4"))
    assert file_sha256(one) == file_sha256(two)


def test_error_survives_pickling(tmp_path):
    with pytest.raises(MediaError) as caught, open_media(tmp_path / "gone.mp4"):
        pass
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
