"""`python -m besttake`."""

import sys

from besttake.commands.cli import main

sys.exit(main())
