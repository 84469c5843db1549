"""``python -m roomkit``."""

import sys

from roomkit.cli import main

sys.exit(main())
