"""Recordings of people completing tasks: recorded, read, judged by what they show."""
from omega_lab.focus.task import FocusError, Task, TaskList, TaskType, make_task

__all__ = ["FocusError", "Task", "TaskList", "TaskType", "make_task"]
