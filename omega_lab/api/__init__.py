"""The shared service of many validators: what was accepted, how new a clip is, what became of a miner's answers."""
from omega_lab.api.book import Book, BookError, Conflict, Space

__all__ = ["Book", "BookError", "Conflict", "Space"]
