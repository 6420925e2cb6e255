"""SDK 10.5's own Axon answers: {"uri", "folder", "allowed": [hotkeys], "clips", "audios"} in, its port out; it ends with its standard input."""
import socket
import sys
import typing

import bittensor
from common import AudioMetadata, Audios, VideoMetadata, Videos, keypair, order, say

want = order()
wallet = bittensor.Wallet(name="partner", hotkey="hot", path=want["folder"])
wallet.set_hotkey(keypair(want["uri"]), encrypt=False, overwrite=True)
wallet.set_coldkeypub(keypair(want["uri"]), overwrite=True)
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]


def answer(synapse: Videos) -> Videos:
    synapse.video_metadata = [VideoMetadata(**clip) for clip in want["clips"][:synapse.num_videos]]
    return synapse


def answer_sound(synapse: Audios) -> Audios:
    synapse.audio_metadata = [AudioMetadata(**clip) for clip in want["audios"][:synapse.num_audios]]
    return synapse


def refuse_sound(synapse: Audios) -> typing.Tuple[bool, str]:  # noqa: UP006
    return synapse.dendrite.hotkey not in want["allowed"], "not on the list"


def refuse(synapse: Videos) -> typing.Tuple[bool, str]:  # noqa: UP006 (the SDK compares the annotation)
    return synapse.dendrite.hotkey not in want["allowed"], "not on the list"


axon = bittensor.Axon(wallet=wallet, ip="127.0.0.1", port=port, external_ip="127.0.0.1", external_port=port)
axon.attach(forward_fn=answer, blacklist_fn=refuse)  # the default verification stays on
axon.attach(forward_fn=answer_sound, blacklist_fn=refuse_sound)
axon.start()
say(port=port)
sys.stdin.read()
axon.stop()
