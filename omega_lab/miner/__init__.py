"""The miner in two halves: rounds that prepare clips, and a server that answers."""
from omega_lab.miner.answer import Answerer, read_log
from omega_lab.miner.prepare import Shelf, make_source, open_shelf, prepare
from omega_lab.miner.server import read_card, start_server, stop_server

__all__ = ["Answerer", "Shelf", "make_source", "open_shelf", "prepare", "read_card", "read_log", "start_server", "stop_server"]
