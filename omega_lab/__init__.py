"""A laboratory for a data subnet: mine, validate, score, question and recompute."""
__version__ = "0.1.0"
