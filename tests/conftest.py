"""For all tests: no test is judged by how long it takes. Speed belongs to `make bench`, as ratios."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("mirrorha", deadline=None)
hypothesis.settings.load_profile("mirrorha")
