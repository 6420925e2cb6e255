"""The shared service of many validators: what was accepted, how new a clip is, what became of a miner's answers."""
from omega_lab.api.book import Book, BookError, Conflict, Space, Unfit
from omega_lab.api.client import NoveltyAnswer, ServiceClient, ServiceDown, ServiceError, ServiceRefused, ServiceUntrue

__all__ = ["Book", "BookError", "Conflict", "NoveltyAnswer", "ServiceClient", "ServiceDown", "ServiceError", "ServiceRefused", "ServiceUntrue",
           "Space", "Unfit"]
