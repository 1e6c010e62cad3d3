"""The small world: embedded captioned clips with exact physics and known flaws, and tiny models trained on them.

With it, every recipe runs in minutes on two CPU cores through the same code path as a real model, and improvements are
measured against a ground truth. Real models do not use it: `evaluate` scores their clips by critics only.
"""
