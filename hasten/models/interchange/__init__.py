"""Weights in few bits as other programs keep them: read as plain floats, and written for them to run.

Nothing else in the house knows their layouts. What is read becomes an ordinary checkpoint once, which is kept.
"""
