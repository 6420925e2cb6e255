"""SDK 10.5's own Dendrite asks: {"uri", "receiver", "port", "query", "num_videos", "kind", "timeout"} in, what came back out."""
import asyncio

import bittensor
from common import Audios, Videos, keypair, order, say

want = order()


async def ask():
    question = Videos(query=want["query"], num_videos=want["num_videos"]) if want["kind"] == "Videos" else Audios(query="a podcast", num_audios=4)
    place = bittensor.AxonInfo(version=1, ip="127.0.0.1", port=want["port"], ip_type=4, hotkey=want["receiver"], coldkey=want["receiver"])
    async with bittensor.Dendrite(wallet=keypair(want["uri"])) as dendrite:
        return await dendrite.call(place, question, timeout=want["timeout"], deserialize=False)


answer = asyncio.run(ask())
axon, dendrite = answer.axon, answer.dendrite
text = f"{axon.nonce}.{dendrite.hotkey}.{axon.hotkey}.{axon.uuid}"
clips = answer.video_metadata if want["kind"] == "Videos" else answer.audio_metadata
told = [{name: len(value) if name == "audio_bytes" else value for name, value in clip.model_dump().items()} for clip in clips or []]
say(status=dendrite.status_code, message=dendrite.status_message, clips=told if clips is not None else None,
    signed=bool(axon.signature) and axon.hotkey == want["receiver"] and
    bittensor.Keypair(ss58_address=want["receiver"]).verify(text, axon.signature))
