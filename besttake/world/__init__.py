"""The embedded default: a small world of captioned clips with true physics, known flaws, and models trained on it.

It is there so that every recipe runs in minutes on two CPU cores, through the same code path, with a ground truth
against which "the videos got better" is *measured*. Real models need none of it; `evaluate` knows their clips when it
sees them, and leaves the measuring to critics.
"""
