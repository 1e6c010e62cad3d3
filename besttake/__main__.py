"""`python -m besttake`."""

import sys

from besttake.cli import main

sys.exit(main())
