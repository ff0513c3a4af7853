"""``python -m sslcourse``: see ``sslcourse.commands.command_line``."""

import sys

from sslcourse.commands.command_line import main

if __name__ == "__main__":
    sys.exit(main())
