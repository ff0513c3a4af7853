"""``python -m sslcourse``: see ``sslcourse.cli``."""

import sys

from sslcourse.cli import main

if __name__ == "__main__":
    sys.exit(main())
