"""What everything rests on: numpy, pydantic and the standard library. No file knows a heavier one."""
