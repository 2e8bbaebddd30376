"""`python -m perdure.cli`, for where the script is not on the path."""

import sys

from perdure.cli import main

sys.exit(main())
