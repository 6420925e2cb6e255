"""The miner in two halves: rounds that prepare clips, and a server that answers."""
from omega_lab.miner.answer import Answerer, expected_topics, read_log
from omega_lab.miner.audio import open_audio, prepare_sound
from omega_lab.miner.prepare import Shelf, Tools, make_source, make_tools, open_shelf, prepare
from omega_lab.miner.server import start_server
from omega_lab.serving import read_card, stop_server

__all__ = [
    "Answerer", "Shelf", "Tools", "expected_topics", "make_source", "make_tools",
    "open_audio", "open_shelf", "prepare", "prepare_sound", "read_card", "read_log", "start_server", "stop_server",
]
