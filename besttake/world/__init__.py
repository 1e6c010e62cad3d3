"""The embedded default: a small world of captioned clips with true physics, known flaws, and models trained on it.

Nothing here is needed to train a real video model. It is there so that every recipe runs in minutes on two CPU
cores, through the same code path, with a ground truth against which "the videos got better" is *measured*.
"""
