"""`python -m fcn_batch`: the program."""

from fcn_batch.commands.main import main

if __name__ == "__main__":
    main(prog_name="fcn-batch")
