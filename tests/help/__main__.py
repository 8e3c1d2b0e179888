"""`python -m tests.help`: write the help of every command into this folder."""

from tests.help import write

if __name__ == "__main__":  # pytest imports it too
    write()
