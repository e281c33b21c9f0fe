"""All four commands in one world: ``python -m tests.reliability short=true`` takes few minutes."""

import sys

from .disk import disk
from .fuzz import fuzz
from .kill import kill
from .report import main
from .together import together

sys.exit(main(kill, fuzz, disk, together))
