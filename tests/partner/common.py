"""What both partner scripts share. They run in an environment with the SDK up to 10, never with this project's packages."""
import json
import sys

import bittensor.utils.networking

bittensor.utils.networking.get_external_ip = lambda: "127.0.0.2"  # it would ask the internet
import bittensor  # noqa: E402
import pydantic  # noqa: E402
from bittensor_wallet import Keypair  # noqa: E402


class VideoMetadata(pydantic.BaseModel):
    """One clip, as the subnet's neurons declare it."""
    video_id: str
    description: str
    views: int
    start_time: int
    end_time: int
    video_emb: list[float]
    audio_emb: list[float]
    description_emb: list[float]


class Videos(bittensor.Synapse):
    """The subnet's question and answer."""
    query: str
    num_videos: int
    video_metadata: list[VideoMetadata] | None = None


class AudioMetadata(pydantic.BaseModel):
    """One clip of sound, as the subnet's neurons declare it."""
    video_id: str
    views: int
    start_time: int
    end_time: int
    audio_emb: list[float]
    audio_bytes: str
    diar_timestamps_start: list[float]
    diar_timestamps_end: list[float]
    diar_speakers: list[str]


class Audios(bittensor.Synapse):
    """The audio task's question and answer."""
    query: str
    num_audios: int
    audio_metadata: list[AudioMetadata] | None = None


def keypair(uri: str) -> Keypair:
    """A development hotkey."""
    return Keypair.create_from_uri(uri)


def order() -> dict:
    """What the test wants, as JSON in the first argument."""
    return json.loads(sys.argv[1])


def say(**what) -> None:
    """Tell the test, one JSON line."""
    print("PARTNER " + json.dumps(what), flush=True)
