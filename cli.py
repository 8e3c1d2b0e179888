"""The program `fcn-batch`, for a checkout: `python cli.py segment big_image.tif`."""

from fcn_batch.commands.main import main

if __name__ == "__main__":
    main()
