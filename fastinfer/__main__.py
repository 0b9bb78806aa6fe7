"""`python -m fastinfer` is `fastinfer`."""

import sys

from fastinfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
