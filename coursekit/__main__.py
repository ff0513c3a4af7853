"""``python -m coursekit``: see ``commands``."""

import sys

from coursekit.commands import main

if __name__ == "__main__":
    sys.exit(main())
