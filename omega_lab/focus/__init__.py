"""Recordings of people completing tasks: recorded, read, judged by what they show."""
