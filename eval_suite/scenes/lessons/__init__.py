"""Lessons beyond one question about one scene, a file each: what is taught, and how a trained model is examined on it.

Every wording is split as those of Scenes are (``phrasing``): the last of a tuple is for test alone, the one before it
for dev alone, all others for train.
"""
